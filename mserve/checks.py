"""Validate: a bundle in, findings out.

A bundle that cannot be opened is not a finding but an error (exit 3). Everything here
looks at what an open bundle promises and whether it is so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from .errors import MserveError
from .format import Bundle, FileRecord
from .format.digests import file_digest, range_digest
from .format.golden import unpack
from .format.metagraph import content_digest
from .loader.servable import Servable
from .numerics import ATOL, RTOL, compare
from .runtime.ort import open_sessions

ERROR, WARNING = "error", "warning"

# Every code, with what it means; `mserve validate --json` reports codes from this table only.
CODES = {
    "file-digest": "a file's bytes are not those that were exported",
    "tensor-digest": "a tensor's bytes are not those that were exported",
    "content-digest": "the recorded content digest is not that of export.meta",
    "shard-layout": "a shard is not HDF5, or its datasets are not where the graph says",
    "tensor-overlap": "two tensors share bytes of a shard",
    "onnx-checker": "onnx.checker refuses the graph",
    "load": "ONNX Runtime does not load the graph",
    "golden-run": "the model fails on its own golden inputs",
    "golden-outputs": "the model's answers are not the recorded ones",
    "golden-absent": "no golden samples are recorded, so answers were not checked",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One result of a check: a code of CODES, error or warning, where, and what was found."""

    code: str
    severity: str
    where: str
    text: str

    def to_json(self) -> dict[str, str]:
        return {"code": self.code, "severity": self.severity, "where": self.where, "text": self.text}


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far golden outputs may be off: |difference| <= atol + rtol * |recorded|."""

    rtol: float = RTOL
    atol: float = ATOL


def validate(
    bundle: Bundle, tolerance: Tolerance = Tolerance(), progress: Callable[[str], None] = lambda _: None
) -> list[Finding]:
    """All findings about an open bundle. `progress` is told which check begins."""
    steps: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("digests", lambda: _digests(bundle)),
        ("shard layout", lambda: _shards(bundle)),
        ("graph", lambda: _graph(bundle)),
        ("answers", lambda: _answers(bundle, tolerance)),
    ]
    findings: list[Finding] = []
    for name, step in steps:
        progress(name)
        findings += step()
    return findings


def _digests(bundle: Bundle) -> Iterator[Finding]:
    content = content_digest(bundle.meta)
    if content != bundle.metagraph.content:
        yield Finding(
            "content-digest", ERROR, "export.meta", f"recorded {bundle.metagraph.content}, found {content}"
        )
    for record in bundle.metagraph.files():
        actual = file_digest(bundle.file(record))
        if actual == record.sha256:
            continue
        yield Finding("file-digest", ERROR, record.name, f"sha256 {record.sha256} recorded, {actual} found")
        yield from _tensor_digests(bundle, record)


def _tensor_digests(bundle: Bundle, record: FileRecord) -> Iterator[Finding]:
    """Name the tensors of a damaged shard whose bytes changed."""
    for weight in bundle.graph.weights:
        if weight.shard == record.name and weight.sha256:
            actual = range_digest(bundle.file(record), weight.offset, weight.length)
            if actual != weight.sha256:
                place = f"bytes {weight.offset} to {weight.offset + weight.length} of {record.name}"
                yield Finding(
                    "tensor-digest",
                    ERROR,
                    weight.name,
                    f"{place}: sha256 {weight.sha256} recorded, {actual} found",
                )


def _shards(bundle: Bundle) -> Iterator[Finding]:
    import h5py

    from .format.shards import dataset_name

    for record in bundle.metagraph.shards:
        weights = sorted((w for w in bundle.graph.weights if w.shard == record.name), key=lambda w: w.offset)
        for before, after in pairwise(weights):
            if before.offset + before.length > after.offset:
                yield Finding("tensor-overlap", ERROR, after.name, f"begins inside {before.name}")
        try:
            with h5py.File(bundle.file(record), "r") as file:
                for weight in weights:
                    yield from _dataset(file, dataset_name(weight.name), weight.offset, record.name)
        except OSError as error:
            yield Finding("shard-layout", ERROR, record.name, f"h5py cannot read it: {error}")


def _dataset(file: Any, name: str, offset: int, shard: str) -> Iterator[Finding]:
    import h5py

    link = file.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        yield Finding("shard-layout", ERROR, name, f"{shard} holds no dataset of this name")
        return
    dataset = file[name]
    found = dataset.id.get_offset() if isinstance(dataset, h5py.Dataset) else None
    if found != offset:
        yield Finding(
            "shard-layout", ERROR, name, f"lies at byte {found} of {shard}, the graph says {offset}"
        )


def _graph(bundle: Bundle) -> Iterator[Finding]:
    """onnx.checker over the graph's bytes, with the shards' tensors standing in as inputs."""
    import onnx

    try:
        model = onnx.ModelProto.FromString(bundle.meta)
        stored = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
        inline = [t for t in model.graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL]
        inputs = [onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in stored]
        del model.graph.initializer[:]
        model.graph.initializer.extend(inline)
        model.graph.input.extend(inputs)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's and the checker's own exceptions
        yield Finding("onnx-checker", ERROR, "export.meta", " ".join(str(error).split())[:500])


def _answers(bundle: Bundle, tolerance: Tolerance) -> Iterator[Finding]:
    try:
        sessions = open_sessions(bundle)
    except MserveError as error:
        yield Finding("load", ERROR, "export.meta", str(error))
        return
    if bundle.metagraph.golden is None:
        yield Finding("golden-absent", WARNING, "assets/mserve/golden.npz", CODES["golden-absent"])
        return
    try:
        golden = unpack(bundle.file(bundle.metagraph.golden), bundle.metagraph.signatures)
        servable = Servable(bundle, sessions, golden)
        for name, sample in golden.items():
            outputs = servable.run(sample.inputs, name)
            for alias, recorded in sample.outputs.items():
                difference = compare(recorded, outputs[alias], tolerance.rtol, tolerance.atol)
                if not difference.equal:
                    yield Finding("golden-outputs", ERROR, f"{name}.{alias}", difference.reason)
    except MserveError as error:
        yield Finding("golden-run", ERROR, "assets/mserve/golden.npz", str(error))
