"""Model: one side of a comparison, whatever it lies in: a bundle, an ONNX file or a SavedModel.

Nothing is loaded. What is known of a tensor is its dtype, shape and digest, where that is recorded,
and how its bytes are read; a SavedModel has no graph that could be compared with an ONNX one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import InputError, NotABundle
from ..foreign import detect
from ..format import Bundle, layout, open_bundle
from ..format.digests import file_digest
from ..tensors import DEFAULT_SIGNATURE, DTYPES, Signature, TensorSpec
from ..wire import protobuf
from ..wire.model_proto import Weight
from ..wire.tensor_proto import STRING_FIELD
from ..wire.tensor_proto import chunks as inline_chunks

BUNDLE, ONNX, SAVED_MODEL = "bundle", "ONNX file", "SavedModel"
# What TensorFlow keeps in a checkpoint beside what was learned.
_BOOKKEEPING = ("_CHECKPOINTABLE_OBJECT_GRAPH", "save_counter/.ATTRIBUTES/VARIABLE_VALUE")


@dataclass(frozen=True, slots=True)
class Tensor:
    """A weight. `sha256` is its recorded digest or ""; its bytes lie at `offset` of `path`, if that is known.

    `pieces()` yields its little-endian bytes; those of strings, each behind its length, and of unknown
    dtypes whatever stands there, which is enough to tell whether they are equal.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    length: int
    pieces: Callable[[], Iterator[bytes]]
    sha256: str = ""
    path: Path | None = None
    offset: int = 0

    def digest(self) -> str:
        """The recorded sha256, or that of the bytes, read now. Raises as `pieces`."""
        if self.sha256:
            return self.sha256
        found = hashlib.sha256()
        for piece in self.pieces():
            found.update(piece)
        return found.hexdigest()


@dataclass(frozen=True, slots=True)
class Asset:
    """A file beside the model: its size in bytes and where it lies; `recorded` is its sha256, if known."""

    size: int
    path: Path
    recorded: str = ""

    def digest(self) -> str:
        """sha256 in hex. Raises OSError."""
        return self.recorded or file_digest(self.path)


@dataclass(frozen=True, slots=True)
class Model:
    """One side. `data` is the serialised ModelProto, None for a SavedModel; `batching` whether its
    signatures say which axis is the batch; `assets` is None where the layout has none."""

    path: Path
    kind: str
    signatures: Mapping[str, Signature]
    tensors: Mapping[str, Tensor]
    assets: Mapping[str, Asset] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    data: bytes | None = None
    bundle: Bundle | None = None
    content: str = ""

    @property
    def batching(self) -> bool:
        return self.bundle is not None

    def facts(self) -> dict[str, Any]:
        """What reports say of it."""
        shown: dict[str, Any] = {"path": str(self.path), "kind": self.kind, "weights": len(self.tensors)}
        shown["parameters"] = sum(_elements(t) for t in self.tensors.values())
        shown["bytes"] = sum(t.length for t in self.tensors.values())
        if self.bundle is not None:
            meta = self.bundle.metagraph
            shown |= {"version": self.bundle.version, "identity": meta.identity, "content": meta.content}
        return shown


def _elements(tensor: Tensor) -> int:
    count = 1
    for size in tensor.shape:
        count *= size
    return count


def open_model(path: Path) -> Model:
    """Open a version directory, a base path (its newest version), an ONNX file or a SavedModel.

    Raises a BundleError or InputError for what is broken, incomplete or something else.
    """
    found = detect.detect(path)
    if not found.format and path.is_dir() and (versions := layout.versions(path)):
        found = detect.detect(versions[max(versions)])
    opening = _OPENING.get(found.format)
    if opening is None and not path.exists():
        raise NotABundle("no such model", where=path, hint="give a version directory or a base path")
    if opening is None:
        raise InputError(
            "not a model that can be compared",
            where=found.path,
            expected="a bundle, an ONNX file or a TensorFlow SavedModel",
            found=found.found or found.format or "a directory of something else",
        )
    return opening(found.path)


def _bundle(path: Path) -> Model:
    bundle = open_bundle(path)
    meta = bundle.metagraph
    provenance = {f"provenance {key}": str(value) for key, value in meta.provenance.items()}
    graph = bundle.graph
    return Model(
        path=bundle.path,
        kind=BUNDLE,
        signatures=meta.signatures,
        tensors={
            w.name: _weight(bundle.meta, w, bundle.path, bundle.path / "export.meta") for w in graph.weights
        },
        assets={r.name: Asset(r.size, bundle.file(r), r.sha256) for r in meta.assets},
        metadata={
            "name": meta.name,
            **provenance,
            **_about(graph.producer, graph.ir_version, graph.metadata),
        },
        data=bundle.meta,
        bundle=bundle,
        content=meta.content,
    )


