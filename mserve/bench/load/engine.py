"""Engine: what runs jobs, in this process or in several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..targets.target import Connector
from .driver import Driver, Pool
from .job import Job
from .loops import driver
from .recorder import INTERRUPTED, Phase, Recorder


class Engine(Protocol):
    """Runs one job at a time; its connections are kept from one to the next."""

    generators: int

    async def run(self, job: Job, seed: tuple[int, ...]) -> Phase:
        """Run a job to its end; `seed` divides it where there are several generators."""

    def records(self) -> Sequence[Recorder]:
        """What the running job has recorded so far; `done` is 0 where no answer has come."""

    def finish(self) -> None:
        """End the running job soon: send nothing more, wait for what was sent."""

    def stop(self, reason: str) -> None:
        """End the running job now."""

    async def close(self) -> None:
        """Close every connection."""


class Local:
    """The engine of this process."""

    generators = 1

    def __init__(self, target: Connector) -> None:
        self._pool = Pool(target)
        self._driver: Driver | None = None
        self._interrupted = False

    async def run(self, job: Job, seed: tuple[int, ...]) -> Phase:
        """Run a job to its end."""
        self._driver = driver(self._pool, job)
        if self._interrupted:
            self._driver.stop(INTERRUPTED)
        try:
            return await self._driver.run()
        finally:
            self._driver = None

    def records(self) -> Sequence[Recorder]:
        """What the running job has recorded so far."""
        return [self._driver.recorder] if self._driver else []

    def finish(self) -> None:
        """End the running job soon."""
        if self._driver is not None:
            self._driver.finish()

    def stop(self, reason: str) -> None:
        """End the running job now; when interrupted, also those that come."""
        self._interrupted = self._interrupted or reason == INTERRUPTED
        if self._driver is not None:
            self._driver.stop(reason)

    async def close(self) -> None:
        """Close every connection."""
        self._pool.close()
