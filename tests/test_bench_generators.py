"""Several generator processes: one schedule, one start, one record, and what happens when one dies."""

from __future__ import annotations

import asyncio
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
from bench_tools import (
    ANSWER,
    Behaviour,
    FakeServer,
    at_once,
    bench_json,
    fake_server,
    refused,
    running_bench,
)
from server_tools import serving

import mserve
from mserve.bench.judgement.verdict import Load, Measurement, Verdict, judge
from mserve.bench.load.fleet import Fleet
from mserve.bench.load.job import Job, divide
from mserve.bench.load.placement import ANY, generators_for, place
from mserve.bench.load.recorder import CONNECTION, INTERRUPTED, OK, UNFINISHED, Phase, Recorder, open_rates
from mserve.bench.load.schedule import schedule

SECOND = 1_000_000_000
Meanwhile = Callable[[Fleet, FakeServer], Awaitable[None]]


async def nothing(fleet: Fleet, server: FakeServer) -> None: ...


def run(job: Job, generators: int, meanwhile: Meanwhile = nothing, behave: Behaviour = at_once) -> Phase:
    async def work() -> Phase:
        async with fake_server(behave) as server:
            fleet = Fleet(server.description(), server.versions, [ANY] * generators)
            try:
                await fleet.run(Job(0.1, 5.0, np.zeros(1, np.int64)), (0,))  # all have started
                answered = sum(server.versions.values())
                side = asyncio.create_task(meanwhile(fleet, server))
                phase = await fleet.run(job, (1, 2))
                await side
                if not phase.broken:  # a dead one's counts by version died with it
                    assert sum(server.versions.values()) - answered >= phase.recorder.ok()
                return phase
            finally:
                await fleet.close()

    return asyncio.run(work())


def poisson(rate: float, seconds: float) -> Job:
    return Job(seconds, 5.0, schedule("poisson", rate, seconds, (1,)))


def children() -> list[int]:
    return [p.pid for p in multiprocessing.active_children() if p.pid and p.name.startswith("mserve-bench-")]


def test_generators_send_one_schedule_together() -> None:
    job = poisson(400.0, 1.0)
    assert job.due is not None
    phase = run(job, 3)
    recorder = phase.recorder
    assert recorder.count == len(job.due) == recorder.ok()
    assert (recorder.intended - recorder.intended[0] == job.due - job.due[0]).all()
    assert (recorder.taken >= recorder.intended).all()
    assert (recorder.first >= recorder.sent).all()
    assert (recorder.done >= recorder.first).all()
    assert not phase.stopped
    assert not phase.broken
    assert 0 < phase.cpu_share < 1
    assert phase.in_flight_ns == pytest.approx(recorder.in_flight_ns(), rel=0.02)


def test_a_closed_loop_is_divided_by_connections() -> None:
    phase = run(Job(0.5, 5.0, concurrency=5), 2, behave=lambda _: (0.01, ANSWER))
    assert phase.recorder.errors() == {}
    assert phase.busiest == 5
    assert phase.recorder.count > 50


def test_the_parts_of_a_poisson_schedule_are_poisson() -> None:
    """Gaps by Kolmogorov and Smirnov, and counts that vary as much as their mean."""
    whole = poisson(8000.0, 20.0)
    parts = divide(whole, 4, (3,))
    assert sum(part.rows_max for part in parts) == whole.rows_max
    for part in parts:
        assert part.due is not None
        gaps = np.sort(np.diff(part.due)) * (2000.0 / SECOND)
        n = len(gaps)
        expected = 1 - np.exp(-gaps)
        ranks = np.arange(n)
        assert max(((ranks + 1) / n - expected).max(), (expected - ranks / n).max()) < 1.63 / math.sqrt(n)
        counts = np.bincount(part.due // (SECOND // 100), minlength=2000)
        assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.12)


