"""Bundles on network file systems are copied to this machine before they are mapped.

A mapped file is read page by page, whenever a run needs it. Over a network every page
can take milliseconds, and a server that goes away ends the process with a bus error. So
a bundle on a network mount is copied once, checked against its digests, into a cache
directory named by its identity; the copy is what is loaded.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from ..errors import BundleIncomplete, EnvironmentProblem
from ..format import META_FILE, Bundle, open_bundle
from ..format.digests import file_digest
from ..format.locks import acquire, held

NETWORK_TYPES = frozenset(
    "nfs nfs4 cifs smb3 smbfs ceph lustre glusterfs beegfs 9p afs gpfs ocfs2 davfs sshfs s3fs gcsfuse".split()
)
COPIES_KEPT = 2


def is_network(path: Path, mounts: str | None = None) -> bool:
    """Whether a path lies on a network mount; `mounts` is the text of /proc/self/mounts.

    FUSE file systems count, unless they are known to be local. Where there is no such
    file, nothing counts.
    """
    kind = file_system(path, mounts)
    return kind in NETWORK_TYPES or kind.removeprefix("fuse.") in NETWORK_TYPES or kind == "fuse"


def file_system(path: Path, mounts: str | None = None) -> str:
    """The type of the file system that a path lies on, such as ext4; "" where nobody says."""
    if mounts is None:
        try:
            mounts = Path("/proc/self/mounts").read_text()
        except OSError:
            return ""
    target, best, kind = str(path.resolve()), "", ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = fields[1].encode("latin-1", "replace").decode("unicode_escape")
        inside = target == point or target.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, fields[2]
    return kind


def local_copy(bundle: Bundle, mounts: str | None = None, cache: Path | None = None) -> Bundle:
    """The bundle itself, or its copy on this machine if it lies on a network mount.

    Raises BundleIncomplete when a file is not what its digest says, EnvironmentProblem
    when the cache cannot be written.
    """
    if not is_network(bundle.path, mounts):
        return bundle
    directory = (cache or cache_directory()) / bundle.metagraph.identity / bundle.path.name
    try:
        directory.parent.parent.mkdir(parents=True, exist_ok=True)
        with held(directory.parent.parent):
            if not directory.exists():
                _evict(directory.parent.parent)
                _copy(bundle, directory)
        os.utime(directory.parent)
    except OSError as error:
        raise EnvironmentProblem(
            "cannot copy a bundle from a network mount to this machine",
            where=directory,
            found=error.strerror or error,
            hint="free some space, or set XDG_CACHE_HOME to a directory that has it",
        ) from error
    return open_bundle(directory)


def cache_directory() -> Path:
    """Where copies lie: mserve's directory in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mserve" / "bundles"


def _copy(bundle: Bundle, directory: Path) -> None:
    """Copy and check every file; the copy appears whole or not at all."""
    directory.parent.mkdir(exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".tmp-", dir=directory.parent))
    try:
        (staging / META_FILE).write_bytes(bundle.meta)
        for record in bundle.metagraph.files():
            target = staging / record.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.file(record), target)
            found = file_digest(target)
            if found != record.sha256:
                raise BundleIncomplete(
                    "a file is not the one that was exported",
                    where=bundle.file(record),
                    expected=f"sha256 {record.sha256}",
                    found=f"sha256 {found}",
                    hint="finish the copy, or copy the version again from where it was exported",
                )
        staging.rename(directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _evict(cache: Path) -> None:
    """Remove the copies that were used longest ago and that nobody has loaded."""
    entries = sorted(cache.iterdir(), key=lambda p: p.stat().st_mtime, reverse=True)
    for entry in entries[COPIES_KEPT - 1 :]:
        with suppress(OSError):
            locks = [acquire(version) for version in entry.iterdir() if version.is_dir()]
            shutil.rmtree(entry, ignore_errors=True)
            for lock in locks:
                lock.release()
