"""Locks on directories, which the kernel drops when their owner dies, however it dies.

A writer holds an exclusive lock on its temporary directory, and a process that has a
version loaded holds a shared lock on the version's directory. So whoever wants to remove
a directory can tell whether anyone alive needs it, without trusting process ids. Where
the file system or the operating system has no `flock`, nothing is held and nothing is
found held.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EBADF}


class Lock:
    """A held lock; `release` or the end of the process lets go of it."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def release(self) -> None:
        """Let go; releasing twice is harmless."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __del__(self) -> None:
        self.release()


def acquire(directory: Path, *, shared: bool = False, wait: bool = False) -> Lock:
    """Lock a directory. Raises BlockingIOError when another process holds it, OSError when it is gone."""
    try:
        import fcntl
    except ImportError:  # Windows
        return Lock(None)
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NONBLOCK)
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(fd)
        raise
    except OSError as error:
        os.close(fd)
        if error.errno in _UNSUPPORTED:
            return Lock(None)
        raise
    return Lock(fd)


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold a directory's exclusive lock for a moment, waiting for whoever has it."""
    lock = acquire(directory, wait=True)
    try:
        yield
    finally:
        lock.release()
