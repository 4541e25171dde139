"""Defaults: inputs that a request leaves out, filled in from its signature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import RequestError
from .sparse import entry_names
from .tensors import ANY_DIM, DTYPES, Array, Signature, TensorSpec


def fill_defaults(signature: Signature, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
    """The inputs, with the defaults of those that are absent: one row, repeated for a signature with rows.

    Along a symbol a default of fewer axes is repeated as often as the other inputs say; an
    input that is the length of another one is that. Raises RequestError when no input tells
    the number of rows.
    """
    if inputs.keys() == signature.inputs.keys():
        return inputs
    absent = {a: s for a, s in signature.inputs.items() if a not in inputs and s.optional}
    if not absent:
        return inputs
    import numpy as np

    rows: tuple[int, ...] = ()
    entries = entry_names(signature.sparse)
    if signature.batch_axis is not None:
        counts = [
            x.shape[:1] for a, x in inputs.items() if a in signature.inputs and x.ndim and a not in entries
        ]
        if not counts:
            raise RequestError("no input tells the number of rows", expected=", ".join(signature.inputs))
        rows = counts[0]
    known = _symbols(signature, inputs)
    filled = dict(inputs)
    for alias, spec in absent.items():
        value = np.asarray(_default(signature, spec, inputs), DTYPES[spec.dtype].to_numpy())
        if alias in entries:  # as many as the ids have
            filled[alias] = np.full(known.get(str((spec.shape or ("",))[0]), 0), value)
            continue
        shape = (spec.shape or ())[len(rows) :]
        sizes = tuple(known.get(d, -1) if isinstance(d, str) else d for d in shape)
        try:
            filled[alias] = np.broadcast_to(value, rows + (value.shape if -1 in sizes else sizes))
        except ValueError:  # it has another size than the other inputs, which the check of shapes says
            filled[alias] = np.broadcast_to(value, rows + value.shape)
    return {alias: filled[alias] for alias in signature.inputs if alias in filled} | filled


def _symbols(signature: Signature, inputs: Mapping[str, Array]) -> dict[str, int]:
    """The sizes that symbols have in some inputs."""
    known: dict[str, int] = {}
    for alias, array in inputs.items():
        shape = signature.inputs[alias].shape if alias in signature.inputs else None
        known |= {d: n for d, n in zip(shape or (), array.shape, strict=False) if isinstance(d, str)}
    known.pop(ANY_DIM, None)
    return known


def _default(signature: Signature, spec: TensorSpec, inputs: Mapping[str, Array]) -> Any:
    """One row's value of an absent input. Raises RequestError."""
    if not spec.length_of:
        return spec.default
    source, pad = inputs.get(spec.length_of), signature.inputs[spec.length_of].pad
    if source is None or pad is None or source.ndim <= pad.axis:
        raise RequestError("an input is absent, and so is what it is the length of", found=spec.length_of)
    return source.shape[pad.axis]
