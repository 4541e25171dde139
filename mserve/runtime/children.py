"""Child processes that end with their parent, whatever it died of."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int = 0) -> None:
    """Called in a child: Linux kills it when the thread that started it ends; elsewhere nothing happens.

    `parent` is that process's id, where the child knows it: it may be gone already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if parent and os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)


def start_bound(argv: list[str]) -> None:
    """Become `mserve ARGUMENTS`, bound to the parent and to CPUs: argv is its id, "0,1" or "", ARGUMENTS."""
    die_with_parent(int(argv[0]))
    if argv[1]:
        os.sched_setaffinity(0, {int(cpu) for cpu in argv[1].split(",")})
    os.execv(sys.executable, [sys.executable, "-m", "mserve", *argv[2:]])


if __name__ == "__main__":
    start_bound(sys.argv[1:])
