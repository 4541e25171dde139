"""How the values of two tensors differ, read block by block: neither is ever in memory as a whole.

A block whose bytes are equal costs one comparison of memory, one scalar product and a count of zeros.
Where bytes differ, only the rows in which they do are turned into float64 and looked at; so a table of
which a hundredth changed is compared at about the speed at which it is read. Files are read by a few
threads, each into a buffer of its own, and blocks are added up in order.
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from ..errors import BundleIncomplete, InputError
from ..foreign.files import open_regular
from ..numerics import from_stored
from ..tensors import DTYPES, Array
from .model import Tensor

BLOCK_BYTES = 2 << 20
THREADS = 2
AHEAD = 6
SHOWN_ROWS = 5
FEW = 32
PERMUTED_BYTES = 16 << 20
FAST = ("float32", "float64")


@dataclass(slots=True)
class Delta:
    """What is known of two tensors of one shape, or of their common first rows, after some blocks.

    `rows` are slices along axis 0 that differ in a byte, `first` the first of them; sums leave values out
    that are no finite numbers. `half` and `brain` say whether all that differs was rounded so.
    """

    elements: int = 0
    changed: int = 0
    rows: int = 0
    first: list[int] = field(default_factory=list)
    last_row: int = -1
    maximum: float = 0.0
    at: int = -1
    sum_abs: float = 0.0
    squares: float = 0.0
    old_squares: float = 0.0
    new_squares: float = 0.0
    product: float = 0.0
    flips: int = 0
    nan: list[int] = field(default_factory=lambda: [0, 0])
    inf: list[int] = field(default_factory=lambda: [0, 0])
    zeros: list[int] = field(default_factory=lambda: [0, 0])
    half: bool = True
    brain: bool = True

    def add(self, other: Delta) -> None:
        """Take in the block that follows."""
        if other.rows:
            again = other.first[0] == self.last_row  # a row that goes on in this block
            self.rows += other.rows - again
            self.first = (self.first + other.first[int(again) :])[:SHOWN_ROWS]
            self.last_row = other.last_row
        if other.maximum > self.maximum or (other.at >= 0 and self.at < 0):
            self.maximum, self.at = other.maximum, other.at
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("nan", "inf", "zeros"):
            mine, more = getattr(self, name), getattr(other, name)
            mine[0], mine[1] = mine[0] + more[0], mine[1] + more[1]
        self.half, self.brain = self.half and other.half, self.brain and other.brain

    @property
    def relative(self) -> float:
        """The L2 norm of the difference over that of OLD."""
        if self.old_squares > 0:
            return math.sqrt(self.squares / self.old_squares)
        return math.inf if self.squares else 0.0

    @property
    def cosine(self) -> float:
        """The cosine of the angle between the two; 1 where both are zero."""
        norms = math.sqrt(self.old_squares) * math.sqrt(self.new_squares)
        if norms > 0:
            return max(-1.0, min(1.0, self.product / norms))
        return 1.0 if self.old_squares == self.new_squares else 0.0

    @property
    def rounded(self) -> str:
        """The dtype to which every changed value was rounded, "" if it was not so."""
        return "" if not self.changed else "float16" if self.half else "bfloat16" if self.brain else ""

    def facts(self) -> dict[str, Any]:
        """As JSON has it; numbers that it lacks are text."""
        count = max(1, self.elements)
        numbers = {
            "max_abs": self.maximum,
            "mean_abs": self.sum_abs / count,
            "relative_l2": self.relative,
            "cosine": self.cosine,
        }
        plain = {key: x if math.isfinite(x) else str(x) for key, x in numbers.items()}
        pairs = {"nan": self.nan, "inf": self.inf, "sparsity": [z / count for z in self.zeros]}
        rows = {"changed_rows": self.rows, "first_changed_rows": self.first}
        return {
            "elements": self.elements,
            "changed": self.changed,
            **rows,
            **plain,
            "sign_flips": self.flips,
        } | pairs


_SUMS = ("elements", "changed", "sum_abs", "squares", "old_squares", "new_squares", "product", "flips")


def compare(old: Tensor, new: Tensor, elements: int) -> Delta:
    """How the first `elements` values differ; both tensors are of dtypes whose values can be read.

    Slices along axis 0 have the size that they have in OLD. Raises what reading raises.
    """
    width = max(1, math.prod(old.shape[1:]))
    bits = max(DTYPES[old.dtype].bits, DTYPES[new.dtype].bits)
    step = BLOCK_BYTES * 8 // bits
    total = Delta()
    blocks = _from_files if old.path and new.path else _from_pieces
    for part in blocks((old, new), (elements, step, width), total):
        total.add(part)
    return total


def _bytes(tensor: Tensor, elements: int) -> int:
    return DTYPES[tensor.dtype].byte_size(elements)


def _from_files(both: tuple[Tensor, Tensor], sizes: tuple[int, int, int], total: Delta) -> Iterator[Delta]:
    """The blocks of two tensors that lie in files as they are, read by several threads."""
    elements, step, width = sizes
    own = threading.local()
    with ExitStack() as stack:
        assert both[0].path is not None
        assert both[1].path is not None
        files = [stack.enter_context(open_regular(t.path)) for t in both if t.path is not None]
        for tensor, file in zip(both, files, strict=True):
            if hasattr(os, "posix_fadvise"):  # two threads take turns, which does not look like reading on
                os.posix_fadvise(file.fileno(), tensor.offset, tensor.length, os.POSIX_FADV_SEQUENTIAL)

        def block(start: int) -> Delta:
            if not hasattr(own, "buffers"):
                own.buffers = [bytearray(_bytes(t, step)) for t in both]
            count = min(step, elements - start)
            views = []
            for tensor, file, buffer in zip(both, files, own.buffers, strict=True):
                view = memoryview(buffer)[: _bytes(tensor, count)]
                _read(file.fileno(), view, tensor.offset + _bytes(tensor, start), tensor)
                views.append(view)
            return _delta(both, (views[0], views[1]), (start, count, width), total)

        with ThreadPoolExecutor(THREADS) as threads:
            running: deque[Future[Delta]] = deque()
            for start in range(0, elements, step):
                running.append(threads.submit(block, start))
                if len(running) > AHEAD:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()


def _read(fd: int, view: memoryview, offset: int, tensor: Tensor) -> None:
    done = 0
    while done < len(view):
        count = os.preadv(fd, [view[done:]], offset + done)
        if not count:
            raise BundleIncomplete("a file ends inside a weight", where=f"{tensor.path}: {tensor.name}")
        done += count


def _from_pieces(both: tuple[Tensor, Tensor], sizes: tuple[int, int, int], total: Delta) -> Iterator[Delta]:
    """The blocks of two tensors of which one is put together from pieces."""
    elements, step, width = sizes
    old, new = (_regrouped(t, _bytes(t, step)) for t in both)
    for start in range(0, elements, step):
        count = min(step, elements - start)
        blocks = [next(old)[: _bytes(both[0], count)], next(new)[: _bytes(both[1], count)]]
        for tensor, block in zip(both, blocks, strict=True):
            if len(block) < _bytes(tensor, count):
                raise InputError("a weight ends early", where=tensor.name)
        yield _delta(both, (blocks[0], blocks[1]), (start, count, width), total)


def _regrouped(tensor: Tensor, size: int) -> Iterator[memoryview]:
    """A tensor's bytes in blocks of `size`, the last one shorter, and empty ones behind it."""
    kept = bytearray()
    for piece in tensor.pieces():
        kept += piece
        while len(kept) >= size:
            yield memoryview(bytes(kept[:size]))
            del kept[:size]
    yield memoryview(bytes(kept))
    while True:
        yield memoryview(b"")


