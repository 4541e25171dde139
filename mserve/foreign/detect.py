"""What a path is, by what lies there and how it begins.

A directory is looked at for the files that its layout must have, a file for its first and
last bytes; the ending of its name is never asked. The outermost records of an ONNX
ModelProto, a SavedModel and a MetaGraphDef tell them apart: all three are protobuf, and
their fields 1, 2 and 7 differ.

A bundle of our own is told first, and the readers of other layouts are not even imported
for it: `mserve inspect` of a bundle is to stay as fast as it was.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import MserveError
from ..wire.protobuf import BYTES, FIXED32, FIXED64, VARINT, Malformed, varint
from . import files

MSERVE, ONNX, CHECKPOINT = "mserve", "onnx", "checkpoint"
SAVED_MODEL, SESSION_BUNDLE = "savedmodel", "sessionbundle"
UNKNOWN = ""
_DIGEST_KEY = b"mserve.sha256"
_TAIL_BYTES = 128
_HEAD_BYTES = 256
_RECORDS = 1000
# The fields of a ModelProto, with their wire types: 7 is the graph.
_MODEL_PROTO = {1: VARINT, 5: VARINT} | dict.fromkeys((2, 3, 4, 6, 7, 8, 14, 20, 25, 26), BYTES)
_MAY_BE_CHECKPOINT = re.compile(r"export|checkpoint$|.*\.index$")
_SUFFIX = re.compile(r"(\.index|\.meta|\.data-[0-9]{5}-of-[0-9]{5}|-[0-9]{5}-of-[0-9]{5})$")
_FILES = {
    b"TFL3": "a TensorFlow Lite file",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file (Keras?)",
    b"PK\x03\x04": "a zip archive (Keras, PyTorch or npz?)",
    b"\x80\x02": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x1f\x8b": "a gzip file",
}
_CHECKPOINT_STATE = b"model_checkpoint_path:"


@dataclass(frozen=True, slots=True)
class Detected:
    """A format (one of the names above, UNKNOWN for none), what to open for it, and what else was seen.

    For a checkpoint the path is its prefix, which need not be a file.
    """

    format: str
    path: Path
    found: str = ""


def detect(path: Path) -> Detected:
    """Say what a path is. Raises an MserveError only where a file that tells cannot be read."""
    if path.is_dir():
        return _directory(path)
    from . import table
    from .checkpoint import is_checkpoint

    if files.size_of(path) is None or table.is_table(path.with_name(path.name + ".index")):
        return Detected(CHECKPOINT if is_checkpoint(path) else UNKNOWN, path)
    return _file(path)


def _directory(path: Path) -> Detected:
    meta = path / "export.meta"
    if meta.is_symlink() or meta.exists():
        head, tail = _ends(meta)
        foreign = head[:1] == b"\x0a" and _DIGEST_KEY not in tail
        return Detected(SESSION_BUNDLE if foreign else MSERVE, path)
    for name in ("saved_model.pb", "saved_model.pbtxt", "variables/variables.index"):
        if (path / name).exists():
            return Detected(SAVED_MODEL, path)
    names = sorted(e.name for e in os.scandir(path) if _MAY_BE_CHECKPOINT.match(e.name))
    if not names:  # a base path, most likely
        return Detected(UNKNOWN, path)
    from . import table
    from .checkpoint import is_checkpoint

    if any(name.startswith("export") and table.is_table(path / name) for name in names):
        return Detected(SESSION_BUNDLE, path)
    prefix = _named_checkpoint(path / "checkpoint") or next(
        (name.removesuffix(".index") for name in reversed(names) if name.endswith(".index")), ""
    )
    if prefix and is_checkpoint(path / prefix):
        return Detected(CHECKPOINT, path / prefix)
    return Detected(UNKNOWN, path)


def _named_checkpoint(path: Path) -> str:
    """The newest checkpoint of a directory, as its `checkpoint` file names it; only the last part counts."""
    head, _ = _ends(path)
    line = head.partition(b"\n")[0]
    if not line.startswith(_CHECKPOINT_STATE):
        return ""
    text = line.removeprefix(_CHECKPOINT_STATE).strip().strip(b'"').decode(errors="replace")
    return text.replace("\\", "/").rpartition("/")[2]


def _file(path: Path) -> Detected:
    from . import table

    head, tail = _ends(path)
    if tail.endswith(table.MAGIC):
        return Detected(CHECKPOINT, path.with_name(_SUFFIX.sub("", path.name)))
    prefix = path.with_name(_SUFFIX.sub("", path.name))
    if prefix != path and table.is_table(prefix.with_name(prefix.name + ".index")):
        return Detected(CHECKPOINT, prefix)
    known = _FILES.get(next((magic for magic in _FILES if head[4:8] == magic or head.startswith(magic)), b""))
    if known or not head:
        return Detected(UNKNOWN, path, known or "an empty file")
    kinds = _records(path)
    if (7, BYTES) in kinds and all(_MODEL_PROTO.get(number) == kind for number, kind in kinds):
        return Detected(ONNX, path)
    if kinds[:2] == [(1, VARINT), (2, BYTES)] and path.name == "saved_model.pb":
        return Detected(SAVED_MODEL, path.parent)
    if kinds[:1] == [(1, BYTES)] and path.name == "export.meta":
        return Detected(SESSION_BUNDLE, path.parent)
    return Detected(UNKNOWN, path, f"a file that begins with {head[:8].hex(' ')}")


def _ends(path: Path) -> tuple[bytes, bytes]:
    """The first and last bytes of a file; nothing of what cannot be read."""
    try:
        size = files.size_of(path) or 0
        head = files.read_range(path, 0, min(size, _HEAD_BYTES))
        return head, files.read_range(path, max(0, size - _TAIL_BYTES), min(size, _TAIL_BYTES))
    except MserveError:
        return b"", b""


def _records(path: Path) -> list[tuple[int, int]]:
    """Number and wire type of the first protobuf records of a file, up to one that makes no sense."""
    kinds: list[tuple[int, int]] = []
    with files.open_regular(path) as file:
        at, size = 0, os.fstat(file.fileno()).st_size
        while at < size and len(kinds) < _RECORDS:
            file.seek(at)
            head = file.read(20)
            try:
                tag, used = varint(head, 0, len(head))
                length = 0
                if tag & 7 in (VARINT, BYTES):
                    length, used = varint(head, used, len(head))
            except Malformed:
                break
            at += used + {VARINT: 0, BYTES: length, FIXED32: 4, FIXED64: 8}.get(tag & 7, 0)
            kinds.append((tag >> 3, tag & 7))
    return kinds
