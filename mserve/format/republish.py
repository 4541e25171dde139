"""Publishing a version again with other serving defaults: everything else stays as it is.

The graph's records are kept byte for byte and in order, so the content digest is the same;
only the identity is another, because it names the new file.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import DigestMismatch
from ..wire import protobuf
from ..wire.model_proto import METADATA_PROPS, read_prop
from . import layout
from .digests import file_digest
from .metagraph import FileRecord, metadata_prop, seal
from .reader import Bundle
from .serving import Serving, pack
from .writer import Staging, stage

_REPLACED = frozenset({"mserve.serving", "mserve.content", "mserve.sha256"})


@dataclass(frozen=True, slots=True)
class Republished:
    """Where the new version lies, and which shards are links to the old one's."""

    path: Path
    shared: tuple[str, ...]


def republish(
    bundle: Bundle, serving: Serving, version: int | None = None, *, dedup: bool = False
) -> Republished:
    """Publish a copy of a version with these serving defaults, beside it; None takes the next number.

    With `dedup` equal shards become hard links where the file system can. Every file's digest
    is checked on the way. Raises DigestMismatch for a damaged file, UsageError where the
    version exists, EnvironmentProblem where the base path cannot be written.
    """
    shared: list[str] = []
    metagraph = bundle.metagraph
    others = (*metagraph.assets, *((metagraph.golden,) if metagraph.golden else ()))
    with stage(bundle.path.resolve().parent, version) as staging:
        for record in metagraph.shards:
            if dedup and _linked(staging, bundle, record):
                shared.append(record.name)
            else:
                _copied(staging, bundle, record)
        for record in others:
            _copied(staging, bundle, record)
        added = staging.add_file(pack(serving), layout.SERVING_FILE)
        staging.add_file(_meta(bundle.meta, added), layout.META_FILE)
        return Republished(staging.publish(version), tuple(shared))


def _meta(meta: bytes, record: FileRecord) -> bytes:
    """The same `export.meta` with another entry `mserve.serving`, and with new digests."""
    kept = bytearray()
    for field in protobuf.fields(meta):
        if field.number == METADATA_PROPS and read_prop(meta, field)[0] in _REPLACED:
            continue
        kept += meta[field.record_start : field.end]
    return seal(bytes(kept) + metadata_prop("mserve.serving", record.to_json()))


def _linked(staging: Staging, bundle: Bundle, record: FileRecord) -> bool:
    """Whether a shard could be linked; what is damaged is not."""
    source = bundle.file(record)
    if file_digest(source) != record.sha256:
        raise _damaged(source, record)
    with suppress(OSError):  # another file system, too many links
        (staging.path / record.name).hardlink_to(source)
        return True
    return False


def _copied(staging: Staging, bundle: Bundle, record: FileRecord) -> None:
    copy = staging.add_file(bundle.file(record), record.name)
    if copy != record:
        raise _damaged(bundle.file(record), record)


def _damaged(path: Path, record: FileRecord) -> DigestMismatch:
    return DigestMismatch(
        "a file of the bundle was changed after it was written",
        where=path,
        expected=f"sha256 {record.sha256}",
        hint="copy the version again from where it was exported; nothing was published",
    )
