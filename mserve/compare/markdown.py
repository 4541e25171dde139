"""A comparison as markdown, for a pull request's comment."""

from __future__ import annotations

import re

from ..errors import printable
from .change import NONE, Change, Diff

MAX_ROWS = 50
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|~#@!&])")


def cell(text: object) -> str:
    """Text that is itself in a table of markdown: no markup, no mention of anybody, one line."""
    return _SPECIAL.sub(r"\\\1", printable(str(text)).replace("\n", " ")).replace("\\@", "@\u200b")


def render(diff: Diff) -> str:
    """The verdict, a table of levels, a table of changes, and patches folded away."""
    lines = [f"### mserve diff: {cell(diff.verdict())}", ""]
    lines += [f"OLD {cell(diff.old['path'])}  ", f"NEW {cell(diff.new['path'])}", ""]
    lines += ["| level | verdict | |", "|---|---|---|"]
    lines += [f"| {level.name} | {level.verdict} | {cell(level.shown)} |" for level in diff.levels]
    shown = [change for change in diff.changes if change.severity != NONE]
    if shown:
        lines += ["", "| class | rule | where | change |", "|---|---|---|---|"]
        lines += [_row(change) for change in shown[:MAX_ROWS]]
    if len(shown) > MAX_ROWS:
        lines += ["", f"and {len(shown) - MAX_ROWS} more"]
    for change in shown[:MAX_ROWS]:
        lines += _patch(change)
    return "\n".join(lines) + "\n"


def _row(change: Change) -> str:
    severity = f"**{change.severity}**" if change.severity == "breaking" else change.severity
    return f"| {severity} | {change.rule} | {cell(change.where)} | {cell(sentence(change))} |"


def sentence(change: Change) -> str:
    """What happened, with what was and what is, where the text does not say so itself."""
    told = change.old in change.text or change.new in change.text or change.old == change.new
    both = change.old and change.new and not told
    return f"{change.text}: {change.old} -> {change.new}" if both else change.text


def _patch(change: Change) -> list[str]:
    patch = [printable(line).replace("```", "'''") for line in change.facts.get("patch", ())]
    if not patch:
        return []
    return [
        "",
        f"<details><summary>{cell(change.text)}</summary>",
        "",
        "```diff",
        *patch,
        "```",
        "</details>",
    ]
