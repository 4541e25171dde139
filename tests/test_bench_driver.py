"""The drivers against real sockets: when they send, what they count, and when they stop."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
from bench_tools import ANSWER, MS, REFUSAL, Behaviour, at_once, fake_server, one_at_a_time, stalls

from mserve.bench.judgement.quantiles import nearest_rank
from mserve.bench.judgement.verdict import Load, Measurement, Verdict, judge
from mserve.bench.load.alarm import Polled, alarm
from mserve.bench.load.driver import Pool
from mserve.bench.load.job import Job
from mserve.bench.load.loops import driver
from mserve.bench.load.recorder import (
    CONNECTION,
    INTERRUPTED,
    NOT_HTTP,
    OK,
    UNFINISHED,
    UNSENT,
    Phase,
    open_rates,
)
from mserve.bench.load.schedule import schedule


async def open_loop(
    behave: Behaviour, rate: float, seconds: float, *, connections_max: int = 200, drain_s: float = 5.0
) -> Phase:
    async with fake_server(behave, connections_max) as server:
        pool = Pool(server)
        due = schedule("constant", rate, seconds, (1,))
        phase = await driver(pool, Job(seconds, drain_s, due)).run()
        pool.close()
        return phase


async def closed_loop(behave: Behaviour, connections: int, seconds: float, *, drain_s: float = 5.0) -> Phase:
    async with fake_server(behave) as server:
        pool = Pool(server)
        phase = await driver(pool, Job(seconds, drain_s, concurrency=connections)).run()
        pool.close()
        return phase


def p99_ms(latencies: np.ndarray) -> float:
    return nearest_rank(np.sort(latencies), 0.99) / MS


def test_a_stall_is_seen_by_requests_that_were_due_in_it() -> None:
    """Coordinated omission: on one connection, a stall of 400 ms holds back 160 of 800 requests.

    Counted from the due time, one in a hundred waited for about 400 - 20 ms. Counted from
    the sending, as a naive client does, all but one were fast.
    """
    recorder = asyncio.run(open_loop(stalls(0.6, 1.0), 400.0, 2.0, connections_max=1)).recorder
    assert recorder.ok() == 800
    assert 300 < p99_ms(recorder.latencies()) < 500
    assert p99_ms(recorder.service_times()) < 150


def test_with_free_connections_a_stall_holds_nothing_back() -> None:
    """Other users do not wait for one user's answer before they ask."""
    phase = asyncio.run(open_loop(stalls(0.3, 0.6), 200.0, 1.0))
    assert phase.recorder.ok() == 200
    assert phase.busiest > 30
    assert p99_ms(phase.recorder.service_times()) > 200


def test_the_closed_loop_omits_the_stall() -> None:
    """Which is why its latencies carry no claim: one request is slow, and those behind it never exist."""
    recorder = asyncio.run(closed_loop(stalls(0.2, 0.5), 1, 0.8)).recorder
    assert recorder.latencies().max() / MS > 200
    assert (recorder.latencies() > 150 * MS).sum() == 1


def test_overload_is_called_unstable() -> None:
    """Twice the capacity is offered; the queue grows for as long as it lasts."""
    phase = asyncio.run(open_loop(one_at_a_time(0.005), 400.0, 1.0))
    rates = open_rates(phase.recorder, phase.span_ns)
    assert rates.ratio < 0.75
    verdict = judge(Load(rate=400.0), Measurement(phase), rates)
    assert verdict.code == Verdict.UNSTABLE
    assert "above capacity" in verdict.reason


def test_a_client_that_is_late_says_so() -> None:
    async def run() -> Phase:
        asyncio.get_running_loop().call_later(0.3, time.sleep, 0.3)
        return await open_loop(at_once, 300.0, 1.0)

    phase = asyncio.run(run())
    assert nearest_rank(np.sort(phase.recorder.lags()), 0.99) / MS > 150
    verdict = judge(Load(rate=300.0), Measurement(phase), open_rates(phase.recorder, phase.span_ns))
    assert verdict.code == Verdict.INVALID
    assert "client itself was late" in verdict.reason


def test_requests_are_sent_when_they_are_due() -> None:
    recorder = asyncio.run(open_loop(at_once, 200.0, 1.0)).recorder
    assert recorder.count == 200
    assert (recorder.taken >= recorder.intended).all()
    assert (recorder.sent >= recorder.taken).all()
    assert (recorder.done >= recorder.sent).all()
    assert (np.diff(recorder.intended) == 5 * MS).all()


def test_both_sides_of_little_s_law_agree() -> None:
    phase = asyncio.run(open_loop(lambda _: (0.02, ANSWER), 300.0, 1.0))
    in_flight, rate_times_time = phase.in_flight_ns / 1e9, phase.recorder.in_flight_ns() / 1e9
    assert in_flight == pytest.approx(rate_times_time, rel=0.02)
    assert in_flight >= 300 * 0.02 * 0.95


