"""An event loop whose time is made up, and a server on it whose queue is known exactly.

Nothing waits: when nothing is left to do, the clock jumps to the next timer. Every reading
of the clock takes 2 µs, so that a loop that polls it comes to an end.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

from mserve.bench.load import loops
from mserve.bench.load.client import Done
from mserve.bench.load.recorder import OK
from mserve.bench.load.server_view import Counters

T = TypeVar("T")
MS = 1_000_000
READING_NS = 2_000


class VirtualLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop with another clock."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000
        super().__init__()

    def time(self) -> float:
        return self.now_ns / 1e9

    def read(self) -> int:
        """In place of `time.perf_counter_ns`."""
        self.now_ns += READING_NS
        return self.now_ns

    def pause(self, ns: int) -> None:
        """The process is stopped for some time."""
        self.now_ns += ns

    def _run_once(self) -> None:
        timers: list[Any] = self._scheduled  # type: ignore[attr-defined]
        while timers and timers[0]._cancelled:
            heapq.heappop(timers)._scheduled = False
            self._timer_cancelled_count -= 1  # type: ignore[attr-defined]
        if timers and not self._ready:  # type: ignore[attr-defined]
            self.now_ns = max(self.now_ns, math.ceil(timers[0]._when * 1e9) + 1)
        super()._run_once()  # type: ignore[misc]


class VirtualAlarm:
    """An alarm that is never late."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._handle: asyncio.TimerHandle | None = None

    def set(self, at_ns: int) -> None:
        self.close()
        self._handle = asyncio.get_running_loop().call_at(at_ns / 1e9, self._callback)

    def close(self) -> None:
        if self._handle is not None:
            self._handle.cancel()


class Queue:
    """One server, first come first served. `service` says how long a request takes that begins then.

    Both in nanoseconds, since the start. It is a target of bench.
    """

    shares_loop = False

    def __init__(self, service: Callable[[int], float], connections_max: int = 10_000) -> None:
        self.versions: dict[bytes, int] = {}
        self.connections_max = connections_max
        self.loop = asyncio.get_running_loop()
        assert isinstance(self.loop, VirtualLoop)
        self._service = service
        self._started_ns = self.loop.now_ns
        self._free_ns = 0.0

    def serve(self, reply: Callable[[], None]) -> None:
        """Queue a request that arrives now."""
        assert isinstance(self.loop, VirtualLoop)
        begin = max(self._free_ns, float(self.loop.now_ns - self._started_ns))
        self._free_ns = begin + self._service(int(begin))
        self.loop.call_at((self._started_ns + self._free_ns) / 1e9, reply)

    async def connect(self) -> QueueConnection:
        return QueueConnection(self)

    def describe(self) -> dict[str, Any]:
        return {"kind": "url", "url": "virtual", "model": "m", "rows": 1, "request_bytes": 1}

    def description(self) -> Queue:
        return self

    async def start(self) -> None: ...

    async def counters(self) -> Counters | None:
        return None

    async def close(self) -> None: ...


class QueueConnection:
    """A way to the queue; one request at a time."""

    def __init__(self, queue: Queue) -> None:
        self.index = -1
        self.usable = True
        self.first_ns = 0
        self._queue = queue
        self._done: Done | None = None

    def send(self, index: int, done: Done) -> None:
        self.index, self._done = index, done
        self._queue.serve(self._reply)

    def abort(self) -> None:
        self.usable, self._done = False, None

    def _reply(self) -> None:
        done, self._done = self._done, None
        if done is not None:
            self.first_ns = time.perf_counter_ns()
            done(self, OK, "")


def run_virtual(monkeypatch: pytest.MonkeyPatch, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine in virtual time."""
    loop = VirtualLoop()
    with monkeypatch.context() as patch:
        patch.setattr(time, "perf_counter_ns", loop.read)
        patch.setattr(loops, "alarm", VirtualAlarm)
        try:
            return loop.run_until_complete(work())
        finally:
            loop.close()
