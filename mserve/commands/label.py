"""`mserve label`: list a model's labels, or move them to other versions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from . import _output


def command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model's name in the configuration.")],
    moved: Annotated[
        list[str] | None,
        typer.Argument(metavar="LABEL=VERSION...", help="Labels to move; without any, all are listed."),
    ] = None,
    config: Annotated[Path, typer.Option(help="The configuration file.")] = Path("mserve.toml"),
    remove: Annotated[list[str] | None, typer.Option(help="A label to remove; repeatable.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Take a version that is not there yet.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Move labels of a model to other versions, in the configuration file that the server follows."""
    from ..server.labels import edit_labels, read_model

    if not moved and not remove:
        labels = read_model(config, name).labels
        if as_json:
            _output.emit_json("label", {"path": str(config), "model": name, "labels": dict(labels)})
            return
        _output.table(("label", "version"), list(labels.items()))
        if not labels:
            _output.note(f"{name} has no labels; mserve label {name} stable=VERSION sets one")
        return
    edit = edit_labels(config, name, _labels(moved or []), remove or (), force=force)
    if as_json:
        document = {"path": str(config), "model": name, "old": dict(edit.old), "labels": dict(edit.new)}
        _output.emit_json("label", document)
    else:
        rows = [(n, edit.old.get(n, "none"), edit.new.get(n, "none")) for n in {**edit.old, **edit.new}]
        _output.table(("label", "old", "new"), rows)
    if edit.old == edit.new:
        _output.note("nothing to change")
    else:
        _output.note(f"a server that was started with --config {config} follows by itself")


def _labels(items: list[str]) -> dict[str, int]:
    labels: dict[str, int] = {}
    for item in items:
        label, _, version = item.rpartition("=")
        if not label or not (version.isascii() and version.isdigit() and len(version) <= 19):
            raise UsageError("bad label", expected="LABEL=VERSION, such as stable=3", found=item[:60])
        if label in labels:
            raise UsageError("a label is given twice", found=label)
        labels[label] = int(version)
    return labels
