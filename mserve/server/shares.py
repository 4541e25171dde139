"""Who has how many connections, so that processes which accept on the same sockets share them out.

Whoever is awake first would take a whole burst: of 32 connections at once, 31. So before it
accepts, a process that has more connections than another one lets the others have theirs, but
not for long: a neighbour that is busy must not keep clients waiting. The numbers lie in memory
that all processes see, a word for each, written by its owner; ABSENT where nobody accepts.
"""

from __future__ import annotations

import mmap
import os
import tempfile

ABSENT = 0xFFFFFFFF
_WORD = 4


class Shares:
    """The numbers of all processes; `own` is this one's place."""

    def __init__(self, fd: int, count: int, own: int = 0) -> None:
        memory = mmap.mmap(fd, count * _WORD)
        self._words = memoryview(memory).cast("I")
        self._own = own

    def note(self, connections: int) -> None:
        """Say how many connections this process has."""
        self._words[self._own] = connections

    def turn(self, connections: int) -> bool:
        """Note how many connections this process has, and whether no other has fewer."""
        self._words[self._own] = connections
        return connections <= min(self._words)

    def leave(self, number: int | None = None) -> None:
        """This process, or another one, does not accept any more."""
        self._words[self._own if number is None else number] = ABSENT


def shared_memory(count: int) -> int:
    """A file descriptor of memory for so many processes, none of which accepts."""
    with tempfile.TemporaryFile() as file:
        file.write(ABSENT.to_bytes(_WORD, "little") * count)
        file.flush()
        return os.dup(file.fileno())
