"""Search: the highest rate that meets the objectives. Pure decisions; a callback measures.

From a first rate the search doubles until a probe fails, or halves until one passes,
then bisects on a logarithmic scale until the two ends are close. One probe's pass can be
luck, and the search looks for lucky passes, so the rate found must pass once more;
otherwise it is lowered, each time by a larger step. A probe that decides nothing (too few
samples) counts as failed.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

TOLERANCE = 0.05
RATE_MIN = 0.1
PROBES_MAX = 40
CONFIRMATIONS_MAX = 7


@dataclass(frozen=True, slots=True)
class Probe:
    """One rate that was tried, in requests per second. `fatal` ends the search: nothing will pass."""

    rate: float
    passed: bool
    reason: str = ""
    fatal: bool = False


@dataclass(slots=True)
class Search:
    """What a search found: `rate` is None when no rate met the objectives.

    `limit` says what ended it from above: the failed probe next to the rate, or the cap.
    """

    rate: float | None = None
    limit: str = ""
    probes: list[Probe] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The search as `--json` prints it."""
        probes = [{"rate": p.rate, "passed": p.passed, "reason": p.reason} for p in self.probes]
        return {"rate": self.rate, "limit": self.limit or None, "probes": probes}


Measure = Callable[[float], Awaitable[Probe]]


async def find(measure: Measure, start: float, cap: float, tolerance: float = TOLERANCE) -> Search:
    """Search from `start` up to `cap` requests per second, to a relative `tolerance`."""
    search = Search()
    low, high = await _bracket(search, measure, min(start, cap), cap)
    while low and high and high / low > 1 + tolerance and _may_go_on(search):
        middle = round_rate(math.sqrt(low * high))
        if not low < middle < high:
            break
        if await _try(search, measure, middle):
            low = middle
        else:
            high = middle
    if low is not None and not search.probes[-1].fatal:
        await _confirm(search, measure, low, tolerance)
    return search


async def _bracket(
    search: Search, measure: Measure, start: float, cap: float
) -> tuple[float | None, float | None]:
    """A rate that passes and a higher one that fails, where they exist."""
    rate = round_rate(start)
    if await _try(search, measure, rate):
        while _may_go_on(search):
            if rate >= cap:
                search.limit = f"the search does not go above {cap:g}/s"
                return rate, None
            higher = min(cap, round_rate(rate * 2))
            if not await _try(search, measure, higher):
                return rate, higher
            rate = higher
        return rate, None
    while rate > RATE_MIN and _may_go_on(search):
        lower = max(RATE_MIN, round_rate(rate / 2))
        if await _try(search, measure, lower):
            return lower, rate
        rate = lower
    return None, rate


async def _confirm(search: Search, measure: Measure, rate: float, tolerance: float) -> None:
    for attempt in range(CONFIRMATIONS_MAX):
        if await _try(search, measure, rate):
            search.rate = rate
            return
        rate = round_rate(rate / (1 + tolerance * 2**attempt))
        if rate < RATE_MIN or search.probes[-1].fatal:
            return


async def _try(search: Search, measure: Measure, rate: float) -> bool:
    probe = await measure(rate)
    search.probes.append(probe)
    if not probe.passed:
        search.limit = f"{rate:g}/s: {probe.reason}"
    return probe.passed


def _may_go_on(search: Search) -> bool:
    return not search.probes[-1].fatal and len(search.probes) < PROBES_MAX


def round_rate(rate: float) -> float:
    """A rate with three significant digits: nobody remembers more."""
    return float(f"{rate:.3g}")
