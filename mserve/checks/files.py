"""Files: every byte against its digest, every shard against the graph."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from ..errors import BundleError, MetaGraphMalformed
from ..format import Bundle, FileRecord, layout
from ..format.digests import file_digest, range_digest
from ..format.graph import Weight
from ..format.metagraph import content_digest
from ..format.serving import read_serving
from ..format.shards import dataset_name, storage
from .findings import Finding


def digests(bundle: Bundle) -> Iterator[Finding]:
    """The content digest, and the digest of every file; of a damaged shard, the tensors that changed."""
    content = content_digest(bundle.meta)
    if content != bundle.metagraph.content:
        yield Finding(
            "content-digest", "export.meta", f"recorded {bundle.metagraph.content}, found {content}"
        )
    for record in bundle.metagraph.files():
        try:
            actual = file_digest(bundle.file(record))
        except OSError as error:
            yield Finding("file-digest", record.name, f"cannot be read: {error.strerror or error}")
            continue
        if actual != record.sha256:
            yield Finding("file-digest", record.name, f"sha256 {record.sha256} recorded, {actual} found")
            yield from _tensors(bundle, record)
    try:
        read_serving(bundle)
    except MetaGraphMalformed as error:  # what stops the version from being loaded
        yield Finding("load", layout.SERVING_FILE, str(error))
    except BundleError:  # found above
        pass


def _tensors(bundle: Bundle, record: FileRecord) -> Iterator[Finding]:
    for weight in bundle.graph.weights:
        if weight.shard != record.name or not weight.sha256:
            continue
        place = f"bytes {weight.offset} to {weight.offset + weight.length} of {record.name}"
        try:
            actual = range_digest(bundle.file(record), weight.offset, weight.length)
        except (OSError, EOFError) as error:
            yield Finding("tensor-digest", weight.name, f"{place} cannot be read: {error}")
            continue
        if actual != weight.sha256:
            text = f"{place}: sha256 {weight.sha256} recorded, {actual} found"
            yield Finding("tensor-digest", weight.name, text)


def shards(bundle: Bundle) -> Iterator[Finding]:
    """Each shard as h5py sees it: a dataset for each tensor, contiguous, in its place, of its type."""
    import h5py

    for record in bundle.metagraph.shards:
        weights = sorted((w for w in bundle.graph.weights if w.shard == record.name), key=lambda w: w.offset)
        for before, after in pairwise(weights):
            if before.offset + before.length > after.offset:
                yield Finding("tensor-overlap", after.name, f"begins inside {before.name}")
        try:
            with h5py.File(bundle.file(record), "r") as file:
                for weight in weights:
                    if problem := _dataset(file, weight):
                        yield Finding("shard-layout", weight.name, f"{record.name}: {problem}")
        except (OSError, RuntimeError, ValueError, KeyError) as error:  # h5py has all of these for bad files
            yield Finding("shard-layout", record.name, f"h5py cannot read it: {error}")


def _dataset(file: Any, weight: Weight) -> str:
    """What is wrong with a tensor's dataset, or ""."""
    import h5py

    name = dataset_name(weight.name)
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        return "no dataset of this name"
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        return "a group, not a dataset"
    layout = dataset.id.get_create_plist()
    if layout.get_layout() != h5py.h5d.CONTIGUOUS or layout.get_nfilters() or layout.get_external_count():
        return "not contiguous and plain"
    if dataset.id.get_offset() != weight.offset:
        return f"lies at byte {dataset.id.get_offset()}, the graph says {weight.offset}"
    shape, kind = storage(weight.dtype, weight.shape)
    if dataset.shape != shape or dataset.id.get_type() != kind:
        return f"is {dataset.dtype} {list(dataset.shape)}, the graph says {weight.dtype} {list(weight.shape)}"
    return ""
