"""SessionBundles, TensorFlow's layout of 2016.

The graph is imported by itself: what else stands in the file of 2016 (a version that is no
number, messages that TensorFlow has long forgotten) is read by `foreign`. Variables come from
the checkpoint beside it, in either format, by the graph's own restore operator.

A SessionBundle's default signature becomes `serving_default`, as TensorFlow had it; named ones
keep their names, and the pair "inputs" and "outputs" beside a default one is `predict`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import InputError, MserveError, UsageError
from ...files import read_input
from ...foreign import detect
from ...foreign.checkpoint import open_checkpoint
from ...foreign.files import listing
from ...foreign.meta_graph import SignatureDef
from ...foreign.saved_model import missing_assets
from ...foreign.session_bundle import (
    CLASSIFICATION,
    GENERIC,
    META_FILE,
    METHOD,
    PREFIX,
    REGRESSION,
    NamedSignature,
    read_export,
)
from ...tensors import DEFAULT_SIGNATURE, METHODS
from ..kinds import Converted, ConvertOptions, Kind, Seen
from . import tf_graph, tf_model

_PORTS = {REGRESSION: ("regress", {"output": "outputs"}), CLASSIFICATION: ("classify", {})}
INIT_COLLECTION = "serving_init_op"


def convert(source: str, options: ConvertOptions) -> Converted:
    """A SessionBundle directory as ONNX. Raises InputError, and UsageError without needed `trust`."""
    path = Path(source)
    meta, named = read_export(path / META_FILE)
    if not meta.signatures and not named and not options.output:
        raise InputError(
            "the bundle has no signatures",
            where=path,
            expected="a collection serving_signatures",
            hint="say what may be asked: --input x:0 --output y:0",
        )
    present = listing(path / "assets")
    absent = missing_assets(path, present, meta.assets)
    feeds = {a.tensor: str(path / "assets" / a.filename) for a in meta.assets if a.filename in present}
    ports = asked(options, path) or ports_of(meta.signatures, named)
    loaded = load((path / META_FILE, path / PREFIX), ports, feeds, options)
    loaded.assets = {name: read_input(path / "assets" / name) for name in present}
    loaded.notes += [f"{error.what}: {Path(str(error.where)).name}" for error in absent]
    return tf_model.convert(loaded, options.opset)


def ports_of(
    signatures: Mapping[str, SignatureDef], named: Mapping[str, NamedSignature]
) -> dict[str, tf_model.Ports]:
    """Every signature, as a SavedModel would have it."""
    found = dict(signatures)
    pair = [named.get(side) for side in ("inputs", "outputs")]
    sides = [dict(one.tensors) for one in pair if one and one.kind == GENERIC]
    if len(sides) == 2 and DEFAULT_SIGNATURE in found and "" in named:
        found["predict"] = SignatureDef(f"{METHOD}predict", sides[0], sides[1])
    for name, one in named.items():
        if name and one.kind in _PORTS:
            method, renamed = _PORTS[one.kind]
            known = {renamed.get(port, port): info for port, info in one.tensors.items()}
            inputs = {"inputs": known.pop("input")} if "input" in known else {}
            found[name] = SignatureDef(METHOD + method, inputs, known)
    return {name: _ports(signature) for name, signature in found.items()}


def _ports(signature: SignatureDef) -> tf_model.Ports:
    method = signature.method_name.removeprefix(METHOD)
    inputs, outputs = (
        {alias: _full(info.name) for alias, info in side.items()}
        for side in (signature.inputs, signature.outputs)
    )
    shapes = {a: i.shape for side in (signature.inputs, signature.outputs) for a, i in side.items()}
    return tf_model.Ports(method if method in METHODS else "predict", inputs, outputs, shapes)


def _full(tensor: str) -> str:
    return tensor if ":" in tensor else f"{tensor}:0"


def asked(options: ConvertOptions, where: Path) -> dict[str, tf_model.Ports]:
    """The signature that `--input` and `--output` describe: TENSOR or ALIAS=TENSOR. Raises UsageError."""
    sides = [dict(_named(text) for text in side) for side in (options.input, options.output)]
    if any(options.input) != any(options.output):
        raise UsageError("--input and --output go together", where=where, expected="--input x:0 --output y:0")
    return {DEFAULT_SIGNATURE: tf_model.Ports("predict", sides[0], sides[1])} if all(sides) else {}


def _named(text: str) -> tuple[str, str]:
    alias, _, tensor = text.rpartition("=")
    return alias or tf_graph.node_of(tensor).rpartition("/")[2], _full(tensor)


def load(
    files: tuple[Path, Path],
    ports: Mapping[str, tf_model.Ports],
    feeds: Mapping[str, str],
    options: ConvertOptions,
) -> tf_model.Loaded:
    """The graph of a MetaGraph's file in a session, restored from the checkpoint with a prefix.

    `feeds` are paths of assets by tensor. Raises InputError where the two do not fit.
    """
    meta, prefix = files
    checkpoint = open_checkpoint(prefix)
    if checkpoint.problems:
        raise checkpoint.problems[0]
    import tensorflow as tf
    from tensorflow.core.protobuf import meta_graph_pb2

    tf_model.quiet()
    message = meta_graph_pb2.MetaGraphDef()
    message.ParseFromString(read_input(meta))
    graph = tf_graph.plain(message.graph_def)
    init = list(message.collection_def[INIT_COLLECTION].node_list.value)
    restore = message.saver_def.restore_op_name
    names = [t for p in ports.values() for t in (*p.outputs.values(), *p.inputs.values())]
    tf_graph.check_trust(graph, [*names, restore, *init], assets=bool(feeds), trust=options.trust, where=meta)
    _check_tensors(graph, ports, meta)
    session = tf.compat.v1.Session(graph=tf.Graph())
    with session.graph.as_default():
        tf.import_graph_def(graph, name="")
        if not restore:
            raise InputError("the MetaGraph does not say how it is restored", where=meta, expected="a saver")
        try:
            session.run(restore, {message.saver_def.filename_tensor_name: _pattern(prefix)})
            if init:
                session.run(init, feeds)
        except tf.errors.OpError as error:
            raise InputError(
                "the graph cannot be restored from the checkpoint beside it",
                where=prefix,
                found=error.message,
            ) from error
    return tf_model.Loaded(session, ports, str(prefix.parent))


def _check_tensors(graph: Any, ports: Mapping[str, tf_model.Ports], where: Path) -> None:
    """Every tensor that is named is there. Raises InputError."""
    known = {node.name for node in graph.node}
    for name, one in ports.items():
        for alias, tensor in (*one.inputs.items(), *one.outputs.items()):
            node = tf_graph.node_of(tensor)
            if node not in known:
                near = ", ".join(difflib.get_close_matches(node, known, 5, 0.3)) or f"{len(known)} nodes"
                raise InputError(
                    "the graph has no such tensor",
                    where=f"{where}: signature {name}: {alias}",
                    expected=near,
                    found=tensor,
                )


def _pattern(prefix: Path) -> str:
    """What the restore operator is given: the prefix, or all shards of the older format."""
    if prefix.with_name(f"{prefix.name}.index").exists() or prefix.exists():
        return str(prefix)
    return f"{prefix}-?????-of-?????"


def _is_bundle(seen: Seen) -> bool:
    return seen.is_dir and META_FILE in seen.names and format_of(seen.path) == detect.SESSION_BUNDLE


def format_of(path: Path) -> str:
    """The layout that a path has, "" where it cannot be told."""
    try:
        return detect.detect(path).format
    except (MserveError, OSError, ValueError):
        return detect.UNKNOWN


KIND = Kind(
    name="session-bundle",
    what="a TensorFlow SessionBundle",
    matches=_is_bundle,
    convert=convert,
    extra="tf",
    modules=("tensorflow", "tf2onnx"),
    options=("opset", "input", "output"),
)
