"""Shards: which tensor goes where, and the HDF5 files that hold them.

A shard is read in two ways. h5py sees one dataset for each tensor, named after it.
ONNX Runtime sees the file as ONNX external data: an offset and a length for each
tensor. Both read the same bytes, so datasets are contiguous, uncompressed, little-endian
and aligned: 64 bytes for small tensors, a page for large ones (HDF5 has one alignment
for a whole open file, so a shard is opened once for each of the two kinds).

HDF5 lays the file out, giving every dataset its place; the bytes are then written at
those places by plain writes, which is the fastest way and the same for every dtype.
The same tensors in the same order always give the same bytes.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ..tensors import DTYPES
from .metagraph import FileRecord

SMALL_ALIGNMENT = 64
PAGE_ALIGNMENT = 4096
PAGE_ALIGNED_BYTES = 64 << 10
OWN_SHARD_BYTES = 64 << 20
DEFAULT_SHARD_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor to store: `chunks()` yields its little-endian, row-major bytes, in order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[bytes | memoryview]]

    @property
    def byte_size(self) -> int:
        """Stored size in bytes."""
        return DTYPES[self.dtype].byte_size(math.prod(self.shape))


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a tensor went: bytes `offset` to `offset + length` of the file `shard`."""

    shard: str
    offset: int
    length: int
    sha256: str


def dataset_name(tensor: str) -> str:
    """The HDF5 name of a tensor: its own name, with the characters that HDF5 reserves escaped."""
    escaped = tensor.replace("%", "%25").replace("/", "%2F").replace("\0", "%00")
    return "%2E" if escaped == "." else escaped


def tensor_name(dataset: str) -> str:
    """The inverse of `dataset_name`."""
    return unquote(dataset)


def plan(tensors: Sequence[Tensor], shard_bytes: int = DEFAULT_SHARD_BYTES) -> list[list[Tensor]]:
    """Distribute tensors over shards, in order of name; no tensor is split.

    A tensor of 64 MiB or more has a shard of its own, so that a change elsewhere leaves
    that file alone; the others fill shards up to `shard_bytes`. There is always at least
    one shard, empty for a model without large constants.
    """
    small: list[list[Tensor]] = [[]]
    own: list[list[Tensor]] = []
    filled = 0
    for tensor in sorted(tensors, key=lambda t: t.name):
        if tensor.byte_size >= OWN_SHARD_BYTES:
            own.append([tensor])
            continue
        if small[-1] and filled + tensor.byte_size > shard_bytes:
            small.append([])
            filled = 0
        small[-1].append(tensor)
        filled += tensor.byte_size
    return [group for group in small if group] + own or [[]]


def write_shard(path: Path, tensors: Sequence[Tensor]) -> tuple[FileRecord, dict[str, Placed]]:
    """Write one shard in one pass, flush it to the disk, and say where each tensor went.

    Raises OSError (disk full, not writable).
    """
    offsets = _lay_out(path, tensors)
    placed: dict[str, Placed] = {}
    with path.open("r+b", buffering=0) as file, ThreadPoolExecutor(2) as threads:
        whole, at = hashlib.sha256(), 0
        for tensor in sorted(tensors, key=lambda t: offsets[t.name]):
            offset = offsets[tensor.name]
            at = _digest_to(file.fileno(), whole, at, offset)
            part = hashlib.sha256()
            for chunk in tensor.chunks():
                view = memoryview(chunk).cast("B")
                # sha256 lets go of the interpreter: both digests and the write go on at once.
                digests = [threads.submit(digest.update, view) for digest in (whole, part)]
                _write_at(file.fileno(), view, at)
                at += len(view)
                for digest in digests:
                    digest.result()
            if at != offset + tensor.byte_size:
                raise ValueError(f"{tensor.name}: {at - offset} bytes, not {tensor.byte_size}")
            placed[tensor.name] = Placed(path.name, offset, tensor.byte_size, part.hexdigest())
        size = os.fstat(file.fileno()).st_size
        _digest_to(file.fileno(), whole, at, size)
        os.fsync(file.fileno())
    return FileRecord(path.name, size, whole.hexdigest()), placed


def _digest_to(fd: int, digest: hashlib._Hash, at: int, end: int) -> int:
    """Digest what HDF5 has written between two tensors."""
    while at < end:
        piece = os.pread(fd, min(end - at, 1 << 20), at)
        if not piece:
            raise OSError(errno.EIO, "the shard is shorter than HDF5 said")
        digest.update(piece)
        at += len(piece)
    return at


def _write_at(fd: int, view: memoryview, at: int) -> None:
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], at + done)


def _lay_out(path: Path, tensors: Sequence[Tensor]) -> dict[str, int]:
    """Create the datasets and return each one's absolute byte offset."""
    import h5py

    small = [t for t in tensors if t.byte_size < PAGE_ALIGNED_BYTES]
    large = [t for t in tensors if t.byte_size >= PAGE_ALIGNED_BYTES]
    offsets: dict[str, int] = {}
    for mode, group, alignment in (("w", small, SMALL_ALIGNMENT), ("r+", large, PAGE_ALIGNMENT)):
        with h5py.File(
            path, mode, libver=("v110", "v110"), alignment_threshold=1, alignment_interval=alignment
        ) as file:
            for tensor in group:
                offsets[tensor.name] = _create(file, tensor)
    return offsets


def _create(file: Any, tensor: Tensor) -> int:
    import h5py

    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_layout(h5py.h5d.CONTIGUOUS)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    layout.set_obj_track_times(False)
    shape, kind = storage(tensor.dtype, tensor.shape)
    name = dataset_name(tensor.name).encode()
    dataset = h5py.h5d.create(file.id, name, kind, h5py.h5s.create_simple(shape), layout)
    h5py.Dataset(dataset).attrs["onnx_dtype"] = tensor.dtype
    if shape != tensor.shape:
        h5py.Dataset(dataset).attrs["onnx_shape"] = tensor.shape
    return int(dataset.get_offset())


def storage(dtype: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], Any]:
    """The HDF5 shape and type of a tensor.

    bfloat16 has an HDF5 float type of its own, so that h5py reads real values; types
    that HDF5 has no word for are stored as bytes, 4-bit ones packed in one dimension
    (the first value in the low half of a byte).
    """
    import h5py

    info = DTYPES[dtype]
    if dtype == "bfloat16":
        kind = h5py.h5t.IEEE_F16LE.copy()
        kind.set_fields(15, 7, 8, 0, 7)
        kind.set_ebias(127)
        return shape, kind
    if info.bits < 8:
        return (info.byte_size(math.prod(shape)),), h5py.h5t.STD_U8LE
    if dtype.startswith("float8"):
        return shape, h5py.h5t.STD_U8LE
    numpy_dtype = info.to_numpy()
    little_endian = numpy_dtype.newbyteorder("<") if numpy_dtype.itemsize > 1 else numpy_dtype
    return shape, h5py.h5t.py_create(little_endian)


def chunked(data: bytes | memoryview, size: int = 16 << 20) -> Iterator[memoryview]:
    """The bytes of `data` in pieces of at most `size`; nothing is copied."""
    view = memoryview(data).cast("B")
    for at in range(0, len(view), size):
        yield view[at : at + size]
