"""A session: warm-up, then one measurement or several, on one target.

    closed   N connections as fast as the answers come
    sweep    one rate or several, one after the other, in an open loop
    search   the highest rate that meets the objectives

Warm-up and measurement are separate phases, and the server's counters are read between
them, while nothing is sent, so that reading them does not disturb what is measured.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from ..errors import EnvironmentProblem
from .driver import ClosedLoop, Driver, OpenLoop, Pool
from .recorder import INTERRUPTED, Phase, Recorder, closed_rates
from .report import Report
from .result import Result
from .schedule import check_schedule, schedule
from .search import SWEEP, Probe, Search, find
from .server_view import server_view
from .slo import FAIL, INCONCLUSIVE, PASS, Slo, Tally
from .targets import Target
from .verdict import Load, Measurement, Verdict, show, total_of

Progress = Callable[[str], None]
T = TypeVar("T")

SEARCH_RATE_MAX = 1_000_000.0
PROBE_S = 2.0
PROBE_S_MAX = 60.0
CALIBRATION_CONCURRENCY = 16
SETTLE_S = 0.2
# An inconclusive probe goes on for as long again, and then for twice as long; then it counts as failed.
EXTENSIONS = (1.0, 2.0)


def check(load: Load, rates: list[float]) -> None:
    """Refuse a load that no schedule can be made for. Raises UsageError."""
    for rate in rates or [load.rate or 1 / load.duration_s]:
        check_schedule(load.arrivals, rate, load.duration_s)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run on the fastest event loop there is."""
    if sys.platform == "win32":
        return asyncio.run(coroutine)
    import uvloop

    return uvloop.run(coroutine)


