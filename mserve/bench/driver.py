"""Drivers: one phase of load, sent over a pool of connections.

The open loop sends each request at its due time, whatever has come back: a request for
which no connection is free waits for one, and its latency counts from its due time all
the same. The closed loop sends the next request of a connection when the last one was
answered: it measures throughput, and by its nature waits for a server that stalls. The
stream sends a query of some samples at once, and the next query when all are answered.

A phase ends when everything was answered, or `drain_s` after the last request was sent,
or when the server is gone, or when somebody stops it. `finish` ends it early and in
order: nothing more is sent, and what is on its way is waited for.

Times go into the record through memoryviews: a store costs a third of numpy's.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field

from .alarm import Alarm, alarm
from .client import Connection
from .job import Job
from .recorder import INTERRUPTED, OK, UNFINISHED, UNSENT, Phase, Recorder
from .sightings import sightings
from .targets import Connector

# The server counts as gone when it took no connection for so long, and none is left.
GONE_S = 1.0
_RETRY_S = 0.05
_BURST = 64
# A process that sleeps wakes up late by some tens of microseconds; so the last ones before a
# request are spent awake, where that takes no more than a quarter of the time.
_SPIN_NS = 100_000
_SPIN_FROM_NS = 4 * _SPIN_NS
_TIMER_SLACK_S = 0.002
# A share of the CPU over less time than this would say nothing.
_SHARE_S = 0.05


@dataclass(slots=True)
class Pool:
    """Connections that wait for work, kept between phases; the last one used comes first."""

    target: Connector
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


def driver(pool: Pool, job: Job, memory: memoryview | None = None) -> Driver:
    """The driver of a job; its record lies in `memory` (see Recorder) where it is given."""
    recorder = Recorder(job.rows_max, memory)
    if job.due is not None:
        return OpenLoop(pool, job, recorder)
    return (Stream if job.samples else ClosedLoop)(pool, job, recorder)


class Driver(ABC):
    """What all loops share: connections, the record, and the end."""

    def __init__(self, pool: Pool, job: Job, recorder: Recorder) -> None:
        self.recorder = recorder
        self.messages: dict[int, str] = {}
        self._pool = pool
        self._job = job
        self._span_ns = int(job.span_s * 1e9)
        self._loop = asyncio.get_running_loop()
        self._busy: set[Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._ended: asyncio.Future[str] = self._loop.create_future()
        self._limit: asyncio.TimerHandle | None = None
        self._busiest = 0
        self._no_server_since: float | None = None
        self._refused = ""
        self._in_flight_ns = 0
        self._event_ns = 0
        self._sent, self._first, self._received = recorder.sent.data, recorder.first.data, recorder.done.data
        self._outcome = recorder.outcome.data

    async def run(self, start_ns: int = 0) -> Phase:
        """Send from a time of `time.perf_counter_ns` on (0: now), then wait for the answers."""
        cpu, wall = time.process_time(), time.perf_counter()
        start_ns = self._event_ns = start_ns or time.perf_counter_ns() + 1_000_000
        async with sightings(self._pool.target.versions if self._job.watch else None) as seen:
            self._begin(start_ns)
            phase = await self._until_ended(start_ns)
        phase.sightings = seen
        phase.cpu_share = (time.process_time() - cpu) / max(_SHARE_S, time.perf_counter() - wall)
        return phase

    @abstractmethod
    def _begin(self, start_ns: int) -> None:
        """Arrange for the first requests."""

    def stop(self, reason: str) -> None:
        """End the phase now."""
        if not self._ended.done():
            self._ended.set_result(reason)

    @abstractmethod
    def finish(self) -> None:
        """Send nothing more, and end when what was sent is answered."""

    async def _until_ended(self, start_ns: int) -> Phase:
        """Wait for the end, give up on what is open, and hand over the record."""
        stopped = await self._ended
        self._quiet()
        if self._limit is not None:
            self._limit.cancel()
        for task in self._opening:
            task.cancel()
        now = time.perf_counter_ns()
        self._advance(now)
        for connection in self._busy:
            connection.abort()
        if stopped:
            self._span_ns = max(0, min(self._span_ns, now - start_ns))
        if stopped == INTERRUPTED:
            self.recorder.drop_pending()
        else:
            self.recorder.finish(now)
            self._say_why(stopped)
        return Phase(self.recorder, self._span_ns, self._busiest, self._in_flight_ns, stopped, self.messages)

    def _say_why(self, stopped: str) -> None:
        """Reasons for what was given up: nobody has told one."""
        alone = f"no connection to the server: {self._refused}" if self._refused else ""
        self.messages[UNSENT] = stopped or alone or "no connection was free before the end"
        self.messages[UNFINISHED] = stopped or "no answer before the end"

    @abstractmethod
    def _quiet(self) -> None:
        """Ask for no more calls."""

    # one request

    def _send(self, connection: Connection, index: int) -> None:
        busy = self._busy
        now = time.perf_counter_ns()
        self._in_flight_ns += len(busy) * (now - self._event_ns)
        self._event_ns = now
        busy.add(connection)
        if len(busy) > self._busiest:
            self._busiest = len(busy)
        self._sent[index] = now
        connection.send(index, self._done)

    def _done(self, connection: Connection, outcome: int, message: str) -> None:
        busy, index = self._busy, connection.index
        now = time.perf_counter_ns()
        self._in_flight_ns += len(busy) * (now - self._event_ns)
        self._event_ns = now
        busy.discard(connection)
        self._received[index] = now
        self._first[index] = connection.first_ns
        self._outcome[index] = outcome
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

    def _connection(self) -> None:
        """Hand a connection to `_after`: an idle one at once, or else a new one later."""
        connection = self._pool.take()
        if connection is None:
            self._open()
        else:
            self._after(connection)

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

    _end_ns = 0

    def _begin(self, start_ns: int) -> None:
        self._end_ns = start_ns + self._span_ns
        wait_s = (start_ns - time.perf_counter_ns()) / 1e9
        self._timer = self._loop.call_later(
            wait_s + self._job.span_s + _TIMER_SLACK_S, self._finish_if_drained
        )
        self._limit = self._loop.call_later(wait_s + self._job.span_s + self._job.drain_s, self.stop, "")
        self._loop.call_later(max(0.0, wait_s), self._start)

    def _start(self) -> None:
        if self._ended.done():
            return
        for _ in range(self._job.concurrency):
            self._connection()

    def finish(self) -> None:
        """Send nothing more, and end when what was sent is answered."""
        now = time.perf_counter_ns()
        if now < self._end_ns:
            self._span_ns -= self._end_ns - now
            self._end_ns = now
        self._finish_if_drained()

    def _quiet(self) -> None:
        self._timer.cancel()

    def _after(self, connection: Connection) -> None:
        now = time.perf_counter_ns()
        if now >= self._end_ns:
            self._pool.idle.append(connection)
            self._finish_if_drained()
        elif not connection.usable:
            self._open()
        elif self.recorder.full:
            self._pool.idle.append(connection)
            self.finish()
        else:
            self._send(connection, self.recorder.add(now))

    def _finish_if_drained(self) -> None:
        if not self._busy and time.perf_counter_ns() >= self._end_ns:
            self.stop("")


class Stream(Driver):
    """Queries of `samples` requests each: all sent at once, the next when all are answered.

    Ends when the span is over and `queries_min` queries were answered.
    """

    _end_ns = 0

    def _begin(self, start_ns: int) -> None:
        self._end_ns = start_ns + self._span_ns
        self._start_ns = start_ns
        self._missing = self._job.samples
        self._ready: list[Connection] = []
        for _ in range(self._missing):
            self._connection()

    def finish(self) -> None:
        """Send nothing more, and end when what was sent is answered."""
        self._end_ns = 0
        if not self._busy:
            self._complete()

    def _quiet(self) -> None:
        for connection in self._ready:
            self._pool.idle.append(connection)

    def _after(self, connection: Connection) -> None:
        if not connection.usable:
            self._open()
            return
        self._ready.append(connection)
        self._missing -= 1
        if self._missing == 0:
            self._query()

    def _query(self) -> None:
        now, recorder = time.perf_counter_ns(), self.recorder
        queries = recorder.count // self._job.samples
        enough = self._end_ns == 0 or (now >= self._end_ns and queries >= self._job.queries_min)
        if enough or recorder.count + self._job.samples > recorder.capacity:
            self._complete()
            return
        connections, self._ready = self._ready, []
        self._missing = len(connections)
        if self._limit is not None:
            self._limit.cancel()
        self._limit = self._loop.call_later(self._job.drain_s, self.stop, "")
        for connection in connections:
            self._send(connection, recorder.add(now))

    def _complete(self) -> None:
        self._span_ns = max(1, time.perf_counter_ns() - self._start_ns)
        self.stop("")


class OpenLoop(Driver):
    """Requests at the times of a schedule, over as many connections as that takes."""

    def _begin(self, start_ns: int) -> None:
        assert self._job.due is not None
        self.recorder.plan(start_ns, self._job.due)
        self._due, self._taken = self.recorder.intended.data, self.recorder.taken.data
        self._total = len(self._due)
        self._start_ns = start_ns
        self._waiting: deque[int] = deque()
        limit = self._pool.target.connections_max
        self._connections_max = min(limit, self._job.concurrency) if self._job.concurrency else limit
        self._alarm: Alarm = alarm(self._send_due)
        if self._total:
            self._wait(self._due[0], early=False)
        else:
            self._all_sent()

    def finish(self) -> None:
        """Send nothing more, and end when what was sent is answered."""
        if self.recorder.count < self._total:
            self._total = self.recorder.count
            self._span_ns = min(self._span_ns, max(1, time.perf_counter_ns() - self._start_ns))
            self._all_sent()

    def _quiet(self) -> None:
        self._alarm.close()

    def _send_due(self) -> None:
        """Take up every request that is due, then set the alarm for the next one.

        After a burst, answers get their turn before the rest. An alarm that comes early, before
        a pause's end, is followed by polling: the loop looks after its sockets meanwhile.
        """
        if self._ended.done():
            return
        recorder, due, taken = self.recorder, self._due, self._taken
        index = first = recorder.count
        burst_end = min(self._total, index + _BURST)
        while index < burst_end and due[index] <= (now := time.perf_counter_ns()):
            taken[index] = now
            recorder.count = index + 1
            self._dispatch(index)
            index += 1
        if index < self._total:
            self._wait(due[index], early=index == first)
        elif self._limit is None:
            self._all_sent()

    def _wait(self, due: int, *, early: bool) -> None:
        left = due - time.perf_counter_ns()
        if early and left < _SPIN_NS:
            self._loop.call_soon(self._send_due)
        else:
            self._alarm.set(due - _SPIN_NS if left > _SPIN_FROM_NS else due)

    def _all_sent(self) -> None:
        self._limit = self._loop.call_later(self._job.drain_s, self.stop, "")
        self._finish_if_drained()

    def _dispatch(self, index: int) -> None:
        if len(self._busy) < self._connections_max and (connection := self._pool.take()) is not None:
            self._send(connection, index)
            return
        self._waiting.append(index)
        self._open_if_short()

    def _open_if_short(self) -> None:
        opening = len(self._opening)
        if opening < len(self._waiting) and len(self._busy) + opening < self._connections_max:
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
        if self.recorder.count >= self._total and not self._busy and not self._waiting:
            self.stop("")
