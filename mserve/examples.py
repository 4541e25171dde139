"""Valid inputs made up from a signature: for warm-up, for `--golden N`, for bench, for a first request."""

from __future__ import annotations

import math
from typing import Any

from .tensors import DTYPES, Array, Signature, TensorSpec

_WORDS = ("a", "b", "c", "d", "e", "f", "g", "h")


def generate(signature: Signature, rows: int = 1, seed: int = 0, free: int = 32) -> dict[str, Array]:
    """Arrays that fit a signature: `rows` along the batch axis, `free` for every other open size.

    Values lie in the signature's range; without one, floats in [0, 1), integers are 0 or 1
    (the only indices every table has). Strings are single letters. The same arguments
    always give the same arrays. An input that is the length of another one is that.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    batched = signature.batch_axis is not None
    arrays = {
        alias: _fill(spec, _sizes(spec, rows if batched else free, free), rng)
        for alias, spec in signature.inputs.items()
    }
    for alias, spec in signature.inputs.items():
        if spec.length_of and (pad := signature.inputs[spec.length_of].pad):
            arrays[alias][...] = arrays[spec.length_of].shape[pad.axis]
    return arrays


def generated_bytes(signature: Signature, rows: int = 1, free: int = 32) -> int:
    """How many bytes `generate` would make for the same arguments."""
    first = rows if signature.batch_axis is not None else free
    counts = [(spec, math.prod(_sizes(spec, first, free))) for spec in signature.inputs.values()]
    return sum(DTYPES[spec.dtype].byte_size(n) or 8 * n for spec, n in counts)


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
