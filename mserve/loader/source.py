"""Source: which versions lie in a base path now. Level-triggered: what it omits is gone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..format.layout import foreign_hint, versions

Fingerprint = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version directory, and what tells whether its files were replaced or are still arriving."""

    path: Path
    fingerprint: Fingerprint | None


@dataclass(frozen=True, slots=True)
class Scan:
    """One look at a base path. `problem` says why nothing could be listed, or is ""."""

    candidates: Mapping[int, Candidate] = field(default_factory=dict)
    problem: str = ""


def scan(base: Path) -> Scan:
    """List a base path's versions. Never raises: a path that cannot be listed is a problem to report."""
    try:
        found = {v: Candidate(path, _fingerprint(path)) for v, path in versions(base).items()}
    except FileNotFoundError as error:
        return Scan(problem=f"cannot list {base}: {error.strerror}; the server waits for it to appear")
    except OSError as error:
        return Scan(problem=f"cannot list {base}: {error.strerror or error}")
    if found:
        return Scan(found)
    hint = foreign_hint(base)
    return Scan(problem=f"{base} holds no version yet" + (f"; {hint}" if hint else ""))


def _fingerprint(version: Path) -> Fingerprint | None:
    """Name, inode, size and time of every file at the top of a version; None where it cannot be listed."""
    try:
        with os.scandir(version) as entries:
            files = [(e.name, e.stat(follow_symlinks=False)) for e in entries]
    except OSError:
        return None
    return tuple(sorted((name, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in files))
