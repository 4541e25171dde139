"""Memory that goes back to the system when a version is unloaded.

ONNX Runtime frees what a session held, and glibc keeps freed memory for later: by default
every block of up to 32 MiB, so that after a few reloads a server holds several models'
worth of nothing. Two settings undo it: large blocks are mapped one by one, which
returns them when they are freed, and after an unload the heap's free pages are given
back. On other C libraries both do nothing.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

LARGE_BYTES = 4 << 20
_M_MMAP_THRESHOLD = -3


@cache
def _glibc() -> Any:
    try:
        library = ctypes.CDLL(None)
        return library if hasattr(library, "malloc_trim") and hasattr(library, "mallopt") else None
    except (OSError, TypeError):
        return None


def map_large_blocks() -> None:
    """Have blocks of LARGE_BYTES and more returned when they are freed; for the whole process."""
    if _glibc() is not None:
        _glibc().mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)


def give_back() -> None:
    """Return free memory to the system; takes milliseconds."""
    if _glibc() is not None:
        _glibc().malloc_trim(0)
