"""An ONNX model, from a file or in memory, taken apart into a graph and its tensors.

Large constants leave the graph: initializers of the main graph, and the values of its
Constant nodes, become tensors to store in shards. What stays inline: strings, small
tensors, and the constants of subgraphs and functions, which ONNX Runtime cannot read
from a shard. Initializers that old models list as inputs are taken off that list, since
ONNX Runtime never prepares a weight that a request could replace.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..files import open_input
from ..format.graph import MAX_DIMS
from ..format.inner import checkable, inner_tensors
from ..format.metagraph import PREFIX
from ..format.shards import Tensor, chunked
from ..tensors import BY_ONNX, DTYPES
from ..wire import protobuf
from . import partitions
from .kinds import Kind, Seen, Source
from .partitions import PartitionedTensor

if TYPE_CHECKING:
    import onnx

INLINE_BYTES = 4096
MAX_PROTO_BYTES = 2**31 - 1


def read(source: Any, partitioned: Mapping[str, PartitionedTensor] | None = None) -> Source:
    """Take an ONNX file or an `onnx.ModelProto` apart.

    `partitioned` holds weights, by name, whose values come from elsewhere.

    Raises InputError: not an ONNX file, truncated, too large, invalid graph, missing or
    short external data, a dtype that cannot be served.
    """
    import onnx

    if isinstance(source, onnx.ModelProto):
        model = onnx.ModelProto()
        model.CopyFrom(source)
        origin: dict[str, str] = {"kind": "onnx"}
        directory, where, name = None, "the model object", ""
    elif not isinstance(source, str | os.PathLike):
        raise InputError(
            "this kind of object cannot be exported",
            expected="a path, an onnx.ModelProto, or a model of a framework that mserve knows",
            found=f"{type(source).__module__}.{type(source).__qualname__}",
            hint=KNOWN,
        )
    else:
        path = Path(source)
        data = _read_file(path)
        model = _parse(data, path)
        file = path.name.encode("utf-8", "replace").decode()
        origin = {"kind": "onnx", "file": file, "sha256": hashlib.sha256(data).hexdigest()}
        directory, where, name = path.parent, str(path), path.stem
    replaced = [_replace(model.graph, tensor, where) for tensor in (partitioned or {}).values()]
    tensors = [*_take_apart(model, directory, where, {t.name for t in replaced}), *replaced]
    _check(model, tensors, where)
    return Source(model, tensors, origin, name)


def _read_file(path: Path) -> bytes:
    if path.is_dir():
        raise InputError(
            "the directory is no known source",
            where=path,
            expected="a model's directory, or a file",
            hint=KNOWN,
        )
    with open_input(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_PROTO_BYTES:
            raise InputError(
                "the ONNX file is over 2 GiB, which no ONNX reader accepts",
                where=path,
                found=f"{size} bytes",
                hint="save it with external data: onnx.save(model, path, save_as_external_data=True)",
            )
        return file.read(size)


KNOWN = "mserve export --list shows every source, and what it needs"
_MAGIC = {
    b"PK\x03\x04": "a zip archive (PyTorch, Keras or npz?)",
    b"\x89HDF": "an HDF5 file (Keras?)",
    b"\x80\x04": "a pickle",
    b"\x80\x02": "a pickle",
}


def _parse(data: bytes, path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    magic = next((text for start, text in _MAGIC.items() if data.startswith(start)), "")
    seen: set[int] = set()
    try:
        for record in protobuf.fields(data):
            seen.add(record.number)
    except protobuf.Malformed as error:
        broken = 1 in seen and not magic
        what = "the ONNX file is truncated" if broken else "no known source, and not an ONNX file"
        raise InputError(
            what,
            where=path,
            expected="a whole ONNX ModelProto",
            found=magic or f"{len(data)} bytes; {error}",
            hint="copy or save the model again" if broken else KNOWN,
        ) from error
    if 7 not in seen or 8 not in seen:
        found = magic or ("an empty file" if not data else "a message without graph and opset")
        raise InputError(
            "no known source, and not an ONNX file",
            where=path,
            expected="an ONNX ModelProto",
            found=found,
            hint=KNOWN,
        )
    try:
        model: onnx.ModelProto = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise InputError("not an ONNX file", where=path, found=error) from error
    return model


def _replace(graph: onnx.GraphProto, tensor: PartitionedTensor, where: str) -> Tensor:
    """Make a weight, or an input, of the graph one whose values lie in parts."""
    import onnx

    proto = next((t for t in graph.initializer if t.name == tensor.name), None)
    known = [t.name for t in graph.initializer] + [v.name for v in graph.input]
    if tensor.name not in known:
        raise InputError(
            "no weight or input has the partitioned name",
            where=f"{where}: {tensor.name}",
            expected=", ".join(known[:8]),
        )
    if proto is None:
        proto = graph.initializer.add(name=tensor.name)
    elif (proto.data_type, *proto.dims) != (DTYPES[tensor.dtype].onnx, *tensor.shape):
        raise InputError(
            "the parts do not add up to the weight",
            where=f"{where}: {tensor.name}",
            expected=f"{_type_name(proto.data_type)} {list(proto.dims)}",
            found=f"{tensor.dtype} {list(tensor.shape)}",
        )
    proto.CopyFrom(onnx.TensorProto(name=tensor.name, data_type=DTYPES[tensor.dtype].onnx, dims=tensor.shape))
    return Tensor(tensor.name, tensor.dtype, tensor.shape, tensor.chunks)


def _take_apart(
    model: onnx.ModelProto, directory: Path | None, where: str, placed: Collection[str]
) -> list[Tensor]:
    """The tensors to store, taken out of the model; those in `placed` are stored already."""
    graph = model.graph
    _drop_own_metadata(model)
    for tensor in inner_tensors(model):
        _make_inline(tensor, directory, where)
    _hoist_constants(graph)
    names = {t.name for t in graph.initializer}
    if any(v.name in names for v in graph.input):
        kept = [v for v in graph.input if v.name not in names]
        del graph.input[:]
        graph.input.extend(kept)
    model.ir_version = max(model.ir_version, 4)  # before 4, every initializer had to be an input
    own = [proto for proto in graph.initializer if proto.name not in placed]
    tensors = [t for proto in own if (t := _externalise(proto, directory, where))]
    if len({t.name for t in tensors}) != len(tensors):
        raise InputError("two initializers have one name", where=where)
    return tensors


def _drop_own_metadata(model: onnx.ModelProto) -> None:
    """A bundle's `export.meta` is an ONNX file too; what mserve had added to it does not travel."""
    kept = [p for p in model.metadata_props if not p.key.startswith(PREFIX)]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]


