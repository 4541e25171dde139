"""MetaGraph: what `export.meta` says beside the graph, and the digest that closes it.

`export.meta` is an ONNX ModelProto. What mserve adds lies in its `metadata_props`, under
keys that begin with `mserve.`, as JSON. The last record of the file is one more
metadata entry, fixed in size, that holds the sha256 of every byte before it:

    72 51 | 0a 0d "mserve.sha256" | 12 40 <64 hex digits>

Because it is the last record and nothing is searched for, no other text in the file can
be mistaken for it; because it is an ordinary metadata entry, every ONNX tool reads the
file as it is. That digest is the bundle's identity: the shards and assets are named in
the metadata with their own digests, so everything hangs from it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import DigestMismatch, DuplicateMetadata, FormatUnsupported, MetaGraphMalformed
from ..tensors import Signature
from ..wire import protobuf
from ..wire.model_proto import METADATA_PROPS, read_prop
from .layout import is_shard_name, safe_relative

# Readers of the first version would misread sparse inputs; what has none is written in it.
FORMAT_VERSION, SPARSE_VERSION = 1, 2
PREFIX = "mserve."
MAX_META_BYTES = 2**31 - 1
MAX_VALUE_BYTES = 64 << 20
_TRAILER_HEAD = b"\x72\x51\x0a\x0dmserve.sha256\x12\x40"
TRAILER_BYTES = len(_TRAILER_HEAD) + 64
_SHA256 = re.compile(r"[0-9a-f]{64}")

# Entries that do not take part in the content digest: what they say may differ between
# two exports of one model.
_OUTSIDE_CONTENT = frozenset(
    {
        "mserve.name",
        "mserve.provenance",
        "mserve.golden",
        "mserve.serving",
        "mserve.content",
        "mserve.sha256",
    }
)


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file that the bundle holds: relative path, size in bytes, sha256 in hex."""

    name: str
    size: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "size": self.size, "sha256": self.sha256}


@dataclass(frozen=True, slots=True)
class MetaGraph:
    """What a bundle says of itself; the graph itself is read by `format.graph`."""

    name: str
    signatures: Mapping[str, Signature]
    shards: tuple[FileRecord, ...]
    assets: tuple[FileRecord, ...] = ()
    golden: FileRecord | None = None
    serving: FileRecord | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    content: str = ""
    identity: str = ""

    @property
    def format(self) -> int:
        """The first format version that has all that this says."""
        return SPARSE_VERSION if any(s.sparse for s in self.signatures.values()) else FORMAT_VERSION

    def files(self) -> tuple[FileRecord, ...]:
        """Every file of the bundle but `export.meta`."""
        return self.shards + self.assets + tuple(r for r in (self.golden, self.serving) if r)

    def props(self) -> dict[str, str]:
        """The metadata entries to store, without the two digests, in stored order."""
        entries: dict[str, Any] = {
            "mserve.format": self.format,
            "mserve.name": self.name,
            "mserve.signatures": {name: s.to_json() for name, s in self.signatures.items()},
            "mserve.shards": [record.to_json() for record in self.shards],
            "mserve.assets": [record.to_json() for record in self.assets],
            "mserve.provenance": dict(self.provenance),
        }
        if self.golden:
            entries["mserve.golden"] = self.golden.to_json()
        if self.serving:
            entries["mserve.serving"] = self.serving.to_json()
        return {k: json.dumps(v, separators=(",", ":"), ensure_ascii=False) for k, v in entries.items()}


def seal(model: bytes) -> bytes:
    """Append the content digest and the closing self-digest to a serialised ModelProto."""
    content = content_digest(model)
    body = model + metadata_prop("mserve.content", content)
    return body + _TRAILER_HEAD + hashlib.sha256(body).hexdigest().encode()


def content_digest(model: bytes | memoryview) -> str:
    """sha256 of the stored top-level records, without name, provenance, golden samples, serving defaults."""
    digest = hashlib.sha256()
    for record in protobuf.fields(model):
        if record.number == METADATA_PROPS and _key_of(model, record) in _OUTSIDE_CONTENT:
            continue
        digest.update(model[record.record_start : record.end])
    return digest.hexdigest()


def parse(data: bytes, where: object) -> MetaGraph:
    """Check the self-digest of an `export.meta` and read its metadata.

    Raises DigestMismatch, MetaGraphMalformed, DuplicateMetadata, FormatUnsupported or
    UnsafePath, each naming `where`.
    """
    identity = _check_trailer(data, where)
    entries = _entries(data, where)
    version = _json(entries, "mserve.format", where)
    if type(version) is not int or version not in (FORMAT_VERSION, SPARSE_VERSION):
        raise FormatUnsupported(
            "the bundle was written in another format version",
            where=where,
            expected=f"{FORMAT_VERSION} or {SPARSE_VERSION}",
            found=version,
            hint="upgrade mserve, or export the model again",
        )
    name, signatures = _json(entries, "mserve.name", where), _json(entries, "mserve.signatures", where)
    provenance, content = _json(entries, "mserve.provenance", where), _json(entries, "mserve.content", where)
    if not (isinstance(name, str) and isinstance(provenance, dict) and isinstance(content, str)):
        raise MetaGraphMalformed("mserve.name, .provenance or .content has the wrong type", where=where)
    if not isinstance(signatures, dict) or not signatures:
        raise MetaGraphMalformed("mserve.signatures is not an object with one entry or more", where=where)
    result = MetaGraph(
        name=name,
        signatures={k: Signature.from_json(v, f"{where}: signature {k}") for k, v in signatures.items()},
        shards=_records(_json(entries, "mserve.shards", where), where),
        assets=_records(_json(entries, "mserve.assets", where), where),
        golden=_one(entries, "mserve.golden", where),
        serving=_one(entries, "mserve.serving", where),
        provenance=provenance,
        content=content,
        identity=identity,
    )
    if result.format > version:
        raise MetaGraphMalformed(
            "a bundle of this format version has no sparse inputs",
            where=where,
            expected=result.format,
            found=version,
        )
    _check_files(result, where)
    return result


