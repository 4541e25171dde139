"""Valid inputs made up from a signature: for warm-up, for `--golden N`, for bench, for a first request.

And inputs that try whether rows are independent: the same rows at other magnitudes, each
row beside others of every other magnitude.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from typing import Any

from .errors import RequestError
from .numerics import ATOL, RTOL, compare
from .rows import join, row_count, take
from .sparse import IDS, LENGTHS, VALUES, Sparse, entry_names, length_names
from .tensors import DTYPES, Array, Signature, TensorSpec

Run = Callable[[Mapping[str, Array]], dict[str, Array]]

_WORDS = ("a", "b", "c", "d", "e", "f", "g", "h")
# Made-up rows of sparse inputs have at most so many entries.
ENTRIES = 8
_LONG_WORDS = "0 a Z " * 20
# What floats are multiplied by. A graph may ask for the largest, the smallest or the sum of
# all rows and go one way or the other: no threshold is far from the step between two of these.
_SCALES = (0.0, 1e-3, 1e3, -1e3, 1e6)


def generate(signature: Signature, rows: int = 1, seed: int = 0, free: int = 32) -> dict[str, Array]:
    """Arrays that fit a signature: `rows` along the batch axis, `free` for every other open size.

    Values lie in the signature's range; without one, floats in [0, 1), integers are 0 or 1
    (the only indices every table has). Strings are single letters. The same arguments
    always give the same arrays. An input that is the length of another one is that. Rows of
    a sparse input have up to ENTRIES entries, and the first has at least one.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    first = rows if signature.batch_axis is not None else free
    entries, arrays = entry_names(signature.sparse), dict[str, Array]()
    for alias, spec in signature.inputs.items():
        if alias not in entries:
            arrays[alias] = _fill(spec, _sizes(spec, first, free), rng)
    for alias, sparse in signature.sparse.items():
        arrays |= _entries(signature, alias, sparse, first, rng)
    arrays = {alias: arrays[alias] for alias in signature.inputs}
    for alias, spec in signature.inputs.items():
        if spec.length_of and (pad := signature.inputs[spec.length_of].pad):
            arrays[alias][...] = arrays[spec.length_of].shape[pad.axis]
    return arrays


def generated_bytes(signature: Signature, rows: int = 1, free: int = 32) -> int:
    """How many bytes `generate` would make for the same arguments."""
    first = rows if signature.batch_axis is not None else free
    entries = entry_names(signature.sparse)
    counts = [
        (spec, math.prod(_sizes(spec, first * ENTRIES if alias in entries else first, free)))
        for alias, spec in signature.inputs.items()
    ]
    return sum(DTYPES[spec.dtype].byte_size(n) or 8 * n for spec, n in counts)


def _entries(signature: Signature, alias: str, sparse: Sparse, rows: int, rng: Any) -> dict[str, Array]:
    """The parts of a sparse input of so many rows."""
    import numpy as np

    most = min(ENTRIES, sparse.max_length or ENTRIES)
    lengths = rng.integers(0, most + 1, rows)
    lengths[:1] = np.maximum(lengths[:1], 1)
    total = int(lengths.sum())
    found: dict[str, Array] = {}
    for part, name in sparse.names(alias).items():
        spec = signature.inputs[name]
        found[name] = _fill(spec, (total, *sparse.shape[2:]) if part == VALUES else (total,), rng)  # type: ignore[arg-type]
        if part == LENGTHS:
            found[name] = lengths
        if part == IDS:
            found[name] = np.maximum(found[name], sparse.first_id)
    return found


def _sizes(spec: TensorSpec, first: int, free: int) -> tuple[int, ...]:
    shape = (first,) if spec.shape is None else spec.shape
    return tuple(d if isinstance(d, int) else (first if i == 0 else free) for i, d in enumerate(shape))


def _fill(spec: TensorSpec, sizes: tuple[int, ...], rng: Any) -> Array:
    import numpy as np

    kind = DTYPES[spec.dtype].to_numpy()
    if spec.dtype == "string":
        words: Array = np.array(_WORDS, dtype=object)
        return np.asarray(words[rng.integers(0, len(_WORDS), sizes)])
    low, high = spec.range or (0, 1)
    if kind.kind in "biu":
        return np.asarray(rng.integers(int(low), int(high) + 1, sizes)).astype(kind)
    return np.asarray(rng.random(sizes) * (high - low) + low).astype(kind)


def swayed(
    signature: Signature,
    rows: Mapping[str, Array],
    run: Run,
    tolerance: tuple[float, float] = (RTOL, ATOL),
) -> Iterator[tuple[str, str]]:
    """Outputs (alias and reason) in which a row depends on the magnitude of the rows beside it.

    `rows` are valid inputs of at least two rows for a signature with a batch axis. Every
    batch has the same size, so that the same kernels run, and an independent row keeps its
    value. A batch that the model refuses (`run` raises RequestError) is no evidence.
    """
    tried = [(batch, outputs) for batch in _magnitudes(signature, rows) if (outputs := attempt(run, batch))]
    for (ones, one), (others, other) in combinations(tried, 2):
        count = row_count(signature, ones)
        odd = [row + count * (row % 2) for row in range(count)]
        mixed = take(signature, join([ones, others]), odd)
        for alias, found in (attempt(run, mixed) or {}).items():
            for first, expected in enumerate((one[alias], other[alias])):
                difference = compare(expected[first::2], found[first::2], *tolerance)
                if not difference.equal:
                    yield alias, f"beside rows of another magnitude, {difference.reason}"


def attempt(run: Run, batch: Mapping[str, Array]) -> dict[str, Array] | None:
    """The outputs of a run, None where the model refuses the inputs."""
    try:
        return run(batch)
    except RequestError:
        return None


def _magnitudes(signature: Signature, rows: Mapping[str, Array]) -> list[Mapping[str, Array]]:
    """The rows as they are, and at other magnitudes, each batch once."""
    import numpy as np

    batches, lengths = [rows], length_names(signature.sparse)
    first = {s.names(a)[IDS]: s.first_id for a, s in signature.sparse.items() if s.first_id}
    for scale in _SCALES:
        batch = {
            alias: x if alias in lengths else _scaled(signature.inputs[alias], x, scale)
            for alias, x in rows.items()
        }
        batch |= {alias: np.maximum(batch[alias], least) for alias, least in first.items()}
        if not any(all(np.array_equal(x, seen[a]) for a, x in batch.items()) for seen in batches):
            batches.append(batch)
    return batches


def _scaled(spec: TensorSpec, x: Array, scale: float) -> Array:
    """Floats times `scale`; whole numbers next to the ends of what is legal; empty or long text.

    Whole numbers may be indices or sizes, so that without a range only 0 and 1 are legal; those
    of eight bits are mostly bytes of images, and all values are tried.
    """
    import numpy as np

    if x.dtype.hasobject:
        return np.full_like(x, _LONG_WORDS if scale > 1 else "")
    if x.dtype.kind in "biu":
        small = x.dtype.kind != "b" and x.dtype.itemsize == 1
        low, high = spec.range or ((np.iinfo(x.dtype).min, np.iinfo(x.dtype).max) if small else (0, 1))
        low, high = int(low), int(high)
        step = x.astype(np.int64) % 2 * (scale != 0 and low < high)
        return np.asarray(high - step if scale > 1 else low + step).astype(x.dtype)
    with np.errstate(all="ignore"):
        return np.asarray((x.astype(np.float64) * scale).astype(x.dtype))
