"""`mserve inspect` of what others wrote: ONNX files, SavedModels, SessionBundles, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import BundleIncomplete, InputError, UsageError
from ..foreign import detect, onnx_file
from ..foreign.checkpoint import Checkpoint, Variable, open_checkpoint
from ..foreign.meta_graph import MetaGraphDef, SignatureDef, TensorInfo
from ..foreign.saved_model import open_saved_model
from ..foreign.session_bundle import METHOD, NamedSignature, open_session_bundle, read_export
from ..tensors import DTYPES, METHODS, TensorSpec
from . import _describe, _output

SERVE = "serve"
Facts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for."""

    weights: bool
    graph: bool
    as_json: bool


def inspect(found: detect.Detected, options: Options) -> None:
    """Print what lies at a path.

    What is incomplete is listed as far as it goes, then raised as BundleIncomplete. Raises
    InputError for what is corrupt or unknown, UsageError for options that do not apply.
    """
    opening = _OPENING.get(found.format)
    if opening is None:
        raise InputError(
            "not a model that mserve can read",
            where=found.path,
            expected="a bundle, an ONNX file, a TensorFlow SavedModel, SessionBundle or checkpoint",
            found=found.found,
        )
    if options.graph and found.format != detect.ONNX:
        raise UsageError(
            "--graph lists the nodes of ONNX graphs",
            where=found.path,
            expected="a bundle or an ONNX file",
            found=_TITLES[found.format],
            hint="leave --graph out",
        )
    facts, problems = opening(found.path, options)
    facts["problems"] = [problem.to_json() for problem in problems]
    if options.as_json:
        _output.emit_json("inspect", facts)
    else:
        _show(facts)
    for problem in problems[1:]:
        _output.note(f"mserve: {problem}")
    if problems:
        raise problems[0]


_TITLES = {
    detect.ONNX: "an ONNX file",
    detect.SAVED_MODEL: "a SavedModel",
    detect.SESSION_BUNDLE: "a SessionBundle",
    detect.CHECKPOINT: "a checkpoint",
}


# --- what each format says


def _onnx(path: Path, options: Options) -> tuple[Facts, tuple[BundleIncomplete, ...]]:
    model = onnx_file.open_onnx(path)
    facts: Facts = {
        "path": str(path),
        "format": detect.ONNX,
        "bytes": len(model.data) + sum(size or 0 for size in model.external.values()),
        "signatures": {},
        "inputs": {spec.name: spec.to_json() for spec in model.inputs},
        "outputs": {spec.name: spec.to_json() for spec in model.outputs},
        "graph": _describe.graph(model.graph),
        "files": _files(model.external),
    }
    if options.weights:
        read = partial(partial, onnx_file.chunks, model)
        facts["weights"] = [_describe.weight(w, read(w)) for w in model.graph.weights]
    if options.graph:
        facts |= _describe.nodes(*onnx_file.nodes(model))
    return facts, model.problems


def _saved_model(path: Path, options: Options) -> tuple[Facts, tuple[BundleIncomplete, ...]]:
    model = open_saved_model(path)
    graphs = model.meta_graphs
    served = next((g for g in graphs if SERVE in g.tags), graphs[0] if graphs else None)
    facts: Facts = {
        "path": str(path),
        "format": detect.SAVED_MODEL,
        "schema_version": model.schema_version,
        "signatures": _signatures(served.signatures) if served else {},
        "meta_graphs": [_meta_graph(g) for g in graphs],
        "variables": _checkpoint(model.checkpoint, options),
        "assets": _files(model.assets),
        "extra": _files(model.extra),
    }
    return facts, model.problems


def _session_bundle(path: Path, options: Options) -> tuple[Facts, tuple[BundleIncomplete, ...]]:
    bundle = open_session_bundle(path)
    meta_graph = bundle.meta_graph
    facts: Facts = {
        "path": str(path),
        "format": detect.SESSION_BUNDLE,
        "signatures": _signatures(meta_graph.signatures) if meta_graph else {},
        "named_signatures": {name: _named(one) for name, one in bundle.named.items()},
        "meta_graphs": [_meta_graph(meta_graph)] if meta_graph else [],
        "variables": _checkpoint(bundle.checkpoint, options),
        "assets": _files(bundle.assets),
    }
    return facts, bundle.problems