def _about(producer: str, ir_version: int, metadata: Mapping[str, str]) -> dict[str, str]:
    return {"producer": producer, "IR version": str(ir_version)} | {
        f"metadata {key}": value for key, value in metadata.items()
    }


def _onnx(path: Path) -> Model:
    from ..exporters.signatures import aliases
    from ..foreign.onnx_file import open_onnx

    opened = open_onnx(path)
    if opened.problems:
        raise opened.problems[0]
    sides = [
        dict(zip(aliases([s.name for s in specs]), specs, strict=True))
        for specs in (opened.inputs, opened.outputs)
    ]
    graph = opened.graph
    return Model(
        path=path,
        kind=ONNX,
        signatures={DEFAULT_SIGNATURE: Signature("predict", sides[0], sides[1])},
        tensors={w.name: _weight(opened.data, w, path.parent, path) for w in graph.weights},
        metadata=_about(graph.producer, graph.ir_version, graph.metadata),
        data=opened.data,
    )


def _weight(data: bytes, weight: Weight, directory: Path, where: Path) -> Tensor:
    """A weight of an ONNX graph, whose external bytes lie below `directory`."""
    known = weight.dtype in DTYPES and weight.dtype != "string"
    length = DTYPES[weight.dtype].byte_size(weight.elements) if known else weight.length
    if weight.shard and length != weight.length:
        raise InputError(
            "a weight has the wrong number of bytes",
            where=f"{where}: {weight.name}",
            expected=f"{length} bytes for {weight.dtype} {list(weight.shape)}",
            found=f"{weight.length} bytes",
        )
    tensor = Tensor(
        weight.name, weight.dtype, weight.shape, length, partial(_inline, data, weight, known, where)
    )
    if not weight.shard:
        return tensor
    path = directory / weight.shard
    return replace(
        tensor,
        pieces=partial(_pieces, path, weight.offset, length),
        sha256=weight.sha256,
        path=path,
        offset=weight.offset,
    )


def constant(data: bytes, weight: Weight, where: Path) -> Tensor:
    """The tensor that a Constant node holds."""
    return _weight(data, weight, where.parent, where)


def _pieces(path: Path, offset: int, length: int) -> Iterator[bytes]:
    from ..foreign.files import pieces

    return pieces(path, offset, length)


def _inline(data: bytes, weight: Weight, known: bool, where: Path) -> Iterator[bytes]:
    """The values of a weight that stands in the graph. Raises InputError."""
    try:
        if known:
            yield from inline_chunks(data, weight)
            return
        for f in protobuf.fields(data, weight.start, weight.end):
            if f.number == STRING_FIELD or (f.number not in (1, 2, 8, 12, 16) and weight.dtype != "string"):
                yield (f.end - f.start).to_bytes(8, "little") + data[f.start : f.end]
    except protobuf.Malformed as error:
        raise InputError("a weight is malformed", where=f"{where}: {weight.name}", found=error) from error


def _saved_model(path: Path) -> Model:
    from ..foreign.saved_model import open_saved_model
    from ..foreign.values import chunks

    opened = open_saved_model(path)
    if opened.problems:
        raise opened.problems[0]
    graphs = opened.meta_graphs
    served = next((g for g in graphs if "serve" in g.tags), graphs[0])
    variables = opened.checkpoint.variables if opened.checkpoint else ()
    tensors = {
        v.name: Tensor(v.name, v.dtype, v.shape, v.length, partial(chunks, opened.checkpoint, v))
        for v in variables
        if v.name not in _BOOKKEEPING and opened.checkpoint is not None
    }
    assets = {f"assets/{name}": Asset(size, path / "assets" / name) for name, size in opened.assets.items()}
    extra = {f"assets.extra/{n}": Asset(size, path / "assets.extra" / n) for n, size in opened.extra.items()}
    return Model(
        path=path,
        kind=SAVED_MODEL,
        signatures={name: _signature(one) for name, one in sorted(served.signatures.items())},
        tensors=tensors,
        assets=assets | extra,
        metadata={"tags": ", ".join(served.tags), "TensorFlow": served.tensorflow_version},
    )


def _signature(one: Any) -> Signature:
    """A SignatureDef in our form; an input that may be left out has its default somewhere in the graph."""
    from ..foreign.session_bundle import METHOD

    def spec(info: Any, default: Any = None) -> TensorSpec:
        return TensorSpec(info.name or ", ".join(info.parts), info.dtype, info.shape, default=default)

    inputs = {
        a: spec(info, "(in the graph)" if a in one.defaults else None) for a, info in one.inputs.items()
    }
    outputs = {a: spec(info) for a, info in one.outputs.items()}
    return Signature(one.method_name.removeprefix(METHOD) or "predict", inputs, outputs)


_OPENING: dict[str, Callable[[Path], Model]] = {
    detect.MSERVE: _bundle,
    detect.ONNX: _onnx,
    detect.SAVED_MODEL: _saved_model,
}
