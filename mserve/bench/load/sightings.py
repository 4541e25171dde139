"""Sightings: when each model version answered first and last, as seen by the client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

from .recorder import Sighting

EVERY_S = 0.005


@asynccontextmanager
async def sightings(versions: Mapping[bytes, int] | None) -> AsyncIterator[dict[bytes, Sighting]]:
    """Look every 5 ms at counts of answers by version; the times in the result are so accurate.

    With None, do not look.
    """
    seen: dict[bytes, Sighting] = {}
    if versions is None:
        yield seen
        return
    task = asyncio.create_task(_look(versions, seen))
    try:
        yield seen
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _look(versions: Mapping[bytes, int], seen: dict[bytes, Sighting]) -> None:
    counts = dict(versions)
    try:
        while True:
            await asyncio.sleep(EVERY_S)
            _note(versions, counts, seen)
    finally:
        _note(versions, counts, seen)


def _note(versions: Mapping[bytes, int], counts: dict[bytes, int], seen: dict[bytes, Sighting]) -> None:
    now = time.perf_counter_ns()
    for version, count in versions.items():
        if count > counts.get(version, 0):
            seen[version] = (seen[version][0] if version in seen else now, now)
            counts[version] = count


def merged(parts: list[dict[bytes, Sighting]]) -> dict[bytes, Sighting]:
    """What several processes saw, as one."""
    whole: dict[bytes, Sighting] = {}
    for part in parts:
        for version, (first, last) in part.items():
            begin, end = whole.get(version, (first, last))
            whole[version] = (min(begin, first), max(end, last))
    return whole
