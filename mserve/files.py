"""Files that a user names: regular files only, and no more of them than is bearable."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from .errors import InputError

MAX_INPUT_BYTES = 2**31 - 1


def open_input(path: Path) -> BinaryIO:
    """Open a regular file; links are followed, a fifo or a device is refused without waiting for it.

    Raises InputError: missing, unreadable, not a regular file.
    """
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError("cannot read the file", where=path, found=reason) from error
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        kind = "a directory" if stat.S_ISDIR(mode) else stat.filemode(mode)
        raise InputError("not a regular file", where=path, expected="a file", found=kind)
    return open(fd, "rb")


def read_input(path: Path, limit: int = MAX_INPUT_BYTES) -> bytes:
    """The whole of a regular file of at most `limit` bytes. Raises InputError."""
    with open_input(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise InputError(
                "the file is too large", where=path, expected=f"at most {limit} bytes", found=size
            )
        return file.read(size)


def read_text(path: Path, limit: int = MAX_INPUT_BYTES) -> str:
    """The whole of a text file of at most `limit` bytes. Raises InputError."""
    try:
        return read_input(path, limit).decode()
    except UnicodeDecodeError as error:
        raise InputError("the file is not UTF-8 text", where=path, found=error) from error
