"""`mserve gc`: remove old versions of a base path."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from . import _output


def command(
    base_path: Annotated[Path, typer.Argument(metavar="BASE_PATH", help="Where the model's versions lie.")],
    keep: Annotated[int, typer.Option(help="How many of the newest whole versions to keep.")],
    pin: Annotated[list[int] | None, typer.Option(help="A version to keep in any case; repeatable.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="A configuration file: versions that it lists or labels are kept.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Remove all but the newest versions; never one that a running process has loaded."""
    from ..format.collector import collect

    pinned = {**_named(config, base_path), **dict.fromkeys(pin or (), "pinned")}
    verdicts = collect(base_path, keep, pinned, dry_run=dry_run)
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


def _named(config: Path | None, base_path: Path) -> dict[int, str]:
    """The versions of a base path that a configuration names, each with the reason for keeping it."""
    if config is None:
        return {}
    from ..server.config import Source, parse, read_text

    models = parse(Source(config), read_text(config)).models.values()
    found = [m for m in models if m.base_path.resolve() == base_path.resolve()]
    if not found:
        # Going on would remove versions that whoever gave --config wants to keep.
        raise UsageError("no model of the configuration has this base path", where=config, found=base_path)
    listed = [v for m in found if isinstance(m.versions, tuple) for v in m.versions]
    named = dict.fromkeys(listed, "listed in the configuration")
    for model in found:
        for label, version in model.labels.items():
            before = f"{named[version]}, " if "labelled" in named.get(version, "") else "labelled "
            named[version] = before + label
    return named
