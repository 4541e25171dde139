"""Warm-up: when a server has settled. Pure.

Two conditions: the last five
windows' medians have no slope to speak of (Theil and Sen: the median of all slopes between
two of them), and the truncation that MSER-5 finds best, that is, the beginning whose
removal makes the mean of what remains most certain, is in the first half, or would change
the mean by next to nothing. Of five latencies the median stands for all, so that a single
slow answer does not pass for the end of a warm-up.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np
import numpy.typing as npt

from ..judgement.quantiles import Ints
from .recorder import Recorder

WINDOWS = 5
WINDOW_S = 0.1
WINDOW_REQUESTS = 20
SLOPE_MAX = 0.02
_BATCH = 5
_BATCHES_MAX = 2000


def window_s(rate: float | None) -> float:
    """How long a window is: a tenth of a second, or as long as twenty requests take."""
    return max(WINDOW_S, WINDOW_REQUESTS / rate if rate else 0.0)


def answered(records: Sequence[Recorder]) -> tuple[Ints, Ints]:
    """Times of the answers so far, ascending, and their latencies, in nanoseconds."""
    done = np.concatenate([r.done[: r.count] for r in records] or [np.zeros(0, np.int64)])
    due = np.concatenate([r.intended[: r.count] for r in records] or [np.zeros(0, np.int64)])
    known = done > 0
    order = np.argsort(done[known], kind="stable")
    return done[known][order], (done - due)[known][order]


def settled(done: Ints, latency: Ints, window_ns: int) -> bool:
    """Whether latencies, in order of their answers, are steady."""
    if len(done) < WINDOWS * WINDOW_REQUESTS:
        return False
    edges = done[-1] - window_ns * np.arange(WINDOWS, -1, -1)
    if edges[0] < done[0]:
        return False
    cuts = np.searchsorted(done, edges, side="right")
    parts = [latency[a:b] for a, b in pairwise(cuts)]
    if min(len(part) for part in parts) == 0:
        return False
    medians = [float(np.median(part)) for part in parts]
    middle = float(np.median(medians))
    if abs(slope(medians)) > SLOPE_MAX * middle:
        return False
    cut, change = truncation(latency)
    return cut < 0.5 or change <= SLOPE_MAX


def slope(values: Sequence[float]) -> float:
    """Theil's and Sen's: the median of the slopes between any two values, per step."""
    return float(np.median([(b - a) / (j - i) for (i, a), (j, b) in combinations(enumerate(values), 2)]))


def truncation(values: Ints) -> tuple[float, float]:
    """The share of the beginning that MSER-5 would cut off, and by how much that changes the mean."""
    size = max(_BATCH, len(values) // _BATCHES_MAX)
    count = len(values) // size
    if count < 2:
        return 1.0, 1.0
    means = np.median(values[: count * size].reshape(count, size), axis=1)
    cut = int(np.argmin(_uncertainty(means)))
    rest = float(means[cut:].mean())
    return cut / count, abs(float(means.mean()) - rest) / max(1.0, rest)


def _uncertainty(means: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """For each number of batches cut off: the variance of the rest over its squared number."""
    left = np.arange(len(means), 0, -1)
    centred = means - means.mean()
    total, squares = np.cumsum(centred[::-1])[::-1], np.cumsum(centred[::-1] ** 2)[::-1]
    found: npt.NDArray[np.float64] = (squares - total**2 / left) / left.astype(float) ** 2
    return found[: max(1, len(means) - _BATCH)]
