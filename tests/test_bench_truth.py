"""Measurements of servers whose truth is known: queues from the textbook, stalls, overload, a held-up client.

Time is virtual, so that nothing depends on the machine; `benchmarks/bench_truth.py` does the
same in real time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest
from bench_virtual import MS, Queue, VirtualLoop, run_virtual

from mserve.bench.judgement.quantiles import nearest_rank
from mserve.bench.judgement.slo import PASS, parse
from mserve.bench.judgement.verdict import Load, Measurement, Verdict, judge
from mserve.bench.load.driver import Pool
from mserve.bench.load.job import Job
from mserve.bench.load.loops import driver
from mserve.bench.load.recorder import Phase, open_rates
from mserve.bench.load.schedule import schedule
from mserve.bench.load.session import Session
from mserve.bench.results.result import Result

SERVICE_NS = 1_400_000
RATE = 500.0
LOAD = RATE * SERVICE_NS / 1e9
NOISE = np.random.default_rng(3)
STUDENT_99 = 2.861  # 19 degrees of freedom

Patch = pytest.MonkeyPatch
Service = Callable[[int], float]


def constant(service_ns: float) -> Service:
    return lambda _: service_ns


def exponential(mean_ns: float) -> Service:
    rng = np.random.default_rng(11)
    return lambda _: float(rng.exponential(mean_ns))


def measured(
    patch: Patch,
    service: Service,
    rate: float,
    seconds: float,
    *,
    arrivals: str = "poisson",
    connections: int = 10_000,
) -> Phase:
    async def work() -> Phase:
        due = schedule(arrivals, rate, seconds, (5,))
        return await driver(Pool(Queue(service, connections)), Job(seconds, 60.0, due)).run()

    return run_virtual(patch, work)


@pytest.mark.parametrize(
    ("service", "wait_ns", "name"),
    [
        (constant(SERVICE_NS), LOAD * SERVICE_NS / (2 * (1 - LOAD)), "M/D/1"),
        (exponential(SERVICE_NS), LOAD * SERVICE_NS / (1 - LOAD), "M/M/1"),
    ],
)
def test_mean_waits_are_those_of_pollaczek_and_khinchine(
    monkeypatch: Patch, service: Service, wait_ns: float, name: str
) -> None:
    """Batch means of 20 batches, 99 % interval; the seeds are fixed, so this is not luck."""
    recorder = measured(monkeypatch, service, RATE, 60.0).recorder
    waits = recorder.latencies() - SERVICE_NS
    means = np.array([part.mean() for part in np.array_split(waits[1000:], 20)])
    reach = STUDENT_99 * means.std(ddof=1) / np.sqrt(20)
    assert abs(means.mean() - wait_ns) < reach
    assert reach < 0.5 * wait_ns, "an interval that says something"


def test_a_stall_costs_what_arithmetic_says(monkeypatch: Patch) -> None:
    """Every 10 s nothing for 500 ms, at 1000 requests per second that take 0.1 ms each, on one connection.

    A request due x ms into the stall waits for its end, and for x others: 500 - x + 0.1 x. Of
    10,000 requests 100 are slower than the one at x = 100: p99 = 410 ms. Counted from the
    sending, one of 10,000 was slow.
    """

    def service(now_ns: int) -> float:
        into = now_ns % (10_000 * MS) - 5_000 * MS
        return 0.1 * MS + (500 * MS - into if 0 <= into < 500 * MS else 0)

    recorder = measured(monkeypatch, service, 1000.0, 20.0, arrivals="constant", connections=1).recorder
    corrected = nearest_rank(np.sort(recorder.latencies()), 0.99) / MS
    uncorrected = nearest_rank(np.sort(recorder.service_times()), 0.99) / MS
    assert corrected == pytest.approx(410.0, rel=0.02)
    assert uncorrected < 1.0


@pytest.mark.parametrize("share", [1.1, 2.0, 10.0])
def test_overload_has_no_percentiles(monkeypatch: Patch, share: float) -> None:
    phase = measured(monkeypatch, constant(2 * MS), 500.0 * share, 4.0)
    verdict = judge(Load(rate=500.0 * share), Measurement(phase), open_rates(phase.recorder, phase.span_ns))
    assert verdict.code == Verdict.UNSTABLE


@pytest.mark.parametrize(("pause_ms", "code"), [(0, Verdict.MEASURED), (300, Verdict.INVALID)])
def test_a_client_that_was_stopped(monkeypatch: Patch, pause_ms: int, code: str) -> None:
    async def work() -> Phase:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.call_later(2.0, loop.pause, pause_ms * MS)
        due = schedule("poisson", 500.0, 5.0, (5,))
        return await driver(Pool(Queue(constant(MS))), Job(5.0, 60.0, due)).run()

    phase = run_virtual(monkeypatch, work)
    verdict = judge(Load(rate=500.0), Measurement(phase), open_rates(phase.recorder, phase.span_ns))
    assert verdict.code == code


@pytest.mark.parametrize(
    ("service", "at_least", "at_most", "end", "why"),
    [
        (constant(MS), 2.0, 2.5, "latencies are steady", "warm from the beginning: five windows"),
        (
            lambda now: MS * (1 + 20 * np.exp(-now / 5e8) + 0.05 * NOISE.standard_normal()),
            2.0,
            8.0,
            "latencies are steady",
            "caches fill for some seconds",
        ),
        (
            lambda now: MS * np.exp(0.065 * now / 1e9),
            10.0,
            10.1,
            "latencies not steady yet",
            "never settles",
        ),
        (constant(30 * MS), 2.0, 4.0, "latencies only grow", "overloaded: nothing to wait for"),
    ],
)
def test_warm_up_ends_when_the_server_has_settled(
    monkeypatch: Patch, service: Service, at_least: float, at_most: float, end: str, why: str
) -> None:
    async def work() -> Measurement:
        load = Load(rate=50.0, duration_s=1.0, timeout_s=60.0, max_warmup_s=10.0, arrivals="constant")
        session = Session(Queue(service), load, None, lambda _: None)
        return (await session.sweep([50.0])).reports[0].seen

    seen = run_virtual(monkeypatch, work)
    assert seen.warmup is not None
    assert at_least <= seen.warmup.span_ns / 1e9 <= at_most
    assert end in seen.warmup_end
    assert seen.warmup.recorder.errors() == {}


def test_the_first_request_is_the_cold_start(monkeypatch: Patch) -> None:
    async def work() -> Measurement:
        load = Load(rate=100.0, duration_s=1.0, warmup_s=0.0)
        slow_once = iter([80.0 * MS])
        session = Session(Queue(lambda _: next(slow_once, MS)), load, None, lambda _: None)
        return (await session.sweep([100.0])).reports[0].seen

    seen = run_virtual(monkeypatch, work)
    assert seen.cold_ns == pytest.approx(80 * MS, rel=0.01)
    assert seen.phase.recorder.latencies().max() < 10 * MS
    assert seen.warmup is None


def test_a_probe_for_which_the_client_was_late_is_made_again(monkeypatch: Patch) -> None:
    notes: list[str] = []

    async def work() -> Result:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)

        def note(text: str) -> None:
            notes.append(text)
            if "/s: " in text and sum("/s: " in seen for seen in notes) == 1:
                loop.call_later(1.0, loop.pause, 400 * MS)  # in the second probe

        load = Load(rate=None, duration_s=2.0, warmup_s=0.0)
        return await Session(Queue(constant(MS)), load, parse(["p90=50ms"]), note).search()

    result = run_virtual(monkeypatch, work)
    assert result.search is not None
    second = result.search.probes[1]
    codes = [r.verdict.code for r in result.reports if r.load.rate == second.rate]
    assert codes[:2] == [Verdict.INVALID, PASS]
    assert second.passed
