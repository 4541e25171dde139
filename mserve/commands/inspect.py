"""`mserve inspect`: what a bundle is, without running it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import _output


def command(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A version directory or a base path.")],
    weights: Annotated[bool, typer.Option("--weights", help="List the weights.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show signatures, files, operators, sizes and origin of a bundle."""
    from ..format import open_bundle

    opened = open_bundle(bundle)
    facts = describe(opened)
    if weights:
        facts["weights"] = [
            {
                "name": w.name,
                "dtype": w.dtype,
                "shape": list(w.shape),
                "bytes": w.length,
                "shard": w.shard or None,
            }
            for w in opened.graph.weights
        ]
    if as_json:
        _output.emit_json("inspect", facts)
        return
    _show(facts)


def describe(bundle: Any) -> dict[str, Any]:
    """The facts about an open bundle, as `--json` prints them."""
    metagraph, graph = bundle.metagraph, bundle.graph
    return {
        "path": str(bundle.path),
        "version": bundle.version,
        "name": metagraph.name,
        "format": metagraph.format,
        "identity": metagraph.identity,
        "content": metagraph.content,
        "bytes": bundle.byte_size,
        "signatures": {name: s.to_json() for name, s in metagraph.signatures.items()},
        "graph": {
            "nodes": graph.nodes,
            "parameters": graph.parameters,
            "weights": len(graph.weights),
            "opsets": graph.opsets,
            "operators": dict(graph.operators.most_common()),
            "functions": graph.functions,
            "producer": graph.producer,
            "ir_version": graph.ir_version,
            "metadata": graph.metadata,
        },
        "shards": [record.to_json() for record in metagraph.shards],
        "assets": [record.to_json() for record in metagraph.assets],
        "golden": metagraph.golden.to_json() if metagraph.golden else None,
        "provenance": dict(metagraph.provenance),
    }


def _parameters(graph: dict[str, Any]) -> str:
    if graph["weights"]:
        return f"{graph['parameters']:,} in {graph['weights']} weights"
    return "none in weights: what was learned lies in the operators' attributes"


def _show(facts: dict[str, Any]) -> None:
    graph = facts["graph"]
    source = facts["provenance"].get("source", {})
    operators = [f"{name} x{count}" for name, count in list(graph["operators"].items())[:8]]
    more = len(graph["operators"]) - len(operators)
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
        (
            "operators",
            f"{graph['nodes']}: " + ", ".join(operators) + (f", and {more} more" if more > 0 else ""),
        ),
        ("opsets", ", ".join(f"{domain} {version}" for domain, version in graph["opsets"].items())),
        ("golden", "recorded" if facts["golden"] else "none"),
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
        for side in ("inputs", "outputs"):
            for alias, spec in signature[side].items():
                shape = "[...]" if spec["shape"] is None else "[" + ", ".join(map(str, spec["shape"])) + "]"
                ports.append(
                    (
                        f"{name} ({signature['method']}{batch})",
                        side[:-1],
                        alias,
                        spec["dtype"],
                        shape,
                        spec["tensor"],
                    )
                )
    _output.table(("signature", "side", "name", "dtype", "shape", "tensor"), ports)
    files = [
        (r["name"], _output.size(r["size"]), r["sha256"][:16]) for r in (*facts["shards"], *facts["assets"])
    ]
    _output.table(("file", "size", "sha256"), files)
    if "weights" in facts:
        weights = [
            (w["name"], w["dtype"], w["shape"], _output.size(w["bytes"]), w["shard"] or "inline")
            for w in facts["weights"]
        ]
        _output.table(("weight", "dtype", "shape", "size", "shard"), weights)
