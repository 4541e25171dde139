"""A TensorFlow graph in a session, with its signatures, to ONNX: the common part of its kinds of files.

All signatures become one ONNX graph, whose weights they share. TensorFlow itself answers the
trials, with the graph as it was loaded: examples are serialised, and it parses them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from ...examples import generate
from ...format.prune import Parts
from ...numerics import compare
from ...rows import Cuts
from ...sparse import LENGTHS, Sparse
from ...tensors import ANY_DIM, BY_ONNX, DTYPES, Array, Shape, Signature, TensorSpec, plain_text
from ..kinds import Converted
from . import tf_feeds, tf_graph, tf_handlers, tf_parse, tf_text
from .tf_examples import serialised

if TYPE_CHECKING:
    import onnx

OPSET = 18
TRIED_ROWS = 13
PROBE_ROWS = 5
LOOSE = 1e-3
_EVEN = (
    "some features have as many entries in a row as others, weights of these perhaps, and nothing "
    "but the client sees to that: requests run alone"
)
Features = Mapping[str, Sequence[tf_parse.Feature]]


@dataclass(frozen=True, slots=True)
class Ports:
    """A signature as TensorFlow has it: a method of ours, and the graph's tensors by alias.

    `shapes` are what it says of them where the graph does not know; `defaults` are values of
    inputs that may be left out.
    """

    method: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Loaded:
    """A graph in a session, its variables restored and its tables filled."""

    session: Any
    ports: Mapping[str, Ports]
    where: str
    assets: Mapping[str, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def outputs(self) -> list[str]:
        """The tensors that some signature answers with."""
        return list(dict.fromkeys(t for ports in self.ports.values() for t in ports.outputs.values()))


def quiet() -> None:
    """Keep TensorFlow and its converter from writing what the checks here say better."""
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)


def convert(loaded: Loaded, opset: int = 0) -> Converted:
    """The graph as ONNX, and TensorFlow's own answers. Raises InputError."""
    import tensorflow as tf
    import tf2onnx

    names = {name: list(ports.outputs.values()) for name, ports in loaded.ports.items()}
    tf_graph.check_fixed(loaded.session.graph.as_graph_def(), names, loaded.where)
    flat = tf_graph.flatten(loaded.session, loaded.outputs())
    parsed = tf_parse.cut(flat.graph, loaded.where)
    feeds = {name: list(ports.inputs.values()) for name, ports in loaded.ports.items()}
    graph, renamed = tf_feeds.separate(parsed.graph, loaded.session, feeds, names)
    outputs = tf_feeds.add_outputs(graph, renamed, names)
    model = _to_onnx(graph, flat.tables, outputs, opset or OPSET)
    signatures = _signatures(loaded, parsed.features, renamed, model)
    answers = _Answers(loaded, parsed.features, signatures)
    for name in signatures:
        answers.settle(name)
    return Converted(
        model,
        answers.signatures,
        assets=loaded.assets,
        notes=tuple(loaded.notes),
        draw=answers.draw,
        reference=answers.ask,
        compared_with=f"tensorflow {tf.__version__}",
        rows=TRIED_ROWS,
        versions={"tensorflow": tf.__version__, "tf2onnx": tf2onnx.__version__},
    )


def _to_onnx(
    graph: Any, tables: Mapping[bytes, tuple[Array, Array]], outputs: list[str], opset: int
) -> onnx.ModelProto:
    import tensorflow as tf
    from tf2onnx import convert as converter
    from tf2onnx import tf_loader

    needed = {node.name for node in tf_graph.reachable(graph, outputs)}
    inputs = [f"{n.name}:0" for n in graph.node if n.op.startswith("Placeholder") and n.name in needed]
    with tf.Graph().as_default():
        tf.import_graph_def(graph, name="")
        optimised = tf_loader.tf_optimize(inputs, outputs, graph)
    given = [n.name for n in optimised.node if n.op == "PlaceholderWithDefault"]
    model, _ = converter._convert_common(
        optimised,
        name="a TensorFlow graph",
        opset=opset,
        input_names=inputs,
        output_names=outputs,
        initialized_tables=tables,
        ignore_default=given,
        custom_op_handlers=tf_handlers.handlers(),
    )
    found: onnx.ModelProto = model
    tf_text.write_hashes(found)
    return found


