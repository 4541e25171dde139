"""`mserve validate`: whether a bundle is what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import _output


def command(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A version directory or a base path.")],
    rtol: Annotated[float, typer.Option(help="Relative tolerance of golden outputs.")] = 1e-3,
    atol: Annotated[float, typer.Option(help="Absolute tolerance of golden outputs.")] = 1e-5,
    full: Annotated[
        bool, typer.Option("--full", help="Also shapes, unused weights, and whether rows are independent.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check every digest, the shards' structure, the graph, and the recorded answers.

    Exit 0: no errors (warnings do not count); 1: findings; 3: not a readable bundle.
    """
    from ..checks import ERROR, Tolerance, validate
    from ..format import open_bundle

    opened = open_bundle(bundle)
    findings = validate(
        opened, Tolerance(rtol, atol), full=full, progress=lambda step: _output.note(f"checking {step}")
    )
    errors = [f for f in findings if f.severity == ERROR]
    if as_json:
        _output.emit_json(
            "validate",
            {
                "path": str(opened.path),
                "identity": opened.metagraph.identity,
                "ok": not errors,
                "findings": [f.to_json() for f in findings],
            },
        )
    else:
        if findings:
            _output.table(
                ("severity", "code", "where", "finding"),
                [(f.severity, f.code, f.where, f.text) for f in findings],
            )
        files = len(opened.metagraph.files()) + 1
        _output.line(f"{'FAILED' if errors else 'ok'}: {opened.path}: {files} files, {len(errors)} error(s)")
    if errors:
        raise typer.Exit(1)
