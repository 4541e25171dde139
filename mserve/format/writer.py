"""Writing a bundle so that nobody ever sees half of one.

Everything is written into a temporary directory beside the versions, flushed to the
disk, made read-only, and published by one rename. The writer holds a lock on its
temporary directory for as long as it lives, so a temporary directory whose lock can be
taken belongs to nobody, and the next export removes it. A short lock on the base path
itself covers the moments in which two writers could meet: creating and locking a
temporary directory, removing dead ones, and choosing and publishing a version.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleError, EnvironmentProblem, UsageError
from . import layout
from .digests import file_digest
from .locks import acquire, held
from .metagraph import FileRecord
from .reader import Bundle, open_bundle
from .shards import Placed, Tensor, plan, write_shard


@dataclass(slots=True)
class Staging:
    """A bundle in the making: a locked temporary directory of a base path."""

    base: Path
    path: Path

    def write_shards(
        self, tensors: Sequence[Tensor], shard_bytes: int
    ) -> tuple[tuple[FileRecord, ...], dict[str, Placed]]:
        """Write all shards; return their records and where each tensor went."""
        groups = plan(tensors, shard_bytes)
        records, placed = [], dict[str, Placed]()
        for index, group in enumerate(groups):
            path = self.path / layout.shard_name(index, len(groups))
            with _disk_errors(path, sum(t.byte_size for t in group)):
                record, where = write_shard(path, group)
            records.append(record)
            placed |= where
        return tuple(records), placed

    def share(self, records: Sequence[FileRecord]) -> tuple[str, ...]:
        """Replace shards by hard links to equal files of earlier versions; return their names.

        The earlier file is read and digested first: what is damaged is not shared.
        """
        known = {
            (r.size, r.sha256): bundle.path / r.name
            for bundle in _readable(self.base)
            for r in bundle.metagraph.shards
        }
        shared = []
        for record in records:
            earlier = known.get((record.size, record.sha256))
            if earlier is None or file_digest(earlier) != record.sha256:
                continue
            link = self.path / f".{record.name}"
            try:
                link.hardlink_to(earlier)
                link.replace(self.path / record.name)
            except OSError:  # another file system, too many links: the copy stays
                link.unlink(missing_ok=True)
            else:
                shared.append(record.name)
        return tuple(shared)

    def add_file(self, source: Path | bytes, name: str) -> FileRecord:
        """Copy a file, or bytes, into the bundle under a relative name."""
        layout.safe_relative(name, self.base)
        target = self.path / name
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        with _disk_errors(target, size):
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(source, bytes):
                target.write_bytes(source)
            else:
                shutil.copyfile(source, target)
            _flush(target)
        return FileRecord(name, target.stat().st_size, file_digest(target))

    def publish(self, version: int | None) -> Path:
        """Make the version visible; None stands for the next number. Raises UsageError if it exists."""
        for directory, _, files in os.walk(self.path):
            for name in files:
                (Path(directory) / name).chmod(0o444)
            _flush(Path(directory))
        with held(self.base):
            number = self.claim(version)
            target = self.base / layout.version_dir(number)
            with _disk_errors(target, 0):
                self.path.chmod(0o755)
                self.path.rename(target)
                _flush(self.base)
        return target

    def claim(self, version: int | None) -> int:
        """The version to write: the given one if it is free, or the next. Raises UsageError."""
        existing = layout.versions(self.base)
        if version is None:
            version = max(existing, default=0) + 1
            if version > layout.MAX_VERSION:
                raise UsageError("no number is left for the next version", where=existing[max(existing)])
            return version
        if version in existing:
            raise UsageError(
                f"version {version} exists already",
                where=existing[version],
                hint="versions are never overwritten: choose another --version, or --version auto",
            )
        return version


def _readable(base: Path) -> Iterator[Bundle]:
    """The versions of a base path that open without an error."""
    for path in layout.versions(base).values():
        with suppress(BundleError):
            yield open_bundle(path)


@contextmanager
def stage(base: Path, version: int | None) -> Iterator[Staging]:
    """A staging directory under `base`, which is created if need be; removed unless published.

    `version` is checked early, so that a taken number costs no work. Raises
    EnvironmentProblem when the base path cannot be written, UsageError when the version
    exists.
    """
    with _disk_errors(base, 0):
        if base.exists() and not base.is_dir():
            raise UsageError("the base path is not a directory", where=base, found="a file")
        base.mkdir(parents=True, exist_ok=True)
        with held(base):
            remove_dead(base)
            path = Path(tempfile.mkdtemp(prefix=layout.TEMP_PREFIX, dir=base))
            lock = acquire(path)
    try:
        staging = Staging(base, path)
        staging.claim(version)
        yield staging
    finally:
        if path.exists():
            shutil.rmtree(path, ignore_errors=True)
        lock.release()


def remove_dead(base: Path) -> list[Path]:
    """Remove the temporary directories whose writers are gone, and return them; hold the base's lock."""
    removed = []
    for path in base.glob(layout.TEMP_PREFIX + "*"):
        with suppress(OSError):
            lock = acquire(path)
            shutil.rmtree(path, ignore_errors=True)
            lock.release()
            removed.append(path)
    return removed


def _flush(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _disk_errors(path: Path, need: int) -> Iterator[None]:
    """Word the operating system's refusals: disk full, not writable."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            free = shutil.disk_usage(path.parent).free
            raise EnvironmentProblem(
                "the disk is full",
                where=path,
                expected=f"room for {need} bytes",
                found=f"{free} bytes free",
                hint="nothing was published; free some space and export again",
            ) from error
        raise EnvironmentProblem(
            "cannot write",
            where=path,
            expected="a directory that this user may write to",
            found=error.strerror or str(error),
            hint="choose another base path, or mend its permissions",
        ) from error
