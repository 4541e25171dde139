"""Swaps under load: versions are published or reloaded while a server is measured.

A swap's window begins when the next version is published (or the server is told to load)
and ends with the last answer of the version before, as far as answers name their versions,
and not before the new one has answered. A request is inside if it was on its way at any
time of a window. What users feel of a deployment is the difference of the two: inside, and
outside.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ...errors import MserveError
from ..judgement.quantiles import NEVER_NS, Percentile, percentile_of_series
from .recorder import OK, Recorder, Sighting

PERCENTILES = (0.5, 0.99)
# What --during-reload may ask of a server, and the calls that it is.
WORDS = {"load": ("load",), "cycle": ("unload", "load")}


@dataclass(frozen=True, slots=True)
class Swap:
    """One publication: when it began and when it was done; the new version where it has a number."""

    begin_ns: int
    done_ns: int
    version: bytes = b""


class Publisher(Protocol):
    """Puts one version after the other in place."""

    def publish(self) -> Swap:
        """The next one; blocks. Raises MserveError."""

    def restore(self) -> None:
        """Leave everything as it was found."""


@dataclass(slots=True)
class Reload:
    """A publisher and its rhythm; `swaps` so far, and why it stopped, if it did."""

    publisher: Publisher
    every_s: float
    swaps: list[Swap] = field(default_factory=list)
    problem: str = ""

    async def keep_on(self, over: asyncio.Event) -> None:
        """Publish now and then until it is over, then restore; a problem ends it earlier."""
        self.swaps.clear()
        try:
            while not await _within(over, self.every_s):
                self.swaps.append(await asyncio.to_thread(self.publisher.publish))
        except MserveError as error:
            self.problem = str(error)
        finally:
            await asyncio.to_thread(self.publisher.restore)


async def _within(event: asyncio.Event, seconds: float) -> bool:
    """Whether an event happens in so many seconds."""
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()


@dataclass(frozen=True, slots=True)
class Window:
    """A swap's time; `seen`: the new version answered, or the call returned."""

    begin_ns: int
    end_ns: int
    seen: bool


@dataclass(frozen=True, slots=True)
class Side:
    """The requests inside the windows, or outside."""

    requests: int
    failed: int
    percentiles: tuple[Percentile, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "failed": self.failed,
            "percentiles": [found.to_json() for found in self.percentiles],
        }


@dataclass(frozen=True, slots=True)
class Swaps:
    """What swaps did to the requests of a run, the first of which was due at `start_ns`."""

    windows: tuple[Window, ...]
    inside: Side
    outside: Side
    problem: str = ""
    start_ns: int = 0

    @property
    def seconds(self) -> float:
        """How long all windows lasted together."""
        return sum(w.end_ns - w.begin_ns for w in self.windows) / 1e9

    def spans(self) -> list[tuple[float, float]]:
        """Begin and end of each window, in seconds after the first request was due."""
        start = self.start_ns
        return [((w.begin_ns - start) / 1e9, (w.end_ns - start) / 1e9) for w in self.windows]

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it; windows in seconds after the first request was due."""
        return {
            "swaps": len(self.windows),
            "seen": sum(w.seen for w in self.windows),
            "seconds": self.seconds,
            "windows": [list(span) for span in self.spans()],
            "inside": self.inside.to_json(),
            "outside": self.outside.to_json(),
            "problem": self.problem or None,
        }


def windows(swaps: Sequence[Swap], seen: Mapping[bytes, Sighting], end_ns: int) -> list[Window]:
    """The windows of swaps, in order. None lasts beyond the next swap, nor beyond the end of the run.

    An answer is noted up to 5 ms late, so a window may be so much too long.
    """
    found = []
    limits = [*(swap.begin_ns for swap in swaps[1:]), end_ns]
    for swap, limit in zip(swaps, limits, strict=False):
        begin, end, known = swap.begin_ns, swap.done_ns, swap.version in seen or not swap.version
        if not known:
            end = limit
        elif swap.version:
            older = [last for version, (_, last) in seen.items() if _number(version) < _number(swap.version)]
            end = max([seen[swap.version][0], *older])
        found.append(Window(begin, max(begin, min(end, max(begin, limit))), known))
    return found


def _number(version: bytes) -> int:
    return int(version) if version.isdigit() else 0


def judged(reload: Reload, recorder: Recorder, seen: Mapping[bytes, Sighting]) -> Swaps:
    """What the swaps of a run did to its requests."""
    n = recorder.count
    intended, done = recorder.intended[:n], recorder.done[:n]
    found = windows(reload.swaps, seen, int(done.max()) if n else 0)
    inside = np.zeros(n, dtype=bool)
    for window in found:
        inside |= (intended < window.end_ns) & (done > window.begin_ns)
    start_ns = int(intended.min()) if n else 0
    return Swaps(tuple(found), _side(recorder, inside), _side(recorder, ~inside), reload.problem, start_ns)


def _side(recorder: Recorder, rows: npt.NDArray[np.bool_]) -> Side:
    n = recorder.count
    outcome = recorder.outcome[:n][rows]
    latency = (recorder.done[:n] - recorder.intended[:n])[rows]
    failed = int(np.count_nonzero(outcome != OK))
    # An error is no latency, but to those who wait it is no answer either.
    latency[outcome != OK] = NEVER_NS
    ascending = np.sort(latency)
    return Side(len(latency), failed, tuple(percentile_of_series(latency, ascending, p) for p in PERCENTILES))
