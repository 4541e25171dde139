"""Outbox: the answers of a batch are made first, and then written one right behind the other.

A write to a socket wakes whoever waits for it. On the same machine a client that is woken
for each answer has read it and sleeps again before the next one is made, and to wake it
costs the server more than to write. One that is awake already just finds more to read.
"""

from __future__ import annotations

import logging
from typing import Protocol

log = logging.getLogger("mserve")


class Writes(Protocol):
    """What an answer is written to."""

    def write(self, data: bytes, /) -> None:
        """Send it."""


class Outbox:
    """As a context it holds answers back until its end; otherwise they go out at once. One thread's."""

    def __init__(self) -> None:
        self._held: list[tuple[Writes, bytes]] | None = None

    def write(self, to: Writes, answer: bytes) -> None:
        """Write an answer, now or with the others."""
        if self._held is None:
            to.write(answer)
        else:
            self._held.append((to, answer))

    def __enter__(self) -> None:
        self._held = []

    def __exit__(self, *_: object) -> None:
        """Write what waits, in its order; one that cannot be written holds up no other."""
        held, self._held = self._held or [], None
        for to, answer in held:
            try:
                to.write(answer)
            except Exception:
                log.exception("our bug while writing an answer")
