"""Swaps under load: versions are published or reloaded while a server is measured.

A swap's window begins when the next version is published (or the server is told to load)
and ends with the last answer of the version before, as far as answers name their versions,
and not before the new one has answered. A request is inside if it was on its way at any
time of a window. What users feel of a deployment is the difference of the two: inside, and
outside.
"""

from __future__ import annotations

import asyncio
import http.client
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import numpy as np
import numpy.typing as npt

from ..errors import EnvironmentProblem, InputError, UsageError
from ..format import layout
from .quantiles import NEVER_NS, Percentile, percentile
from .recorder import OK, Recorder, Sighting

PERCENTILES = (0.5, 0.99)
CALL_S = 60.0
_TEMP_PREFIX = ".mserve-bench-"
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
        """The next one; blocks. Raises EnvironmentProblem."""

    def restore(self) -> None:
        """Leave everything as it was found."""


class BasePath:
    """Publishes copies of given versions, or of the newest one, as new versions of a base path.

    Each is copied beside the others and published by one rename. All but the newest two of
    the copies are removed again, and in the end all of them.
    """

    def __init__(self, base: Path, sources: Sequence[Path] = ()) -> None:
        """Raises InputError where there is nothing to publish."""
        self._base = base
        try:
            existing = layout.versions(base)
        except OSError as error:
            raise InputError("not a base path", where=base, found=error.strerror or error) from error
        if not existing:
            raise InputError("a base path without a version", where=base)
        for source in sources:
            if not source.is_dir():
                raise InputError("not a version's directory", where=source)
        self._next = max(existing)
        newest = existing[self._next].name
        self._digits = len(newest) if newest.startswith("0") else 1
        self._sources = cycle(sources or [existing[self._next]])
        self._published: list[Path] = []

    def publish(self) -> Swap:
        """Publish the next version. Raises EnvironmentProblem."""
        self._next += 1
        target = self._base / f"{self._next:0{self._digits}}"
        try:
            copy = Path(tempfile.mkdtemp(prefix=_TEMP_PREFIX, dir=self._base))
            try:
                shutil.copytree(next(self._sources), copy, dirs_exist_ok=True)
                copy.chmod(0o755)
                begin = time.perf_counter_ns()
                copy.rename(target)
            finally:
                shutil.rmtree(copy, ignore_errors=True)
        except OSError as error:
            raise EnvironmentProblem(
                "cannot publish a version", where=target, found=error.strerror or error
            ) from error
        self._published.append(target)
        while len(self._published) > 2:
            shutil.rmtree(self._published.pop(0), ignore_errors=True)
        return Swap(begin, time.perf_counter_ns(), b"%d" % self._next)

    def restore(self) -> None:
        """Remove the copies."""
        while self._published:
            shutil.rmtree(self._published.pop(), ignore_errors=True)


class Repository:
    """Tells a server to load a model again, by the model repository API of Triton and ours."""

    def __init__(self, url: str, model: str, word: str) -> None:
        """Raises UsageError for a server without HTTP."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            raise UsageError("reloading is asked for by HTTP", found=url, hint="give the base path instead")
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port, self._model, self._word = parts.hostname, parts.port, model, word

    def publish(self) -> Swap:
        """Call, and wait for the answers. Raises EnvironmentProblem."""
        begin = time.perf_counter_ns()
        for action in WORDS[self._word]:
            self._call(f"/v2/repository/models/{quote(self._model, safe='')}/{action}")
        return Swap(begin, time.perf_counter_ns())

    def _call(self, path: str) -> None:
        connection = self._kind(self._host, self._port, timeout=CALL_S)
        try:
            connection.request("POST", path, b"{}", {"Content-Type": "application/json"})
            response = connection.getresponse()
            body = response.read(400)
        except (OSError, http.client.HTTPException) as error:
            raise EnvironmentProblem("the server does not reload", where=path, found=error) from error
        finally:
            connection.close()
        if response.status != 200:
            raise EnvironmentProblem(
                "the server does not reload",
                where=path,
                found=f"status {response.status}: {body.decode('utf-8', 'replace')}",
                hint="ours needs --admin",
            )

    def restore(self) -> None:
        """Nothing was changed."""


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
        except EnvironmentProblem as error:
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
            "percentiles": [_percentile_json(found) for found in self.percentiles],
        }


@dataclass(frozen=True, slots=True)
class Swaps:
    """What swaps did to the requests of a run."""

    windows: tuple[Window, ...]
    inside: Side
    outside: Side
    problem: str = ""

    @property
    def seconds(self) -> float:
        """How long all windows lasted together."""
        return sum(w.end_ns - w.begin_ns for w in self.windows) / 1e9

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it; windows in seconds since the first began."""
        first = self.windows[0].begin_ns if self.windows else 0
        return {
            "swaps": len(self.windows),
            "seen": sum(w.seen for w in self.windows),
            "seconds": self.seconds,
            "windows": [[(w.begin_ns - first) / 1e9, (w.end_ns - first) / 1e9] for w in self.windows],
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
    return Swaps(tuple(found), _side(recorder, inside), _side(recorder, ~inside), reload.problem)


def _side(recorder: Recorder, rows: npt.NDArray[np.bool_]) -> Side:
    n = recorder.count
    outcome = recorder.outcome[:n][rows]
    latency = (recorder.done[:n] - recorder.intended[:n])[rows]
    failed = int(np.count_nonzero(outcome != OK))
    # An error is no latency, but to those who wait it is no answer either.
    latency[outcome != OK] = NEVER_NS
    ascending = np.sort(latency)
    return Side(len(latency), failed, tuple(percentile(ascending, p) for p in PERCENTILES))


def _percentile_json(found: Percentile) -> dict[str, Any]:
    def ms(ns: int | None) -> float | None:
        return None if ns is None or ns == NEVER_NS else ns / 1e6

    return {
        "p": found.p,
        "value_ms": ms(found.value_ns),
        "low_ms": ms(found.low_ns),
        "high_ms": ms(found.high_ns),
        "refused": f"needs {found.needed} samples" if found.value_ns is None else None,
        "unanswered": found.value_ns == NEVER_NS,
    }


def open_publisher(where: str, sources: Sequence[Path], target: Mapping[str, Any]) -> Publisher:
    """The publisher that `--during-reload WHERE` names, for a target as it describes itself.

    Raises UsageError or InputError.
    """
    if target.get("kind") != "url":
        raise UsageError("--during-reload needs a server", hint="mserve serve BASE_PATH, and its URL")
    if where not in WORDS:
        return BasePath(Path(where), sources)
    if sources:
        raise UsageError("--publish is for a base path", hint="--during-reload BASE_PATH --publish DIR")
    return Repository(str(target["url"]), str(target["model"]), where)