def _hoist_constants(graph: onnx.GraphProto) -> None:
    """Turn the large Constant nodes of the main graph into initializers of the same name."""
    kept = []
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value" and a.HasField("t")), None)
        plain = node.op_type == "Constant" and node.domain in ("", "ai.onnx")
        if not plain or value is None or value.ByteSize() < INLINE_BYTES:
            kept.append(node)
        else:
            value.name = node.output[0]
            graph.initializer.append(value)
    if len(kept) != len(graph.node):
        copies = [_copy(node) for node in kept]
        del graph.node[:]
        graph.node.extend(copies)


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    import onnx

    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _externalise(proto: onnx.TensorProto, directory: Path | None, where: str) -> Tensor | None:
    """Empty a large initializer and return its bytes as a tensor to store; None if it stays inline."""
    dtype = BY_ONNX.get(proto.data_type)
    if dtype is None:
        raise InputError(
            "a weight has a dtype that cannot be served",
            where=f"{where}: {proto.name}",
            expected=", ".join(d.name for d in BY_ONNX.values()),
            found=_type_name(proto.data_type),
        )
    shape = tuple(proto.dims)
    if len(shape) > MAX_DIMS:
        raise InputError(
            "a weight has too many dimensions",
            where=f"{where}: {proto.name}",
            expected=f"at most {MAX_DIMS}",
            found=len(shape),
        )
    size = dtype.byte_size(_elements(proto, where))
    if dtype.bits == 0 or size < INLINE_BYTES:
        _make_inline(proto, directory, where)
        return None
    data = _bytes_of(proto, size, directory, where)
    _clear_data(proto)
    return Tensor(proto.name, dtype.name, shape, lambda: chunked(data))


def _elements(proto: onnx.TensorProto, where: str) -> int:
    count = 1
    for dim in proto.dims:
        if dim < 0:
            raise InputError(
                "a weight has a negative size", where=f"{where}: {proto.name}", found=list(proto.dims)
            )
        count *= dim
    return count


