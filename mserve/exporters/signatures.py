"""Signatures: derived from a graph's inputs and outputs, or read from `--signatures F.toml`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli

from ..errors import InputError, UsageError
from ..examples import attempt, generate, swayed
from ..files import read_text
from ..numerics import compare
from ..padding import Pad
from ..tensors import (
    ANY_DIM,
    BY_ONNX,
    DTYPES,
    METHODS,
    Array,
    Dim,
    Shape,
    Signature,
    TensorSpec,
    is_dim,
    is_range,
    pad_problems,
    show_shape,
)

if TYPE_CHECKING:
    import onnx

Run = Callable[[Signature, Mapping[str, Array]], dict[str, Array]]

# Sizes to try for dimensions that the graph leaves open: image models want a multiple
# of 32, sequence models take most sizes, some want 1.
FREE_SIZES = (32, 64, 1, 8, 128, 224)
PROBE_ROWS = 3
LOOSE = 0.05
# The batch axis of a proposed signature whose author says that there is none; None asks for evidence.
ALONE = -1


def derive(graph: onnx.GraphProto, where: object) -> Signature:
    """The `predict` signature of all inputs and outputs of a graph, batch axis not yet known.

    Outputs that are not tensors (the maps that some converters add) are left out. Raises
    InputError when an input is not a tensor, or no output is.
    """
    inputs = [_spec(v, where) for v in graph.input]
    outputs = [_spec(v, where) for v in graph.output if v.type.HasField("tensor_type")]
    if not outputs:
        raise InputError(
            "no output of the graph is a tensor",
            where=where,
            found=", ".join(f"{v.name}: {v.type.WhichOneof('value')}" for v in graph.output) or "no outputs",
            hint="scikit-learn converters: pass options={'zipmap': False}",
        )
    return Signature(
        "predict",
        dict(zip(aliases([s.name for s in inputs]), inputs, strict=True)),
        dict(zip(aliases([s.name for s in outputs]), outputs, strict=True)),
    )


def left_out(graph: onnx.GraphProto) -> list[str]:
    """A sentence for each output that `derive` leaves out because it is not a tensor."""
    return [
        f"output {v.name!r} is not a tensor ({v.type.WhichOneof('value')}) and is left out; "
        "scikit-learn converters: pass options={'zipmap': False}"
        for v in graph.output
        if not v.type.HasField("tensor_type")
    ]


def _spec(value: onnx.ValueInfoProto, where: object) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = BY_ONNX.get(tensor.elem_type)
    if not value.type.HasField("tensor_type") or dtype is None:
        raise InputError(
            "an input or output of the graph cannot be served",
            where=f"{where}: {value.name}",
            expected="a tensor of a known dtype",
            found=value.type.WhichOneof("value") or "no type",
        )
    if not tensor.HasField("shape"):
        return TensorSpec(value.name, dtype.name, None)
    return TensorSpec(value.name, dtype.name, tuple(_dim(d) for d in tensor.shape.dim))


def _dim(dim: Any) -> Dim:
    if dim.HasField("dim_value") and dim.dim_value >= 0:
        return int(dim.dim_value)
    return str(dim.dim_param) or ANY_DIM


def aliases(names: list[str]) -> list[str]:
    """Names as a person would write them, one for each tensor name and all different.

    TensorFlow's `serving_default_x:0` becomes `x`; `Call:1` beside `Call:2` becomes
    `Call_1`; characters that are awkward in URLs and shells become underscores.
    """
    stems = [re.sub(r":\d+$", "", name) for name in names]
    cleaned = []
    for name, stem in zip(names, stems, strict=True):
        short = stem if stems.count(stem) == 1 else name
        short = re.sub(r"[^A-Za-z0-9_.-]+", "_", short.removeprefix("serving_default_")).strip("_")
        cleaned.append(short or name)
    return [c if cleaned.count(c) == 1 else n for c, n in zip(cleaned, names, strict=True)]


def may_batch(signature: Signature) -> bool:
    """Whether the shapes allow a batch axis: axis 0 is open in every input and every output."""
    inputs = [s.shape for s in signature.inputs.values()]
    outputs = [s.shape for s in signature.outputs.values()]
    if not inputs or not all(shape and isinstance(shape[0], str) for shape in inputs):
        return False
    return all(shape is None or (shape and isinstance(shape[0], str)) for shape in outputs)


def settle_batch_axis(signature: Signature, run: Run) -> tuple[Signature, int | None, str]:
    """Find out by running the model whether the rows of axis 0 are independent.

    Returns the signature with its batch axis, the size that open dimensions took in a
    run that succeeded (None if none did), and a sentence for the user when the batch
    axis had to be left out.
    """
    if signature.batch_axis == ALONE:
        signature = replace(signature, batch_axis=None)
        return signature, _first_run(signature, run, 1)[0], ""
    if signature.batch_axis is not None:  # the user says so; golden samples and validate hold them to it
        batched = with_batch_axis(signature)
        return batched, _first_run(batched, run, 1)[0], ""
    if not may_batch(signature):
        size, _ = _first_run(signature, run, 1)
        return signature, size, "" if size is not None else _CANNOT_RUN
    batched = with_batch_axis(signature)
    size, together = _first_run(batched, run, PROBE_ROWS)
    if size is None:
        size, _ = _first_run(signature, run, 1)
        return signature, size, _CANNOT_RUN if size is None else "axis 0 is not a batch axis"
    culprit = _dependent_output(batched, run, size, together)
    if culprit:
        return signature, size, f"rows are not independent in output {culprit!r}: requests run alone"
    return batched, size, ""


def _dependent_output(signature: Signature, run: Run, size: int, together: Mapping[str, Array]) -> str:
    """The output in which a row depends on its neighbours or on their number, or "".

    Neighbours are exchanged at a fixed batch size, where the same kernels run and an
    independent row keeps its value; so it must beside rows of every other magnitude.
    Against a row alone the comparison is loose: other kernels round otherwise, and
    made-up inputs can magnify that a thousandfold.
    """
    rows = generate(signature, PROBE_ROWS, free=size)
    others = generate(signature, PROBE_ROWS, seed=1, free=size)
    for row in range(PROBE_ROWS):
        mixed = {a: others[a].copy() for a in others}
        for alias, array in rows.items():
            mixed[alias][row] = array[row]
        exchanged = _try(signature, run, mixed)
        alone = _try(signature, run, {a: x[row : row + 1] for a, x in rows.items()})
        for alias, output in together.items():
            if exchanged is None or alone is None or output.ndim == 0 or len(output) != PROBE_ROWS:
                return alias
            here = output[row : row + 1]
            scale = float(abs(here).max()) if here.size and here.dtype.kind == "f" else 0.0
            if not compare(here, exchanged[alias][row : row + 1]).equal:
                return alias
            if not compare(here, alone[alias], LOOSE, LOOSE * scale).equal:
                return alias
    return next((alias for alias, _ in swayed(signature, rows, lambda batch: run(signature, batch))), "")


_CANNOT_RUN = (
    "the model did not run on made-up inputs, so its rows are not known to be independent: "
    "requests run alone; give real inputs with --golden F.npz"
)


def with_batch_axis(signature: Signature) -> Signature:
    """The signature with batch axis 0, and that axis called "batch", or a name that no other axis has."""
    specs = (*signature.inputs.values(), *signature.outputs.values())
    taken = {dim for spec in specs for dim in (spec.shape or ())[1:]}
    name = next(n for n in ("batch", *(f"batch_{i}" for i in range(len(taken)))) if n not in taken)

    def rename(spec: TensorSpec) -> TensorSpec:
        return replace(spec, shape=(name, *spec.shape[1:]) if spec.shape else spec.shape)

    return Signature(
        signature.method,
        {a: rename(s) for a, s in signature.inputs.items()},
        {a: rename(s) for a, s in signature.outputs.items()},
        0,
    )


def _first_run(signature: Signature, run: Run, rows: int) -> tuple[int | None, dict[str, Array]]:
    for size in FREE_SIZES:
        outputs = _try(signature, run, generate(signature, rows, free=size))
        if outputs is not None:
            return size, outputs
    return None, {}


def _try(signature: Signature, run: Run, inputs: Mapping[str, Array]) -> dict[str, Array] | None:
    return attempt(lambda batch: run(signature, batch), inputs)


def read_toml(path: Path, graph: onnx.GraphProto) -> dict[str, Signature]:
    """The signatures of a TOML file over the tensors of `graph`.

    Raises UsageError naming the table and key that is wrong, and the nearest right one.
    """
    try:
        document = tomli.loads(read_text(path))
    except (InputError, tomli.TOMLDecodeError) as error:
        raise UsageError("cannot read the signatures file", where=path, found=error) from error
    _only(document, ("signatures",), str(path))
    tables = document.get("signatures")
    if not isinstance(tables, dict) or not tables:
        raise UsageError("no signatures", where=path, expected="[signatures.serving_default]")
    derived = derive(graph, path)
    known = {s.name: s for s in (*derived.inputs.values(), *derived.outputs.values())}
    return {name: _from_table(table, known, f"{path}: signatures.{name}") for name, table in tables.items()}


def _from_table(table: Any, known: Mapping[str, TensorSpec], where: str) -> Signature:
    if not isinstance(table, dict):
        raise UsageError("a signature is not a table", where=where)
    _only(table, ("method", "batch_axis", *SIDES), where)
    method = table.get("method", "predict")
    if method not in METHODS:
        raise UsageError("unknown method", where=where, expected=", ".join(METHODS), found=method)
    axis = _declared_axis(table.get("batch_axis"), where)
    ports: dict[str, dict[str, TensorSpec]] = {}
    for side in SIDES:
        given = table.get(side, {})
        if not isinstance(given, dict):
            raise UsageError("not a table", where=f"{where}.{side}", found=given)
        ports[side] = {alias: _port(alias, port, known, f"{where}.{side}") for alias, port in given.items()}
    inputs = _with_buckets(ports["inputs"])
    for alias, problem in pad_problems(inputs):
        raise UsageError("inputs cannot be padded so", where=f"{where}.inputs.{alias}", found=problem)
    signature = Signature(method, inputs, ports["outputs"], axis)
    _check_method(signature, where)
    if axis == 0 and not may_batch(signature):
        specs = {**ports["inputs"], **ports["outputs"]}
        raise UsageError(
            "batch_axis 0 is given, and axis 0 is not open everywhere",
            where=where,
            expected="a symbol as the first dimension of every input and output",
            found=", ".join(f"{alias}: {show_shape(spec.shape)}" for alias, spec in specs.items()),
        )
    return signature


def _declared_axis(given: object, where: str) -> int | None:
    """0, ALONE for false, or None where the file does not say."""
    if given is None:
        return None
    if given is False:
        return ALONE
    if given is True or given != 0:
        expected = "0, false (requests run alone), or leave it out: then it is found out"
        raise UsageError("bad batch_axis", where=where, expected=expected, found=given)
    return 0


SIDES = ("inputs", "outputs")
# Keys of a port, with the type of each. `shape` may narrow the graph's, never contradict it.
PORT_KEYS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "inputs": {
        "tensor": str,
        "dtype": str,
        "shape": list,
        "doc": str,
        "default": (bool, int, float, str, list),
        "range": list,
        "pad": dict,
        "length_of": str,
    },
    "outputs": {"tensor": str, "dtype": str, "shape": list, "doc": str, "labels": str},
}


def _port(alias: str, port: Any, known: Mapping[str, TensorSpec], where: str) -> TensorSpec:
    """One input or output of a signatures file, over the graph's own description of the tensor."""
    side, at = where.rsplit(".", 1)[1], f"{where}.{alias}"
    if not isinstance(port, dict):
        raise UsageError("a port is not a table", where=at, expected='{ tensor = "name" }', found=port)
    _only(port, PORT_KEYS[side], at)
    for key, value in port.items():
        if not isinstance(value, PORT_KEYS[side][key]):
            raise UsageError("a value of the wrong kind", where=f"{at}.{key}", found=value)
    tensor = port.get("tensor", alias)
    if tensor not in known:
        raise UsageError("no such tensor in the graph", where=at, expected=", ".join(known), found=tensor)
    spec = known[tensor]
    if port.get("dtype", spec.dtype) != spec.dtype:
        raise UsageError("not the graph's dtype", where=at, expected=spec.dtype, found=port["dtype"])
    span = port.get("range")
    if span is not None and not is_range(span):
        raise UsageError("bad range", where=at, expected="[low, high]", found=span)
    spec = replace(
        spec,
        shape=_narrowed(spec.shape, port.get("shape"), at),
        doc=port.get("doc", ""),
        default=port.get("default"),
        range=tuple(span) if span else None,
        labels=port.get("labels", ""),
        pad=_pad(port.get("pad"), f"{at}.pad"),
        length_of=port.get("length_of", ""),
    )
    _check_default(spec, at)
    return spec