class Session:
    """Measures one target; `progress` is told what is going on."""

    def __init__(self, target: Target, load: Load, slo: Slo | None, progress: Progress) -> None:
        self.target = target
        self.load = load
        self.slo = slo
        self.result = Result()
        self._progress = progress
        self._pool = Pool(target)
        self._driver: Driver | None = None
        self._phases = 0
        self._interrupted = False

    def records(self) -> list[Recorder]:
        """What the running phase has recorded so far, for whoever watches."""
        return [self._driver.recorder] if self._driver else []

    async def closed(self) -> Result:
        """The closed loop."""
        return await self._within(self._sweep([self.load]))

    async def sweep(self, rates: list[float]) -> Result:
        """Each rate in turn; stops early only when the server is gone or somebody says so."""
        return await self._within(self._sweep([replace(self.load, rate=rate) for rate in rates]))

    async def search(self) -> Result:
        """The highest rate that meets the objectives."""
        return await self._within(self._search())

    async def _within(self, work: Coroutine[Any, Any, None]) -> Result:
        """Do some work between the target's start and its end; Ctrl-C ends the work, not the report."""
        await self.target.start()
        with suppress(NotImplementedError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._interrupt)
        try:
            await work
        finally:
            self._pool.close()
            await self.target.close()
        return self.result

    def _interrupt(self) -> None:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)  # a second one ends it at once
        self._interrupted = True
        if self._driver is not None:
            self._driver.stop(INTERRUPTED)

    async def _sweep(self, loads: list[Load]) -> None:
        for load in loads:
            self._progress(f"{load}, after {load.warmup_s:g} s of warm-up")
            report = await self._measure(load)
            self.result.reports.append(report)
            if self.result.stopped:
                return

    # one measurement

    async def _measure(self, load: Load, earlier: Sequence[Tally] = ()) -> Report:
        """Warm up, read counters, send, read counters. `earlier`: what this measurement extends."""
        warmup = await self._phase(load, load.warmup_s) if load.warmup_s > 0 else None
        if warmup is not None and warmup.stopped:
            return self._report(load, warmup, Measurement(warmup))
        before, versions = await self.target.counters(), dict(self.target.versions)
        cpu, wall = time.process_time(), time.perf_counter()
        phase = await self._phase(load, load.duration_s)
        cpu_share = (time.process_time() - cpu) / (time.perf_counter() - wall)
        after = None if phase.stopped else await self.target.counters()
        answered = {
            version.decode("latin-1"): count - versions.get(version, 0)
            for version, count in self.target.versions.items()
            if count > versions.get(version, 0)
        }
        seen = Measurement(phase, warmup, server_view(before, after), answered, cpu_share)
        return self._report(load, phase, seen, earlier)

    def _report(self, load: Load, phase: Phase, seen: Measurement, earlier: Sequence[Tally] = ()) -> Report:
        if phase.stopped:
            self.result.stopped = phase.stopped
        facts, shares = self.target.describe(), self.target.shares_loop
        return Report.of(facts, load, seen, self.slo, shares_loop=shares, earlier=earlier)

    async def _phase(self, load: Load, duration_s: float) -> Phase:
        """Send one phase's load; every phase of a rate draws its own schedule from the seed."""
        self._phases += 1
        if load.rate is None:
            self._driver = ClosedLoop(self._pool, load.concurrency, duration_s, load.timeout_s)
        else:
            duration_s = max(duration_s, 1 / load.rate)
            due = schedule(load.arrivals, load.rate, duration_s, (load.seed, self._phases))
            self._driver = OpenLoop(self._pool, due, duration_s, load.timeout_s)
        if self._interrupted:
            self._driver.stop(INTERRUPTED)
        gc.collect()
        gc.freeze()
        return await self._driver.run()

    # the search

    async def _search(self) -> None:
        """Calibrate in a closed loop, which is the warm-up too; then search."""
        slo = self.slo
        assert slo is not None
        self._progress(f"searching for the highest rate with {slo}")
        closed = replace(self.load, rate=None, concurrency=CALIBRATION_CONCURRENCY)
        phase = await self._phase(closed, max(0.5, self.load.warmup_s))
        capacity = closed_rates(phase.recorder).ok
        if phase.stopped or capacity == 0:
            self.result.reports.append(self._report(closed, phase, Measurement(phase)))
            return
        self._progress(f"  closed loop, {CALIBRATION_CONCURRENCY} connections: {capacity:,.0f}/s")
        self._check_carried(capacity, slo)
        fastest = int(phase.recorder.latencies().min())
        if any(o.limit_ns < fastest for o in slo.objectives):
            count = phase.recorder.ok()
            limit = (
                f"{capacity:,.0f}/s in a closed loop: the fastest of {count:,} answers took {show(fastest)}"
            )
            self.result.search = Search(limit=limit)
            return
        floor = slo.samples_needed() / max(PROBE_S_MAX, self.load.duration_s)
        self.result.search = await find(self._probe, capacity / 2, SEARCH_RATE_MAX, floor)

    def _check_carried(self, capacity: float, slo: Slo) -> None:
        """Refuse objectives that probes of a bearable length cannot decide."""
        needed_s = slo.samples_needed() / capacity
        if needed_s > max(PROBE_S_MAX, self.load.duration_s):
            raise EnvironmentProblem(
                f"the target is too slow to decide {slo}",
                expected=f"{slo.samples_needed()} samples in each probe",
                found=f"about {capacity:.3g} requests per second: {needed_s:.0f} s for each",
                hint=f"choose a lower percentile, or --duration {needed_s:.0f}",
            )

    async def _probe(self, rate: float) -> Probe:
        """Measure one rate, for as long as the objectives need; longer while they are undecided."""
        slo = self.slo
        assert slo is not None
        looks: list[Tally] = []
        for part in (1.0, *EXTENSIONS):
            report = await self._measure(self._probe_load(rate, part), looks)
            self.result.reports.append(report)
            self._progress(f"  {rate:g}/s: {report.verdict}")
            if report.verdict.code != Verdict.INCONCLUSIVE:
                break
            looks.append(total_of(slo, report.seen.phase))
        code, reason = report.verdict.code, str(report.verdict)
        if code != PASS:
            await asyncio.sleep(SETTLE_S)
        if code == Verdict.INVALID:
            reason += "; measure from a less busy machine: the limit is the client's, not the server's"
        outcome = {PASS: PASS, Verdict.INCONCLUSIVE: INCONCLUSIVE, Verdict.INVALID: INCONCLUSIVE}.get(
            code, FAIL
        )
        codes = [r.verdict.code for r in self.result.reports]
        # A machine on which the client is late at every rate of the sweep will not get better.
        hopeless = report.ok == 0 or (len(codes) >= len(SWEEP) and set(codes) == {Verdict.INVALID})
        return Probe(rate, outcome, reason, fatal=bool(self.result.stopped) or hopeless)

    def _probe_load(self, rate: float, part: float) -> Load:
        slo, base = self.slo, self.load
        assert slo is not None
        longest_s = max(PROBE_S_MAX, base.duration_s)
        duration_s = part * min(longest_s, max(base.duration_s, 1.2 * slo.samples_needed() / rate))
        limit_s = (slo.limit_ns() or 0) / 1e9
        return replace(
            base,
            rate=rate,
            duration_s=duration_s,
            warmup_s=min(base.warmup_s, 0.25 * duration_s),
            timeout_s=min(base.timeout_s, max(1.0, 4 * limit_s)),
        )
