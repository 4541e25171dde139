"""The memory that an engine reads its weights from: the shards, mapped or read.

A mapped shard exists once in memory, in the page cache, shared with every other process
that maps the same file. But a mapped file that is truncated under us would kill the
process, so small models (up to PRIVATE_BYTES) are read into private memory instead: no
disk access can then delay or kill a run. What is read is compared with its digest.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleIncomplete
from ..format import META_FILE, Bundle
from ..format.graph import Weight
from .memory import drop_pages

PRIVATE_BYTES = 32 << 20
_POPULATE_READ = 22  # MADV_POPULATE_READ, Linux 5.14; not in Python's mmap module


@dataclass(frozen=True, slots=True)
class Weights:
    """The external files of a model, by name, in memory. `where` is the model's own file."""

    where: Path
    buffers: Mapping[str, mmap.mmap]
    private: bool

    def prefetch(self) -> None:
        """Read mapped shards into the page cache."""
        if self.private or not hasattr(mmap.mmap, "madvise"):
            return
        for buffer in self.buffers.values():
            try:
                buffer.madvise(_POPULATE_READ)
            except OSError:  # an older kernel
                buffer.madvise(mmap.MADV_WILLNEED)

    def release(self) -> None:
        """Drop the pages of mapped shards: to unmap what is left of them takes no time."""
        if not self.private:
            for buffer in self.buffers.values():
                drop_pages(buffer)

    def expect_lookups(self, weights: Iterable[Weight], names: Collection[str]) -> None:
        """Tell the kernel that rows of the named weights are read here and there: no read-ahead."""
        if self.private or not hasattr(mmap.mmap, "madvise"):
            return
        for weight in weights:
            if weight.name in names and weight.shard and weight.offset % mmap.PAGESIZE == 0:
                self.buffers[weight.shard].madvise(mmap.MADV_RANDOM, weight.offset, weight.length)


def open_weights(bundle: Bundle) -> Weights:
    """The shards of a bundle in memory.

    Raises BundleIncomplete when one changes while it is opened, or, for one that is read, when
    its bytes are not the recorded ones: a copy that reserves its space first may still run.
    """
    private = sum(record.size for record in bundle.metagraph.shards) <= PRIVATE_BYTES
    buffers = {r.name: map_file(bundle.file(r), r.size, private=private) for r in bundle.metagraph.shards}
    if private:
        for record in bundle.metagraph.shards:
            _check_digest(bundle.file(record), buffers[record.name], record.sha256)
    return Weights(bundle.path / META_FILE, buffers, private)


def _check_digest(path: Path, buffer: mmap.mmap, expected: str) -> None:
    found = hashlib.sha256(buffer).hexdigest()
    if found != expected:
        raise BundleIncomplete(
            "a shard is not the one that was exported",
            where=path,
            expected=f"sha256 {expected}",
            found=f"sha256 {found}",
            hint="finish the copy, or copy the version again from where it was exported",
        )


def map_file(path: Path, size: int, *, private: bool) -> mmap.mmap:
    """A shard's bytes: mapped and shared, or, for small models, read into private memory."""
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError as error:
        raise BundleIncomplete(
            "a shard cannot be opened", where=path, found=error.strerror or error
        ) from error
    try:
        if os.fstat(fd).st_size != size:
            raise BundleIncomplete(
                "a shard changed while it was opened",
                where=path,
                expected=f"{size} bytes",
                found=f"{os.fstat(fd).st_size} bytes",
            )
        if not private:
            return mmap.mmap(fd, size, access=mmap.ACCESS_READ)
        buffer = mmap.mmap(-1, size)
        with open(fd, "rb", buffering=0, closefd=False) as file:
            view, done = memoryview(buffer), 0
            while done < size and (n := file.readinto(view[done:])):
                done += n
            view.release()
        if done < size:
            raise BundleIncomplete(
                "a shard changed while it was read",
                where=path,
                expected=f"{size} bytes",
                found=f"{done} bytes",
            )
        return buffer
    finally:
        os.close(fd)
