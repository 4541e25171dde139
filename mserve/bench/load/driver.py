"""Driver: sends one phase of load over a pool of connections. What is sent when is for `loops`.

A phase ends when everything was answered, or `drain_s` after the last request was sent,
or when the server is gone, or when somebody stops it. `finish` ends it early and in
order: nothing more is sent, and what is on its way is waited for.

Times go into the record through memoryviews: a store costs a third of numpy's.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from ..targets.target import Connector
from .client import Connection
from .job import Job
from .recorder import INTERRUPTED, OK, UNFINISHED, UNSENT, Phase, Recorder
from .sightings import sightings

# The server counts as gone when it took no connection for so long, and none is left.
GONE_S = 1.0
_RETRY_S = 0.05
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
