"""TensorFlow's messages to values and back: TensorProto, Example, SignatureDef.

A TensorProto says a shape, and its values in one of two ways: as bytes in
`tensor_content`, or one by one in the field of its type. There, fewer values than the
shape has elements mean that the last one counts for the rest, and no value at all means
zeros; so a few bytes can ask for any amount of memory, and what a request's tensors may
take together is limited before any is made.

Answers use the field of the type, as TensorFlow Serving's do: clients read `float_val`
by name. Values of fixed width are handed to protobuf as the bytes of the packed field,
which costs as little as `tensor_content` would (1 ms instead of 47 ms for a million floats).

Source: https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/framework/tensor.proto
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

from ..errors import PayloadTooLarge, RequestError
from ..tensors import DTYPES, Array, DType, Signature, TensorSpec, dtype_of, show_shape
from . import protobuf
from .json_values import check_texts
from .messages import message
from .parts import check_parts
from .tfs_examples import check_count

MAX_RANK = 32
# Where values of a dtype stand; tags of the packed fields whose bytes are those of the array.
_FIELDS = {
    "float32": "float_val",
    "float64": "double_val",
    "int64": "int64_val",
    "bool": "bool_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
    "float16": "half_val",
    "bfloat16": "half_val",
    "string": "string_val",
}
_FIELDS |= dict.fromkeys(("int32", "int16", "int8", "uint8", "uint16", "int4", "uint4"), "int_val")
_FIELDS |= {name: "float8_val" for name in DTYPES if name.startswith("float8")}
_PACKED_TAGS = {"float32": b"\x2a", "float64": b"\x32", "bool": b"\x5a"}
_RANGES = {"int4": (-8, 7), "uint4": (0, 15), "float16": (0, 0xFFFF), "bfloat16": (0, 0xFFFF)}


def read(name: str, data: bytes) -> Any:
    """A message of the given full name. Raises RequestError."""
    from google.protobuf.message import DecodeError

    check_parts(message(name), data)
    try:
        return message(name).FromString(data)
    except (DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"the message is not a {name}", found=error) from error


@cache
def _numbers() -> dict[str, int]:
    """TensorFlow's number of each of its types, by its name."""
    values = message("tensorflow.TensorProto").DESCRIPTOR.fields_by_name["dtype"].enum_type.values
    return {v.name: v.number for v in values}


@cache
def _dtypes() -> dict[int, DType]:
    """Our dtype by TensorFlow's number."""
    return {_numbers()[d.tf]: d for d in DTYPES.values()}


def to_arrays(tensors: Mapping[str, Any], limit: int) -> dict[str, Array]:
    """The arrays of TensorProtos by alias; together they take at most `limit` bytes.

    Raises RequestError: no dtype of ours, unknown sizes, values that do not fit the shape
    or the dtype; PayloadTooLarge.
    """
    check_texts(sum(_texts_in(tensor, alias) for alias, tensor in tensors.items()))
    left, arrays = limit, dict[str, Array]()
    for alias, tensor in tensors.items():
        dtype, shape = _dtype(tensor, alias), _shape(tensor, alias)
        left -= _cost(tensor, dtype, shape)
        if left < 0:
            raise PayloadTooLarge(
                "the inputs are too large",
                where=f"input {alias!r}",
                expected=f"at most {limit} bytes in all",
                found=f"{dtype.name} {show_shape(shape)}",
            )
        arrays[alias] = _to_array(tensor, alias, dtype, shape)
    return arrays


def _dtype(tensor: Any, alias: str) -> DType:
    dtype = _dtypes().get(tensor.dtype)
    if dtype is None:
        names = {number: name for name, number in _numbers().items()}
        expected = ", ".join(d.tf for d in DTYPES.values())
        found = names.get(tensor.dtype, tensor.dtype)
        raise RequestError(f"input {alias!r} has a dtype that is not served", expected=expected, found=found)
    return dtype


def _shape(tensor: Any, alias: str) -> tuple[int, ...]:
    shape = tuple(int(d.size) for d in tensor.tensor_shape.dim)
    if tensor.tensor_shape.unknown_rank or any(d < 0 for d in shape) or len(shape) > MAX_RANK:
        found = "unknown rank" if tensor.tensor_shape.unknown_rank else show_shape(shape)[:200]
        expected = f"at most {MAX_RANK} sizes, none below 0"
        raise RequestError(f"input {alias!r} has no definite shape", expected=expected, found=found)
    return shape


def _texts_in(tensor: Any, alias: str) -> int:
    """Elements of a tensor of text; the last one given may stand for many."""
    return math.prod(_shape(tensor, alias)) if is_text(tensor) else 0


