"""Alarm: calls back at a given nanosecond, on the event loop.

An event loop's own timers count in milliseconds, which would make the client late with
every request. Linux has timers that are files: exact to some microseconds, watched like
a socket, at no cost while they wait. Elsewhere the loop is polled for the last
milliseconds.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import time
from collections.abc import Callable
from typing import Protocol

_CLOCK_MONOTONIC = 1
_ABSOLUTE = 1
_POLL_NS = 2_000_000


class Alarm(Protocol):
    """Calls back once for each `set`; a later `set` replaces an earlier one."""

    def set(self, at_ns: int) -> None:
        """Ask to be called at a time of `time.perf_counter_ns`; a past time means at once."""

    def close(self) -> None:
        """Never call again."""


def alarm(callback: Callable[[], None]) -> Alarm:
    """The best alarm that this system has; needs a running loop."""
    if sys.platform == "linux":
        try:
            return TimerFile(callback)
        except OSError:
            pass
    return Polled(callback)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class TimerFile:
    """Linux's timerfd, on the clock that `time.perf_counter_ns` reads."""

    def __init__(self, callback: Callable[[], None]) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._settime = libc.timerfd_settime
        self._fd: int = libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._callback = callback
        self._spec = _Itimerspec()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._ring)

    def set(self, at_ns: int) -> None:
        """Ask to be called at a time of `time.perf_counter_ns`; a past time means at once."""
        value = self._spec.value
        value.seconds, value.nanoseconds = divmod(max(1, at_ns), 1_000_000_000)
        self._settime(self._fd, _ABSOLUTE, ctypes.byref(self._spec), None)

    def close(self) -> None:
        """Never call again."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _ring(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # it was set to a later time meanwhile
            return
        self._callback()


class Polled:
    """The loop's timer for the long part of the wait, and polling for the rest."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.Handle | None = None
        self._at_ns = 0

    def set(self, at_ns: int) -> None:
        """Ask to be called at a time of `time.perf_counter_ns`; a past time means at once."""
        self.close()
        self._at_ns = at_ns
        wait_ns = at_ns - time.perf_counter_ns() - _POLL_NS
        self._handle = self._loop.call_later(max(0, wait_ns) / 1e9, self._poll)

    def close(self) -> None:
        """Never call again."""
        if self._handle is not None:
            self._handle.cancel()

    def _poll(self) -> None:
        if time.perf_counter_ns() >= self._at_ns:
            self._callback()
        else:
            self._handle = self._loop.call_soon(self._poll)
