"""`mserve gc`: remove old versions of a base path."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import _output


def command(
    base_path: Annotated[Path, typer.Argument(metavar="BASE_PATH", help="Where the model's versions lie.")],
    keep: Annotated[int, typer.Option(help="How many of the newest whole versions to keep.")],
    pin: Annotated[list[int] | None, typer.Option(help="A version to keep in any case; repeatable.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Remove all but the newest versions; never one that a running process has loaded."""
    from ..format.collector import collect

    verdicts = collect(base_path, keep, pin or (), dry_run=dry_run)
    if as_json:
        entries = [
            {"version": v.version, "path": str(v.path), "removed": v.removed, "reason": v.reason}
            for v in verdicts
        ]
        _output.emit_json("gc", {"path": str(base_path), "dry_run": dry_run, "versions": entries})
        return
    done = "would go" if dry_run else "removed"
    _output.table(
        ("version", "verdict", "reason"),
        [(v.version, done if v.removed else "kept", v.reason) for v in verdicts],
    )
