"""MLPerf's own LoadGen (`pip install mserve[mlperf]`), driving the same target as our scenarios.

LoadGen decides when to send, measures and judges; ours are only the connections. Its
thread and our event loop hand each sample over and back, which costs some tens of
microseconds that our own driver does not have.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
from pathlib import Path
from typing import Any

from ...errors import EnvironmentProblem
from ..load.client import Connection
from ..load.driver import Pool
from ..load.recorder import OK
from ..targets.target import Connector
from .scenario import Rules

_SAMPLES = 1024
_FASTER = 0.25
_STREAM = re.compile(r"Early stopping [\d.]+th percentile estimate: (\d+)")
_RATE = re.compile(r"^(?:Completed s|S)amples per second\s*: ([\d.]+)", re.MULTILINE)
_PERCENTILE = re.compile(r"^(\d+\.\d+) percentile latency \(ns\) *: (\d+)$", re.MULTILINE)
_BROKEN = re.compile(r"^ +(.+?) satisfied *: NO$", re.MULTILINE)


class SystemUnderTest:
    """Sends LoadGen's samples over connections of our own, at most `connections` at once."""

    def __init__(self, library: Any, target: Connector, connections: int) -> None:
        self.failed = 0
        self._library = library
        self._pool = Pool(target)
        self._free = min(connections, target.connections_max)
        self._loop = asyncio.get_running_loop()
        self._waiting: list[int] = []
        self._ids: dict[Connection, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def issue(self, samples: list[Any]) -> None:
        """LoadGen's callback, on its thread."""
        self._loop.call_soon_threadsafe(self._take, [sample.id for sample in samples])

    def _take(self, identities: list[int]) -> None:
        self._waiting.extend(reversed(identities))
        self._next()

    def _next(self) -> None:
        while self._waiting and self._free:
            self._free -= 1
            connection = self._pool.take()
            if connection is not None:
                self._send(connection, self._waiting.pop())
                continue
            task = self._loop.create_task(self._send_on_new(self._waiting.pop()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _send_on_new(self, identity: int) -> None:
        try:
            connection = await self._pool.target.connect()
        except (OSError, TimeoutError):
            self._complete(identity, failed=True)
        else:
            self._send(connection, identity)

    def _send(self, connection: Connection, identity: int) -> None:
        self._ids[connection] = identity
        connection.send(0, self._done)

    def _done(self, connection: Connection, outcome: int, message: str) -> None:
        self._pool.idle.append(connection)
        self._complete(self._ids.pop(connection), failed=outcome != OK)

    def _complete(self, identity: int, *, failed: bool) -> None:
        self.failed += failed
        self._library.QuerySamplesComplete([self._library.QuerySampleResponse(identity, 0, 0)])
        self._free += 1
        self._next()

    def close(self) -> None:
        """Close every connection."""
        self._pool.close()


async def drive(target: Connector, rules: Rules, expected: float | None, connections: int) -> dict[str, Any]:
    """Run a scenario through LoadGen; its figures. Raises EnvironmentProblem without the library.

    `expected` is what our own run found, as `Outcome.value`: LoadGen plans its queries by it. For
    the server scenario it is the rate to offer.
    """
    try:
        import mlperf_loadgen as library
    except ImportError:
        raise EnvironmentProblem(
            "LoadGen is not installed", expected="mlcommons-loadgen", hint="pip install 'mserve[mlperf]'"
        ) from None
    system = SystemUnderTest(library, target, connections)
    sut = library.ConstructSUT(system.issue, _nothing)
    samples = library.ConstructQSL(_SAMPLES, _SAMPLES, _nothing, _nothing)
    with tempfile.TemporaryDirectory(prefix="mserve-loadgen-") as folder:
        logs = library.LogSettings()
        logs.log_output.outdir = folder
        logs.log_output.copy_summary_to_stdout = False
        logs.enable_trace = False
        try:
            settings = _settings(library, rules, expected)
            await asyncio.to_thread(library.StartTestWithLogSettings, sut, samples, settings, logs)
        finally:
            library.DestroyQSL(samples)
            library.DestroySUT(sut)
            system.close()
        summary = (Path(folder) / "mlperf_log_summary.txt").read_text()
    return read_summary(summary, rules) | {"failed": system.failed}


def _nothing(*_: Any) -> None: ...


def _settings(library: Any, rules: Rules, expected: float | None) -> Any:
    s, name = library.TestSettings(), rules.scenario.name
    s.scenario = {
        "single-stream": library.TestScenario.SingleStream,
        "multi-stream": library.TestScenario.MultiStream,
        "server": library.TestScenario.Server,
        "offline": library.TestScenario.Offline,
    }[name]
    s.mode = library.TestMode.PerformanceOnly
    s.min_duration_ms = int(rules.duration_s * 1e3)
    s.min_query_count = rules.queries
    s.multi_stream_samples_per_query = rules.scenario.samples
    if name == "server":
        s.server_target_qps = expected
        s.server_target_latency_ns = rules.bound_ns
        s.server_target_latency_percentile = rules.percentile
    elif name == "offline" and expected:
        s.offline_expected_qps = expected
    elif expected:
        # LoadGen makes up as many queries as fit its shortest time at this latency, and no more: a
        # target that turns out faster than that would be asked for too short a time.
        s.single_stream_expected_latency_ns = int(expected * _FASTER)
        s.multi_stream_expected_latency_ns = int(expected * _FASTER)
    return s


def read_summary(text: str, rules: Rules) -> dict[str, Any]:
    """The result in LoadGen's summary; `value` in milliseconds for streams, else in samples per second.

    `latency_ms` has its latencies by quantile, of queries.
    """
    streams = rules.scenario.streams
    found = (_STREAM if streams else _RATE).search(text)
    return {
        "valid": re.search(r"^Result is *: VALID$", text, re.MULTILINE) is not None,
        "unsatisfied": [text.lower() for text in _BROKEN.findall(text)],
        "unit": "ms" if streams else "1/s",
        "value": float(found[1]) / (1e6 if streams else 1.0) if found else None,
        "latency_ms": {f"{float(p) / 100:g}": int(ns) / 1e6 for p, ns in _PERCENTILE.findall(text)},
    }
