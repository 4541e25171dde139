"""Fleet: several generator processes that work as one engine. See `generator` for the words.

All of a job's times are fixed before it starts: each generator gets its part of the
schedule, says that it is armed, and all start at one time of the monotonic clock, which
processes share. When one dies, the others end in order, and the phase says that it is
broken; every row that was written counts still.
"""

from __future__ import annotations

import asyncio
import mmap
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
import orjson

from ...errors import EnvironmentProblem
from ..targets.target import Connector
from . import generator
from .job import Job, divide
from .recorder import INTERRUPTED, ROW_BYTES, Phase, Recorder
from .sightings import merged

START_S = 60.0
# From the word to start until the start.
LEAD_NS = 10_000_000
# How long the others may take to end when one has died, beyond the time for answers.
END_S = 5.0


class Member:
    """The parent's end of one generator."""

    def __init__(self, number: int, target: Connector, cpus: frozenset[int]) -> None:
        context = multiprocessing.get_context("spawn")
        self.number = number
        self.memory = _memory()
        self.recorder = Recorder(0)
        self.facts: dict[str, Any] = {}
        self.died = ""
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=generator.main,
            args=(theirs, DupFd(self.memory), target, cpus),
            name=f"mserve-bench-{number}",
            daemon=True,
        )
        self._process.start()
        theirs.close()
        self._loop = asyncio.get_running_loop()
        self._heard: asyncio.Future[tuple[str, Any]] = self._loop.create_future()
        generator.listen(self._pipe, self._hear)

    def prepare(self, job: Job) -> None:
        """Give it its part of a job."""
        size = max(1, job.rows_max * ROW_BYTES)
        os.ftruncate(self.memory, 0)
        os.ftruncate(self.memory, size)  # zeros, which take no room until they are written
        self.recorder = Recorder(job.rows_max, memoryview(mmap.mmap(self.memory, size)))
        self.facts = {}
        self.say("job", job)

    def say(self, word: str, value: Any = None) -> None:
        """Send a word; a dead one does not hear it."""
        self._heard = self._loop.create_future()
        if not self.died:
            self._tell(word, value)

    def urge(self, word: str, value: Any = None) -> None:
        """Send a word that has no answer of its own."""
        if not self.died:
            self._tell(word, value)

    def _tell(self, word: str, value: Any) -> None:
        try:
            self._pipe.send((word, value))
        except OSError:
            self._bury()

    async def answer(self) -> bool:
        """Wait for what it says to the last word; False when it died instead."""
        if not self.died:
            word, value = await self._heard
            if word == "phase":
                self.facts = value
        return not self.died

    def _hear(self) -> None:
        try:
            word, value = orjson.loads(self._pipe.recv_bytes(generator.ANSWER_BYTES_MAX))
        except (EOFError, OSError, ValueError):
            self._bury()
            return
        if not self._heard.done():
            self._heard.set_result((word, value))

    def _bury(self) -> None:
        if self.died:
            return
        self._loop.remove_reader(self._pipe.fileno())
        self._process.join(timeout=1.0)
        code = self._process.exitcode
        how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit {code}"
        self.died = f"generator {self.number} died: {how}"
        if not self._heard.done():
            self._heard.set_result(("died", None))

    def rows(self) -> Recorder:
        """Its record with the rows that are in use now: those taken up, which come first."""
        low, high, taken = 0, self.recorder.capacity, self.recorder.taken.data
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if taken[middle] else (low, middle)
        self.recorder.count = low
        return self.recorder

    def phase(self, span_ns: int) -> Phase:
        """How its part ended; of a dead one, what it had written."""
        found = self.facts
        if not found:
            recorder = self.rows()
            recorder.finish(time.perf_counter_ns())
            return Phase(recorder, span_ns, 0, recorder.in_flight_ns(), broken=self.died)
        self.recorder.count = min(int(found["rows"]), self.recorder.capacity)
        return Phase(
            self.recorder,
            found["span_ns"],
            found["busiest"],
            found["in_flight_ns"],
            found["stopped"],
            dict(found["messages"]),
            cpu_share=found["cpu_share"],
            sightings={v.encode("latin-1"): (first, last) for v, first, last in found["sightings"]},
        )

    def close(self) -> None:
        """Hang up, which ends the process."""
        if not self.died:
            self._loop.remove_reader(self._pipe.fileno())
        self._pipe.close()
        self._process.join(timeout=END_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        os.close(self.memory)


class Fleet:
    """An engine of several processes. Raises EnvironmentProblem when they do not start."""

    def __init__(self, target: Connector, versions: dict[bytes, int], cpus: Sequence[frozenset[int]]) -> None:
        self.generators = len(cpus)
        self._versions = versions
        self._running = False
        self._interrupted = False
        self._members = [Member(n, target, own) for n, own in enumerate(cpus, 1)]

    async def run(self, job: Job, seed: tuple[int, ...]) -> Phase:
        """Run a job to its end, or until a generator dies."""
        parts = divide(job, len(self._members), seed)
        for member, part in zip(self._members, parts, strict=True):
            member.prepare(part)
        try:
            async with asyncio.timeout(START_S):
                await asyncio.gather(*(member.answer() for member in self._members))
        except TimeoutError:
            raise EnvironmentProblem(
                "the generators do not start", expected=f"within {START_S:g} s"
            ) from None
        started = time.perf_counter_ns() + LEAD_NS
        self._running = True
        for member in self._members:
            member.say("go", started)
        if self._interrupted:
            self.stop(INTERRUPTED)
        await self._all_ended(job)
        self._running = False
        return self._merged(started, job)

    async def _all_ended(self, job: Job) -> None:
        tasks = [asyncio.create_task(member.answer()) for member in self._members]
        pending: set[asyncio.Task[bool]] = set(tasks)
        limit_s: float | None = None
        while pending:
            done, pending = await asyncio.wait(pending, timeout=limit_s, return_when="FIRST_COMPLETED")
            if not done:
                for task in pending:
                    task.cancel()
                return
            if not all(task.result() for task in done):
                self.finish()
                limit_s = job.drain_s + END_S

    def _merged(self, started: int, job: Job) -> Phase:
        elapsed = max(1, min(time.perf_counter_ns() - started, int(job.span_s * 1e9)))
        phases = [member.phase(elapsed) for member in self._members]
        for member in self._members:
            for version, count in member.facts.get("versions", ()):
                key = version.encode("latin-1")
                self._versions[key] = self._versions.get(key, 0) + count
        recorder = Recorder.merged([phase.recorder for phase in phases])
        whole = Phase(
            recorder,
            max(phase.span_ns for phase in phases),
            _busiest(recorder),
            sum(phase.in_flight_ns for phase in phases),
            next((phase.stopped for phase in phases if phase.stopped), ""),
            broken=next((member.died for member in self._members if member.died), ""),
            cpu_share=max(phase.cpu_share for phase in phases),
            sightings=merged([phase.sightings for phase in phases]),
        )
        for phase in phases:
            whole.messages = phase.messages | whole.messages
        return whole

    def records(self) -> Sequence[Recorder]:
        """What the running job has recorded so far."""
        return [member.rows() for member in self._members] if self._running else []

    def finish(self) -> None:
        """End the running job soon."""
        for member in self._members:
            member.urge("finish")

    def stop(self, reason: str) -> None:
        """End the running job now; when interrupted, also those that come."""
        self._interrupted = self._interrupted or reason == INTERRUPTED
        for member in self._members:
            member.urge("stop", reason)

    async def close(self) -> None:
        """End the processes."""
        for member in self._members:
            member.close()


def _memory() -> int:
    """A file that is in memory where the system can do so, and gone with its last descriptor."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("mserve-bench")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _busiest(recorder: Recorder) -> int:
    """How many requests were on their way at once at most."""
    n = recorder.count
    if n == 0:
        return 0
    sent, done = np.sort(recorder.sent[:n]), np.sort(recorder.done[:n])
    return int((np.arange(1, n + 1) - np.searchsorted(done, sent, side="right")).max())
