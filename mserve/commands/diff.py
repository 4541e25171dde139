"""`mserve diff`: what changed between two versions, and whether clients break."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from . import _output

if TYPE_CHECKING:
    from ..compare import Change, Diff

SHOWN = 20


class Format(StrEnum):
    """What is printed."""

    text = "text"
    json = "json"
    markdown = "markdown"


def _explain(asked: bool) -> None:
    if asked:
        from ..compare import TABLE

        rows = [(rule.level, name, rule.severity, rule.meaning) for name, rule in TABLE.items()]
        _output.table(("level", "rule", "class", "means"), rows)
        raise typer.Exit


def command(
    old: Annotated[
        Path,
        typer.Argument(metavar="OLD", help="A version directory, base path, ONNX file or SavedModel."),
    ],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="Likewise; the two may be of different kinds.")],
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-on",
            help="Exit 1 on: breaking, signature, graph, weights, assets, outputs, any. May be repeated.",
        ),
    ] = None,
    outputs: Annotated[
        bool | None,
        typer.Option("--outputs/--no-outputs", help="Compare answers; default: where samples are recorded."),
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option(help="Requests to compare answers on: an npz file or a JSON request.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="One label for each row (npy, npz, text): AUC, log-loss, accuracy.")
    ] = None,
    signature: Annotated[str, typer.Option(help="Which signature --inputs are for.")] = "",
    rtol: Annotated[
        float, typer.Option(help="Tolerance of answers, relative to the largest of a row.")
    ] = 1e-3,
    atol: Annotated[float, typer.Option(help="Absolute tolerance of answers.")] = 1e-5,
    seconds: Annotated[
        float, typer.Option(min=1, help="What a version may take to load and answer.")
    ] = 300.0,
    form: Annotated[Format, typer.Option("--format", help="What to print.")] = Format.text,
    html: Annotated[Path | None, typer.Option(help="Also write a page of HTML to this file.")] = None,
    explain: Annotated[
        bool, typer.Option("--explain", callback=_explain, is_eager=True, help="Print the table of rules.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Compare two versions: signatures, graph, weights, assets, and answers.

    Exit 0: compared, and nothing of what --fail-on names; 1: some of it; 3: not a readable model.
    """
    from .. import compare
    from ..compare.change import check_fail_on
    from ..outfiles import OutFiles

    wanted = check_fail_on(fail_on or [])
    if outputs is False and (inputs or labels):
        raise UsageError("--no-outputs and --inputs or --labels", hint="leave one of them out")
    asked = True if outputs is None and (inputs or labels) else outputs
    options = compare.Options(asked, inputs, labels, signature, rtol, atol, seconds=seconds)
    with OutFiles([html] if html else []) as files:
        found = compare.diff(
            old, new, options, fail_on=wanted, progress=lambda s: _output.note(f"comparing {s}")
        )
        if html is not None:
            from ..compare.html import render

            files.write(html, [render(found)])
    failing = found.failing(wanted)
    if as_json or form is Format.json:
        _output.emit_json("diff", {**found.to_json(), "fail_on": wanted, "failed": bool(failing)})
    elif form is Format.markdown:
        from ..compare.markdown import render

        _output.line(render(found).rstrip("\n"))
    else:
        _show(found, failing)
    if failing:
        raise typer.Exit(1)


def _show(found: Diff, failing: list[Change]) -> None:
    """Levels, changes, patches, and the verdict as the last line."""
    from ..compare.change import worst_first
    from ..compare.markdown import sentence

    _output.table(
        ("level", "verdict", "compared"),
        [(level.name, level.verdict, level.shown) for level in found.levels],
    )
    changes = [c for level in found.levels for c in worst_first(level.changes)[:SHOWN]]
    if changes:
        rows = [(c.level, c.severity, c.rule, c.where, sentence(c)) for c in changes]
        _output.table(("level", "class", "rule", "where", "change"), rows)
    for change in changes:
        patch = change.facts.get("patch", ())
        for text in patch[:SHOWN]:
            _output.line(_output.printable(text))
        if len(patch) > SHOWN:
            _output.line(f"... {len(patch) - SHOWN} more lines")
        for row in change.facts.get("worst_rows", ()):
            _output.line(f"  {change.where} row {row['row']}: {row['old']} -> {row['new']}")
    hidden = sum(len(level.changes) for level in found.levels) - len(changes)
    if hidden > 0:
        _output.line(f"and {hidden} more changes, which --json prints")
    _output.line(f"{'FAILED: ' if failing else ''}{found.verdict()}")