def _bytes_of(proto: onnx.TensorProto, size: int, directory: Path | None, where: str) -> Any:
    """The little-endian bytes of a tensor: its own, a view of its external file, or converted."""
    from onnx import TensorProto, numpy_helper

    if proto.data_location == TensorProto.EXTERNAL:
        return _external(proto, size, directory, where)
    data = proto.raw_data
    if not data:
        try:
            data = numpy_helper.from_array(numpy_helper.to_array(proto)).raw_data
        except ValueError as error:
            raise InputError("a weight is malformed", where=f"{where}: {proto.name}", found=error) from error
    if len(data) != size:
        raise InputError(
            "a weight has the wrong number of bytes",
            where=f"{where}: {proto.name}",
            expected=f"{size} bytes for shape {list(proto.dims)}",
            found=f"{len(data)} bytes",
        )
    return data


def _external(proto: onnx.TensorProto, size: int, directory: Path | None, where: str) -> memoryview:
    """A view of a tensor's bytes in the source's external data file."""
    entries = {e.key: e.value for e in proto.external_data}
    tensor = f"{where}: {proto.name}"
    if directory is None:
        raise InputError(
            "a weight lies in another file",
            where=tensor,
            hint="export from the path of the .onnx file, so that its data can be found",
        )
    location = entries.get("location", "")
    path = (directory / location).absolute()
    if not location or Path(location).is_absolute() or ".." in Path(location).parts:
        raise InputError(
            "external data lies outside the model's directory", where=tensor, found=repr(location)
        )
    try:
        offset, length = int(entries.get("offset") or 0), int(entries.get("length") or size)
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InputError("external data is not a regular file", where=tensor, found=path)
            available = os.fstat(file.fileno()).st_size
            if offset < 0 or length != size or offset + size > available:
                raise InputError(
                    "external data is short or has the wrong length",
                    where=f"{tensor} in {path}",
                    expected=f"{size} bytes at byte {offset}",
                    found=f"length {length}, file of {available} bytes",
                )
            if size == 0:
                return memoryview(b"")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise InputError(
            "external data is missing",
            where=tensor,
            expected=f"{size} bytes in {path}",
            found=error.strerror or error,
            hint="copy the data file beside the .onnx file",
        ) from error
    except ValueError as error:
        raise InputError("external data is malformed", where=tensor, found=entries) from error
    return memoryview(mapped)[offset : offset + size]


def _make_inline(proto: onnx.TensorProto, directory: Path | None, where: str) -> None:
    """Bring a tensor that lies in an external file into the graph."""
    from onnx import TensorProto

    dtype = BY_ONNX.get(proto.data_type)
    if proto.data_location != TensorProto.EXTERNAL or dtype is None:
        return
    data = bytes(_external(proto, dtype.byte_size(_elements(proto, where)), directory, where))
    _clear_data(proto)
    proto.raw_data = data


def _clear_data(proto: onnx.TensorProto) -> None:
    for field in (
        "raw_data float_data int32_data int64_data double_data uint64_data external_data data_location"
    ).split():
        proto.ClearField(field)


def _type_name(number: int) -> str:
    import onnx

    try:
        return str(onnx.TensorProto.DataType.Name(number)).lower()
    except ValueError:
        return f"type {number}"


def _check(model: onnx.ModelProto, tensors: list[Tensor], where: str) -> None:
    """onnx.checker over the graph, with the stored tensors standing in as inputs."""
    import onnx

    try:
        onnx.checker.check_model(checkable(model, {t.name for t in tensors}))
    except Exception as error:  # the checker raises its own C++ exceptions
        raise InputError(
            "the graph is not valid ONNX",
            where=where,
            found=" ".join(str(error).split())[:500],
            hint="mend the converter that made it; onnx.checker.check_model reports the same",
        ) from error


def _matches(seen: Seen) -> bool:
    from ..foreign import detect

    return seen.is_file and detect.detect(seen.path).format == detect.ONNX


def _accepts(source: Any) -> bool:
    return type(source).__module__.startswith("onnx.") and type(source).__name__ == "ModelProto"


KIND = Kind(
    name="onnx",
    what="an ONNX file",
    matches=_matches,
    read=lambda source, options: read(source, partitions.find(options.partitioned)),
    options=("partitioned",),
    accepts=_accepts,
)
