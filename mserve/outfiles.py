"""Output files: opened before the run, so that none is measured in vain; complete, or not there.

Each file is written beside its place under another name and then renamed, so that nobody
reads half a report, and an older one stays whole if the disk is full. What is no regular
file, such as a pipe or /dev/null, is written to as it is.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from .errors import EnvironmentProblem, UsageError


class OutFiles:
    """The places where a run will leave files. A context manager: what was not written goes at its end.

    Raises UsageError where one place is named twice, EnvironmentProblem where none can be written.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._drafts: dict[Path, tuple[int, str]] = {}
        self._paths = paths

    def __enter__(self) -> Self:
        resolved = [path.resolve() for path in self._paths]
        if doubled := [path for path in self._paths if resolved.count(path.resolve()) > 1]:
            raise UsageError("one file is named for two outputs", where=doubled[0])
        try:
            for path in self._paths:
                self._open(path)
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._discard()

    def write(self, path: Path, parts: Iterable[str] | bytes) -> None:
        """Write all of a text, or bytes, to one of the places. Raises EnvironmentProblem."""
        handle, draft = self._drafts.pop(path)
        try:
            with open(handle, "wb") as file:
                if isinstance(parts, bytes):
                    file.write(parts)
                else:
                    file.writelines(part.encode("utf-8", "backslashreplace") for part in parts)
                file.flush()
                if draft:
                    os.fsync(handle)
            if draft:
                os.replace(draft, path)
        except OSError as error:
            _unlink(draft)
            raise _cannot(path, error) from error

    def _open(self, path: Path) -> None:
        if path.is_dir():
            raise EnvironmentProblem("the output is a directory", where=path, hint="name a file in it")
        try:
            if path.exists() and not path.is_file():
                self._drafts[path] = os.open(path, os.O_WRONLY), ""
                return
            handle, draft = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".draft", dir=path.parent)
        except OSError as error:
            raise _cannot(path, error) from error
        self._drafts[path] = handle, draft
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(draft, 0o666 & ~mask)

    def _discard(self) -> None:
        for handle, draft in self._drafts.values():
            os.close(handle)
            _unlink(draft)
        self._drafts.clear()


def _unlink(draft: str) -> None:
    if draft:
        with suppress(OSError):
            os.unlink(draft)


def _cannot(path: Path, error: OSError) -> EnvironmentProblem:
    return EnvironmentProblem(
        "the output cannot be written",
        where=path,
        found=error.strerror or str(error),
        hint="name another file, or make room",
    )
