"""`mserve inspect`: what a bundle or a model in a foreign layout is, without running it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from . import _describe, _output


def command(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="A version directory, a base path, an ONNX file, a TensorFlow SavedModel, SessionBundle "
            "or checkpoint.",
        ),
    ],
    weights: Annotated[
        bool, typer.Option("--weights", help="List the weights, with min, max, mean and NaNs of each.")
    ] = False,
    graph: Annotated[bool, typer.Option("--graph", help="List the nodes of an ONNX graph.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show signatures, files, operators, sizes and origin of a model."""
    from ..foreign.detect import MSERVE, detect
    from ..format import layout

    found = detect(path)
    if not found.format and path.is_dir() and (versions := layout.versions(path)):
        found = detect(versions[max(versions)])
    if found.format != MSERVE and (found.format or path.is_file()):
        from . import _foreign

        _foreign.inspect(found, _foreign.Options(weights, graph, as_json))
        return
    facts = _bundle(path, weights=weights, graph=graph)
    if as_json:
        _output.emit_json("inspect", facts)
    else:
        _show(facts)


def _bundle(path: Path, *, weights: bool, graph: bool) -> dict[str, Any]:
    from ..format import open_bundle

    opened = open_bundle(path)
    facts = describe(opened)
    if weights:
        from ..format.details import chunks

        facts["weights"] = [_describe.weight(w, partial(chunks, opened, w)) for w in opened.graph.weights]
    if graph:
        from ..format.details import nodes

        facts |= _describe.nodes(*nodes(opened))
    return facts


def describe(bundle: Any) -> dict[str, Any]:
    """The facts about an open bundle, as `--json` prints them."""
    from ..format.serving import read_serving

    metagraph, graph = bundle.metagraph, bundle.graph
    return {
        "path": str(bundle.path),
        "version": bundle.version,
        "name": metagraph.name,
        "format": "mserve",
        "format_version": metagraph.format,
        "identity": metagraph.identity,
        "content": metagraph.content,
        "bytes": bundle.byte_size,
        "signatures": {name: s.to_json() for name, s in metagraph.signatures.items()},
        "graph": _describe.graph(graph),
        "shards": [record.to_json() for record in metagraph.shards],
        "assets": [record.to_json() for record in metagraph.assets],
        "golden": metagraph.golden.to_json() if metagraph.golden else None,
        "serving": read_serving(bundle).to_json() or None,
        "provenance": dict(metagraph.provenance),
    }


def _parameters(graph: dict[str, Any]) -> str:
    if graph["weights"]:
        return f"{graph['parameters']:,} in {graph['weights']} weights"
    return "none in weights: what was learned lies in the operators' attributes"


def _show(facts: dict[str, Any]) -> None:
    graph = facts["graph"]
    source = facts["provenance"].get("source", {})
    rows: list[tuple[str, object]] = [
        ("bundle", facts["path"]),
        ("version", facts["version"]),
        ("name", facts["name"] or f"{Path(facts['path']).resolve().parent.name} (the base path's)"),
        ("identity", facts["identity"]),
        ("content", facts["content"]),
        (
            "size",
            f"{_output.size(facts['bytes'])} in {len(facts['shards'])} shard(s) "
            f"and {len(facts['assets'])} asset(s)",
        ),
        ("parameters", _parameters(graph)),
        ("operators", _describe.operators(graph["operators"])),
        ("opsets", _describe.opsets(graph["opsets"])),
        ("golden", "recorded" if facts["golden"] else "none"),
        ("serving", ", ".join(f"{k} {v}" for k, v in (facts["serving"] or {}).items()) or "no defaults"),
        ("source", " ".join(str(source[key]) for key in ("kind", "file") if key in source)),
        (
            "made by",
            " with ".join(x for x in (facts["provenance"].get("creator", ""), graph["producer"]) if x),
        ),
    ]
    rows += [(f"meta {key}", value) for key, value in facts["provenance"].get("meta", {}).items()]
    _output.table(("fact", "value"), rows)
    ports = []
    for name, signature in facts["signatures"].items():
        batch = "" if signature["batch_axis"] is None else ", batched"
        batch += f", or serialised {signature['examples']}" if signature.get("examples") else ""
        ports += _describe.port_rows(f"{name} ({signature['method']}{batch})", signature)
    _output.table(_describe.PORT_COLUMNS, ports)
    files = [
        (r["name"], _output.size(r["size"]), r["sha256"][:16]) for r in (*facts["shards"], *facts["assets"])
    ]
    _output.table(("file", "size", "sha256"), files)
    if "weights" in facts:
        _output.table(_describe.TENSOR_COLUMNS, _describe.tensor_rows(facts["weights"]))
    if "nodes" in facts:
        _describe.show_nodes(facts)
