"""A gate as markdown, for a pull request's comment."""

from __future__ import annotations

from ..compare.markdown import cell
from .gate import Gate
from .judge import Reason, notes
from .rules import NOTE

MAX_ROWS = 50


def render(gate: Gate) -> str:
    """The verdict, the reasons, the steps, and what is only reported folded away."""
    old, new = gate.diff.old, gate.diff.new
    lines = [f"### mserve gate: {cell(gate.sentence())}", ""]
    lines += [f"OLD {cell(old['path'])}  ", f"NEW {cell(new['path'])}", ""]
    shown = [reason for reason in gate.reasons if reason.severity != NOTE]
    if shown:
        lines += ["| | step | rule | where | reason |", "|---|---|---|---|---|"]
        lines += [_row(reason) for reason in shown[:MAX_ROWS]]
    if len(shown) > MAX_ROWS:
        lines += ["", f"and {len(shown) - MAX_ROWS} more"]
    lines += [
        "",
        "<details><summary>steps and changes</summary>",
        "",
        "| step | | seconds |",
        "|---|---|---|",
    ]
    lines += [f"| {s.name} | {cell(s.summary)} | {s.seconds:.1f} |" for s in gate.steps]
    reported = [f"{rule} x{count}" for rule, count in notes(gate.reasons)]
    if reported:
        lines += ["", f"Reported, and let pass: {cell(', '.join(reported))}"]
    return "\n".join([*lines, "", "</details>", ""])


def _row(reason: Reason) -> str:
    cells = (reason.step, reason.rule, cell(reason.where), cell(reason.text))
    return f"| **{reason.severity}** | {' | '.join(cells)} |"
