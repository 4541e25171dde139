"""Search: the highest rate that meets the objectives. Pure decisions; a callback measures.

    sweep      a few rates from far below the first guess to above it: with dynamic batching
               the latency may fall when the rate grows, so that one failure proves nothing
               about higher rates, and bisection alone could stop at the first of them
    bracket    from the highest rate that passed upwards until one fails, or downwards
    bisect     on a logarithmic scale, until the two ends are close
    confirm    the rate must pass three times more, and the next one above must fail twice: a
               pass can be luck, and a search looks for lucky passes; so can a failure be bad luck

A probe passes, fails, or is inconclusive, which counts as failed. Confirmation moves both
ways: a rate that fails again is lowered, each time by a larger step, and where the rate
above passes the search goes on from there, until a confirmed rate has a failure above it.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from .slo import FAIL, INCONCLUSIVE, PASS

TOLERANCE = 0.03
ABOVE = 1.05
RATE_MIN = 0.1
PROBES_MAX = 60
CONFIRMATIONS = 3
CHANCES = 2
CLIMBS_MAX = 4
# Parts of the first guess; the guess is what a closed loop reached, halved.
SWEEP = (0.25, 0.5, 0.8, 1.2, 1.6, 2.0)


@dataclass(frozen=True, slots=True)
class Probe:
    """One rate that was tried, in requests per second. `fatal` ends the search: nothing will pass."""

    rate: float
    outcome: str
    reason: str = ""
    fatal: bool = False

    @property
    def passed(self) -> bool:
        """Whether the objectives are proven to be met."""
        return self.outcome == PASS


@dataclass(slots=True)
class Search:
    """What a search found: `rate` is None when no rate met the objectives.

    `limit` says what ended it from above: the failed probe next to the rate, or the cap.
    `steps` names, for each probe, what it was for; `warnings` what the reader should know.
    """

    rate: float | None = None
    limit: str = ""
    probes: list[Probe] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The search as `--json` prints it."""
        probes = [
            {"rate": p.rate, "step": step, "outcome": p.outcome, "passed": p.passed, "reason": p.reason}
            for p, step in zip(self.probes, self.steps, strict=True)
        ]
        return {
            "rate": self.rate,
            "limit": self.limit or None,
            "warnings": list(self.warnings),
            "probes": probes,
        }

    def best(self) -> int | None:
        """The index of the last probe that passed at the found rate."""
        at = [i for i, p in enumerate(self.probes) if p.passed and p.rate == self.rate]
        return at[-1] if at else None


Measure = Callable[[float], Awaitable[Probe]]


async def find(
    measure: Measure, start: float, cap: float, floor: float = RATE_MIN, tolerance: float = TOLERANCE
) -> Search:
    """Search around `start` between `floor` and `cap` requests per second, to a relative `tolerance`."""
    seeker = _Seeker(measure, cap, max(RATE_MIN, round_rate(min(floor, start))), tolerance)
    low, high = await seeker.sweep(start)
    low, high = await seeker.bracket(low, high)
    low = await seeker.bisect(low, high)
    if low is not None and seeker.alive():
        await seeker.settle(low)
    seeker.warn()
    return seeker.search


@dataclass(slots=True)
class _Seeker:
    measure: Measure
    cap: float
    floor: float
    tolerance: float
    search: Search = field(default_factory=Search)

    async def sweep(self, start: float) -> tuple[float | None, float | None]:
        """The highest rate of a coarse grid that passes, and the lowest one above it that fails.

        Stops after two failures in a row above a pass: higher rates are only more overload.
        """
        rates = sorted({round_rate(min(self.cap, max(self.floor, start * part))) for part in SWEEP})
        outcomes: dict[float, bool] = {}
        for rate in rates:
            outcomes[rate] = await self._try(rate, "sweep")
            if not self.alive() or list(outcomes.values())[-3:] == [True, False, False]:
                break
        low = max((rate for rate, passed in outcomes.items() if passed), default=None)
        above = (rate for rate, passed in outcomes.items() if not passed and rate > (low or 0))
        high = min(above, default=None)
        return low, high

    async def bracket(self, low: float | None, high: float | None) -> tuple[float | None, float | None]:
        """A rate that passes and a higher one that fails, where they exist."""
        while low is None and high is not None and high > self.floor and self.alive():
            lower = max(self.floor, round_rate(high / 4))  # slow rates take long: few of them
            if await self._try(lower, "bracket"):
                low = lower
            else:
                high = lower
        while low is not None and high is None and self.alive():
            if low >= self.cap:
                self.search.limit = f"the search does not go above {self.cap:g}/s"
                break
            higher = min(self.cap, round_rate(low * 2))
            if await self._try(higher, "bracket"):
                low = higher
            else:
                high = higher
        return low, high

    async def bisect(self, low: float | None, high: float | None) -> float | None:
        """Narrow the two ends; returns the lower one."""
        while low and high and high / low > 1 + self.tolerance and self.alive():
            middle = round_rate(math.sqrt(low * high))
            if not low < middle < high:
                break
            if await self._try(middle, "bisect"):
                low = middle
            else:
                high = middle
        return low

    async def settle(self, rate: float) -> None:
        """Confirm a rate, from below where it does not hold, from above where more does."""
        step, climbs = self.tolerance, 0
        while self.alive() and rate >= self.floor:
            if await self._holds(rate):
                self.search.rate = rate
                higher = round_rate(rate * ABOVE)
                if rate >= self.cap or climbs == CLIMBS_MAX or not self.alive():
                    return
                rate, climbs = min(self.cap, higher), climbs + 1
                if not await self._passes_once(rate):
                    return
            elif self.search.rate is not None:
                return  # the rate above held once, and not again: the confirmed one stands
            else:
                rate, step = round_rate(rate / (1 + step)), 1.5 * step

    async def _passes_once(self, rate: float) -> bool:
        for _ in range(CHANCES):
            if self.alive() and await self._try(rate, "above"):
                return True
        return False

    async def _holds(self, rate: float) -> bool:
        for _ in range(CONFIRMATIONS):
            if not self.alive() or not await self._try(rate, "confirm"):
                return False
        return True

    async def _try(self, rate: float, step: str) -> bool:
        probe = await self.measure(rate)
        self.search.probes.append(probe)
        self.search.steps.append(step)
        if not probe.passed:
            self.search.limit = f"{rate:g}/s: {probe.reason}"
        return probe.passed

    def alive(self) -> bool:
        """Whether another probe may be made."""
        probes = self.search.probes
        return not (probes and probes[-1].fatal) and len(probes) < PROBES_MAX

    def warn(self) -> None:
        """Say what makes the result less simple than one number."""
        search = self.search
        if search.rate is None:
            return
        below = [p for p in search.probes if p.outcome == FAIL and p.rate < 0.97 * search.rate]
        passed = {p.rate for p in search.probes if p.passed}
        if failed := sorted({p.rate for p in below} - passed):
            rates = ", ".join(f"{rate:g}" for rate in failed)
            search.warnings.append(
                f"lower rates failed ({rates}/s) while {search.rate:g}/s passes: "
                "latency is not monotonic in the rate, so less load is not safer"
            )
        if any(p.outcome == INCONCLUSIVE for p in search.probes):
            search.warnings.append("inconclusive probes counted as failed: a longer --duration may find more")
        if len(search.probes) >= PROBES_MAX:
            search.warnings.append(f"the search ended after {PROBES_MAX} probes")


def round_rate(rate: float) -> float:
    """A rate with three significant digits: nobody remembers more."""
    return float(f"{rate:.3g}")
