"""Whether bench's figures are true: servers whose service times are known, in real time.

    python benchmarks/bench_truth.py [SECONDS]

A server process answers with a known service time, one request after the other. Printed,
each with what must come out:

    stall      500 ms without an answer every 10 s at 1000/s over one connection: the corrected
               p99 is arithmetic, the uncorrected one is not it
    queues     M/D/1 and M/M/1: the mean wait of Pollaczek and Khinchine
    overload   twice the capacity: UNSTABLE, and no percentile
    held up    the client is stopped for 300 ms: INVALID
    LoadGen    MLPerf's own library beside our scenarios, where it is installed, in turn; the
               server answers each request after 5 ms, and leaves the CPUs to the clients
    lag        of an open loop at half of the rate that one core must make
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
import time
from importlib.util import find_spec
from multiprocessing.connection import Connection

import numpy as np
import uvloop

from mserve.bench.judgement.quantiles import nearest_rank
from mserve.bench.judgement.scenario import SCENARIOS, Rules
from mserve.bench.judgement.verdict import Load, Measurement, judge
from mserve.bench.load.client import HttpConnection, request_bytes
from mserve.bench.load.driver import Pool
from mserve.bench.load.job import Job
from mserve.bench.load.loops import driver
from mserve.bench.load.recorder import Phase, lag_p99, open_rates
from mserve.bench.load.schedule import schedule
from mserve.bench.load.server_view import Counters
from mserve.bench.load.session import Session

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
SERVICE_S = 0.0014
RATE = 500.0
LAG_RATE = 12_500.0
SLEEP_S = 0.005
ROUNDS = 5
STUDENT_99 = 2.861  # twenty batches


class Server(asyncio.Protocol):
    """First come first served; the busy part of a service time is slept, to the last 100 µs."""

    kind = "none"
    free_at = 0.0
    started = 0.0
    rng = np.random.default_rng(2)  # not the schedule's seed: services would be as long as the gaps before

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._write = transport.write  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        cls, now = Server, time.perf_counter()
        if cls.kind == "none":
            self._write(ANSWER)
            return
        if cls.kind == "sleeps":
            asyncio.get_running_loop().call_later(SLEEP_S, self._write, ANSWER)
            return
        begin = max(cls.free_at, now)
        cls.free_at = begin + service(cls.kind, begin - cls.started, cls.rng)
        QUEUE.append((cls.free_at, self._write))
        if len(QUEUE) == 1:
            asyncio.get_running_loop().call_soon(answer_due)


QUEUE: list[tuple[float, object]] = []


def answer_due() -> None:
    """Answer what is due; the loop is polled while somebody waits."""
    now = time.perf_counter()
    while QUEUE and QUEUE[0][0] <= now:
        QUEUE.pop(0)[1](ANSWER)  # type: ignore[operator]
    if QUEUE:
        asyncio.get_running_loop().call_soon(answer_due)


def service(kind: str, since: float, rng: np.random.Generator) -> float:
    """Seconds that a request takes which begins at a time after the start."""
    if kind == "stall":
        into = since % 10.0 - 5.0
        return 0.0001 + (0.5 - into if 0 <= into < 0.5 else 0.0)
    return float(rng.exponential(SERVICE_S)) if kind == "M/M/1" else SERVICE_S


def serve(ready: Connection, kind: str) -> None:
    """The server process."""

    async def forever() -> None:
        Server.kind, Server.started = kind, time.perf_counter()
        server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(forever())


class Target:
    """The server as bench sees it."""

    shares_loop = False
    endpoint = None

    def __init__(self, port: int, connections_max: int = 1000) -> None:
        self.versions: dict[bytes, int] = {}
        self.connections_max = connections_max
        self._port = port

    def describe(self) -> dict[str, object]:
        return {"kind": "url", "url": "truth", "model": "m", "rows": 1, "request_bytes": 1}

    def description(self) -> Target:
        return self

    async def start(self) -> None: ...

    async def connect(self) -> HttpConnection:
        request = request_bytes("h", "/v1/models/m:predict", b"{}")
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: HttpConnection(request, self.versions), "127.0.0.1", self._port
        )
        return connection

    async def counters(self) -> Counters | None:
        return None

    async def close(self) -> None: ...


async def offered(target: Target, arrivals: str, rate: float, seconds: float) -> Phase:
    """An open loop."""
    pool = Pool(target)
    phase = await driver(pool, Job(seconds, 60.0, schedule(arrivals, rate, seconds, (1,)))).run()
    pool.close()
    return phase


def stall(port: int, seconds: float) -> None:
    """Over whole periods of 10 s."""
    periods = max(1, round(seconds / 10))
    phase = uvloop.run(offered(Target(port, 1), "constant", 1000.0, 10.0 * periods))
    both = phase.recorder.latencies(), phase.recorder.service_times()
    corrected, uncorrected = (nearest_rank(np.sort(x), 0.99) / 1e6 for x in both)
    good = abs(corrected - 410) < 20 and uncorrected < 41
    text = f"corrected p99 {corrected:.1f} ms (410), uncorrected {uncorrected:.2f} ms"
    print(f"stall      {text}: {word(good)}")


def queue(port: int, seconds: float, kind: str) -> None:
    """The mean wait in a queue."""
    phase = uvloop.run(offered(Target(port), "poisson", RATE, seconds))
    load = RATE * SERVICE_S
    theory = load * SERVICE_S / (1 - load) / (2 if kind == "M/D/1" else 1)
    waits = phase.recorder.latencies() / 1e9 - SERVICE_S
    means = np.array([part.mean() for part in np.array_split(waits, 20)])
    reach = STUDENT_99 * means.std(ddof=1) / np.sqrt(20)
    good = abs(means.mean() - theory) <= reach + 0.0002  # sockets take something too
    text = f"mean wait {means.mean() * 1e3:.2f} ± {reach * 1e3:.2f} ms, theory {theory * 1e3:.2f} ms"
    print(f"{kind:10} {text}: {word(good)}")


def overload(port: int, seconds: float) -> None:
    """Twice the capacity."""
    rate = 2 / SERVICE_S
    phase = uvloop.run(offered(Target(port), "poisson", rate, min(seconds, 5.0)))
    verdict = judge(Load(rate=rate), Measurement(phase), open_rates(phase.recorder, phase.span_ns))
    print(f"overload   {verdict}: {word(verdict.code == 'unstable')}")


def held_up(port: int, seconds: float) -> None:
    """Somebody stops this process for 300 ms."""
    command = f"sleep 1; kill -STOP {os.getpid()}; sleep 0.3; kill -CONT {os.getpid()}"
    helper = os.spawnlp(os.P_NOWAIT, "sh", "sh", "-c", command)
    phase = uvloop.run(offered(Target(port), "poisson", RATE, 3.0))
    os.waitpid(helper, 0)
    verdict = judge(Load(rate=RATE), Measurement(phase), open_rates(phase.recorder, phase.span_ns))
    print(f"held up    {verdict}: {word(verdict.code == 'invalid')}")


def loadgen(port: int, seconds: float) -> None:
    """Both figures of both streams and of the server scenario, in turn: the median of their ratios."""
    if find_spec("mlperf_loadgen") is None:
        print("LoadGen    not installed: pip install mserve[mlperf]")
        return
    each_s = seconds / 10
    for name in ("single-stream", "multi-stream", "server"):
        scenario = SCENARIOS[name]
        bound = (1_000_000_000, 0.9) if name == "server" else ()
        rules = Rules(scenario, each_s, scenario.queries_min, *bound)
        load = Load(300.0 if name == "server" else None, scenario.samples, each_s, 0.5)
        pairs = []
        for _ in range(ROUNDS):
            session = Session(Target(port), load, None, lambda _: None)
            result = uvloop.run(session.scenario(rules, loadgen=True))
            assert result.scenario is not None
            assert result.loadgen is not None
            ours, theirs = result.scenario.to_json(), result.loadgen
            pairs.append((ours["value"], theirs["value"]))
        ratio = float(np.median([theirs / ours for ours, theirs in pairs]))
        figures = ", ".join(f"{ours:.2f} and {theirs:.2f}" for ours, theirs in pairs)
        text = f"{name}: ours and LoadGen's {figures} {ours['unit']}, median of the ratios {ratio:.3f}"
        ours_all = [ours for ours, _ in pairs]
        busy = max(ours_all) > 1.5 * min(ours_all)  # then the clients measure the machine
        said = "too busy a machine to tell" if busy else word(abs(ratio - 1) < 0.1)
        print(f"LoadGen    {text}: {said}", flush=True)


def lag(port: int, seconds: float) -> None:
    """The best of three, since other processes take the CPU away."""
    best = min(
        lag_p99(uvloop.run(offered(Target(port), "poisson", LAG_RATE, 2.0)).recorder) / 1e6 for _ in range(3)
    )
    print(f"lag        p99 {best:.3f} ms at {LAG_RATE:,.0f}/s (below 1 ms): {word(best < 1)}")


def word(good: bool) -> str:
    """Good or bad."""
    return "as it must be" if good else "NOT AS IT MUST BE"


def main() -> None:
    """One server process for each question."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    questions = (
        ("stall", stall),
        ("M/D/1", lambda port, s: queue(port, s, "M/D/1")),
        ("M/M/1", lambda port, s: queue(port, s, "M/M/1")),
        ("M/D/1", overload),
        ("M/D/1", held_up),
        ("sleeps", loadgen),
        ("none", lag),
    )
    context = multiprocessing.get_context("spawn")
    for kind, ask in questions:
        ours, theirs = multiprocessing.Pipe()
        process = context.Process(target=serve, args=(theirs, kind), daemon=True)
        process.start()
        try:
            ask(ours.recv(), seconds)
        finally:
            process.terminate()
            process.join()


if __name__ == "__main__":
    main()
