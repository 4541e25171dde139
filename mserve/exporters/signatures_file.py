"""Signatures read from `--signatures F.toml`, over the tensors of a graph."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli

from ..errors import InputError, UsageError
from ..files import read_text
from ..padding import Pad
from ..sparse import ENTRIES_MAX, KINDS, RANKS, ROLES, VALUES, Sparse
from ..tensors import (
    DTYPES,
    METHODS,
    Ports,
    Shape,
    Signature,
    TensorSpec,
    is_dim,
    is_range,
    pad_problems,
    show_shape,
)
from .signatures import ALONE, derive, may_batch

if TYPE_CHECKING:
    import onnx


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
    _only(table, ("method", "batch_axis", "examples", *SIDES), where)
    method = table.get("method", "predict")
    if method not in METHODS:
        raise UsageError("unknown method", where=where, expected=", ".join(METHODS), found=method)
    axis = _declared_axis(table.get("batch_axis"), where)
    for side in SIDES:
        if not isinstance(table.get(side, {}), dict):
            raise UsageError("not a table", where=f"{where}.{side}", found=table[side])
    outputs = {a: _port(a, port, known, f"{where}.outputs") for a, port in table.get("outputs", {}).items()}
    inputs = _inputs(table.get("inputs", {}), known, f"{where}.inputs")
    try:
        signature = Signature.of(method, inputs, outputs, axis)
    except ValueError as error:
        raise UsageError("two inputs have one name", where=where, expected=error) from error
    signature = replace(signature, examples=_examples(table.get("examples", ""), signature, where))
    for alias, problem in pad_problems(signature.inputs):
        raise UsageError("inputs cannot be padded so", where=f"{where}.inputs.{alias}", found=problem)
    _check_method(signature, where)
    if axis == 0 and not may_batch(signature):
        specs = {**signature.inputs, **outputs}
        raise UsageError(
            "batch_axis 0 is given, and axis 0 is not open everywhere",
            where=where,
            expected="a symbol as the first dimension of every input and output",
            found=", ".join(f"{alias}: {show_shape(spec.shape)}" for alias, spec in specs.items()),
        )
    return signature


def _examples(name: Any, signature: Signature, where: str) -> str:
    """The name under which predict requests may carry serialised examples."""
    if not isinstance(name, str) or name in signature.inputs or name in signature.sparse:
        raise UsageError("bad examples", where=where, expected="a name that is no input's", found=name)
    return name


def _inputs(table: Mapping[str, Any], known: Mapping[str, TensorSpec], where: str) -> Ports:
    """All inputs, in the order of the file."""
    sparse = {
        alias: _sparse(port, known, f"{where}.{alias}")
        for alias, port in table.items()
        if isinstance(port, dict) and "kind" in port
    }
    dense = {a: _port(a, port, known, where) for a, port in table.items() if a not in sparse}
    found: dict[str, TensorSpec | Sparse] = {**_with_buckets(dense), **sparse}
    return {alias: found[alias] for alias in table}


# Keys of a sparse or ragged input.
SPARSE_KEYS: dict[str, type] = {
    "kind": str,
    "tensor": dict,
    "size": int,
    "max_length": int,
    "first_id": int,
    "doc": str,
    "range": list,
}


def _sparse(port: dict[str, Any], known: Mapping[str, TensorSpec], at: str) -> Sparse:
    """A sparse or ragged input, over the graph's tensors that it names by role."""
    _only(port, SPARSE_KEYS, at)
    for key, value in port.items():
        if not isinstance(value, SPARSE_KEYS[key]) or isinstance(value, bool):
            raise UsageError("a value of the wrong kind", where=f"{at}.{key}", found=value)
    size, longest, tensors = port.get("size", 0), port.get("max_length", 0), port.get("tensor", {})
    if min(size, longest) < 0 or longest > ENTRIES_MAX or (size and port["kind"] == "ragged"):
        expected = "numbers above 0; size for sparse inputs alone"
        raise UsageError("bad size or max_length", where=at, expected=expected, found=[size, longest])
    _only(tensors, ROLES, f"{at}.tensor")
    specs = {role: _role(role, tensor, known, f"{at}.tensor.{role}") for role, tensor in tensors.items()}
    values = specs.get(VALUES)
    entry = list((values.shape or ("?",))[1:]) if values else []
    fields = {
        "kind": port["kind"],
        "dtype": values.dtype if values else "int64",
        "tensor": tensors,
        "shape": ["batch", size or "?", *entry],
        "max_length": longest,
        "first_id": port.get("first_id", 0),
        "doc": port.get("doc", ""),
        "range": port.get("range"),
    }
    try:
        return Sparse.from_json(fields, DTYPES)
    except ValueError as error:
        expected = f"{error}; kinds are {', '.join(KINDS)}"
        raise UsageError("bad sparse input", where=at, expected=expected, found=port) from error


def _role(role: str, tensor: Any, known: Mapping[str, TensorSpec], at: str) -> TensorSpec:
    """The graph's tensor for a role: of the role's rank, and int64 but for values."""
    if tensor not in known:
        raise UsageError("no such tensor in the graph", where=at, expected=", ".join(known), found=tensor)
    spec = known[tensor]
    rank = RANKS.get(role)
    if rank is not None and (spec.dtype != "int64" or (spec.shape is not None and len(spec.shape) != rank)):
        raise UsageError(
            "the graph's tensor does not fit the role", where=at, expected=f"int64 of rank {rank}", found=spec
        )
    return spec


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
