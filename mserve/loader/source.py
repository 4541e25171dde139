"""Source: which versions lie in a base path now. Level-triggered: what it omits is gone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..format import META_FILE
from ..format.layout import versions

Fingerprint = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version directory, and what tells whether its `export.meta` was replaced (None: absent)."""

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
        found = {v: Candidate(path, _fingerprint(path / META_FILE)) for v, path in versions(base).items()}
    except OSError as error:
        return Scan(problem=f"cannot list {base}: {error.strerror or error}")
    return Scan(found, "" if found else f"{base} holds no version yet")


def _fingerprint(meta: Path) -> Fingerprint | None:
    try:
        status = meta.stat()
    except OSError:
        return None
    return (status.st_ino, status.st_size, status.st_mtime_ns)
