"""Against: is B slower than A? Two targets, measured in turn until that is decided.

Each round draws A B B A or B A A B and does the same to each of the four:

    alone      one request at a time, in a closed loop: the median of its latency, and the
               fastest tenth. Other programs only ever add to a latency, seldom to all: p10 is
               the quietest number there is, and a slower model cannot hide from it
    together   several at once, in a closed loop: answers per second, and in process the CPU
               time of an answer, which no other process can take away
    offered    a schedule at a rate that both can take, the same for both: p99 in an open loop

Rounds are short, a second or two, so that what else happens on the machine happens to both.
What the rounds prove is worked out in `paired`; the comparison ends when every metric is
decided, or one is worse, or the rounds are used up.
"""

from __future__ import annotations

import asyncio
import gc
import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import FindingError, UsageError
from ..load.driver import Driver, Pool
from ..load.job import Job
from ..load.loops import driver
from ..load.recorder import CONNECTION, INTERRUPTED, UNFINISHED, UNSENT, Phase, closed_rates
from ..load.schedule import schedule
from ..load.session import run
from ..targets.target import Target
from .evidence import at_most, level_of_look
from .paired import INCONCLUSIVE, LEVEL, OK, REGRESSION, Metric, false_positives, judge, noise_floor, verdict
from .quantiles import nearest_rank

Open = Callable[[], Target]
Progress = Callable[[str], None]
STOPPED = "stopped"
METRICS = ("p10", "p50", "throughput", "cpu", "p99")

_PART_S_MAX = 5.0
_PART_REQUESTS = 25
_OFFERED_REQUESTS = 300
_OFFERED_SHARE = 0.4
_ERRORS_LEVEL = 0.001
_NO_ANSWER = {CONNECTION, UNSENT, UNFINISHED}


@dataclass(frozen=True, slots=True)
class Options:
    """How to compare. `margin`: by which share B may cost more and still be OK.

    `rate` is the open loop's, by default a part of what both can take; `looks` are the
    numbers of rounds after which to decide, `part_s` and `offered_s` the least lengths of a
    closed and an open part of a round; `metrics` those that decide, of METRICS, by
    default all. `strict` makes INCONCLUSIVE an exit code of 1. `aa` says that A and B are the
    same, and goes on to the last look: for the noise of the machine. `margins` are those of single
    metrics, where they are not `margin`; after `limit_s` no round begins, and what there is decides.
    """

    margin: float = 0.05
    rate: float | None = None
    concurrency: int = 16
    warmup_s: float = 1.0
    timeout_s: float = 10.0
    arrivals: str = "poisson"
    seed: int = 1
    looks: tuple[int, ...] = (12, 24, 48)
    part_s: float = 0.1
    offered_s: float = 0.2
    metrics: tuple[str, ...] = ()
    strict: bool = False
    aa: bool = False
    margins: Mapping[str, float] = field(default_factory=dict)
    limit_s: float = math.inf

    def __post_init__(self) -> None:
        if not 0 <= self.margin < 10:
            raise UsageError("bad --margin", expected="a share such as 5%", found=f"{self.margin:g}")
        if unknown := set(self.metrics) - set(METRICS):
            raise UsageError("no such metric", expected=", ".join(METRICS), found=", ".join(sorted(unknown)))


@dataclass(slots=True)
class Comparison:
    """What was found: `metrics` are of the last look, `rounds` the log ratios by metric."""

    options: Options
    targets: tuple[dict[str, Any], dict[str, Any]]
    rate: float = 0.0
    rounds: dict[str, list[float]] = field(default_factory=dict)
    metrics: list[Metric] = field(default_factory=list)
    requests: list[int] = field(default_factory=lambda: [0, 0])
    failed: list[int] = field(default_factory=lambda: [0, 0])
    code: str = INCONCLUSIVE
    reason: str = ""
    warnings: list[str] = field(default_factory=list)

    def exit_code(self) -> int:
        """1: a regression, under `strict` also INCONCLUSIVE; 130: interrupted; 4: a target is gone."""
        if self.code == STOPPED:
            return 130 if self.reason == INTERRUPTED else 4
        return int(self.code == REGRESSION or (self.code == INCONCLUSIVE and self.options.strict))

    def floor(self) -> float:
        """The smallest margin that the quietest metric could decide between a version and itself."""
        return min((noise_floor(m) for m in self.metrics), default=math.inf)

    def to_json(self) -> dict[str, Any]:
        """The comparison as `--json` prints it; ratios are B's cost over A's, above 1 is worse."""
        noise = None
        if self.options.aa and self.metrics:
            noise = {
                "floor": self.floor(),
                "floors": {m.name: noise_floor(m) for m in self.metrics},
                "false_positive_rate": false_positives(self.rounds, self.options.margin),
            }
        return {
            "verdict": {"code": self.code, "reason": self.reason},
            "margin": self.options.margin,
            "seed": self.options.seed,
            "targets": list(self.targets),
            "rate": self.rate,
            "rounds": {name: [math.exp(x) for x in values] for name, values in self.rounds.items()},
            "metrics": [m.to_json() for m in self.metrics],
            "requests": list(self.requests),
            "failed": list(self.failed),
            "noise": noise,
            "warnings": list(self.warnings),
        }


