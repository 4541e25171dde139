"""Files that a user names: regular files only, and no more of them than is bearable."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import BinaryIO

from .errors import EnvironmentProblem, InputError

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


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all: under another name beside it, then renamed.

    What is no regular file, such as a pipe, is written to as it is. Raises EnvironmentProblem.
    """
    beside = path.with_name(f".{path.name[:100]}.{os.getpid()}")
    target = path if path.exists() and not path.is_file() else beside
    try:
        with target.open("wb") as file:
            file.write(data)
        if target is beside:
            os.replace(beside, path)
    except OSError as error:
        if target is beside:
            with contextlib.suppress(OSError):
                beside.unlink()
        raise EnvironmentProblem(
            "cannot write the file", where=path, found=error.strerror or error
        ) from error
