"""What bench sends besides files (see `readers.requests`).

golden samples   of a bundle, with the outputs that were recorded for them
made up          from a signature: within declared ranges, else like the values that
                 are known; text and whole numbers drawn from known values
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ...errors import RequestError
from ...examples import generate, generated_bytes
from ...format.golden import Golden
from ...readers.requests import Sample
from ...rows import row_count, take
from ...sparse import length_names
from ...tensors import DTYPES, Array, Signature, TensorSpec

GOLDEN = Path("golden")
# What made-up requests may take together.
MADE_UP_BYTES = 64 << 20
# Known values that are kept for each input.
POOL_MAX = 100_000


def golden_samples(golden: Golden, signature: Signature, rows: int, distinct: int) -> list[Sample]:
    """Recorded rows in requests of `rows`, at most `distinct`; all of them as one without a batch axis."""
    if signature.batch_axis is None:
        return [Sample(golden.inputs, outputs=golden.outputs)]
    total = row_count(signature, golden.inputs) if golden.inputs else 0
    if not total:
        return []
    samples = []
    for number in range(min(distinct, total)):
        at = (np.arange(rows) + number * rows) % total
        inputs, outputs = take(signature, golden.inputs, at), {a: x[at] for a, x in golden.outputs.items()}
        samples.append(Sample(inputs, outputs=outputs))
    return samples


def made_up(
    signature: Signature, rows: int, distinct: int, seed: int, known: Mapping[str, Array]
) -> list[Sample]:
    """Requests from a signature, different ones as far as their bytes are bearable.

    `known` has values that inputs may take, flat. Raises RequestError where a single one is too large.
    """
    size = generated_bytes(signature, rows)
    if size > MADE_UP_BYTES:
        raise RequestError(
            "the inputs are too large to make some up",
            expected=f"at most {MADE_UP_BYTES} bytes",
            found=size,
            hint="give a request: --inputs F.json or F.npz",
        )
    count = max(1, min(distinct, MADE_UP_BYTES // max(1, size)))
    return [Sample(_one(signature, rows, (seed, i), known)) for i in range(count)]


def _one(
    signature: Signature, rows: int, seed: tuple[int, int], known: Mapping[str, Array]
) -> dict[str, Array]:
    arrays = generate(signature, rows, seed=seed[0] * 100_003 + seed[1])
    rng, lengths = np.random.default_rng(seed), length_names(signature.sparse)
    for alias, spec in signature.inputs.items():
        pool = known.get(alias) if alias not in lengths else None
        if pool is not None and pool.size and not spec.length_of:
            arrays[alias] = _drawn(spec, arrays[alias], pool, rng)
    return arrays


def _drawn(spec: TensorSpec, array: Array, pool: Array, rng: np.random.Generator) -> Array:
    """Text and numbers without a range, as the known ones are."""
    if spec.dtype == "string" or (spec.range is None and array.dtype.kind in "biu"):
        return np.asarray(pool[rng.integers(0, len(pool), array.shape)])
    if spec.range is None and array.dtype.kind == "f":
        low, high = float(np.nanmin(pool)), float(np.nanmax(pool))
        if np.isfinite([low, high]).all() and low < high:
            return np.asarray(rng.random(array.shape) * (high - low) + low).astype(array.dtype)
    return array


def pools(signature: Signature, recorded: Mapping[str, Array], words: Sequence[str] = ()) -> dict[str, Array]:
    """Values that each input may take: recorded ones, and for text without any the given words."""
    found = {}
    for alias, spec in signature.inputs.items():
        if alias in recorded and recorded[alias].size:
            found[alias] = recorded[alias].ravel()[:POOL_MAX]
        elif spec.dtype == "string" and words:
            found[alias] = np.array(words[:POOL_MAX], dtype=DTYPES["string"].to_numpy())
    return found
