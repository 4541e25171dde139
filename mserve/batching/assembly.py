"""Assembly: the inputs of a batch's requests joined into one, its outputs split again.

Rows are joined along axis 0. Inputs with `pad` are lengthened to their bucket, and the
batch is filled up to an allowed size with copies of its last row: a row that the model is
known to take (with rows without entries where an input is sparse). What comes out belongs
to the requests as views, cut back to their rows and their lengths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import ExecutionFailed
from ..padding import Pad
from ..tensors import Array
from .entry import Batch, Entry

Outputs = list[list[Array]]


def run_batch(batch: Batch) -> Outputs:
    """Run the model once for all requests of a batch: a list of outputs for each entry.

    Raises ExecutionFailed when the model does not return a row for each row it was given.
    """
    entries, form = batch.entries, batch.form
    first = entries[0]
    pads = {} if first.alone else form.pads
    if len(entries) == 1 and not batch.padding and not pads:
        return [list(first.servable.compute(first.signature, first.inputs, batch.options, wide=batch.wide))]
    joined = {
        alias: _lengthened(alias, pads[alias], batch) if alias in pads else _joined(alias, batch)
        for alias in first.inputs
    }
    outputs = first.servable.compute(first.signature, joined, batch.options, wide=batch.wide)
    for alias, output in zip(form.outputs, outputs, strict=True):
        if output.ndim == 0 or len(output) != batch.rows + batch.padding:
            raise ExecutionFailed(
                f"output {alias!r} does not have a row for each input row",
                expected=batch.rows + batch.padding,
                found=list(output.shape),
            )
    results: Outputs = []
    at = 0
    for entry in entries:
        stop = at + entry.rows
        results.append([output[at:stop] for output in outputs])
        at = stop
    if pads:
        for entry, result in zip(entries, results, strict=True):
            result[:] = [_trimmed(x, trims, entry, pads) for x, trims in zip(result, form.trims, strict=True)]
    return results


def _joined(alias: str, batch: Batch) -> Array:
    import numpy as np

    arrays = [e.inputs[alias] for e in batch.entries]
    if batch.padding and alias in batch.form.lengths:
        arrays.append(np.zeros(batch.padding, np.int64))
    elif batch.padding and alias not in batch.form.entries:
        last = arrays[-1][-1:]
        arrays.append(np.broadcast_to(last, (batch.padding, *last.shape[1:])))
    return np.concatenate(arrays)


def _lengthened(alias: str, pad: Pad, batch: Batch) -> Array:
    import numpy as np

    first = batch.entries[0].inputs[alias]
    size = pad.size(first.shape[pad.axis])
    shape = (batch.rows + batch.padding, *first.shape[1 : pad.axis], size, *first.shape[pad.axis + 1 :])
    # Numpy's own text is as wide as one request's: it would cut the others', and the pad value.
    joined: Array = np.full(shape, pad.value, object if first.dtype.kind == "U" else first.dtype)
    before = (slice(None),) * (pad.axis - 1)
    at = 0
    for entry in batch.entries:
        array = entry.inputs[alias]
        joined[(slice(at, at + entry.rows), *before, slice(array.shape[pad.axis]))] = array
        at += entry.rows
    if batch.padding:
        joined[at:] = joined[at - 1]
    return joined


def _trimmed(output: Array, trims: Sequence[tuple[int, str]], entry: Entry, pads: Mapping[str, Pad]) -> Array:
    """An output without what was added along its padded axes."""
    for axis, alias in trims:
        length = entry.inputs[alias].shape[pads[alias].axis]
        output = output[(slice(None),) * axis + (slice(length),)]
    return output