def test_dealing_out_in_turn_would_not_be_poisson() -> None:
    """The test above can fail: every fourth request of a Poisson process comes at Erlang's gaps."""
    due = poisson(8000.0, 20.0).due
    assert due is not None
    counts = np.bincount(due[::4] // (SECOND // 100), minlength=2000)
    assert counts.var() / counts.mean() < 0.5


def test_a_generator_that_dies_makes_the_run_invalid_and_loses_nothing() -> None:
    async def kill_one(fleet: Fleet, server: FakeServer) -> None:
        await asyncio.sleep(0.5)
        os.kill(children()[0], signal.SIGKILL)

    started = time.monotonic()
    phase = run(poisson(500.0, 20.0), 2, kill_one)
    assert time.monotonic() - started < 15
    assert "generator 1 died: signal SIGKILL" in phase.broken or "generator 2" in phase.broken
    assert phase.recorder.ok() > 100
    assert set(phase.recorder.errors()) <= {UNFINISHED, CONNECTION}
    rates = open_rates(phase.recorder, phase.span_ns)
    verdict = judge(Load(rate=500.0), Measurement(phase), rates)
    assert verdict.code == Verdict.INVALID
    assert "died" in verdict.reason
    seconds = phase.recorder.intended - phase.recorder.intended[0]
    assert len(np.unique(seconds[phase.recorder.outcome == OK] // 100_000_000)) >= 4


def test_stopping_keeps_what_was_answered() -> None:
    async def interrupt(fleet: Fleet, server: FakeServer) -> None:
        await asyncio.sleep(0.5)
        assert sum(record.count for record in fleet.records()) > 50
        fleet.stop(INTERRUPTED)

    phase = run(poisson(400.0, 30.0), 2, interrupt)
    assert phase.stopped == INTERRUPTED
    assert phase.recorder.ok() == phase.recorder.count > 50
    assert phase.span_ns < 5 * SECOND


def test_finishing_waits_for_what_was_sent() -> None:
    async def finish(fleet: Fleet, server: FakeServer) -> None:
        await asyncio.sleep(0.5)
        fleet.finish()

    phase = run(poisson(400.0, 30.0), 2, finish, behave=lambda _: (0.2, ANSWER))
    assert not phase.stopped
    assert phase.recorder.errors() == {}
    assert 50 < phase.recorder.count < 2000


def test_a_server_that_dies_ends_every_part() -> None:
    async def die(fleet: Fleet, server: FakeServer) -> None:
        await asyncio.sleep(0.3)
        server.die()

    phase = run(poisson(100.0, 30.0), 2, die)
    assert "the server is gone" in phase.stopped
    assert phase.recorder.ok() > 5


def test_a_generator_that_was_held_up_makes_the_run_invalid() -> None:
    """Stopped for 300 ms, as by a debugger or a busy machine: its lag tells."""

    async def hold(fleet: Fleet, server: FakeServer) -> None:
        await asyncio.sleep(0.3)
        os.kill(children()[0], signal.SIGSTOP)
        await asyncio.sleep(0.3)
        os.kill(children()[0], signal.SIGCONT)

    phase = run(poisson(400.0, 1.5), 2, hold)
    verdict = judge(Load(rate=400.0), Measurement(phase), open_rates(phase.recorder, phase.span_ns))
    assert verdict.code == Verdict.INVALID
    assert "client itself was late" in verdict.reason


def test_merged_records_are_in_order_of_their_due_times() -> None:
    parts = [Recorder.scheduled(0, np.array(due)) for due in ([5, 9], [], [1, 7])]
    for part in parts:
        part.count = part.capacity
        part.done[:] = part.intended + 1
    merged = Recorder.merged(parts)
    assert merged.intended.tolist() == [1, 5, 7, 9]
    assert merged.done.tolist() == [2, 6, 8, 10]


@pytest.mark.parametrize(
    ("rate", "cpus", "generators", "why"),
    [
        (None, 64, 1, "a closed loop"),
        (1000.0, 64, 1, "one is enough"),
        (100_000.0, 64, 5, "each sends what it can without being late"),
        (100_000.0, 4, 2, "half of the processors are the server's"),
        (100_000.0, 1, 1, "there is only one"),
    ],
)
def test_how_many_generators_a_rate_takes(rate: float | None, cpus: int, generators: int, why: str) -> None:
    assert generators_for(rate, cpus) == generators


def test_generators_and_server_are_kept_apart_where_there_are_processors() -> None:
    apart = place(2, [0, 1, 2, 3])
    assert apart.generators == (frozenset({0}), frozenset({1}))
    assert apart.server == frozenset({2, 3})
    assert apart.own == frozenset({0, 1})
    assert place(2, [0, 1]).generators == (ANY, ANY)
    assert place(2, [0, 1]).own == place(2, [0, 1]).server == ANY


def test_the_command_with_two_generators(mlp_file: Path, tmp_path: Path) -> None:
    base = mserve.export(mlp_file, tmp_path / "mnist", golden=2).path.parent
    with serving(base, tmp_path / "log.txt") as server:
        quick = ("--warmup", 0.2, "--generators", 2)
        [report] = bench_json(server.url, *quick, "--duration", 0.5, "--qps", 200)["reports"]
        assert report["requests"]["ok"] == report["requests"]["total"] > 50
        assert report["versions"] == {"1": report["requests"]["total"]}
        assert report["server"]["requests"] == report["requests"]["total"]
        with running_bench(server.url, *quick, "--duration", 60, "--qps", 100) as process:
            time.sleep(2.0)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        assert process.returncode == 130, err
        assert "verdict: stopped: interrupted" in out
    assert refused(base, "--generators", 2).returncode == 2
