"""Opening files that others wrote: regular files only, in bounded pieces, inside their directory."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import BundleIncomplete, InputError, NotAFile, UnsafePath
from ..wire import protobuf

MAX_MESSAGE_BYTES = 2**31 - 1  # no protobuf implementation reads a longer message
PIECE_BYTES = 4 << 20
MAX_LISTED = 10_000
COPY_HINT = "finish the copy, or copy the version again from where it was exported"


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; links are followed, and a fifo or a device does not block.

    Raises BundleIncomplete when the file is missing, NotAFile when it is something else,
    InputError when it cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError as error:
        raise BundleIncomplete("a file of the model is missing", where=path, hint=COPY_HINT) from error
    except (OSError, ValueError) as error:
        raise InputError("a file cannot be read", where=path, found=error) from error
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        raise NotAFile("not a regular file", where=path, expected="a file", found=stat.filemode(mode))
    return open(fd, "rb")


def read_message(path: Path) -> bytes:
    """The whole of a file that holds one protobuf message. Raises as `open_regular`, and when over 2 GiB."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_MESSAGE_BYTES:
            raise InputError(
                "the file is too large for a protobuf message",
                where=path,
                expected=f"at most {MAX_MESSAGE_BYTES} bytes",
                found=f"{size} bytes",
            )
        return file.read(size)


def size_of(path: Path) -> int | None:
    """Size of a regular file, links followed; None when there is none."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def pieces(path: Path, offset: int, length: int) -> Iterator[bytes]:
    """The bytes from `offset`, in pieces of 4 MiB. Raises BundleIncomplete when the file is shorter."""
    with open_regular(path) as file:
        _check_end(path, os.fstat(file.fileno()).st_size, offset + length)
        file.seek(offset)
        while length:
            piece = file.read(min(length, PIECE_BYTES))
            if not piece:  # it has shrunk since
                _check_end(path, file.tell(), file.tell() + length)
            length -= len(piece)
            yield piece


def _check_end(path: Path, size: int, end: int) -> None:
    if end > size:
        raise BundleIncomplete(
            "a file of the model is too short",
            where=path,
            expected=f"at least {end} bytes",
            found=f"{size} bytes",
            hint=COPY_HINT,
        )


def read_range(path: Path, offset: int, length: int) -> bytes:
    """The bytes from `offset`, at once. Raises BundleIncomplete when the file is shorter."""
    return b"".join(pieces(path, offset, length))


def listing(directory: Path) -> dict[str, int]:
    """Sizes of the regular files below a directory, by relative name; links to directories are not entered.

    An absent directory is empty. Raises InputError when there are more than 10,000 files.
    """
    found: dict[str, int] = {}
    for parent, _, names in os.walk(directory, followlinks=False):
        for name in names:
            path = Path(parent) / name
            size = size_of(path)
            if size is not None:
                relative = path.relative_to(directory).as_posix()
                found[relative.encode(errors="backslashreplace").decode()] = size
        if len(found) > MAX_LISTED:
            raise InputError("too many files", where=directory, expected=f"at most {MAX_LISTED}")
    return dict(sorted(found.items()))


def safe_relative(name: str, where: object) -> str:
    """Return a file name that some message gives, if it stays inside its directory. Raises UnsafePath."""
    parts = name.replace("\\", "/").split("/")
    if "\0" in name or ":" in parts[0] or any(part in ("", ".", "..") for part in parts):
        raise UnsafePath(
            "a file name leads out of its directory",
            where=where,
            expected="a relative path of plain names",
            found=repr(name[:200]),
            hint="do not use this model; no exporter writes such a name",
        )
    return name


@contextmanager
def reading(what: str, where: object) -> Iterator[None]:
    """Turn bytes that make no sense into an InputError that names the file and the byte."""
    try:
        yield
    except protobuf.Malformed as error:
        raise InputError(
            f"{what} is corrupt or truncated", where=where, found=error, hint="copy or save the model again"
        ) from error
