"""Memory of models that come and go: given back when they go, and without holding anybody up.

ONNX Runtime frees what a session held, and glibc keeps freed memory for later: by default
every block of up to 32 MiB, in as many arenas as there are threads, so that after a few
reloads a server holds several models' worth of nothing. And returning a gigabyte of
4 KiB pages takes the kernel 70 ms, which a session spends under Python's lock, in which no
request is answered; in huge pages it takes 6 ms.

glibc takes settings for all that from a variable at the start of a process. So a server
starts itself again with it, under the same process id. After an unload the heap's free
pages are returned, and the pages of mapped shards are dropped outside the lock before they
are unmapped.

All of it is for Linux and glibc; elsewhere nothing here does anything.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import sys
from functools import cache
from typing import Any

VARIABLE = "GLIBC_TUNABLES"
LARGE_BYTES = 4 << 20
_SINCE = (2, 35)


@cache
def _glibc() -> Any:
    """The C library, whose functions run outside Python's lock; None if it is another one."""
    if platform.libc_ver()[0] != "glibc":
        return None
    library = ctypes.CDLL(None)
    library.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return library


def tunables(given: str, threads: int) -> str:
    """glibc's settings for a server of so many `threads`, behind those that are `given` and stand.

    Large blocks are mapped one by one, in huge pages where the system has them on
    request, and go back when they are freed; there are no more arenas than threads.
    """
    wanted = {"hugetlb": 1, "mmap_threshold": LARGE_BYTES, "arena_max": max(2, threads)}
    known = {entry.partition("=")[0] for entry in given.split(":")}
    ours = [f"glibc.malloc.{k}={v}" for k, v in wanted.items() if f"glibc.malloc.{k}" not in known]
    return ":".join([*filter(None, given.split(":")), *ours])


def settle_allocator(threads: int) -> None:
    """Start this process again with `tunables`, unless it has them; does not return where it does that."""
    name, version = platform.libc_ver()
    if name != "glibc" or tuple(int(n) for n in version.split(".")[:2]) < _SINCE:
        return
    given = os.environ.get(VARIABLE, "")
    if (wanted := tunables(given, threads)) != given:
        os.environ[VARIABLE] = wanted
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, sys.orig_argv)


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
