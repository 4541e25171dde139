"""Form: what the batcher and the executor know of one signature's requests, worked out once.

Two requests may share a batch when the sizes behind axis 0 agree. Most signatures fix
them, so that all their requests share one queue and nothing needs to be looked at. An
input with `pad` counts as long as the bucket that it is padded to.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING

from ..padding import Pad
from ..sparse import entry_names, length_names
from ..tensors import Array, Signature

if TYPE_CHECKING:
    from .entry import Entry

TEXTS_READ, MUCH = 1 << 10, 64 << 10
Shapes = tuple[tuple[int, ...], ...]


class Form:
    """What batches of one signature look like.

    `pads` has the padded inputs; `trims`, for each output, its padded axes and the inputs
    whose lengths they have. `varies` tells whether rows differ in size: there is text, or there
    are sparse inputs, of which `entries` and `lengths` are the parts.
    """

    def __init__(self, name: str, signature: Signature) -> None:
        inputs = signature.inputs
        self.outputs = tuple(signature.outputs)
        self.pads: Mapping[str, Pad] = {a: s.pad for a, s in inputs.items() if s.pad is not None}
        self.entries, self.lengths = entry_names(signature.sparse), length_names(signature.sparse)
        self._text = any(s.dtype == "string" for s in inputs.values())
        self.varies = self._text or bool(signature.sparse)
        self._name = name
        self._aliases = tuple(inputs)
        sizes = [s.shape[1:] if s.shape else ("?",) for s in inputs.values()]
        self._fixed = all(isinstance(d, int) for shape in sizes for d in shape)
        sources = {(inputs[a].shape or ())[pad.axis]: a for a, pad in reversed(self.pads.items())}
        self.trims = tuple(
            tuple((axis, sources[dim]) for axis, dim in enumerate(spec.shape or ()) if dim in sources)
            for spec in signature.outputs.values()
        )

    def key(self, entry: Entry) -> Hashable:
        """What two requests must share to run together, beside the servable."""
        if entry.alone:  # it shares nothing, and all of its sizes count
            return self._name, self._aliases, *(entry.inputs[a].shape for a in self._aliases)
        return self._name if self._fixed else (self._name, *self.shapes(entry))

    def shapes(self, entry: Entry) -> Shapes:
        """The sizes of each input in a run: behind axis 0, and all for a request that runs alone."""
        inputs = entry.inputs
        if entry.alone:
            return tuple(inputs[a].shape for a in self._aliases)
        if self.pads:
            return tuple(self._padded(a, inputs[a].shape)[1:] for a in self._aliases)
        return tuple([inputs[a].shape[1:] for a in self._aliases])

    def _padded(self, alias: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        pad = self.pads.get(alias)
        if pad is None:
            return shape
        return (*shape[: pad.axis], pad.size(shape[pad.axis]), *shape[pad.axis + 1 :])

    def row_bytes(self, entry: Entry) -> int:
        """Bytes that a row takes, or all inputs of a request that runs alone; without what varies."""
        shapes = zip(self._aliases, self.shapes(entry), strict=True)
        return sum(math.prod(shape) * entry.inputs[a].dtype.itemsize for a, shape in shapes)

    def nbytes(self, entry: Entry, rows_nbytes: int) -> int:
        """Bytes that a request takes about whose rows differ in size, and take so much by `row_bytes`."""
        if self.entries or self._text:
            rows_nbytes = sum(array.nbytes for array in entry.inputs.values())
        return rows_nbytes + text_bytes(entry.inputs) if self._text else rows_nbytes


def text_bytes(inputs: Mapping[str, Array]) -> int:
    """About the characters of texts in objects: of many, some are read, and they count as more than MUCH."""
    arrays = [array.ravel() for array in inputs.values() if array.dtype.hasobject]
    count = sum(map(len, arrays))
    if count <= TEXTS_READ:
        return sum(sum(map(len, array.tolist())) for array in arrays)
    each = max(1, TEXTS_READ // len(arrays))
    read = [array[:each].tolist() for array in arrays]
    total = sum(sum(map(len, texts)) for texts in read)
    return MUCH + total * count // sum(map(len, read))