@pytest.mark.parametrize(
    ("behave", "outcome", "message", "why"),
    [
        (lambda _: (0.0, REFUSAL), 429, "busy", "the server refuses"),
        (lambda _: None, CONNECTION, "connection", "the server hangs up"),
        (lambda _: (0.0, b"SSH-2.0-OpenSSH\r\n"), NOT_HTTP, "SSH", "the server speaks something else"),
        (lambda _: (0.0, ANSWER[:30]), UNFINISHED, "no answer before", "the server stops in the middle"),
        (lambda _: (60.0, ANSWER), UNFINISHED, "no answer before", "the server never answers"),
    ],
)
def test_every_failure_has_its_class(behave: Behaviour, outcome: int, message: str, why: str) -> None:
    for phase in (
        asyncio.run(open_loop(behave, 100.0, 0.2, drain_s=0.3)),
        asyncio.run(closed_loop(behave, 2, 0.2, drain_s=0.3)),
    ):
        errors = phase.recorder.errors()
        assert set(errors) == {outcome}
        assert errors[outcome] == phase.recorder.count > 0
        assert message in phase.messages.get(outcome, "")
        assert not phase.stopped


def test_requests_that_found_no_connection_are_counted_as_unsent() -> None:
    phase = asyncio.run(open_loop(lambda _: (60.0, ANSWER), 100.0, 0.2, connections_max=3, drain_s=0.2))
    assert phase.recorder.errors() == {UNFINISHED: 3, UNSENT: 17}
    assert phase.messages[UNSENT] == "no connection was free before the end"


def test_a_connection_that_the_server_closes_is_replaced() -> None:
    closing = ANSWER.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    for phase in (
        asyncio.run(open_loop(lambda _: (0.0, closing), 100.0, 0.3)),
        asyncio.run(closed_loop(lambda _: (0.0, closing), 2, 0.2)),
    ):
        assert phase.recorder.count > 10
        assert phase.recorder.errors() == {}


def test_answers_in_small_pieces_are_whole() -> None:
    async def run() -> Phase:
        async with fake_server(lambda _: None) as server:
            server.behave = lambda _: (0.0, ANSWER[:20])
            loop = asyncio.get_running_loop()

            def rest() -> None:
                for peer in server.peers:
                    peer.write(ANSWER[20:])

            loop.call_later(0.1, rest)
            return await driver(Pool(server), Job(0.1, 2.0, np.array([0]))).run()

    assert asyncio.run(run()).recorder.outcome.tolist() == [OK]


@pytest.mark.parametrize("loop", ["open", "closed"])
def test_a_server_that_dies_ends_the_phase_early(loop: str) -> None:
    async def run() -> Phase:
        async with fake_server(at_once) as server:
            asyncio.get_running_loop().call_later(0.3, server.die)
            pool = Pool(server)
            if loop == "closed":
                return await driver(pool, Job(30.0, 5.0, concurrency=2)).run()
            return await driver(pool, Job(30.0, 5.0, schedule("constant", 50.0, 30.0, (1,)))).run()

    phase = asyncio.run(run())
    assert "the server is gone" in phase.stopped
    assert phase.messages[UNSENT] == phase.stopped
    assert phase.recorder.ok() >= 5
    assert phase.span_ns < 10e9


def test_a_server_that_dies_shortly_before_the_end_is_the_reason() -> None:
    async def run() -> Phase:
        async with fake_server(at_once) as server:
            asyncio.get_running_loop().call_later(0.2, server.die)
            return await driver(Pool(server), Job(0.6, 0.1, schedule("constant", 50.0, 0.6, (1,)))).run()

    phase = asyncio.run(run())
    assert not phase.stopped
    assert phase.messages[UNSENT].startswith("no connection to the server: ")


def test_stopping_keeps_what_was_answered() -> None:
    async def run() -> Phase:
        async with fake_server(at_once) as server:
            running = driver(Pool(server), Job(30.0, 5.0, schedule("constant", 100.0, 30.0, (1,))))
            asyncio.get_running_loop().call_later(0.3, running.stop, INTERRUPTED)
            return await running.run()

    phase = asyncio.run(run())
    assert phase.stopped == INTERRUPTED
    assert phase.recorder.ok() == phase.recorder.count >= 10
    assert phase.span_ns < 5e9


@pytest.mark.parametrize("kind", [alarm, Polled])
def test_an_alarm_rings_once_and_not_early(kind: type[Polled]) -> None:
    async def run() -> tuple[list[int], int]:
        rung: list[int] = []
        bell = kind(lambda: rung.append(time.perf_counter_ns()))
        bell.set(time.perf_counter_ns() + 10**12)  # replaced by the next line
        at = time.perf_counter_ns() + 20 * MS
        bell.set(at)
        await asyncio.sleep(0.2)
        bell.set(0)
        await asyncio.sleep(0.05)
        bell.close()
        return rung, at

    rung, at = asyncio.run(run())
    assert len(rung) == 2
    assert rung[0] >= at