def compare(
    open_a: Open, open_b: Open, options: Options | None = None, progress: Progress = lambda _: None
) -> Comparison:
    """Compare two targets: is B slower than A by more than the margin?

    Raises what the two functions raise, OSError where a target does not answer at all, and
    FindingError when every request to one of them fails.
    """
    return run(_Comparing(open_a(), open_b(), options or Options(), progress).go())


@dataclass(slots=True)
class _Side:
    """One of the two: its target, its connections, and what a round saw of it."""

    target: Target
    pool: Pool
    name: str
    fast: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    together: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    offered: list[Any] = field(default_factory=list)
    capacity: float = 0.0
    latency_s: float = 0.0

    def clear(self) -> None:
        """Forget the last round."""
        for values in (self.fast, self.alone, self.together, self.cpu, self.offered):
            values.clear()


class _Stopped(Exception):
    """A phase ended early, for the reason given."""


class _Comparing:
    def __init__(self, a: Target, b: Target, options: Options, progress: Progress) -> None:
        self.options = options
        self.sides = _Side(a, Pool(a), "A"), _Side(b, Pool(b), "B")
        self.result = Comparison(options, (a.describe(), b.describe()))
        self._progress = progress
        self._driver: Driver | None = None
        self._interrupted = False

    async def go(self) -> Comparison:
        """Start both, compare, and stop both, whatever happens."""
        loop = asyncio.get_running_loop()
        started: list[_Side] = []
        try:
            for side in self.sides:
                await side.target.start()
                started.append(side)
            with suppress(NotImplementedError):
                loop.add_signal_handler(signal.SIGINT, self._interrupt)
            await self._compare()
        except _Stopped as stop:
            self.result.code, self.result.reason = STOPPED, str(stop)
        finally:
            for side in started:
                side.pool.close()
                await side.target.close()
        return self.result

    def _interrupt(self) -> None:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)  # a second one ends it at once
        self._interrupted = True
        if self._driver is not None:
            self._driver.stop(INTERRUPTED)

    async def _compare(self) -> None:
        options, result = self.options, self.result
        for side in self.sides:
            await self._warm(side)
        part_s = self._fit(options.part_s, _PART_REQUESTS, 1 / max(side.latency_s for side in self.sides))
        result.rate = options.rate or _OFFERED_SHARE * min(side.capacity for side in self.sides)
        offered_s = self._fit(options.offered_s, _OFFERED_REQUESTS, result.rate)
        seconds = 4 * (2 * part_s + offered_s)
        self._progress(f"comparing in rounds of {seconds:.1f} s, {result.rate:,.0f}/s in the open loop")
        rng = np.random.default_rng(options.seed)
        end, look = time.monotonic() + options.limit_s, 0
        for number in range(options.looks[-1]):
            await self._round(bool(rng.integers(2)), number, part_s, offered_s)
            over = time.monotonic() + seconds > end
            if over or number + 1 in options.looks:
                level = level_of_look(look, LEVEL / 2)
                result.metrics = judge(result.rounds, options.margin, level, options.margins)
                self._decide(level)
                look += 1
                self._progress(f"  {number + 1} rounds: {result.code}")
                if over or (result.code != INCONCLUSIVE and not options.aa):
                    break

    @staticmethod
    def _fit(shortest_s: float, requests: int, rate: float) -> float:
        return max(shortest_s, min(_PART_S_MAX, requests / rate))

    async def _warm(self, side: _Side) -> None:
        """Warm up, and learn how fast the target is."""
        self._progress(f"warming up {side.name}")
        alone = await self._closed(side, 1, max(0.2, self.options.warmup_s / 2))
        together = await self._closed(side, self.options.concurrency, max(0.2, self.options.warmup_s / 2))
        if not alone.recorder.ok() or not together.recorder.ok():
            why = next(iter((alone.messages | together.messages).values()), "no answer")
            if alone.recorder.errors().keys() | together.recorder.errors().keys() <= _NO_ANSWER:
                raise _Stopped(f"{side.name}: the server is gone: {why}")
            raise FindingError(f"every request to {side.name} failed", found=why[:200])
        side.latency_s = nearest_rank(np.sort(alone.recorder.latencies()), 0.5) / 1e9
        side.capacity = closed_rates(together.recorder).ok

    async def _round(self, swapped: bool, number: int, part_s: float, offered_s: float) -> None:
        """A B B A or B A A B; the same schedule for both within each half."""
        first, second = reversed(self.sides) if swapped else self.sides
        for side in self.sides:
            side.clear()
        gc.collect()
        gc.freeze()
        for half, order in enumerate(((first, second), (second, first))):
            for side in order:
                await self._block(side, part_s, offered_s, (self.options.seed, number, half))
        for name, value in log_ratios(*self.sides).items():
            if name in (self.options.metrics or METRICS):
                self.result.rounds.setdefault(name, []).append(value)

    async def _block(self, side: _Side, part_s: float, offered_s: float, seed: tuple[int, ...]) -> None:
        cpu, answered = time.process_time(), 0
        phase = await self._closed(side, 1, part_s)
        side.fast.append(_cost(phase, 0.1))
        side.alone.append(_cost(phase, 0.5))
        answered += phase.recorder.ok()
        phase = await self._closed(side, self.options.concurrency, part_s)
        side.together.append(1 / max(1e-9, closed_rates(phase.recorder).ok))
        answered += phase.recorder.ok()
        if side.target.shares_loop:
            side.cpu.append((time.process_time() - cpu) / max(1, answered))
        due = schedule(self.options.arrivals, self.result.rate, max(offered_s, 1 / self.result.rate), seed)
        phase = await self._run(side, Job(offered_s, self.options.timeout_s, due))
        side.offered.append(phase.recorder.latencies())

    async def _closed(self, side: _Side, concurrency: int, seconds: float) -> Phase:
        return await self._run(side, Job(seconds, self.options.timeout_s, concurrency=concurrency))

    async def _run(self, side: _Side, job: Job) -> Phase:
        self._driver = driver(side.pool, job)
        if self._interrupted:
            self._driver.stop(INTERRUPTED)
        phase = await self._driver.run()
        index = self.sides.index(side)
        self.result.requests[index] += phase.recorder.count
        self.result.failed[index] += phase.recorder.count - phase.recorder.ok()
        if phase.stopped:
            reason = phase.stopped
            raise _Stopped(reason if reason == INTERRUPTED else f"{side.name}: {reason}")
        return phase

    def _decide(self, level: float) -> None:
        """The verdict after a look, and why."""
        result = self.result
        result.code = verdict(result.metrics)
        named = [m for m in result.metrics if m.outcome == result.code]
        result.reason = ", ".join(f"{m.name} {m.ratio - 1:+.1%} ({_interval(m)})" for m in named)
        if fails_more(result.requests, result.failed, level):
            result.code = REGRESSION
            result.reason = f"{result.failed[1]} of {result.requests[1]} requests to B failed, "
            result.reason += f"{result.failed[0]} of {result.requests[0]} to A"


