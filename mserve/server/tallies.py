"""Counters that travel: what a child has counted since it was asked last, added to the parent's.

Only what was added travels, so that the parent's counters are sums over all children that ever
were, and never go down, whichever of them dies.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from ..loader.servable import Stats
from .metrics import Counts, Histogram, Metrics, Series

# Every whole number of a version but those that tell how fast its queue drains just now.
_SUMS = tuple(f.name for f in fields(Stats) if f.type == "int" and not f.name.startswith("drain"))
_LISTS = ("batch_rows", "batch_ns")


def take_series(metrics: Metrics) -> list[Any]:
    """The counts of all series since the last time; they begin anew."""
    return [[list(key), _counts(counts)] for key, counts in metrics.take().items()]


def _counts(counts: Counts) -> list[Any]:
    histograms = [[h.counts, h.total_ns] for h in (counts.total, *counts.phases)]
    return [counts.codes, counts.failures, counts.failed_ns, counts.last_ns, histograms]


def add_series(metrics: Metrics, taken: Iterable[Any]) -> int:
    """Add what a child has counted; returns how many requests that were."""
    requests = 0
    for key, (codes, failures, failed_ns, last_ns, histograms) in taken:
        counts = metrics.series.setdefault(Series(*key), Counts())
        for code, count in codes.items():
            counts.codes[code] = counts.codes.get(code, 0) + count
            requests += count
        counts.failures += failures
        counts.failed_ns += failed_ns
        counts.last_ns = max(counts.last_ns, last_ns)
        for histogram, (buckets, total_ns) in zip((counts.total, *counts.phases), histograms, strict=True):
            _add_histogram(histogram, buckets, total_ns)
    return requests


def _add_histogram(histogram: Histogram, buckets: list[int], total_ns: int) -> None:
    histogram.counts[:] = [a + b for a, b in zip(histogram.counts, buckets, strict=True)]
    histogram.total_ns += total_ns


def copy_stats(stats: Stats) -> Stats:
    """A version's counters as they are now."""
    copied = Stats()
    for name in _SUMS:
        setattr(copied, name, getattr(stats, name))
    for name in _LISTS:
        setattr(copied, name, list(getattr(stats, name)))
    return copied


def stats_since(now: Stats, before: Stats) -> dict[str, Any]:
    """What was added to a version's counters."""
    added: dict[str, Any] = {name: getattr(now, name) - getattr(before, name) for name in _SUMS}
    for name in _LISTS:
        pairs = zip(getattr(now, name), getattr(before, name), strict=True)
        added[name] = [a - b for a, b in pairs]
    return added


def add_stats(stats: Stats, added: dict[str, Any]) -> None:
    """Add that to the parent's counters of the version."""
    for name in _SUMS:
        setattr(stats, name, getattr(stats, name) + added[name])
    for name in _LISTS:
        setattr(stats, name, [a + b for a, b in zip(getattr(stats, name), added[name], strict=True)])
