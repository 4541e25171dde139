"""Loops: when requests are sent.

The open loop sends each request at its due time, whatever has come back: a request for
which no connection is free waits for one, and its latency counts from its due time all
the same. The closed loop sends the next request of a connection when the last one was
answered: it measures throughput, and by its nature waits for a server that stalls. The
stream sends a query of some samples at once, and the next query when all are answered.
"""

from __future__ import annotations

import time
from collections import deque

from .alarm import Alarm, alarm
from .client import Connection
from .driver import Driver, Pool
from .job import Job
from .recorder import Recorder

_BURST = 64
# A process that sleeps wakes up late by some tens of microseconds; so the last ones before a
# request are spent awake, where that takes no more than a quarter of the time.
_SPIN_NS = 100_000
_SPIN_FROM_NS = 4 * _SPIN_NS
_TIMER_SLACK_S = 0.002


def driver(pool: Pool, job: Job, memory: memoryview | None = None) -> Driver:
    """The driver of a job; its record lies in `memory` (see Recorder) where it is given."""
    recorder = Recorder(job.rows_max, memory)
    if job.due is not None:
        return OpenLoop(pool, job, recorder)
    return (Stream if job.samples else ClosedLoop)(pool, job, recorder)


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