def _interval(metric: Metric) -> str:
    return f"{metric.low - 1:+.1%} to {metric.high - 1:+.1%}"


def _cost(phase: Phase, p: float) -> float:
    latencies = np.sort(phase.recorder.latencies())
    return nearest_rank(latencies, p) / 1e9 if len(latencies) else phase.span_ns / 1e9


def log_ratios(a: _Side, b: _Side) -> dict[str, float]:
    """One round's numbers by metric: the logarithm of B's cost over A's."""
    ratios = {"p10": _log_ratio(a.fast, b.fast), "p50": _log_ratio(a.alone, b.alone)}
    ratios["throughput"] = _log_ratio(a.together, b.together)
    if a.cpu and b.cpu:
        ratios["cpu"] = _log_ratio(a.cpu, b.cpu)
    pooled = [np.sort(np.concatenate(side.offered)) for side in (a, b)]
    if all(len(latencies) for latencies in pooled):
        tails = [[float(nearest_rank(latencies, 0.99))] for latencies in pooled]
        ratios["p99"] = _log_ratio(*tails)
    return ratios


def _log_ratio(a: Sequence[float], b: Sequence[float]) -> float:
    return float(np.mean(np.log(np.maximum(b, 1e-12))) - np.mean(np.log(np.maximum(a, 1e-12))))


def fails_more(requests: Sequence[int], failed: Sequence[int], level: float) -> bool:
    """Whether more of B's requests failed than chance explains, and more than one in a thousand."""
    total = sum(failed)
    if not total or failed[1] <= _ERRORS_LEVEL * requests[1]:
        return False
    share = requests[1] / max(1, sum(requests))
    return 1 - at_most(failed[1] - 1, total, share) <= level


def check_margin(comparison: Comparison) -> None:
    """Refuse a margin that this machine cannot tell from noise. Raises UsageError."""
    if comparison.metrics and comparison.options.margin < comparison.floor():
        raise UsageError(
            "the margin is below this machine's noise",
            expected=f"at least {comparison.floor():.1%}",
            found=f"{comparison.options.margin:.1%}",
            hint="use a larger --margin, or a quieter machine",
        )


__all__ = ["OK", "Comparison", "Options", "check_margin", "compare", "fails_more", "log_ratios"]