def _signatures(
    loaded: Loaded, features: Features, renamed: Mapping[str, Mapping[str, str]], model: onnx.ModelProto
) -> dict[str, Signature]:
    """The signatures over the ONNX graph: features in place of serialised examples."""
    parts = Parts(model.SerializeToString())
    dims = {v.name: v.type.tensor_type for v in (*model.graph.input, *model.graph.output)}
    found = {}
    for name, ports in loaded.ports.items():
        names = renamed[name]
        _, needed = parts.ancestors(names.get(t, t) for t in ports.outputs.values())
        inputs = _inputs(loaded, name, _Fed(features, names, frozenset(needed) & frozenset(parts.inputs)))
        specs = {a: (_spec(loaded, ports, a, t), names.get(t, t)) for a, t in ports.outputs.items()}
        outputs = {a: replace(spec, name=tensor) for a, (spec, tensor) in specs.items()}
        for alias, spec in inputs.items():
            _check_open(alias, spec, dims, loaded.where)
        outputs = {a: replace(s, dtype=BY_ONNX[dims[s.name].elem_type].name) for a, s in outputs.items()}
        signature = Signature.of(ports.method, inputs, outputs)
        found[name] = replace(signature, examples=_serialised_name(ports, features, signature))
    return found


@dataclass(frozen=True, slots=True)
class _Fed:
    """What a signature may feed: features by placeholder, tensors that have another name now, and
    the ONNX graph's inputs that its outputs need."""

    features: Features
    names: Mapping[str, str]
    needed: frozenset[str]


def _inputs(loaded: Loaded, name: str, fed: _Fed) -> dict[str, TensorSpec | Sparse]:
    ports = loaded.ports[name]
    found: dict[str, TensorSpec | Sparse] = {}
    idle: list[str] = []
    for alias, tensor in ports.inputs.items():
        features = fed.features.get(tf_graph.node_of(tensor), ())
        given: dict[str, TensorSpec | Sparse] = {f.key: f.port for f in features}
        if (known := fed.names.get(tensor, tensor)) in fed.needed:
            given[alias] = replace(_spec(loaded, ports, alias, tensor), name=known)
        for key, port in given.items():
            tensors = list(port.tensors.values()) if isinstance(port, Sparse) else [port.name]
            if not fed.needed & set(tensors):
                idle.append(key)
                continue
            if key in found:
                raise InputError(
                    "two inputs of a signature have one name",
                    where=f"{loaded.where}: signature {name}",
                    found=repr(key),
                )
            found[key] = _needed(key, port, fed.needed)
        if not given:
            idle.append(alias)
    if idle:
        loaded.notes.append(f"{name}: not needed for its outputs, and left out: {', '.join(idle)}")
    if not found:
        raise InputError(
            "a signature has no input that its outputs depend on", where=f"{loaded.where}: signature {name}"
        )
    return found


def _needed(key: str, port: TensorSpec | Sparse, needed: frozenset[str]) -> TensorSpec | Sparse:
    """The port without tensors that the graph has no use for. Raises InputError where too few are left."""
    if not isinstance(port, Sparse):
        return port
    tensors = {role: tensor for role, tensor in port.tensors.items() if tensor in needed}
    found = replace(port, tensors=tensors)
    if problem := found.problem():
        raise InputError(
            "the graph uses a part of a feature only",
            where=key,
            expected=problem,
            found=", ".join(tensors),
        )
    return found


def _spec(loaded: Loaded, ports: Ports, alias: str, tensor: str) -> TensorSpec:
    """A tensor as TensorFlow's own graph describes it; axis 0 is called "batch" where its size is open."""
    known = loaded.session.graph.get_tensor_by_name(tensor)
    shape: Shape = None
    if known.shape.rank is not None:
        shape = tuple(ANY_DIM if d is None else int(d) for d in known.shape.as_list())
    elif ports.shapes.get(alias) is not None:
        shape = ports.shapes[alias]
    if shape and shape[0] == ANY_DIM:
        shape = ("batch", *shape[1:])
    dtype = known.dtype.base_dtype.name
    dtype = next((d.name for d in DTYPES.values() if d.tf == f"DT_{dtype.upper()}"), dtype)
    if dtype not in DTYPES:
        raise InputError(
            "a tensor of a signature cannot be served",
            where=f"{loaded.where}: {alias} ({tensor})",
            expected="a known dtype",
            found=dtype,
        )
    return TensorSpec(tensor, dtype, shape, default=ports.defaults.get(alias))


def _check_open(alias: str, port: TensorSpec | Sparse, dims: Mapping[str, Any], where: str) -> None:
    """What is open in TensorFlow is open in ONNX. Raises InputError."""
    tensors = port.tensors.values() if isinstance(port, Sparse) else (port.name,)
    of_shape = port.tensors.get("shape") if isinstance(port, Sparse) else ""
    for tensor in tensors:
        shape = dims[tensor].shape.dim
        fixed = [i for i, d in enumerate(shape) if d.HasField("dim_value") and d.dim_value > 0]
        if isinstance(port, Sparse):
            lost = 0 in fixed and tensor != of_shape
        else:
            lost = any(isinstance(d, str) and i in fixed for i, d in enumerate(port.shape or ()))
        if lost:
            raise InputError(
                "the conversion fixed a size that is open in the source",
                where=f"{where}: input {alias}",
                expected="any size",
                found=[d.dim_value or d.dim_param for d in shape],
            )


