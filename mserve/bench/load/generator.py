"""Generator: a process that sends its part of the load. Fleet is the other side.

Between the two is a pipe, for a few words, and memory, for the record. The parent's words
are pickled (only a parent's child reads them); the child's are JSON of a limited size. The
record lies in memory that both have mapped: what a generator has measured is not lost when
it dies, and its progress can be watched while it runs. The words:

    parent    job JOB    prepare         child    armed          ready to go
              go TIME    start then               phase {...}    how the job ended
              finish     send no more             refused TEXT   the job cannot be prepared
              stop WHY   end now
"""

from __future__ import annotations

import asyncio
import gc
import mmap
import os
import signal
import sys
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection as Pipe
from typing import Any

import orjson

from ..targets.target import Connector
from .driver import Driver, Pool
from .job import Job
from .loops import driver
from .recorder import ROW_BYTES, Phase

ANSWER_BYTES_MAX = 1 << 20


def main(pipe: Pipe, memory: Any, target: Connector, cpus: Iterable[int]) -> None:
    """The process: answer the parent until it hangs up. `memory` is a file descriptor on its way."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which says stop
    if cpus:
        os.sched_setaffinity(0, cpus)
    generator = Generator(pipe, memory.detach(), target)
    if sys.platform == "win32":
        asyncio.run(generator.serve())
    else:
        import uvloop

        uvloop.run(generator.serve())


def listen(pipe: Pipe, hear: Callable[[], None]) -> None:
    """Call back when there is something to read from a pipe, whose calls shall block as before.

    libuv makes what it watches non-blocking; then half of a large message would be an error.
    """
    asyncio.get_running_loop().add_reader(pipe.fileno(), hear)
    os.set_blocking(pipe.fileno(), True)


class Generator:
    """The child's end of the pipe."""

    def __init__(self, pipe: Pipe, memory: int, target: Connector) -> None:
        self._pipe = pipe
        self._memory = memory
        self._target = target
        self._pool = Pool(target)
        self._driver: Driver | None = None
        self._task: asyncio.Task[None] | None = None
        self._mapped: mmap.mmap | None = None

    async def serve(self) -> None:
        """Follow the parent's words until it hangs up."""
        self._over = asyncio.get_running_loop().create_future()
        listen(self._pipe, self._hear)
        await self._over
        self._pool.close()

    def _hear(self) -> None:
        try:
            word, value = self._pipe.recv()
        except (EOFError, OSError):
            self._leave()
            return
        if word == "job":
            self._arm(value)
        elif self._driver is not None and word == "go":
            self._task = asyncio.get_running_loop().create_task(self._run(self._driver, value))
        elif self._driver is not None and word == "finish":
            self._driver.finish()
        elif self._driver is not None and word == "stop":
            self._driver.stop(value)

    def _leave(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pipe.fileno())
        if not self._over.done():
            self._over.set_result(None)

    def _arm(self, job: Job) -> None:
        self._driver = None
        self._mapped = mmap.mmap(self._memory, max(1, job.rows_max * ROW_BYTES))
        self._driver = driver(self._pool, job, memoryview(self._mapped))
        gc.collect()
        gc.freeze()
        self._say("armed", None)

    async def _run(self, running: Driver, start_ns: int) -> None:
        before = dict(self._target.versions)
        phase = await running.run(start_ns)
        versions = {v: n - before.get(v, 0) for v, n in self._target.versions.items()}
        self._say("phase", facts(phase, versions))

    def _say(self, word: str, value: Any) -> None:
        try:
            self._pipe.send_bytes(orjson.dumps([word, value]))
        except OSError:
            self._leave()


def facts(phase: Phase, versions: dict[bytes, int]) -> dict[str, Any]:
    """What a phase amounts to beside its record, as JSON; versions as answers name them."""
    return {
        "rows": phase.recorder.count,
        "span_ns": phase.span_ns,
        "busiest": phase.busiest,
        "in_flight_ns": phase.in_flight_ns,
        "stopped": phase.stopped,
        "cpu_share": phase.cpu_share,
        "messages": [[outcome, text[:400]] for outcome, text in phase.messages.items()],
        "versions": [[version.decode("latin-1"), count] for version, count in versions.items() if count],
        "sightings": [[version.decode("latin-1"), *seen] for version, seen in phase.sightings.items()],
    }
