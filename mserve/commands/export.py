"""`mserve export`: a model file becomes a new version of a base path."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from ..numerics import parse_size
from . import _output
from ._output import emit_json

if TYPE_CHECKING:
    from ..exporters.pipeline import Export


def command(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="The model: an ONNX file, or a .csv or .npz table.")
    ],
    base_path: Annotated[Path, typer.Argument(metavar="BASE_PATH", help="Where the model's versions lie.")],
    kind: Annotated[
        str, typer.Option("--from", metavar="KIND", help="onnx or table; default: told by the source.")
    ] = "",
    key: Annotated[
        str, typer.Option(help="The key column of a table; default: key, or the first column of a CSV file.")
    ] = "",
    version: Annotated[str, typer.Option(help="A number, auto (the next) or time (Unix time).")] = "auto",
    name: Annotated[str, typer.Option(help="The model's name; default: the base path's.")] = "",
    signatures: Annotated[
        Path | None, typer.Option(help="A TOML file of signatures; default: derived from the graph.")
    ] = None,
    asset: Annotated[
        list[str] | None, typer.Option(help="PATH or PATH=NAME of a file to ship; repeatable.")
    ] = None,
    golden: Annotated[
        str | None,
        typer.Option(help="Inputs to record answers for: an npz file, or a number of rows to draw."),
    ] = None,
    meta: Annotated[list[str] | None, typer.Option(help="KEY=VALUE for the provenance; repeatable.")] = None,
    dedup: Annotated[
        bool, typer.Option("--dedup", help="Share equal shards with earlier versions by hard links.")
    ] = False,
    partitioned: Annotated[
        list[str] | None,
        typer.Option(help="NAME=GLOB of npy or npz files with a weight's rows; repeatable."),
    ] = None,
    shard_size: Annotated[str, typer.Option(help="Largest shard of small tensors: 512MiB, 1GB.")] = "1GiB",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Export a model as a new, immutable version of BASE_PATH."""
    from ..exporters.pipeline import Options, export

    options = Options(
        version=version,
        name=name,
        signatures=signatures,
        assets=asset or [],
        golden=_golden(golden),
        meta=_pairs("--meta", meta or []),
        dedup=dedup,
        partitioned=_pairs("--partitioned", partitioned or []),
        shard_bytes=parse_size(shard_size),
        kind=kind,
        key=key,
    )
    _show(export(source, base_path, options), base_path, as_json=as_json)


def _show(result: Export, base_path: Path, *, as_json: bool) -> None:
    for text in result.notes:
        _output.note(f"note: {text}")
    metagraph = result.metagraph
    if as_json:
        emit_json(
            "export",
            {
                "path": str(result.path),
                "version": result.version,
                "identity": metagraph.identity,
                "content": metagraph.content,
                "bytes": result.byte_size,
                "shards": len(metagraph.shards),
                "shared": list(result.shared),
                "signatures": {n: s.to_json() for n, s in metagraph.signatures.items()},
                "notes": list(result.notes),
            },
        )
        return
    _output.line(str(result.path))
    if result.shared:
        _output.note(f"shared with an earlier version: {', '.join(result.shared)}")
    _output.note(
        f"version {result.version}: {_output.size(result.byte_size)} in {len(metagraph.shards)} shard(s), "
        f"identity {metagraph.identity[:12]}"
    )
    path, base = shlex.quote(str(result.path)), shlex.quote(str(base_path))
    _output.note(f"next: mserve inspect {path}    mserve serve {base}")


def _golden(text: str | None) -> int | Path | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        return Path(text)
    if len(text) > 6:
        raise UsageError("too many golden rows", expected="at most 999999", found=text[:40])
    return int(text)


def _pairs(flag: str, items: list[str]) -> dict[str, str]:
    pairs = {}
    for item in items:
        key, found, value = item.partition("=")
        if not found or not key:
            raise UsageError(f"bad {flag}", expected="KEY=VALUE", found=item)
        pairs[key] = value
    return pairs
