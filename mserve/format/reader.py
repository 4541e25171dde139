"""Opening a bundle: what is checked every time, in microseconds, before anyone trusts it.

`export.meta` must end in its own digest, every file it names must be there with the
recorded size, and every tensor must lie inside its shard. The digests of the files
themselves are checked by `mserve validate`, which reads them whole.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from ..errors import BundleIncomplete, EnvironmentProblem, MetaGraphMalformed, NotABundle, NotAFile
from . import layout
from .graph import Graph, check_placement, check_signatures, read_graph
from .metagraph import MAX_META_BYTES, FileRecord, MetaGraph, parse


@dataclass(frozen=True)
class Bundle:
    """An immutable directory: one version of one model, opened and checked."""

    path: Path
    version: int
    meta: bytes
    metagraph: MetaGraph

    @cached_property
    def graph(self) -> Graph:
        """Operators, opsets and weights of the main graph. Raises MetaGraphMalformed."""
        graph = read_graph(self.meta, self.path / layout.META_FILE)
        check_placement(graph, self.metagraph, self.path / layout.META_FILE)
        check_signatures(graph, self.metagraph, self.path / layout.META_FILE)
        return graph

    @property
    def byte_size(self) -> int:
        """Bytes of all files of the version."""
        return len(self.meta) + sum(record.size for record in self.metagraph.files())

    def file(self, record: FileRecord) -> Path:
        """Where a listed file lies."""
        return self.path / record.name


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Open a version directory, or the newest version of a base path.

    Raises a BundleError: NotABundle, BundleIncomplete, DigestMismatch, MetaGraphMalformed,
    FormatUnsupported, UnsafePath, DuplicateMetadata or NotAFile; EnvironmentProblem when
    the user may not read it.
    """
    try:
        return _open(layout.resolve(Path(path)))
    except OSError as error:
        raise EnvironmentProblem(
            "the bundle cannot be read", where=error.filename or path, found=error.strerror or error
        ) from error


def _open(directory: Path) -> Bundle:
    meta_path = directory / layout.META_FILE
    meta = _read_meta(meta_path)
    bundle = Bundle(
        path=directory,
        version=layout.parse_version(directory.resolve().name) or 0,
        meta=meta,
        metagraph=parse(meta, meta_path),
    )
    _check_directories(bundle)
    for record in bundle.metagraph.files():
        check_file(bundle.file(record), record)
    _ = bundle.graph  # the place of every tensor, and the signatures' tensors, are checked here
    return bundle


def _check_directories(bundle: Bundle) -> None:
    """No directory inside the bundle is a link to somewhere else; missing ones are their files' affair."""
    names = {name for record in bundle.metagraph.files() for name in PurePosixPath(record.name).parents}
    for path in (bundle.path / name for name in names - {PurePosixPath(".")}):
        if path.is_symlink():
            raise _a_link("a directory of the bundle is a link", path)


def _a_link(what: str, path: Path) -> NotAFile:
    hint = "symbolic links inside a bundle are not followed; cp -rL copies what they name"
    return NotAFile(what, where=path, expected="no symbolic link", found=path.readlink(), hint=hint)


def check_file(path: Path, record: FileRecord) -> None:
    """The file is there, is a regular file inside the bundle, and has its recorded size."""
    try:
        status = path.lstat()
    except OSError as error:
        raise BundleIncomplete(
            "a file of the bundle is missing",
            where=path,
            expected=f"{record.size} bytes",
            found=error.strerror or error,
            hint="finish the copy, or copy the version again from where it was exported",
        ) from error
    if stat.S_ISLNK(status.st_mode):
        raise _a_link("a file of the bundle is a link", path)
    if not stat.S_ISREG(status.st_mode):
        raise NotAFile(
            "a file of the bundle is not a regular file", where=path, found=stat.filemode(status.st_mode)
        )
    if status.st_size != record.size:
        raise BundleIncomplete(
            "a file of the bundle has the wrong size",
            where=path,
            expected=f"{record.size} bytes",
            found=f"{status.st_size} bytes",
            hint="finish the copy, or copy the version again from where it was exported",
        )


def _read_meta(path: Path) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError as error:
        raise NotABundle(
            "the version has no export.meta", where=path, hint="is the copy still running?"
        ) from error
    except OSError as error:
        if path.is_symlink():
            raise _a_link("export.meta is a link", path) from error
        raise NotAFile("export.meta cannot be opened", where=path, found=error.strerror or error) from error
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise NotAFile("export.meta is not a regular file", where=path, found=stat.filemode(status.st_mode))
    with open(fd, "rb") as file:
        if status.st_size > MAX_META_BYTES:
            raise MetaGraphMalformed(
                "export.meta is too large",
                where=path,
                expected=f"at most {MAX_META_BYTES} bytes",
                found=status.st_size,
            )
        return file.read()