def _check_trailer(data: bytes, where: object) -> str:
    tail = data[-TRAILER_BYTES:]
    if len(data) < TRAILER_BYTES or not tail.startswith(_TRAILER_HEAD):
        raise DigestMismatch(
            "export.meta does not end in its digest",
            where=where,
            expected="the record mserve.sha256 at the end",
            found=f"{len(data)} bytes that end otherwise",
            hint="the copy is not finished, the file was changed, or it was not written by mserve export",
        )
    stored = tail[len(_TRAILER_HEAD) :].decode("ascii", "replace")
    actual = hashlib.sha256(memoryview(data)[:-TRAILER_BYTES]).hexdigest()
    if stored != actual:
        raise DigestMismatch(
            "export.meta was changed after it was written",
            where=where,
            expected=f"sha256 {stored}",
            found=f"sha256 {actual}",
            hint="copy the version again from where it was exported, or export it again",
        )
    return actual


def _entries(data: bytes, where: object) -> dict[str, str]:
    """The metadata entries under `mserve.`; a key that stands twice is refused."""
    entries: dict[str, str] = {}
    try:
        for record in protobuf.fields(data):
            if record.number != METADATA_PROPS:
                continue
            key, value = read_prop(data, record)
            if not key.startswith(PREFIX):
                continue
            if key in entries:
                raise DuplicateMetadata(
                    "a metadata key stands twice",
                    where=where,
                    found=key,
                    hint="do not use this bundle; readers may disagree about what it is",
                )
            if len(value) > MAX_VALUE_BYTES:
                raise MetaGraphMalformed(
                    "a metadata entry is too long",
                    where=f"{where}: {key}",
                    expected=f"at most {MAX_VALUE_BYTES} characters",
                    found=len(value),
                )
            entries[key] = value
    except protobuf.Malformed as error:
        raise MetaGraphMalformed(
            "export.meta is not a protobuf message", where=where, found=str(error)
        ) from error
    return entries


def _key_of(data: bytes | memoryview, record: protobuf.Field) -> str:
    return read_prop(data, record)[0]


def metadata_prop(key: str, value: Any) -> bytes:
    """The record of one entry of `metadata_props`: a value as JSON."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    pair = protobuf.encode_bytes(1, key.encode()) + protobuf.encode_bytes(2, text.encode())
    return protobuf.encode_bytes(METADATA_PROPS, pair)


def _json(entries: dict[str, str], key: str, where: object) -> Any:
    if key not in entries:
        raise MetaGraphMalformed("a metadata entry is missing", where=where, expected=key)
    try:
        return json.loads(entries[key])
    except (ValueError, RecursionError) as error:
        raise MetaGraphMalformed(
            "a metadata entry is not JSON", where=f"{where}: {key}", found=error
        ) from error


def _one(entries: dict[str, str], key: str, where: object) -> FileRecord | None:
    """The record of a file that a bundle may have."""
    return _records([_json(entries, key, where)], where)[0] if key in entries else None


def _records(value: Any, where: object) -> tuple[FileRecord, ...]:
    if not isinstance(value, list):
        raise MetaGraphMalformed("a file list is not a list", where=where)
    records = []
    for item in value:
        name, size, sha256 = (
            (item.get(k) for k in ("name", "size", "sha256")) if isinstance(item, dict) else "   "
        )
        if not (isinstance(name, str) and isinstance(size, int) and isinstance(sha256, str)) or (
            isinstance(size, bool) or size < 0 or not _SHA256.fullmatch(sha256)
        ):
            raise MetaGraphMalformed("a file record is not {name, size, sha256}", where=where, found=item)
        records.append(FileRecord(safe_relative(name, where), size, sha256))
    return tuple(records)


def _check_files(metagraph: MetaGraph, where: object) -> None:
    """Every listed file has a proper place and stands once."""
    doubled = [name for name, n in Counter(record.name for record in metagraph.files()).items() if n > 1]
    if doubled:
        raise MetaGraphMalformed("a file is listed twice", where=where, found=", ".join(doubled[:5]))
    if not metagraph.shards:
        raise MetaGraphMalformed("no shard is listed", where=where, expected="at least one")
    for record in metagraph.shards:
        if record.size == 0:
            raise MetaGraphMalformed("a shard is empty", where=where, found=record.name)
        if not is_shard_name(record.name):
            raise MetaGraphMalformed(
                "a shard has a wrong name", where=where, expected="export-NNNNN-of-NNNNN", found=record.name
            )
    for record in metagraph.files()[len(metagraph.shards) :]:
        if not record.name.startswith("assets/"):
            raise MetaGraphMalformed(
                "an asset lies elsewhere", where=where, expected="assets/...", found=record.name
            )
