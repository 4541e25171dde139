"""Signatures derived from a graph's inputs and outputs, and whether their rows are independent."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..examples import attempt, generate, swayed
from ..numerics import compare
from ..rows import join, take
from ..sparse import entry_names
from ..tensors import ANY_DIM, BY_ONNX, Array, Dim, Signature, TensorSpec

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
    entries = entry_names(signature.sparse)
    inputs = [s.shape for a, s in signature.inputs.items() if a not in entries]
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
    both = join([rows, generate(signature, PROBE_ROWS, seed=1, free=size)])
    for row in range(PROBE_ROWS):
        beside = [place if place == row else place + PROBE_ROWS for place in range(PROBE_ROWS)]
        exchanged = _try(signature, run, take(signature, both, beside))
        alone = _try(signature, run, take(signature, rows, [row]))
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

    def rename(port: Any) -> Any:
        return replace(port, shape=(name, *port.shape[1:]) if port.shape else port.shape)

    found = Signature.of(
        signature.method,
        {a: rename(port) for a, port in signature.ports().items()},
        {a: rename(s) for a, s in signature.outputs.items()},
        0,
    )
    return replace(found, examples=signature.examples)


def _first_run(signature: Signature, run: Run, rows: int) -> tuple[int | None, dict[str, Array]]:
    for size in FREE_SIZES:
        outputs = _try(signature, run, generate(signature, rows, free=size))
        if outputs is not None:
            return size, outputs
    return None, {}


def _try(signature: Signature, run: Run, inputs: Mapping[str, Array]) -> dict[str, Array] | None:
    return attempt(lambda batch: run(signature, batch), inputs)
