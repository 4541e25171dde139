"""Percentiles of measured latencies, their uncertainty, and trends. Pure.

Percentiles are nearest-rank: one of the measured values, never a mixture of two. Their
confidence interval is distribution-free: it lies between two of the sorted values, at
ranks that follow from the binomial distribution alone. That distribution is of independent
samples; latencies of neighbouring requests depend on each other in a busy queue, so the
ranks are those of the effective sample size (see `dependence`), spread over the sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from .dependence import effective_size

Ints = npt.NDArray[np.int64]

CONFIDENCE = 0.95
# A percentile is carried by a sample in which this many values are expected beyond it.
TAIL_SAMPLES = 10
# The latency of a request that was never answered: longer than anything measured.
NEVER_NS = int(np.iinfo(np.int64).max)

_TREND_WINDOWS = 10
_TREND_SAMPLES_MIN = 100
_TREND_SCORE_MIN = 35
_TREND_RISE_MIN_NS = 1_000_000


@dataclass(frozen=True, slots=True)
class Percentile:
    """The p-quantile of a sample, with the ends of its confidence interval, in nanoseconds.

    `value_ns` is None when the sample is smaller than `needed`: then it would say nothing.
    An end of the interval is None where the sample is too small to have one. `effective` is
    how many independent samples would say as much; None where the run is too short for its
    correlations, and then there is no interval. NEVER_NS stands for "not answered".
    """

    p: float
    needed: int
    value_ns: int | None = None
    low_ns: int | None = None
    high_ns: int | None = None
    effective: int | None = None

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it; None where nothing can be said."""
        return {
            "p": self.p,
            "value_ms": milliseconds(self.value_ns),
            "low_ms": milliseconds(self.low_ns),
            "high_ms": milliseconds(self.high_ns),
            "effective_samples": self.effective,
            "refused": f"needs {self.needed} samples" if self.value_ns is None else None,
            "unanswered": self.value_ns == NEVER_NS,
        }


def milliseconds(ns: int | None) -> float | None:
    """Nanoseconds as milliseconds; None for nothing and for never."""
    return None if ns is None or ns == NEVER_NS else ns / 1e6


def samples_needed(p: float) -> int:
    """How many samples carry a percentile."""
    return math.ceil(round(TAIL_SAMPLES / (1 - p), 6))


def nearest_rank(ascending: Ints, p: float) -> int:
    """The smallest value that at least a share `p` of the (not empty) sample does not exceed."""
    rank = max(1, math.ceil(round(p * len(ascending), 6)))
    return int(ascending[rank - 1])


def percentile(ascending: Ints, p: float, confidence: float = CONFIDENCE) -> Percentile:
    """A percentile of a sorted sample of independent values, refused when the sample is too small for it."""
    return _percentile(ascending, p, confidence, len(ascending))


def percentile_of_series(series: Ints, ascending: Ints, p: float) -> Percentile:
    """A percentile of values in the order in which they arose, which depend on their neighbours.

    `ascending` is the same values sorted.
    """
    if len(ascending) < samples_needed(p):
        return Percentile(p, samples_needed(p))
    size = effective_size(series <= nearest_rank(ascending, p))
    return _percentile(ascending, p, CONFIDENCE, size)


def _percentile(ascending: Ints, p: float, confidence: float, size: int | None) -> Percentile:
    needed, n = samples_needed(p), len(ascending)
    if n < needed:
        return Percentile(p, needed)
    low, high = interval_ranks(size, p, confidence) if size else (None, None)
    return Percentile(
        p,
        needed,
        nearest_rank(ascending, p),
        None if low is None or not size else int(ascending[max(1, low * n // size) - 1]),
        None if high is None or not size else int(ascending[min(n, math.ceil(high * n / size)) - 1]),
        size,
    )


@lru_cache(maxsize=64)
def interval_ranks(n: int, p: float, confidence: float = CONFIDENCE) -> tuple[int | None, int | None]:
    """Ranks (from 1) of the sorted values between which the true p-quantile lies.

    Either is None where no value of the sample is far enough out.
    """
    tail = (1 - confidence) / 2
    first, cumulative = _binomial_cdf(n, p)
    # P(value at rank r is above the quantile) = P(Bin(n, p) <= r - 1)
    low = int(np.searchsorted(cumulative, tail, side="right")) + first
    high = int(np.searchsorted(cumulative, 1 - tail, side="left")) + first + 1
    return (low if low >= 1 else None), (high if high <= n else None)


def _binomial_cdf(n: int, p: float) -> tuple[int, npt.NDArray[np.float64]]:
    """P(Bin(n, p) <= k) for k = first, first + 1, ...; what lies further out is below 1e-20."""
    reach = 12 * math.sqrt(n * p * (1 - p)) + 30
    first, last = max(0, int(n * p - reach)), min(n, int(n * p + reach))
    k = np.arange(first, last)
    log_ratio = np.log((n - k) / (k + 1.0)) + math.log(p / (1 - p))
    log_first = math.lgamma(n + 1) - math.lgamma(first + 1) - math.lgamma(n - first + 1)
    log_first += first * math.log(p) + (n - first) * math.log1p(-p)
    return first, np.cumsum(np.exp(log_first + np.concatenate(([0.0], np.cumsum(log_ratio)))))


def window_medians(values: Ints, windows: int) -> list[int]:
    """Nearest-rank medians of consecutive parts of equal size."""
    return [nearest_rank(np.sort(part), 0.5) for part in np.array_split(values, windows) if len(part)]


def grows_throughout(latency: Ints) -> bool:
    """Whether latencies in order of sending rise from beginning to end, as they do above capacity.

    Mann and Kendall's score over the medians of ten windows must be at least 35 of 45
    (by chance: once in a thousand), and the last median twice the first.
    """
    if len(latency) < _TREND_SAMPLES_MIN:
        return False
    medians = window_medians(latency, _TREND_WINDOWS)
    score = sum((b > a) - (b < a) for i, a in enumerate(medians) for b in medians[i + 1 :])
    first, last = medians[0], medians[-1]
    return score >= _TREND_SCORE_MIN and last >= 2 * first and last - first >= _TREND_RISE_MIN_NS