def _pad(table: dict[str, Any] | None, where: str) -> Pad | None:
    if table is None:
        return None
    _only(table, ("axis", "value", "buckets"), where)
    try:
        return Pad.from_json(table)
    except ValueError as error:
        raise UsageError("bad pad", where=where, expected=error, found=table) from error


def _with_buckets(inputs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """Padded inputs without buckets have those of the input that has the same symbol."""
    padded = {a: (s, s.pad, (s.shape or ())[s.pad.axis : s.pad.axis + 1]) for a, s in inputs.items() if s.pad}
    known = {symbol: pad.buckets for _, pad, symbol in padded.values() if pad.buckets}
    return {**inputs} | {
        alias: replace(spec, pad=replace(pad, buckets=pad.buckets or known.get(symbol, ())))
        for alias, (spec, pad, symbol) in padded.items()
    }


def _narrowed(graph: Shape, given: list[Any] | None, at: str) -> Shape:
    """The given shape, if every size that the graph fixes stands in it."""
    if given is None:
        return graph
    fits = all(is_dim(d) for d in given) and (graph is None or len(graph) == len(given))
    if not fits or any(isinstance(g, int) and g != d for g, d in zip(graph or (), given, strict=False)):
        raise UsageError("the shape contradicts the graph", where=at, expected=show_shape(graph), found=given)
    return tuple(given)


def _check_default(spec: TensorSpec, at: str) -> None:
    """A default converts to the dtype, and has the shape of one row or is a single value."""
    if spec.default is None:
        return
    import numpy as np

    try:
        value = np.asarray(spec.default, DTYPES[spec.dtype].to_numpy())
        row = [d for d in (spec.shape or ())[1:] if isinstance(d, int)]
        np.broadcast_to(value, row if len(row) == len((spec.shape or ())[1:]) else value.shape)
    except (ValueError, TypeError, OverflowError) as error:
        expected = f"{spec.dtype}, one value or one row of {show_shape(spec.shape)}"
        raise UsageError("bad default", where=at, expected=expected, found=spec.default) from error


def _check_method(signature: Signature, where: str) -> None:
    """classify answers scores, classes or both; regress answers outputs; predict answers anything."""
    names, method = set(signature.outputs), signature.method
    if not names:
        raise UsageError("a signature needs outputs", where=where)
    allowed = {"classify": {"scores", "classes"}, "regress": {"outputs"}}.get(method, names)
    if not names <= allowed:
        raise UsageError(
            f"wrong outputs for {method}",
            where=f"{where}.outputs",
            expected=" or ".join(sorted(allowed)),
            found=", ".join(signature.outputs),
        )
    for alias, spec in signature.outputs.items():
        text = alias == "classes"
        if method != "predict" and (spec.dtype == "string") != text:
            raise UsageError(
                f"wrong dtype for {method}",
                where=f"{where}.outputs.{alias}",
                expected="string" if text else "a number",
                found=spec.dtype,
            )


def _only(table: Mapping[str, Any], allowed: Iterable[str], where: str) -> None:
    for key in table:
        if key not in allowed:
            near = difflib.get_close_matches(key, list(allowed), 1)
            hint = f"did you mean {near[0]!r}?" if near else ""
            raise UsageError("unknown key", where=where, expected=", ".join(allowed), found=key, hint=hint)
