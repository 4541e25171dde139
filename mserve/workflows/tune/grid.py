"""Grid: the settings that are worth a try, and the highest rate at which each meets the objectives.

First all sizes without delay, in short simulations; then the best of them with delays and, where
the run-time curve has steps, filled up to the sizes at which it steps; then the best few again in long
simulations with several seeds. A rate holds when it does in the simulation: the nearest-rank
percentiles of all its requests are within their limits, and latency does not grow throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ...bench.judgement.quantiles import Ints, grows_throughout, nearest_rank, window_medians
from ...bench.judgement.slo import Slo
from ...bench.judgement.verdict import ACHIEVED_MIN
from ...bench.load.schedule import Times, replayed, schedule
from ...loader.servable import Batching
from .curve import Curve
from .simulate import GiveUp, Outcome, System, simulate

DELAYS_MS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
DELAYS_TRIED = 3
SIZES_DELAYED = 3
FINALISTS = 3
# A size is worth filling up to where a batch in between costs so much more than the size itself.
STEP = 1.1
IDLE_REQUESTS, COARSE_REQUESTS, FINE_REQUESTS = 1000, 4000, 6000
SEEDS = (1, 2, 3)
# Settings this close are equal: the simpler one is taken.
EQUAL = 0.03
TRIES_MAX = 24
AHEAD = 2
RATE_MAX = 1e7
# A rate at which requests do not meet.
IDLE = 0.01


@dataclass(frozen=True, slots=True)
class Goal:
    """What is asked of a setting: the objectives, and how requests arrive. A recording has its own times."""

    slo: Slo
    arrivals: str = "poisson"
    seed: int = 1
    recording: Times | None = None

    @property
    def limit_ns(self) -> int:
        """The longest latency that an objective speaks of."""
        return self.slo.limit_ns() or 1 << 62

    def give_up(self, count: int) -> GiveUp:
        """When a simulation of so many requests has surely missed the objective of the longest latency."""
        last = max(self.slo.objectives, key=lambda o: o.limit_ns)
        return GiveUp(last.limit_ns, (1 - last.p) * count + 1)

    def due(self, rate: float, count: int, seed: int) -> Times:
        """When about so many requests arrive at a rate."""
        if self.recording is None:
            return schedule(self.arrivals, rate, max(1.0, count) / rate, (self.seed, seed))
        span_s = max(1e-9, float(self.recording[-1]) / 1e9)
        return replayed(self.recording[:count], rate * span_s / len(self.recording))


class Runs(NamedTuple):
    """How much is simulated: so many requests with each of the seeds."""

    requests: int
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a simulation says of a rate: latencies in rising order, and rows of a batch on average."""

    latencies: Ints
    mean_rows: float
    holds: bool

    def quantile(self, p: float) -> int:
        """A nearest-rank percentile in nanoseconds."""
        return nearest_rank(self.latencies, p)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A setting and the highest rate that it carries; None where it meets the objectives at no rate."""

    batching: Batching
    rate: float | None
    idle: Forecast


def forecast(
    system: System, batching: Batching, rate: float, goal: Goal, runs: Runs, *, whole: bool = True
) -> Forecast:
    """Simulate a rate with each of the seeds, and put the latencies together.

    Unless the `whole` is wanted it ends as soon as an objective is surely missed.
    """
    found: list[Outcome] = []
    steady = True
    for seed in runs.seeds:
        due = goal.due(rate, runs.requests, seed)
        stop = None if whole else goal.give_up(len(due) * len(runs.seeds))
        found.append(simulate(system, batching, due, seed, stop))
        steady = steady and not found[-1].hopeless and _keeps_up(found[-1].latencies, due)
        if not (steady or whole):
            break
    latencies = np.sort(np.concatenate([o.latencies for o in found]))
    refused = sum(o.refused for o in found)
    met = all(nearest_rank(latencies, o.p) <= o.limit_ns for o in goal.slo.objectives)
    holds = steady and met and refused <= goal.slo.errors_max * len(latencies)
    return Forecast(latencies, sum(o.mean_rows for o in found) / len(found), holds)


def _keeps_up(latencies: Ints, due: Times) -> bool:
    """Whether latency stays: what a real run is called UNSTABLE by."""
    medians = window_medians(latencies, min(10, len(latencies)))
    growth, span = medians[-1] - medians[0], int(due[-1])
    return not grows_throughout(latencies) and growth <= (1 / ACHIEVED_MIN - 1) * span


def highest(
    holds: Callable[[float], bool], guess: float, *, step: float = 2.0, tolerance: float = 0.05
) -> float | None:
    """The highest rate that holds, to a tolerance; None where no rate does.

    Latency need not rise with the rate: batches fill up faster. So the search begins above the guess
    and goes down to the first rate that holds, then up by halving what is left.
    """
    low = guess * step**AHEAD
    while (held := holds(low)) and low < RATE_MAX:
        low *= step
    if held:
        return low
    for _ in range(TRIES_MAX):
        high, low = low, low / step
        if holds(low):
            break
    else:
        return None
    while high / low > 1 + tolerance:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def sizes(curve: Curve, rows: int) -> list[int]:
    """Limits of a batch to try: `rows` times powers of two, as far as the curve was measured."""
    found, size = [], rows
    while size <= curve.sizes[-1]:
        found.append(size)
        size *= 2
    return found or [rows]


def delays_ms(limit_ns: int) -> list[float]:
    """Delays to try: some round ones of at most half of the limit."""
    return [d for d in DELAYS_MS if 2e6 * d <= limit_ns][-DELAYS_TRIED:]


def steps(curve: Curve, most: int) -> tuple[int, ...]:
    """The sizes that are worth filling up to: powers of two below which a batch costs clearly more."""
    powers = [n for n in curve.sizes if n <= most and n & (n - 1) == 0]
    between = [n for n in curve.sizes if n <= most and n & (n - 1)]
    dear = any(
        curve.median(n) > STEP * curve.median(min(p for p in powers if p > n))
        for n in between
        if n < powers[-1]
    )
    return tuple(powers) if dear else ()


class Search:
    """Rates settings of one system by simulation, and counts what it does."""

    def __init__(self, system: System, curve: Curve, goal: Goal) -> None:
        self.system, self.curve, self.goal = system, curve, goal
        self.screened: dict[Batching, Candidate] = {}
        self.simulations = 0
        self._rows = max(n for _, n in system.requests)
        self._guess = _guess(system, curve, self._rows)

    def run(self, default: Batching) -> list[Candidate]:
        """The best few settings and the default one, each at its highest rate; the best first."""
        if self.system.signature.batch_axis is None:
            return [self._rated(default, self._guess, fine=True)]
        for size in sizes(self.curve, self._rows):
            self._screen(Batching(size))
        for best in self._best()[:SIZES_DELAYED]:
            for delay in delays_ms(self.goal.limit_ns):
                self._screen(replace(best, delay_ns=int(delay * 1e6)))
        if allowed := steps(self.curve, self.curve.sizes[-1]):
            for delay in dict.fromkeys((0, *(b.delay_ns for b in self._best()[:1]))):
                self._screen(Batching(allowed[-1], delay, allowed=allowed))
        finalists = dict.fromkeys([*self._best()[:FINALISTS], default])
        known = {b: c.rate for b, c in self.screened.items()}
        return ranked([self._rated(b, known.get(b) or self._guess, fine=True) for b in finalists])

    def rated(self, batching: Batching) -> Candidate:
        """One setting at its highest rate, by long simulations."""
        return self._rated(batching, self._guess, fine=True)

    def _best(self) -> list[Batching]:
        return [c.batching for c in ranked(self.screened.values()) if c.rate]

    def _screen(self, batching: Batching) -> None:
        """A short look at a setting; what it carries is the guess for the next one."""
        if batching not in self.screened:
            found = self.screened[batching] = self._rated(batching, self._guess, fine=False)
            self._guess = found.rate or self._guess

    def _rated(self, batching: Batching, guess: float, *, fine: bool) -> Candidate:
        """The highest rate of a setting, by short simulations, or by long ones around a good guess."""
        system, goal = self.system, self.goal
        needed = goal.slo.samples_needed()
        runs = Runs(max(FINE_REQUESTS, needed), SEEDS) if fine else Runs(max(COARSE_REQUESTS, needed), (1,))
        longest = system.runs(system.requests[0][1])[-1] + system.costs.request + batching.delay_ns + 1
        alone = Runs(max(IDLE_REQUESTS, needed), (1,))
        idle = forecast(system, batching, IDLE * 1e9 / longest, goal, alone)

        def holds(rate: float) -> bool:
            self.simulations += 1
            return forecast(system, batching, rate, goal, runs, whole=False).holds

        if not idle.holds:
            return Candidate(batching, None, idle)
        return Candidate(
            batching,
            highest(holds, guess, step=1.1 if fine else 2.0, tolerance=0.03 if fine else 0.05),
            idle,
        )


def _guess(system: System, curve: Curve, rows: int) -> float:
    """Half of what the best size carries, all workers busy and nothing in the way."""
    best = max(n / curve.median(n) for n in curve.sizes) / rows * system.workers * 1e9
    return 0.5 / (1 / best + system.costs.request / 1e9)


def ranked(found: Iterable[Candidate]) -> list[Candidate]:
    """The highest rate first; of equal ones the shorter delay, then no padding, then the larger limit."""
    listed = sorted(found, key=lambda c: -(c.rate or 0.0))
    best = (listed[0].rate or 0.0) if listed else 0.0
    equal = [c for c in listed if c.rate and c.rate >= best * (1 - EQUAL)]
    return sorted(equal, key=_simplicity) + [c for c in listed if c not in equal]


def _simplicity(candidate: Candidate) -> tuple[int, int, int]:
    batching = candidate.batching
    return batching.delay_ns, len(batching.allowed), -batching.max_batch_rows
