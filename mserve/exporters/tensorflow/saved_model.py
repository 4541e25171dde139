"""TensorFlow SavedModels, of TensorFlow 1 and 2: every signature, in one graph.

A session loads the model as TensorFlow Serving does: variables are restored, tables filled.
The rest is `tf_model`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...files import read_input
from ...foreign.saved_model import GRAPH_FILE, TEXT_FILE, open_saved_model
from ...foreign.session_bundle import METHOD
from ...tensors import ANY_DIM, METHODS, Shape
from ..kinds import Converted, ConvertOptions, Kind, Seen
from . import tf_graph, tf_model

SERVE = "serve"
_OWN = "__saved_model_"
MAX_ASSET_BYTES = 256 << 20


def convert(source: str, options: ConvertOptions) -> Converted:
    """The SavedModel as ONNX.

    Raises InputError for what is broken, stateful or cannot be converted, UsageError for one
    that reaches out of itself without `trust`.
    """
    path = Path(source)
    opened = open_saved_model(path)
    if opened.problems:
        raise opened.problems[0]
    import tensorflow as tf

    tf_model.quiet()
    meta = _meta_graph(path)
    ports = {name: _ports(meta, name, path) for name in _names(meta, path)}
    wanted = [t for p in ports.values() for t in (*p.outputs.values(), *p.inputs.values())]
    tf_graph.check_trust(
        meta.graph_def,
        [*wanted, *_run_on_load(meta)],
        assets=bool(opened.assets),
        trust=options.trust,
        where=path,
    )
    session = tf.compat.v1.Session(graph=tf.Graph())
    with session.graph.as_default():
        tf.compat.v1.saved_model.loader.load(session, list(meta.meta_info_def.tags), str(path))
    total = sum(opened.assets.values())
    assets = {n: read_input(path / "assets" / n) for n in opened.assets} if total <= MAX_ASSET_BYTES else {}
    loaded = tf_model.Loaded(session, ports, str(path), assets)
    if not assets and opened.assets:
        loaded.notes.append(f"its assets have {total} bytes and are left out; ship them with --asset")
    return tf_model.convert(loaded, options.opset)


def _meta_graph(path: Path) -> Any:
    """The meta graph that serves: the one tagged so, or the only one. Raises InputError."""
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel()
    model.ParseFromString(read_input(path / GRAPH_FILE))
    tagged = [m for m in model.meta_graphs if SERVE in m.meta_info_def.tags]
    plain = [m for m in tagged if len(m.meta_info_def.tags) == 1] or tagged or list(model.meta_graphs)
    if len(plain) != 1:
        raise InputError(
            "no meta graph is the one to serve",
            where=path,
            expected=f"one with the tag {SERVE!r}",
            found="; ".join(", ".join(m.meta_info_def.tags) or "(none)" for m in model.meta_graphs),
        )
    return plain[0]


def _names(meta: Any, path: Path) -> list[str]:
    names = sorted(n for n, s in meta.signature_def.items() if not n.startswith(_OWN) and s.outputs)
    if not names:
        raise InputError(
            "the SavedModel has no signatures",
            where=path,
            expected="a function to serve",
            hint="save it with signatures=..., or a Keras model with model.export()",
        )
    return names


def _run_on_load(meta: Any) -> list[str]:
    """The operators that a loader runs."""
    names = [meta.saver_def.restore_op_name]
    for name, signature in meta.signature_def.items():
        if name.startswith(_OWN):
            names += [info.name for info in signature.outputs.values()]
    for key in ("saved_model_main_op", "legacy_init_op"):
        names += meta.collection_def[key].node_list.value if key in meta.collection_def else ()
    return [name for name in names if name]


def _ports(meta: Any, name: str, path: Path) -> tf_model.Ports:
    signature = meta.signature_def[name]
    method = signature.method_name.removeprefix(METHOD)
    where = f"{path}: signature {name}"
    inputs, outputs = (
        {alias: _tensor(alias, info, where) for alias, info in sorted(side.items())}
        for side in (signature.inputs, signature.outputs)
    )
    shapes = {
        alias: _shape(info.tensor_shape)
        for side in (signature.inputs, signature.outputs)
        for alias, info in side.items()
    }
    method = method if method in METHODS else "predict"
    return tf_model.Ports(method, inputs, outputs, shapes, _defaults(signature))


def _tensor(alias: str, info: Any, where: str) -> str:
    if not info.name:
        raise InputError(
            "a signature names a tensor that is not dense",
            where=f"{where}: {alias}",
            expected="a dense tensor, or serialised examples",
            found=info.WhichOneof("encoding") or "no tensor",
            hint="save a signature that takes the parts of the sparse tensor",
        )
    return str(info.name)


def _shape(proto: Any) -> Shape:
    if proto.unknown_rank:
        return None
    return tuple(ANY_DIM if d.size < 0 else int(d.size) for d in proto.dim)


def _defaults(signature: Any) -> Mapping[str, Any]:
    """Values of inputs that a request may leave out, which newer SavedModels have beside a signature."""
    import tensorflow as tf

    found = {}
    for alias, proto in getattr(signature, "defaults", {}).items():
        value = tf.make_ndarray(proto)
        if value.dtype.kind != "O":
            found[alias] = value.tolist()
    return found


def _matches(seen: Seen) -> bool:
    return seen.is_dir and bool({GRAPH_FILE, TEXT_FILE, "variables"} & set(seen.names))


KIND = Kind(
    name="saved-model",
    what="a TensorFlow SavedModel",
    matches=_matches,
    convert=convert,
    extra="tf",
    modules=("tensorflow", "tf2onnx"),
    options=("opset",),
)
