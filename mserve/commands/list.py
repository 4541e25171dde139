"""`mserve list`: the versions of a base path."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import MserveError, NotABundle
from . import _output


def command(
    base_path: Annotated[Path, typer.Argument(metavar="BASE_PATH", help="Where the model's versions lie.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List versions with size, identity and state, oldest first."""
    from ..format.layout import resolve, versions

    if not base_path.is_dir():
        resolve(base_path)
        raise NotABundle("not a base path", where=base_path)
    found = versions(base_path)
    owners: Counter[tuple[int, int]] = Counter()
    entries = [_entry(version, path, owners) for version, path in found.items()]
    if entries:
        entries[-1]["newest"] = True
    if as_json:
        _output.emit_json("list", {"path": str(base_path), "versions": entries})
        return
    if not entries:
        resolve(base_path)
    rows = [
        (
            e["version"],
            _output.size(e["bytes"]) if e["ok"] else "-",
            _output.size(e["shared_bytes"]) if e["ok"] else "-",
            e["identity"][:12] if e["ok"] else "-",
            "newest" if e["newest"] and e["ok"] else ("ok" if e["ok"] else e["problem"]),
        )
        for e in entries
    ]
    _output.table(("version", "size", "shared", "identity", "state"), rows)


def _entry(version: int, path: Path, owners: Counter[tuple[int, int]]) -> dict[str, Any]:
    """One version; `shared_bytes` are those of files that an older version holds too."""
    from ..format import open_bundle

    entry: dict[str, Any] = {"version": version, "path": str(path), "ok": True, "newest": False}
    try:
        bundle = open_bundle(path)
    except MserveError as error:
        return entry | {"ok": False, "problem": str(error)}
    shared = 0
    for record in bundle.metagraph.shards:
        status = bundle.file(record).stat()
        shared += status.st_size if owners[status.st_dev, status.st_ino] else 0
        owners[status.st_dev, status.st_ino] += 1
    return entry | {
        "bytes": bundle.byte_size,
        "shared_bytes": shared,
        "identity": bundle.metagraph.identity,
        "content": bundle.metagraph.content,
    }
