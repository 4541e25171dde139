"""Removing old versions, and never one that somebody needs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleError, EnvironmentProblem, UsageError
from . import layout
from .locks import acquire, held
from .reader import open_bundle
from .writer import remove_dead


@dataclass(frozen=True, slots=True)
class Verdict:
    """What happens to one version: "removed", or "kept" and why. `path` is where it lies, or lay."""

    version: int
    path: Path
    removed: bool
    reason: str


def collect(
    base: Path, keep: int, pinned: Mapping[int, str] | None = None, *, dry_run: bool = False
) -> list[Verdict]:
    """Remove all but the newest `keep` whole versions of a base path, oldest first.

    Kept besides: versions in `pinned`, which says why, versions newer than the oldest one kept (they may
    still be arriving), and versions that a process has loaded. A version is renamed away before
    it is deleted, so that nobody ever sees half of one. Temporary directories of dead
    writers go too. Raises UsageError, EnvironmentProblem.
    """
    if keep < 1:
        raise UsageError("--keep is too small", expected="at least 1", found=keep)
    if not base.is_dir():
        raise UsageError("not a base path", where=base)
    try:
        with held(base):
            verdicts = [_judge(v, p, keep, pinned or {}, dry_run) for v, p in _ranked(base)]
            if not dry_run:
                remove_dead(base)
    except OSError as error:
        raise EnvironmentProblem(
            "cannot remove", where=error.filename or base, found=error.strerror
        ) from error
    return verdicts


def _ranked(base: Path) -> list[tuple[int, tuple[Path, int]]]:
    """Versions, oldest first, each with its path and how many whole versions are newer."""
    newer, ranked = 0, []
    for version, path in reversed(layout.versions(base).items()):
        ranked.append((version, (path, newer)))
        try:
            open_bundle(path)
        except BundleError:
            continue
        newer += 1
    return ranked[::-1]


def _judge(
    version: int, place: tuple[Path, int], keep: int, pinned: Mapping[int, str], dry_run: bool
) -> Verdict:
    path, newer = place
    if newer < keep:
        return Verdict(version, path, False, f"one of the newest {keep}")
    if version in pinned:
        return Verdict(version, path, False, pinned[version])
    try:
        lock = acquire(path)
    except BlockingIOError:
        return Verdict(version, path, False, "loaded by a running process")
    try:
        if not dry_run:
            grave = path.with_name(f"{layout.TEMP_PREFIX}gc-{path.name}")
            path.rename(grave)
            shutil.rmtree(grave)
    finally:
        lock.release()
    return Verdict(version, path, True, f"older than the newest {keep} whole versions")