def _delta(
    both: tuple[Tensor, Tensor],
    data: tuple[memoryview, memoryview],
    place: tuple[int, int, int],
    total: Delta,
) -> Delta:
    """One block: `place` is its first element, how many it has, and how many make a row.

    `total` is what is known so far: what earlier blocks have ruled out is not tried again.
    """
    import numpy as np

    start, count, width = place
    one, two = (from_stored(t.dtype, d)[:count] for t, d in zip(both, data, strict=True))
    found = Delta(elements=count, half=total.half, brain=total.brain)
    if both[0].dtype == both[1].dtype:
        differ = _differing(one, two)
        if both[0].dtype in FAST and differ.size <= count // 2 and _quick(found, one, two, differ):
            _mark(found, differ, (start, width))
            return found
    else:
        with np.errstate(invalid="ignore"):
            a, b = one.astype(np.float64), two.astype(np.float64)
            differ = np.flatnonzero((a != b) & ~(np.isnan(a) & np.isnan(b)))
    _whole(found, one, two, differ)
    _mark(found, differ, (start, width))
    return found


def _differing(one: Array, two: Array) -> Array:
    """Where two arrays of one dtype differ in a bit, found eight bytes at a time."""
    import numpy as np

    unsigned, size = f"u{one.dtype.itemsize}", one.dtype.itemsize
    whole = one.nbytes // 8 * 8 // size
    a, b = one.view(unsigned), two.view(unsigned)
    words = np.flatnonzero(a[:whole].view(np.uint64) != b[:whole].view(np.uint64))
    near = (words[:, None] * (8 // size) + np.arange(8 // size)).ravel()
    near = np.concatenate([near, np.arange(whole, one.size)])
    found: Array = near[a[near] != b[near]]
    return found


def _quick(found: Delta, one: Array, two: Array, differ: Array) -> bool:
    """Fill in a block of finite numbers of which most are equal; False if there are others."""
    import numpy as np

    squares = float(np.dot(one, one))
    a, b = one[differ].astype(np.float64), two[differ].astype(np.float64)
    if not math.isfinite(squares) or not np.isfinite(b).all():
        return False
    gone = float(a @ a)
    found.old_squares, found.new_squares = squares, squares - gone + float(b @ b)
    found.product = squares - gone + float(a @ b)
    zeros = one.size - int(np.count_nonzero(one.view(f"u{one.dtype.itemsize}")))
    found.zeros = [zeros, zeros - _zeros(a) + _zeros(b)]
    _gaps(found, a, b, differ)
    return True


def _whole(found: Delta, one: Array, two: Array, differ: Array) -> None:
    """Fill in a block by looking at every value."""
    import numpy as np

    sides = [x.astype(np.float64) for x in (one, two)]
    found.nan = [int(np.isnan(x).sum()) for x in sides]
    found.inf = [int(np.isinf(x).sum()) for x in sides]
    found.zeros = [_zeros(x) for x in sides]
    finite = np.isfinite(sides[0]) & np.isfinite(sides[1])
    a, b = sides[0][finite], sides[1][finite]
    found.old_squares, found.new_squares, found.product = float(a @ a), float(b @ b), float(a @ b)
    kept = differ[finite[differ]]
    _gaps(found, sides[0][kept], sides[1][kept], kept)


def _zeros(values: Array) -> int:
    """How many float64 values are zero in all bits; -0.0 is none."""
    import numpy as np

    return values.size - int(np.count_nonzero(values.view(np.uint64)))


def _gaps(found: Delta, a: Array, b: Array, differ: Array) -> None:
    """The differences of finite values, which stand at `differ`."""
    import numpy as np

    if not a.size:
        return
    gaps = np.abs(a - b)
    worst = int(np.argmax(gaps))
    found.maximum, found.at = float(gaps[worst]), int(differ[worst])
    found.sum_abs, found.squares = float(gaps.sum()), float(gaps @ gaps)
    found.flips = int((((a < 0) & (b > 0)) | ((a > 0) & (b < 0))).sum())
    if found.half or found.brain:
        found.half, found.brain = (_is_rounded(a, b, kind) for kind in ("float16", "bfloat16"))


def _is_rounded(a: Array, b: Array, kind: str) -> bool:
    """Whether b is a, rounded to a shorter type and back. A few values tell, mostly."""
    import numpy as np

    short = DTYPES[kind].to_numpy()
    with np.errstate(over="ignore"):
        return all(
            np.array_equal(x.astype(np.float32).astype(short).astype(np.float64), y)
            for x, y in ((a[:FEW], b[:FEW]), (a, b))
        )


def _mark(found: Delta, differ: Array, place: tuple[int, int]) -> None:
    """Count what differs, and the rows in which it stands; positions become those of the tensor."""
    import numpy as np

    start, width = place
    found.changed = int(differ.size)
    if found.at >= 0:
        found.at += start
    if differ.size:
        rows = (differ + start) // width
        rows = rows[np.concatenate([[True], rows[1:] != rows[:-1]])]
        found.rows, found.last_row = int(rows.size), int(rows[-1])
        found.first = [int(row) for row in rows[: SHOWN_ROWS + 1]]


def permuted_axis(old: Tensor, new: Tensor) -> int | None:
    """The axis along which NEW has the slices of OLD in another order, for tensors of a bearable size."""
    import numpy as np

    if old.length > PERMUTED_BYTES or DTYPES[old.dtype].bits < 8 or len(old.shape) < 1:
        return None
    one, two = (
        np.frombuffer(b"".join(t.pieces()), np.uint8).reshape(*t.shape, DTYPES[t.dtype].bits // 8)
        for t in (old, new)
    )
    for axis in range(len(old.shape)):
        slices = [
            sorted(hashlib.blake2b(np.take(x, i, axis).tobytes()).digest() for i in range(x.shape[axis]))
            for x in (one, two)
        ]
        if slices[0] == slices[1]:
            return axis
    return None