def _bare_checkpoint(prefix: Path, options: Options) -> tuple[Facts, tuple[BundleIncomplete, ...]]:
    checkpoint = open_checkpoint(prefix)
    meta = prefix.with_name(f"{prefix.name}.meta")
    graphs = [read_export(meta)[0]] if meta.is_file() else []
    facts: Facts = {
        "path": str(prefix),
        "format": detect.CHECKPOINT,
        "signatures": _signatures(graphs[0].signatures) if graphs else {},
        "meta_graphs": [_meta_graph(g) for g in graphs],
        "variables": _checkpoint(checkpoint, options),
    }
    return facts, checkpoint.problems


_OPENING = {
    detect.ONNX: _onnx,
    detect.SAVED_MODEL: _saved_model,
    detect.SESSION_BUNDLE: _session_bundle,
    detect.CHECKPOINT: _bare_checkpoint,
}


# --- parts of it, as --json prints them


def _files(sizes: Mapping[str, int | None]) -> list[Facts]:
    return [{"name": name, "size": size} for name, size in sizes.items()]


def _meta_graph(one: MetaGraphDef) -> Facts:
    return {
        "tags": list(one.tags),
        "tensorflow_version": one.tensorflow_version,
        "tensorflow_git_version": one.git_version,
        "signatures": _signatures(one.signatures),
        "assets": [{"name": a.filename, "tensor": a.tensor} for a in one.assets],
        "init_op": one.init_op,
        "saver": {
            "filename_tensor": one.saver.filename_tensor,
            "restore_op": one.saver.restore_op,
            "sharded": one.saver.sharded,
            "version": one.saver.version,
        }
        if one.saver
        else None,
        "collections": {name: len(values) for name, values in one.collections.items()},
        "graph": {
            "nodes": one.graph.operators.total(),
            "operators": dict(one.graph.operators.most_common()),
            "functions": one.graph.functions,
            "function_operators": dict(one.graph.function_operators.most_common()),
            "version": one.graph.producer,
        },
    }


def _signatures(found: Mapping[str, SignatureDef]) -> Facts:
    """Signatures in the form that those of bundles have; `method_name` is TensorFlow's own."""
    return {
        name: {
            "method": _method(one.method_name),
            "method_name": one.method_name,
            "batch_axis": None,
            "inputs": {alias: _port(info) for alias, info in one.inputs.items()},
            "outputs": {alias: _port(info) for alias, info in one.outputs.items()},
            "defaults": list(one.defaults),
        }
        for name, one in sorted(found.items())
    }


def _method(method_name: str) -> str:
    short = method_name.removeprefix(METHOD)
    return short if short in METHODS else method_name


def _port(info: TensorInfo) -> Facts:
    spec = TensorSpec(info.name, info.dtype, info.shape).to_json()
    return spec | {"kind": info.kind, "parts": list(info.parts)}


def _named(one: NamedSignature) -> Facts:
    return {"kind": one.kind, "tensors": {alias: _port(info) for alias, info in one.tensors.items()}}


def _checkpoint(checkpoint: Checkpoint | None, options: Options) -> Facts | None:
    if checkpoint is None:
        return None
    sized = [v for v in checkpoint.variables if v.dtype != "string"]
    facts: Facts = {
        "version": checkpoint.version,
        "count": len(checkpoint.variables),
        "parameters": sum(math.prod(v.shape) for v in sized),
        "bytes": sum(v.length for v in checkpoint.variables),
        "files": _files(checkpoint.shards),
    }
    if options.weights:
        facts["list"] = [_variable(checkpoint, v) for v in checkpoint.variables]
    return facts


