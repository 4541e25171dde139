"""Curve: how long runs of so many rows take, as measured.

Each size is run as the batcher would have it run, inputs joined and outputs split. Sizes take
turns, in an order that is drawn for each round, so that a slow moment of the machine hits all
of them and not one. Between two measured sizes, equal quantiles are joined by a line.
"""

from __future__ import annotations

import random
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from ...batching.assembly import run_batch
from ...batching.entry import Batch, Entry
from ...batching.form import Form
from ...batching.times import Times
from ...loader.servable import Servable
from ...tensors import Array

QUANTILES = 256
ROUNDS_MIN, ROUNDS_MAX = 12, 400
_WARM_RUNS = 3
TURNS = 4
# Two halves of a measurement on a quiet machine have medians this close.
NOISE_MAX = 0.25

Feeds = dict[str, Array]


@dataclass(frozen=True, slots=True)
class Curve:
    """Run times in nanoseconds: for each of the rising `sizes`, QUANTILES rising values.

    `noise` is by how much the medians of the measurement's two halves differ, at worst.
    """

    sizes: tuple[int, ...]
    times: tuple[tuple[float, ...], ...]
    noise: float = 0.0
    _known: dict[int, list[float]] = field(default_factory=dict, compare=False)

    def __call__(self, rows: int) -> list[float]:
        """The run times of so many rows, rising."""
        known = self._known.get(rows)
        if known is None:
            known = self._known[rows] = self._between(rows)
        return known

    def median(self, rows: int) -> float:
        """The median run time of so many rows."""
        return self(rows)[QUANTILES // 2]

    def _between(self, rows: int) -> list[float]:
        sizes = self.sizes
        if rows <= sizes[0] or len(sizes) == 1:
            return list(self.times[0])
        at = min(bisect_left(sizes, rows), len(sizes) - 1)
        low, high = sizes[at - 1], sizes[at]
        part = (rows - low) / (high - low)  # above 1 beyond the last: the line goes on
        pairs = zip(self.times[at - 1], self.times[at], strict=True)
        return [a + max(b - a, 0.0 if part > 1 else b - a) * part for a, b in pairs]


def curve_of(samples: Mapping[int, Sequence[float]]) -> Curve:
    """A curve from run times in nanoseconds by size, in the order in which they were measured."""
    sizes = tuple(sorted(samples))
    points = (np.arange(QUANTILES) + 0.5) / QUANTILES
    times, noise = [], 0.0
    for size in sizes:
        found = np.asarray(samples[size], np.float64)
        times.append(tuple(np.quantile(found, points, method="inverted_cdf").tolist()))
        first, second = np.median(found[: len(found) // 2 or 1]), np.median(found[len(found) // 2 :])
        noise = max(noise, float(abs(first - second) / max(1.0, min(first, second))))
    return Curve(sizes, tuple(times), noise)


def sizes_to(most: int, rows: int = 1) -> list[int]:
    """Numbers of rows to measure: powers of two, and one between each two, times `rows`."""
    found, n = {1}, 1
    while n < most:
        found |= {n, n * 3 // 2}
        n *= 2
    return sorted(n * rows for n in found | {most} if n <= most)


def measure(
    servable: Servable,
    signature: str,
    feeds: Sequence[Feeds],
    sizes: Sequence[int],
    budget_s: float,
    *,
    wide: bool = False,
    worth: Callable[[int, float], bool] = lambda rows, ns: True,
) -> Curve:
    """Measure runs of about so many rows; the requests `feeds` are joined for that.

    Larger sizes are left out from the first on that is not `worth` its time. Raises ExecutionFailed.
    """
    batches = {b.rows: b for b in (_batch(servable, signature, feeds, n, wide=wide) for n in sizes)}
    samples: dict[int, list[float]] = {}
    for rows in sorted(batches):
        first = min(_timed(batches[rows]) for _ in range(_WARM_RUNS))
        if samples and not worth(rows, first):
            break
        samples[rows] = []
    order, start = list(samples), time.perf_counter()
    draw = random.Random(1)
    for done in range(ROUNDS_MAX):
        if done >= ROUNDS_MIN and time.perf_counter() - start > budget_s:
            break
        draw.shuffle(order)
        for rows in order:
            samples[rows].append(_timed(batches[rows]))
    return curve_of(samples)


def crowding(
    servable: Servable, signature: str, feeds: Sequence[Feeds], rows: int, *, workers: int, budget_s: float
) -> float:
    """How many times as long a run takes while all workers run: 1 where they do not get in each other's way.

    Means over turns of one worker and of all, so that what a slow moment does it does to both.
    """
    batches = [_batch(servable, signature, feeds, rows, wide=False) for _ in range(workers)]
    turn_s = budget_s / (2 * TURNS)
    alone: list[float] = []
    crowded: list[float] = []
    with ThreadPoolExecutor(workers) as threads:
        for _ in range(TURNS):
            alone += threads.submit(_runs, batches[0], turn_s).result()
            crowded += [x for found in threads.map(lambda b: _runs(b, turn_s), batches) for x in found]
    return max(1.0, (sum(crowded) / len(crowded)) / (sum(alone) / len(alone)))


def _runs(batch: Batch, seconds: float) -> list[float]:
    """The times of runs one after the other for so long, at least one."""
    end = time.perf_counter() + seconds
    found = [_timed(batch)]
    while time.perf_counter() < end:
        found.append(_timed(batch))
    return found


def _timed(batch: Batch) -> float:
    start = time.perf_counter_ns()
    run_batch(batch)
    return float(time.perf_counter_ns() - start)


def _batch(servable: Servable, signature: str, feeds: Sequence[Feeds], rows: int, *, wide: bool) -> Batch:
    """A batch of at least one request, and of no more than so many rows otherwise."""
    spec = servable.signatures[signature]
    entries: list[Entry] = []
    total = 0
    while True:
        inputs = feeds[len(entries) % len(feeds)]
        own = rows_of(inputs, batched=spec.batch_axis is not None)
        if entries and total + own > rows:
            break
        alone = spec.batch_axis is None
        entries.append(Entry(servable, signature, inputs, own, alone, lambda result: None, 0))
        total += own
        if alone:
            break
    batch = Batch(0, "full", entries, total, 0, Form(signature, spec), Times())
    batch.wide = wide
    return batch


def rows_of(inputs: Feeds, *, batched: bool) -> int:
    """How many rows a request has; one that runs alone counts as one."""
    return max(1, next(iter(inputs.values())).shape[0]) if batched and inputs else 1
