"""Job: one phase of load, as a driver is told of it, in this process or in another. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .schedule import REQUESTS_MAX, Times

# More than one process answers in a second, so that a closed loop's record never fills.
_RATE_MAX = 400_000


@dataclass(frozen=True, slots=True)
class Job:
    """What to send.

    With `due` (nanoseconds after the start, ascending) an open loop, over at most
    `concurrency` connections where that is not 0. Without, `concurrency` connections in a
    closed loop, or with `samples` queries of so many requests, `queries_min` of them or more.
    `span_s` is how long it sends, `drain_s` how long answers are waited for after that.
    With `watch`, it is noted when each model version answers.
    """

    span_s: float
    drain_s: float
    due: Times | None = None
    concurrency: int = 0
    samples: int = 0
    queries_min: int = 0
    watch: bool = False

    @property
    def rows_max(self) -> int:
        """How many requests the job's record must hold."""
        if self.due is not None:
            return len(self.due)
        return int(min(REQUESTS_MAX, self.span_s * _RATE_MAX + self.concurrency + 1024) + self._rows_min)

    @property
    def _rows_min(self) -> int:
        return self.samples * (self.queries_min + 1)


def divide(job: Job, parts: int, seed: tuple[int, ...]) -> list[Job]:
    """The job in parts for so many generators that start together.

    Each request goes to a generator that is drawn independently of all others: so thinned, a
    Poisson process stays one. Dealing them out in turn would give gaps that vary less.
    """
    if job.due is None:
        shares = [(job.concurrency + parts - 1 - part) // parts for part in range(parts)]
        return [replace(job, concurrency=share) for share in shares]
    drawn = np.random.default_rng((*seed, parts)).integers(0, parts, len(job.due))
    return [replace(job, due=job.due[drawn == part]) for part in range(parts)]
