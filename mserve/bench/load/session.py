"""A session: warm-up, then one measurement or several, on one target.

    closed   N connections as fast as the answers come, for one N or several
    sweep    one rate or several, one after the other, in an open loop
    search   the highest rate that meets the objectives
    scenario one of MLPerf's

The very first request is sent alone: it is the cold start. Warm-up and measurement are
separate phases, and the server's counters are read between them, while nothing is sent, so
that reading them does not disturb what is measured.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from ...errors import EnvironmentProblem
from ..judgement.quantiles import grows_throughout
from ..judgement.scenario import Rules, judged
from ..judgement.search import SWEEP, Probe, Search, find
from ..judgement.slo import FAIL, INCONCLUSIVE, PASS, Slo, Tally
from ..judgement.verdict import Load, Measurement, Verdict, show, total_of
from ..results.report import Report
from ..results.result import Result
from ..targets.target import Target
from .engine import Engine, Local
from .fleet import Fleet
from .job import Job
from .load_job import load_job, scenario_job
from .placement import EVERYWHERE, Placement
from .recorder import INTERRUPTED, Phase, Recorder, closed_rates
from .reload import Reload
from .reload import judged as judged_swaps
from .schedule import Times, check_schedule
from .server_view import server_view
from .warmup import answered, settled, window_s

Progress = Callable[[str], None]
T = TypeVar("T")

SEARCH_RATE_MAX = 1_000_000.0
PROBE_S = 2.0
PROBE_S_MAX = 60.0
CALIBRATION_CONCURRENCY = 16
SETTLE_S = 0.2
# An offline run that was over too soon is made again, with as many samples as its own rate says.
OFFLINE_TRIES = 2
# A warm-up in which latencies have only grown for so long need not go on.
GROWTH_NS = 2_000_000_000
# An inconclusive probe goes on for as long again, and then for twice as long; then it counts as failed.
EXTENSIONS = (1.0, 2.0)
# So often a probe is made again for which the client was late.
LATE_AGAIN = 2


@dataclass(frozen=True, slots=True)
class Means:
    """How the load is made: by which generators, and from which recorded arrival times."""

    placement: Placement = EVERYWHERE
    recording: Times | None = None
    reload: Reload | None = None


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

    def __init__(
        self, target: Target, load: Load, slo: Slo | None, progress: Progress, means: Means | None = None
    ) -> None:
        self.target = target
        self.load = load
        self.slo = slo
        self.result = Result()
        self._progress = progress
        self._means = means or Means()
        self._engine: Engine
        self._started = False
        self._phases = 0
        self._cold_ns: int | None = None

    def records(self) -> Sequence[Recorder]:
        """What the running phase has recorded so far, for whoever watches."""
        return self._engine.records() if self._started else []

    async def closed(self, concurrencies: list[int] | None = None) -> Result:
        """The closed loop, with each number of connections in turn."""
        widths = concurrencies or [self.load.concurrency]
        return await self._within(self._sweep([replace(self.load, concurrency=n) for n in widths]))

    async def sweep(self, rates: list[float]) -> Result:
        """Each rate in turn; stops early only when the server is gone or somebody says so."""
        return await self._within(self._sweep([replace(self.load, rate=rate) for rate in rates]))

    async def scenario(self, rules: Rules, *, loadgen: bool = False) -> Result:
        """One of MLPerf's scenarios; with `loadgen`, once more by MLPerf's own LoadGen."""
        return await self._within(self._scenario(rules, loadgen))

    async def search(self) -> Result:
        """The highest rate that meets the objectives."""
        return await self._within(self._search())

    async def _within(self, work: Coroutine[Any, Any, None]) -> Result:
        """Do some work between the target's start and its end; Ctrl-C ends the work, not the report."""
        await self.target.start()
        try:
            self._engine = self._make_engine()
            self._started = True
            with suppress(NotImplementedError):
                asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._interrupt)
            try:
                await self._start_cold()
                await work
            finally:
                work.close()
                await self._engine.close()
        finally:
            await self.target.close()
        return self.result

    def _make_engine(self) -> Engine:
        """This process, or several."""
        cpus = self._means.placement.generators
        if len(cpus) > 1:
            return Fleet(self.target.description(), self.target.versions, cpus)
        return Local(self.target)

    def _interrupt(self) -> None:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)  # a second one ends it at once
        self._engine.stop(INTERRUPTED)

    async def _sweep(self, loads: list[Load]) -> None:
        for load in loads:
            warmup = f"at most {load.max_warmup_s:g}" if load.max_warmup_s else f"{load.warmup_s:g}"
            self._progress(f"{load}, after {warmup} s of warm-up")
            report = await self._measure(load)
            self.result.reports.append(report)
            if self.result.stopped or report.seen.phase.broken:
                return

    # one measurement

    async def _measure(
        self,
        load: Load,
        earlier: Sequence[Tally] = (),
        rules: Rules | None = None,
        known: Phase | None = None,
    ) -> Report:
        """Warm up, read counters, send, read counters.

        `earlier`: what this measurement extends. `known`: an earlier run by the same rules.
        """
        warmup, end = await self._warm_up(load)
        if warmup is not None and (warmup.stopped or warmup.broken):
            return self._report(load, warmup, Measurement(warmup, cold_ns=self._cold_ns))
        before, versions = await self.target.counters(), dict(self.target.versions)
        if rules is not None:
            phase = await self._run(scenario_job(rules, load, known or warmup, self._seed()))
        else:
            phase = await self._swapping(load_job(load, load.duration_s, self._seed(), self._means.recording))
        after = None if phase.stopped else await self.target.counters()
        answers = {
            version.decode("latin-1"): count - versions.get(version, 0)
            for version, count in self.target.versions.items()
            if count > versions.get(version, 0)
        }
        view = server_view(before, after)
        reload = self._means.reload
        swaps = judged_swaps(reload, phase.recorder, phase.sightings) if reload is not None else None
        seen = Measurement(phase, warmup, view, answers, phase.cpu_share, end, self._cold_ns, swaps)
        return self._report(load, phase, seen, earlier)

    async def _start_cold(self) -> None:
        """One request, alone: what the first user waits for."""
        phase = await self._engine.run(Job(0.0, self.load.timeout_s, np.zeros(1, np.int64)), (0,))
        if phase.recorder.ok() == 1:
            self._cold_ns = int(phase.recorder.service_times()[0])

    async def _warm_up(self, load: Load) -> tuple[Phase | None, str]:
        """The warm-up, if there is one, and why it ended."""
        if not load.max_warmup_s:
            return (await self._phase(load, load.warmup_s), "") if load.warmup_s > 0 else (None, "")
        ends: list[str] = []
        watcher = asyncio.create_task(self._until_settled(load, ends))
        try:
            phase = await self._phase(load, load.max_warmup_s)
        finally:
            watcher.cancel()
        return phase, ends[0] if ends else f"after {load.max_warmup_s:g} s, latencies not steady yet"

    async def _until_settled(self, load: Load, ends: list[str]) -> None:
        """End the warm-up when latencies are steady."""
        window = window_s(load.rate)
        while not ends:
            await asyncio.sleep(window)
            done, latency = answered(self._engine.records())
            if settled(done, latency, int(window * 1e9)):
                ends.append("latencies are steady")
            elif len(done) and done[-1] - done[0] > GROWTH_NS and grows_throughout(latency):
                ends.append("latencies only grow")
        self._engine.finish()

    def _report(self, load: Load, phase: Phase, seen: Measurement, earlier: Sequence[Tally] = ()) -> Report:
        if phase.stopped:
            self.result.stopped = phase.stopped
        facts, shares = self.target.describe(), self.target.shares_loop
        return Report.of(facts, load, seen, self.slo, shares_loop=shares, earlier=earlier)

    async def _phase(self, load: Load, duration_s: float, recording: Times | None = None) -> Phase:
        """Send one phase's load."""
        return await self._run(load_job(load, duration_s, self._seed(), recording))

    def _seed(self) -> tuple[int, int]:
        """Every phase of a rate draws its own schedule."""
        self._phases += 1
        return self.load.seed, self._phases

    async def _run(self, job: Job) -> Phase:
        gc.collect()
        gc.freeze()
        return await self._engine.run(job, (self.load.seed, self._phases))

    async def _swapping(self, job: Job) -> Phase:
        """Run a job, with swaps meanwhile where they are wanted."""
        reload = self._means.reload
        if reload is None:
            return await self._run(job)
        over = asyncio.Event()
        task = asyncio.create_task(reload.keep_on(over))
        try:
            return await self._run(replace(job, watch=True))
        finally:
            over.set()
            await task

    async def _scenario(self, rules: Rules, loadgen: bool) -> None:
        """Warm up, send as the scenario says, and judge by its rules."""
        self._progress(f"{self.load}: {rules.text()}, after warm-up; a closed loop unless it has a rate")
        report = await self._measure(self.load, rules=rules)
        outcome = judged(rules, report.seen.phase)
        for _ in range(OFFLINE_TRIES):
            if self.result.stopped or not outcome.too_short:
                break
            self._progress(f"  {outcome.seconds:.2f} s: too short, once more with more samples")
            report = await self._measure(self.load, rules=rules, known=report.seen.phase)
            outcome = judged(rules, report.seen.phase)
        self.result.reports.append(report)
        self.result.scenario = outcome
        if loadgen and not self.result.stopped:
            from ..judgement.loadgen import drive

            self._progress("the same by MLPerf's LoadGen")
            expected = self.load.rate or outcome.value
            self.result.loadgen = await drive(self.target, rules, expected, self.load.concurrency)

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
            report = await self._look(self._probe_load(rate, part), looks)
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
        # A machine on which the client is late from the beginning, again and again, will not get better.
        hopeless = report.ok == 0 or (len(codes) >= len(SWEEP) and set(codes) == {Verdict.INVALID})
        return Probe(rate, outcome, reason, fatal=bool(self.result.stopped) or hopeless)

    async def _look(self, load: Load, looks: Sequence[Tally]) -> Report:
        """Measure once; again where the client was late, which tells nothing of the server."""
        for left in reversed(range(1 + LATE_AGAIN)):
            report = await self._measure(load, looks)
            self.result.reports.append(report)
            self._progress(f"  {load.rate:g}/s: {report.verdict}")
            if report.verdict.code != Verdict.INVALID or self.result.stopped or not left:
                break
            await asyncio.sleep(SETTLE_S)
        return report

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
