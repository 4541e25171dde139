"""Drivers: one phase of load, sent over a pool of connections.

The open loop sends each request at its due time, whatever has come back: a request for
which no connection is free waits for one, and its latency counts from its due time all
the same. The closed loop sends the next request of a connection when the last one was
answered: it measures throughput, and by its nature waits for a server that stalls.

A phase ends when everything was answered, or `drain_s` after the last request was sent,
or when the server is gone, or when somebody stops it.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field

from .alarm import Alarm, alarm
from .client import Connection
from .recorder import INTERRUPTED, OK, UNFINISHED, UNSENT, Phase, Recorder
from .schedule import Times
from .targets import Target

# The server counts as gone when it took no connection for so long, and none is left.
GONE_S = 1.0
_RETRY_S = 0.05
_BURST = 64
_TIMER_SLACK_S = 0.002


@dataclass(slots=True)
class Pool:
    """Connections that wait for work, kept between phases; the last one used comes first."""

    target: Target
    idle: list[Connection] = field(default_factory=list)

    def take(self) -> Connection | None:
        """A usable connection, or None."""
        while self.idle:
            connection = self.idle.pop()
            if connection.usable:
                return connection
        return None

    def close(self) -> None:
        """Close every waiting connection."""
        for connection in self.idle:
            connection.abort()
        self.idle.clear()


class Driver(ABC):
    """What both loops share: connections, the record, and the end."""

    def __init__(self, pool: Pool, recorder: Recorder, drain_s: float) -> None:
        self.recorder = recorder
        self.messages: dict[int, str] = {}
        self._pool = pool
        self._drain_s = drain_s
        self._loop = asyncio.get_running_loop()
        self._busy: set[Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._ended: asyncio.Future[str] = self._loop.create_future()
        self._busiest = 0
        self._no_server_since: float | None = None
        self._refused = ""
        self._in_flight_ns = 0
        self._event_ns = 0

    @abstractmethod
    async def run(self) -> Phase:
        """Send, then wait for the answers."""

    def stop(self, reason: str) -> None:
        """End the phase now."""
        if not self._ended.done():
            self._ended.set_result(reason)

    async def _until_ended(self, span_ns: int) -> Phase:
        """Wait for the end, give up on what is open, and hand over the record."""
        started = time.perf_counter_ns()
        stopped = await self._ended
        self._quiet()
        for task in self._opening:
            task.cancel()
        now = time.perf_counter_ns()
        self._advance(now)
        for connection in self._busy:
            connection.abort()
        if stopped:
            span_ns = min(span_ns, now - started)
        if stopped == INTERRUPTED:
            self.recorder.drop_pending()
        else:
            self.recorder.finish(now)
            self._say_why(stopped)
        return Phase(self.recorder, span_ns, self._busiest, self._in_flight_ns, stopped, self.messages)

    def _say_why(self, stopped: str) -> None:
        """Reasons for what was given up: nobody has told one."""
        alone = f"no connection to the server: {self._refused}" if self._refused else ""
        self.messages[UNSENT] = stopped or alone or "no connection was free before the end"
        self.messages[UNFINISHED] = stopped or "no answer before the end"

    @abstractmethod
    def _quiet(self) -> None:
        """Send nothing more."""

    # one request

    def _send(self, connection: Connection, index: int) -> None:
        now = time.perf_counter_ns()
        self._advance(now)
        self._busy.add(connection)
        if len(self._busy) > self._busiest:
            self._busiest = len(self._busy)
        self.recorder.sent[index] = now
        connection.send(index, self._done)

    def _done(self, connection: Connection, outcome: int, message: str) -> None:
        now = time.perf_counter_ns()
        self._advance(now)
        self._busy.discard(connection)
        recorder, index = self.recorder, connection.index
        recorder.done[index] = now
        recorder.outcome[index] = outcome
        if outcome != OK:
            self.messages.setdefault(outcome, message)
        if self._ended.done():
            self._pool.idle.append(connection)
        else:
            self._after(connection)

    def _advance(self, now: int) -> None:
        """Add up requests in flight over time: the left side of Little's law."""
        self._in_flight_ns += len(self._busy) * (now - self._event_ns)
        self._event_ns = now

    @abstractmethod
    def _after(self, connection: Connection) -> None:
        """A connection is free again, or broken."""

    # connections

    def _open(self) -> None:
        """Open one more connection in the background."""
        task = self._loop.create_task(self._connect())
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _connect(self) -> None:
        while True:
            try:
                connection = await self._pool.target.connect()
            except (OSError, TimeoutError) as error:
                self._refused = str(error) or type(error).__name__
                if self._gone():
                    self.stop(f"the server is gone: {error}")
                    return
                await asyncio.sleep(_RETRY_S)
            else:
                self._no_server_since, self._refused = None, ""
                self._after(connection)
                return

    def _gone(self) -> bool:
        if self._busy or any(c.usable for c in self._pool.idle):
            self._no_server_since = None
            return False
        now = time.monotonic()
        if self._no_server_since is None:
            self._no_server_since = now
        return now - self._no_server_since >= GONE_S


