"""`mserve gate`: whether a new version may take the place of the old one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from . import _output
from ._options import with_options

if TYPE_CHECKING:
    from ..workflows.gate import Gate
    from ..workflows.policy import Policy

ALL = "all"
SHOWN = 40


class Format(StrEnum):
    """What is printed."""

    text = "text"
    json = "json"
    markdown = "markdown"


class Expect(StrEnum):
    """What NEW is meant to be."""

    retrained = "retrained"
    same = "same"


def _explain(name: str | None) -> None:
    if name is not None:
        from ..workflows.explain import one, table

        if name == ALL:
            _output.table(("step", "rule", "severity", "means"), table())
        else:
            for line in one(name):
                _output.line(line)
        raise typer.Exit


@dataclass(frozen=True)
class Asked:
    """How the two are compared."""

    policy: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What to do about each rule, as TOML.")
    ] = None
    expect: Annotated[
        Expect | None,
        typer.Option(help="What NEW is: trained again (the default), or the same model, written otherwise."),
    ] = None
    strict: Annotated[bool, typer.Option("--strict", help="INCONCLUSIVE is exit 1, too.")] = False
    inputs: Annotated[
        Path | None, typer.Option(help="Requests to compare answers on: an npz file or a JSON request.")
    ] = None
    labels: Annotated[
        Path | None, typer.Option(help="One label for each row (npy, npz, text): AUC, log-loss, accuracy.")
    ] = None
    signature: Annotated[str, typer.Option(help="Which signature --inputs are for.")] = ""
    latency: Annotated[
        str, typer.Option(metavar="off|quick|default|SECONDS", help="How long both are measured in turn.")
    ] = "default"
    seconds: Annotated[float, typer.Option(min=1, help="What a version may take to load and answer.")] = 300.0


@dataclass(frozen=True)
class Written:
    """Where the answer goes."""

    form: Annotated[Format, typer.Option("--format", help="What to print.")] = Format.text
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write JUnit XML.")] = None
    sarif: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write SARIF 2.1.0.")] = None
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a page of HTML.")] = None
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write markdown.")] = None
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False


@with_options(asked=Asked, written=Written)
def command(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="A version directory, base path or ONNX file.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="Likewise; a bundle, to be checked wholly.")],
    explain: Annotated[
        str | None,
        typer.Option(
            metavar="[RULE]", callback=_explain, is_eager=True, help="Explain a rule, or list all, and exit."
        ),
    ] = None,
    *,
    asked: Asked,
    written: Written,
) -> None:
    """Say whether NEW may take the place of OLD: what changed, what breaks, what is slower.

    Exit 0: PASS, or INCONCLUSIVE without --strict; 1: FAIL; 2: bad options; 3: a bad model or policy.
    """
    from ..outfiles import OutFiles
    from ..workflows.gate import Options, gate
    from ..workflows.reports import RENDERERS

    if asked.labels is not None and not asked.labels.exists():
        raise UsageError("there are no labels", where=asked.labels, hint="one label a row: npy, npz or text")
    options = Options(asked.inputs, asked.labels, asked.signature, asked.latency, asked.seconds)
    places = {name: path for name in RENDERERS if (path := getattr(written, name)) is not None}
    with OutFiles(list(places.values())) as files:
        found = gate(old, new, options, _policy(asked), lambda step: _output.note(f"gate: {step}"))
        for name, path in places.items():
            files.write(path, [RENDERERS[name](found)])
    if written.as_json or written.form is Format.json:
        _output.emit_json("gate", found.to_json())
    elif written.form is Format.markdown:
        from ..workflows.markdown import render

        _output.line(render(found).rstrip("\n"))
    else:
        _show(found)
    if found.exit_code():
        raise typer.Exit(1)


def _policy(asked: Asked) -> Policy:
    """The policy of the file, or the default one; what the command line says comes first."""
    from ..workflows.policy import Policy, read_policy

    policy = read_policy(asked.policy) if asked.policy is not None else Policy()
    if asked.expect is not None:
        policy = replace(policy, expect=asked.expect.value)
    return replace(policy, strict=True) if asked.strict else policy


def _show(found: Gate) -> None:
    """Steps, reasons, and the verdict as the last line."""
    from ..workflows.judge import notes
    from ..workflows.rules import NOTE

    _output.table(("step", "seconds", ""), [(s.name, f"{s.seconds:.1f}", s.summary) for s in found.steps])
    reasons = [r for r in found.reasons if r.severity != NOTE]
    if reasons:
        rows = [(r.severity, r.step, r.rule, r.where, r.text) for r in reasons[:SHOWN]]
        _output.table(("severity", "step", "rule", "where", "reason"), rows)
    if len(reasons) > SHOWN:
        _output.line(f"and {len(reasons) - SHOWN} more reasons, which --json prints")
    if reported := [f"{rule} x{count}" for rule, count in notes(found.reasons)]:
        _output.line(f"reported: {', '.join(reported)}")
    _output.line(found.sentence())