def _cost(tensor: Any, dtype: DType, shape: tuple[int, ...]) -> int:
    """Bytes that an array takes at most; sizes of 0 count as 1, so that no size is beyond numpy.

    A text that is repeated is copied for each element when the model runs.
    """
    elements = math.prod(max(1, d) for d in shape)
    if dtype.name != "string":
        return elements * max(1, dtype.bits // 8)
    texts = tensor.string_val
    repeated = max(0, elements - len(texts)) * len(texts[-1]) if len(texts) else 0
    return elements * 8 + repeated


def _to_array(tensor: Any, alias: str, dtype: DType, shape: tuple[int, ...]) -> Array:
    import numpy as np

    elements = math.prod(shape)
    if tensor.tensor_content:
        return _from_content(tensor.tensor_content, alias, dtype, elements).reshape(shape)
    field = _FIELDS[dtype.name]
    values = getattr(tensor, field)
    if len(values) > elements:
        raise RequestError(
            f"input {alias!r} has more values than its shape {show_shape(shape)}",
            expected=elements,
            found=f"{len(values)} in {field}",
        )
    if not values and elements:
        _check_empty(tensor, alias, dtype)
    flat = _texts(values, alias) if dtype.name == "string" else _values(tensor, alias, dtype)
    if len(flat) < elements:
        last = flat[-1:] if len(flat) else np.full(1, "" if dtype.name == "string" else 0, flat.dtype)
        flat = np.concatenate([flat, np.broadcast_to(last, elements - len(flat))])
    return flat.reshape(shape)


def _check_empty(tensor: Any, alias: str, dtype: DType) -> None:
    """No value means zeros, but not when the values stand in the field of another type."""
    astray = [field for field in sorted(set(_FIELDS.values())) if len(getattr(tensor, field))]
    if astray:
        raise RequestError(
            f"input {alias!r} has its values in the wrong field",
            expected=f"{_FIELDS[dtype.name]} for {dtype.tf}",
            found=", ".join(astray),
        )


def _from_content(content: bytes, alias: str, dtype: DType, elements: int) -> Array:
    import numpy as np

    if dtype.name == "string":
        raise RequestError(f"input {alias!r} has text in tensor_content", expected="string_val")
    width = max(1, dtype.bits // 8)
    if len(content) != elements * width:
        raise RequestError(
            f"input {alias!r} has a tensor_content that does not fit its shape",
            expected=f"{elements * width} bytes",
            found=f"{len(content)} bytes",
        )
    if dtype.name == "bool":
        return _checked(np.frombuffer(content, np.uint8), alias, dtype, (0, 1)).view(np.bool_)
    if dtype.bits == 4:
        return _checked(np.frombuffer(content, np.int8), alias, dtype, _RANGES[dtype.name])
    return np.frombuffer(content, dtype.to_numpy())


def _values(tensor: Any, alias: str, dtype: DType) -> Array:
    """The values of the typed field, one-dimensional."""
    import numpy as np

    field = _FIELDS[dtype.name]
    values = getattr(tensor, field)
    target, count = dtype.to_numpy(), len(values)
    if dtype.name.startswith("float8"):
        return np.frombuffer(values, target)
    if dtype.name in ("float32", "float64"):
        return np.frombuffer(_packed(tensor, field), target)
    if field in ("int_val", "half_val") and dtype.name != "int32":
        span = _RANGES.get(dtype.name) or (np.iinfo(target).min, np.iinfo(target).max)
        return _checked(np.fromiter(values, np.int32, count), alias, dtype, span)
    return np.fromiter(values, target, count)


def _packed(tensor: Any, field: str) -> bytes:
    """The bytes of a packed field of fixed width: as they are on the wire, with nothing made of any value."""
    number = tensor.DESCRIPTOR.fields_by_name[field].number
    tensor.DiscardUnknownFields()
    data: bytes = tensor.SerializeToString()
    return b"".join(data[f.start : f.end] for f in protobuf.fields(data) if f.number == number)


def _checked(values: Array, alias: str, dtype: DType, span: tuple[int, int]) -> Array:
    """Integers as the dtype that they stand for, bits for the short floats. Raises RequestError."""
    import numpy as np

    if values.size and not (span[0] <= values.min() and values.max() <= span[1]):
        found = values.min() if values.min() < span[0] else values.max()
        expected = f"{dtype.name}: {span[0]} to {span[1]}"
        raise RequestError(f"input {alias!r} has a value out of range", expected=expected, found=found)
    if dtype.bits == 16 and dtype.name not in ("int16", "uint16"):
        return values.astype(np.uint16).view(dtype.to_numpy())
    return values if dtype.name == "bool" else values.astype(dtype.to_numpy())


def _texts(values: Any, alias: str) -> Array:
    import numpy as np

    array = np.empty(len(values), object)
    try:
        array[:] = [value.decode() for value in values]
    except UnicodeDecodeError as error:
        raise RequestError(
            f"input {alias!r} has text that is not UTF-8",
            found=error,
            hint="ONNX Runtime takes no other bytes; send them as uint8",
        ) from error
    return array


def from_array(array: Array) -> Any:
    """A TensorProto of an array, the values in the field of their type. Arrays of objects hold str."""
    tensor = message("tensorflow.TensorProto")()
    write(tensor, array)
    return tensor


def write(tensor: Any, array: Array) -> None:
    """Fill an empty TensorProto, as `from_array` does."""
    import numpy as np

    name = dtype_of(array)
    tensor.dtype = _numbers()[DTYPES[name].tf]
    for size in array.shape:
        tensor.tensor_shape.dim.add(size=size)
    field = _FIELDS[name]
    if name in _PACKED_TAGS and array.size:
        data = array.tobytes()
        tensor.MergeFromString(_PACKED_TAGS[name] + _varint(len(data)) + data)
    elif name == "string":
        tensor.string_val.extend([text.encode() for text in array.ravel().tolist()])
    elif field == "float8_val":
        tensor.float8_val = array.tobytes()
    elif field == "half_val":
        tensor.half_val.extend(np.ascontiguousarray(array).view(np.uint16).ravel().tolist())
    else:
        getattr(tensor, field).extend(map(int, array.ravel().tolist()))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def examples_of(given: Any) -> tuple[list[dict[str, list[Any]]], dict[str, list[Any]]]:
    """The examples of an Input as features by name, and the context that goes with each of them.

    Raises RequestError, PayloadTooLarge.
    """
    kind = given.WhichOneof("kind")
    if kind is None:
        raise RequestError("Input is empty.", expected="example_list or example_list_with_context")
    holder = getattr(given, kind)
    check_count(len(holder.examples))
    examples = [_features(e, f"example {i}") for i, e in enumerate(holder.examples)]
    context = _features(holder.context, "the context") if kind == "example_list_with_context" else {}
    return examples, context


def is_text(tensor: Any) -> bool:
    """Whether a TensorProto is of strings."""
    return bool(tensor.dtype == _numbers()["DT_STRING"])


def example_of(data: bytes, where: str) -> dict[str, list[Any]]:
    """A serialised Example's features by name. Raises RequestError."""
    from google.protobuf.message import DecodeError

    try:
        example = message("tensorflow.Example").FromString(data)
    except DecodeError as error:
        raise RequestError("what is sent is no serialised tf.Example", where=where, found=error) from error
    return _features(example, where)


def _features(example: Any, where: str) -> dict[str, list[Any]]:
    """The features that hold a list of any kind."""
    return {
        name: _feature(feature, f"{where}, feature {name!r}")
        for name, feature in example.features.feature.items()
        if feature.WhichOneof("kind")
    }


def _feature(feature: Any, where: str) -> list[Any]:
    kind = feature.WhichOneof("kind")
    values = list(getattr(feature, kind).value)
    if kind != "bytes_list":
        return values
    try:
        return [value.decode() for value in values]
    except UnicodeDecodeError as error:
        raise RequestError("a feature's text is not UTF-8", where=where, found=error) from error


def signature_def(signature: Signature) -> Any:
    """A SignatureDef that says what a signature says; open dimensions are -1, with their symbols as names."""
    found = message("tensorflow.SignatureDef")(method_name=f"tensorflow/serving/{signature.method}")
    for ports, side in ((signature.inputs, found.inputs), (signature.outputs, found.outputs)):
        for alias, spec in ports.items():
            _describe(spec, side[alias])
    for alias, spec in signature.inputs.items():
        if spec.default is not None:
            write(found.defaults[alias], _default(spec))
    return found


def _default(spec: TensorSpec) -> Array:
    import numpy as np

    return np.asarray(spec.default, DTYPES[spec.dtype].to_numpy())


def _describe(spec: TensorSpec, info: Any) -> None:
    info.name, info.dtype = spec.name, _numbers()[DTYPES[spec.dtype].tf]
    info.tensor_shape.unknown_rank = spec.shape is None
    for dim in spec.shape or ():
        fixed = isinstance(dim, int)
        info.tensor_shape.dim.add(size=dim if fixed else -1, name="" if fixed or dim == "?" else dim)