class _Answers:
    """TensorFlow's own answers, and what they say of the signatures."""

    def __init__(self, loaded: Loaded, features: Features, signatures: Mapping[str, Signature]) -> None:
        self._loaded, self._features = loaded, features
        self.signatures = dict(signatures)
        self._silent: set[str] = set()
        self._even: set[str] = set()

    def settle(self, name: str) -> None:
        """Find out whether the rows of a signature are independent, and how long its ragged rows may be."""
        signature = self.signatures[name]
        opened = _may_batch(signature)
        tried = replace(signature, batch_axis=0) if opened else signature
        for candidate, even in ((tried, False), (_of_one_entry(tried), False), (tried, True)):
            rows = _made_up(candidate, PROBE_ROWS, even=even)
            together = self._try(name, rows)
            if together is not None:
                if even:  # joined with a request that breaks this, another would not fail but be wrong
                    self._even.add(name)
                    self._loaded.notes.append(f"{name}: {_EVEN}")
                independent = opened and not even and self._independent(name, candidate, rows, together)
                self.signatures[name] = replace(candidate, batch_axis=0 if independent else None)
                return
        self._silent.add(name)
        self._loaded.notes.append(
            f"{name}: TensorFlow refuses made-up inputs, so that its answers were not compared; "
            "give real ones with --example or --check"
        )

    def _independent(
        self, name: str, signature: Signature, rows: Mapping[str, Array], together: Mapping[str, Array]
    ) -> bool:
        cuts = Cuts(signature, rows)
        for row in range(PROBE_ROWS):
            alone = self._try(name, cuts.rows(row, row + 1))
            if alone is None:
                return False
            for alias, output in together.items():
                here = output[row : row + 1] if output.ndim and len(output) == PROBE_ROWS else output[:0]
                if not len(here) or not compare(here, alone[alias], LOOSE, LOOSE).equal:
                    return False
        return True

    def _try(self, name: str, inputs: Mapping[str, Array]) -> dict[str, Array] | None:
        import tensorflow as tf

        try:
            return self._run(name, inputs)
        except (tf.errors.OpError, ValueError):
            return None

    def draw(self, name: str, rows: int) -> dict[str, Array]:
        """Made-up inputs that TensorFlow takes."""
        return _made_up(self.signatures[name], rows, seed=rows, even=name in self._even)

    def ask(self, name: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """What TensorFlow answers; nothing where it refuses made-up inputs."""
        return (self._try(name, inputs) or {}) if name in self._silent else self._run(name, inputs)

    def _run(self, name: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        import numpy as np

        ports, signature, feeds = self._loaded.ports[name], self.signatures[name], {}
        for alias, tensor in ports.inputs.items():
            features = self._features.get(tf_graph.node_of(tensor), ())
            if features:
                feeds[tensor] = serialised(features, signature, inputs)
            elif alias in inputs:
                feeds[tensor] = inputs[alias]
        wanted = list(ports.outputs.values())
        answers = self._loaded.session.run(wanted, feeds)
        return {a: plain_text(np.asarray(x)) for a, x in zip(ports.outputs, answers, strict=True)}


def _made_up(signature: Signature, rows: int, seed: int = 0, *, even: bool = False) -> dict[str, Array]:
    """Made-up inputs. `even` ones have the same number of entries in every feature of a row: weights
    of another feature's entries, say.
    """
    import numpy as np

    found = generate(signature, rows, seed=seed)
    if not even:
        return found
    names = [port.names(alias) for alias, port in signature.sparse.items()]
    for parts in names:
        lengths = found[names[0][LENGTHS]]
        for part, name in parts.items():
            old = found[name]
            found[name] = lengths if part == LENGTHS else np.resize(old, (int(lengths.sum()), *old.shape[1:]))
    return found


def _may_batch(signature: Signature) -> bool:
    """Whether axis 0 is open in every input and every output."""
    specs = (*(s for a, s in signature.inputs.items()), *signature.outputs.values())
    return all(spec.shape and isinstance(spec.shape[0], str) for spec in specs)


def _of_one_entry(signature: Signature) -> Signature:
    """The signature with at most one entry a row: many graphs make such features dense."""
    ports = {
        alias: replace(port, max_length=1) if isinstance(port, Sparse) else port
        for alias, port in signature.ports().items()
    }
    found = Signature.of(signature.method, ports, signature.outputs, signature.batch_axis)
    return replace(found, examples=signature.examples)


def _serialised_name(ports: Ports, features: Features, signature: Signature) -> str:
    """The only input of a TensorFlow signature, where it is for serialised examples."""
    names = [alias for alias, tensor in ports.inputs.items() if tf_graph.node_of(tensor) in features]
    taken = signature.inputs.keys() | signature.sparse.keys()
    return names[0] if len(names) == len(ports.inputs) == 1 and names[0] not in taken else ""
