"""Memory of models that come and go: given back when they go, and without holding anybody up.

ONNX Runtime frees what a session held, and glibc keeps freed memory for later: by default
every block of up to 32 MiB, so that after a few reloads a server holds several models'
worth of nothing. Two settings undo it: large blocks are mapped one by one, which
returns them when they are freed, and after an unload the heap's free pages are given
back.

Returning a gigabyte of 4 KiB pages takes the kernel 70 ms, and a session is freed under
Python's lock, in which no request is answered. In huge pages it takes 6 ms, and glibc
asks for those when a variable says so at the start of the process: so the server starts
itself again with it, under the same process id. Pages of mapped shards are dropped
outside the lock before they are unmapped.

All of it is for Linux and glibc; elsewhere nothing here does anything.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import sys
from functools import cache
from pathlib import Path
from typing import Any

LARGE_BYTES = 4 << 20
_M_MMAP_THRESHOLD = -3
_TUNABLES, _HUGE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
_HUGE_SINCE = (2, 35)
_THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@cache
def _glibc() -> Any:
    """The C library, whose functions run outside Python's lock; None if it is another one."""
    if platform.libc_ver()[0] != "glibc":
        return None
    library = ctypes.CDLL(None)
    library.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return library


def use_huge_pages() -> None:
    """Start this process again so that large blocks lie in huge pages, if the system has them on request.

    Does not return where it does that; a user's own setting stands.
    """
    tunables = os.environ.get(_TUNABLES, "")
    name, version = platform.libc_ver()
    try:
        known = name == "glibc" and tuple(map(int, version.split("."))) >= _HUGE_SINCE
        on_request = "[madvise]" in _THP.read_text()
    except (OSError, ValueError):
        return
    if known and on_request and _HUGE not in tunables:
        os.environ[_TUNABLES] = ":".join(filter(None, (tunables, f"{_HUGE}=1")))
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, sys.orig_argv)


def map_large_blocks() -> None:
    """Have blocks of LARGE_BYTES and more returned when they are freed; for the whole process."""
    if _glibc() is not None:
        _glibc().mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)


def give_back() -> None:
    """Return free memory to the system; takes milliseconds."""
    if _glibc() is not None:
        _glibc().malloc_trim(0)


def drop_pages(buffer: mmap.mmap) -> None:
    """Take the pages of a mapped file out of this process's memory; reading brings them back."""
    if _glibc() is not None and len(buffer):
        import numpy as np

        view = np.frombuffer(buffer, np.uint8)
        _glibc().madvise(view.ctypes.data, view.nbytes, mmap.MADV_DONTNEED)
