"""`mserve export`: a model file becomes a new version of a base path."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..numerics import parse_size
from . import _export_options, _output
from ._output import emit_json

if TYPE_CHECKING:
    from ..exporters.pipeline import Export


def command(
    source: _export_options.Source = None,
    base_path: _export_options.BasePath = None,
    kind: _export_options.From = "",
    key: _export_options.Key = "",
    version: _export_options.Version = "auto",
    name: _export_options.Name = "",
    signatures: _export_options.Signatures = None,
    asset: _export_options.Asset = None,
    golden: _export_options.Golden = None,
    meta: _export_options.Meta = None,
    dedup: _export_options.Dedup = False,
    partitioned: _export_options.Partitioned = None,
    shard_size: _export_options.ShardSize = "1GiB",
    input_: _export_options.Input = None,
    output: _export_options.Output = None,
    opset: _export_options.Opset = 0,
    example: _export_options.Example = None,
    check: _export_options.Check = None,
    tol: _export_options.Tol = 1e-5,
    task: _export_options.Task = "",
    clip: _export_options.Clip = "",
    features: _export_options.Features = 0,
    sparse: _export_options.Sparse = None,
    labels: _export_options.Labels = None,
    weights: _export_options.WeightsFile = None,
    allow_version_mismatch: _export_options.AllowVersionMismatch = False,
    trust: _export_options.Trust = False,
    no_isolate: _export_options.NoIsolate = False,
    list_kinds: _export_options.ListKinds = False,
    as_json: _export_options.AsJson = False,
) -> None:
    """Export a model as a new, immutable version of BASE_PATH."""
    if list_kinds:
        _export_options.show_kinds(as_json=as_json)
        return
    if source is None or base_path is None:
        raise UsageError("export needs a source and a base path", expected="mserve export SOURCE BASE_PATH")
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
        input=tuple(input_ or ()),
        output=tuple(output or ()),
        opset=opset,
        example=example,
        check=check,
        tol=tol,
        task=task,
        clip=_export_options.parse_clip(clip),
        features=features,
        sparse=sparse,
        labels=labels,
        weights=weights,
        allow_version_mismatch=allow_version_mismatch,
        trust=trust,
        isolate=not no_isolate,
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