class ClosedLoop(Driver):
    """`concurrency` connections, each sending when its last request was answered."""

    def __init__(self, pool: Pool, concurrency: int, duration_s: float, drain_s: float) -> None:
        super().__init__(pool, Recorder(1 << 14), drain_s)
        self._concurrency = concurrency
        self._duration_ns = int(duration_s * 1e9)
        self._end_ns = 0

    async def run(self) -> Phase:
        """Send for the duration, then wait for the answers."""
        self._event_ns = time.perf_counter_ns()
        self._end_ns = self._event_ns + self._duration_ns
        duration_s = self._duration_ns / 1e9
        timer = self._loop.call_later(duration_s + _TIMER_SLACK_S, self._finish_if_drained)
        limit = self._loop.call_later(duration_s + self._drain_s, self.stop, "")
        for _ in range(self._concurrency):
            connection = self._pool.take()
            if connection is None:
                self._open()
            else:
                self._after(connection)
        phase = await self._until_ended(self._duration_ns)
        timer.cancel()
        limit.cancel()
        return phase

    def _quiet(self) -> None:
        """Nothing to do: requests follow answers, and nobody waits for those any more."""

    def _after(self, connection: Connection) -> None:
        now = time.perf_counter_ns()
        if now >= self._end_ns:
            self._pool.idle.append(connection)
            self._finish_if_drained()
        elif connection.usable:
            self._send(connection, self.recorder.add(now))
        else:
            self._open()

    def _finish_if_drained(self) -> None:
        if not self._busy and time.perf_counter_ns() >= self._end_ns:
            self.stop("")


class OpenLoop(Driver):
    """Requests at the times of a schedule, over as many connections as that takes."""

    def __init__(self, pool: Pool, due: Times, span_s: float, drain_s: float) -> None:
        super().__init__(pool, Recorder(len(due)), drain_s)
        self._offsets = due
        self._span_ns = int(span_s * 1e9)
        self._waiting: deque[int] = deque()
        self._alarm: Alarm
        self._limit: asyncio.TimerHandle | None = None

    async def run(self) -> Phase:
        """Send on schedule, then wait for the answers."""
        recorder = self.recorder
        start = self._event_ns = time.perf_counter_ns() + 1_000_000
        recorder.intended[:] = start + self._offsets
        self._due = recorder.intended.data
        self._alarm = alarm(self._send_due)
        self._alarm.set(self._due[0])
        phase = await self._until_ended(self._span_ns)
        if self._limit is not None:
            self._limit.cancel()
        return phase

    def _quiet(self) -> None:
        self._alarm.close()

    def _send_due(self) -> None:
        """Take up every request that is due, then set the alarm for the next one.

        After a burst, answers get their turn before the rest.
        """
        recorder, due = self.recorder, self._due
        index = recorder.count
        burst_end = min(len(due), index + _BURST)
        while index < burst_end and due[index] <= (now := time.perf_counter_ns()):
            recorder.taken[index] = now
            recorder.count = index + 1
            self._dispatch(index)
            index += 1
        if index < len(due):
            self._alarm.set(due[index])
        else:
            self._limit = self._loop.call_later(self._drain_s, self.stop, "")
            self._finish_if_drained()

    def _dispatch(self, index: int) -> None:
        connection = self._pool.take()
        if connection is not None:
            self._send(connection, index)
            return
        self._waiting.append(index)
        self._open_if_short()

    def _open_if_short(self) -> None:
        opening = len(self._opening)
        if opening < len(self._waiting) and len(self._busy) + opening < self._pool.target.connections_max:
            self._open()

    def _after(self, connection: Connection) -> None:
        if not connection.usable:
            self._open_if_short()
            self._finish_if_drained()
        elif self._waiting:
            self._send(connection, self._waiting.popleft())
        else:
            self._pool.idle.append(connection)
            self._finish_if_drained()

    def _finish_if_drained(self) -> None:
        if self.recorder.count == len(self._due) and not self._busy and not self._waiting:
            self.stop("")