def _variable(checkpoint: Checkpoint, variable: Variable) -> Facts:
    from ..foreign.values import chunks

    # A checkpoint keeps 4-bit values one to a byte.
    narrow = variable.dtype in DTYPES and 0 < DTYPES[variable.dtype].bits < 8
    stored = "int8" if narrow else variable.dtype
    shards = list(dict.fromkeys(part.shard for part in variable.parts))
    return {
        "name": variable.name,
        "dtype": variable.dtype,
        "shape": list(variable.shape),
        "bytes": variable.length,
        "shard": ", ".join(shards),
        "parts": len(variable.parts),
        "statistics": _describe.statistics(stored, variable.shape, partial(chunks, checkpoint, variable)),
    }


# --- for people


def _show(facts: Facts) -> None:
    rows: list[tuple[str, object]] = [(facts["format"], facts["path"])]
    if facts["format"] == detect.ONNX:
        rows += _onnx_rows(facts)
    for one in facts.get("meta_graphs", ()):
        rows += _meta_graph_rows(one)
    if variables := facts.get("variables"):
        what = f"{variables['count']}, {variables['parameters']:,} parameters, "
        where = f"{_output.size(variables['bytes'])} in {len(variables['files'])} file(s), "
        rows.append(("variables", what + where + f"checkpoint version {variables['version']}"))
    _output.table(("fact", "value"), rows)
    _output.table(_describe.PORT_COLUMNS, list(_ports(facts)))
    _output.table(("file", "size"), list(_file_rows(facts)))
    tensors = facts.get("weights") or (variables or {}).get("list")
    if tensors:
        _output.table(_describe.TENSOR_COLUMNS, _describe.tensor_rows(tensors))
    if "nodes" in facts:
        _describe.show_nodes(facts)


def _onnx_rows(facts: Facts) -> list[tuple[str, object]]:
    graph = facts["graph"]
    return [
        ("size", _output.size(facts["bytes"])),
        ("parameters", f"{graph['parameters']:,} in {graph['weights']} weights"),
        ("operators", _describe.operators(graph["operators"])),
        ("functions", graph["functions"]),
        ("opsets", _describe.opsets(graph["opsets"])),
        ("made by", f"{graph['producer'] or '(not said)'}, IR version {graph['ir_version']}"),
        *((f"meta {key}", value) for key, value in graph["metadata"].items()),
    ]


def _meta_graph_rows(one: Facts) -> list[tuple[str, object]]:
    graph, saver = one["graph"], one["saver"]
    inner = sum(graph["function_operators"].values())
    return [
        ("tags", ", ".join(one["tags"]) or "(none)"),
        (
            "made by",
            f"TensorFlow {one['tensorflow_version'] or '(not said)'}, graph version {graph['version']}",
        ),
        ("operators", _describe.operators(graph["operators"])),
        ("functions", f"{graph['functions']} of {inner} operators"),
        ("restore", f"{saver['restore_op']}, path in {saver['filename_tensor']}" if saver else "none"),
        ("init op", one["init_op"] or "none"),
        *((f"asset {a['name']}", f"path in {a['tensor']}") for a in one["assets"]),
    ]


def _ports(facts: Facts) -> Iterable[tuple[object, ...]]:
    if facts["format"] == detect.ONNX:
        yield from _describe.port_rows("(graph)", facts)
    several = len(facts.get("meta_graphs", ())) > 1
    for one in facts.get("meta_graphs", ()):
        tags = f"[{', '.join(one['tags'])}] " if several else ""
        for name, signature in one["signatures"].items():
            method = f" ({signature['method']})" if signature["method"] else ""
            yield from _describe.port_rows(f"{tags}{name}{method}", signature)
    for name, named in facts.get("named_signatures", {}).items():
        yield from _describe.port_rows(f"{name or 'default'} ({named['kind']}, as stored)", named)


def _file_rows(facts: Facts) -> Iterable[tuple[object, ...]]:
    variables = facts.get("variables") or {"files": []}
    below = "variables/" if facts["format"] == detect.SAVED_MODEL else ""
    for folder, group in (
        ("", facts.get("files", [])),
        (below, variables["files"]),
        ("assets/", facts.get("assets", [])),
        ("assets.extra/", facts.get("extra", [])),
    ):
        for file in group:
            size = "missing" if file["size"] is None else _output.size(file["size"])
            yield (folder + file["name"], size)
