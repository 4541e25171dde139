"""The Open Inference Protocol's terms, whichever codec carries them: datatypes, raw tensors, requests.

A tensor's raw bytes are its elements in row-major order, little-endian, without padding.
BOOL takes a byte that is 0 or 1; an element of BYTES is preceded by its length, four
bytes. Sources: the protocol, https://github.com/kserve/open-inference-protocol, and its
extensions for binary tensor data and classification as Triton documents them,
https://github.com/triton-inference-server/server/tree/main/docs/protocol.

Stricter than Triton: integers are never wrapped, a bool is 0 or 1, names do not stand
twice, and text that a model is to compute with must be UTF-8, because ONNX Runtime
takes nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import RequestError
from ..tensors import DTYPES, Array, Signature, TensorSpec, check_names, dtype_of, show_shape
from .json_values import MAX_DEPTH, check_texts, to_array
from .oip_texts import Buffer, text, texts_of

# Our dtypes by the protocol's names. What is absent (eight-bit floats, four-bit integers)
# has no name there.
DATATYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BF16": "bfloat16",
    "BYTES": "string",
}
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}
# Their values have no agreed form outside raw bytes.
RAW_ONLY = ("FP16", "BF16")
ELEMENTS_MAX = 2**63 - 1
RESERVED = "triton_"
# The one reserved parameter that a client of Triton's sends by itself.
_EXEMPT = "triton_enable_empty_final_response"


@dataclass(slots=True)
class Given:
    """One input of a request: its elements raw, or as `values`, flat or nested."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Any = None
    raw: Buffer | None = None


@dataclass(slots=True)
class Wanted:
    """One output that is asked for: `binary` or not, and the best `classes` instead of values if above 0."""

    name: str
    binary: bool = False
    classes: int = 0


@dataclass(slots=True)
class InferRequest:
    """A request. No `outputs` means all, in the form that `binary` says; `body` is a whole raw tensor."""

    inputs: Sequence[Given] = ()
    outputs: Sequence[Wanted] = ()
    id: str | None = None
    binary: bool = False
    body: Buffer | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def signature(self) -> str:
        """The parameter `signature_name`, "" if absent. Raises RequestError."""
        name = self.parameters.get("signature_name", "")
        if not isinstance(name, str):
            raise RequestError("the parameter signature_name is not a string", found=repr(name)[:60])
        return name

    @property
    def timeout_ns(self) -> int:
        """The parameter `timeout`, which is in microseconds; 0 if absent. Raises RequestError."""
        micros = self.parameters.get("timeout", 0)
        if type(micros) is not int or not 0 <= micros < 2**63:
            raise RequestError(
                "bad parameter timeout", expected="microseconds, 0 or more", found=repr(micros)[:60]
            )
        return micros * 1000

    def arrays(self, signature: Signature) -> dict[str, Array]:
        """The inputs by alias; names and shapes are still to be checked against the signature.

        Raises RequestError naming the input.
        """
        if self.body is not None:
            return _lone(self.body, signature)
        check_names(signature.inputs, {given.name: given for given in self.inputs})
        check_texts(sum(math.prod(given.shape) for given in self.inputs if given.datatype == "BYTES"))
        return {given.name: _array(given, signature.inputs[given.name]) for given in self.inputs}

    def wanted(self, signature: Signature) -> Sequence[Wanted]:
        """The outputs to answer with, in the order of the request. Raises RequestError."""
        if not self.outputs:
            return [Wanted(alias, self.binary) for alias in signature.outputs]
        for wanted in self.outputs:
            if wanted.name not in signature.outputs:
                raise RequestError(
                    f"the model has no output {wanted.name!r}", expected=", ".join(signature.outputs)
                )
        return self.outputs


@dataclass(slots=True)
class Output:
    """One output of an answer."""

    name: str
    array: Array
    binary: bool = False

    @property
    def datatype(self) -> str:
        """The protocol's name of its dtype. Raises RequestError where there is none."""
        dtype = dtype_of(self.array)
        if dtype not in _NAMES:
            raise RequestError(f"output {self.name!r} is {dtype}, for which the protocol has no name")
        return _NAMES[dtype]


def datatype_name(dtype: str) -> str:
    """The protocol's name of one of our dtypes; our own in capitals where it has none."""
    return _NAMES.get(dtype, dtype.upper())


def check_parameters(parameters: Mapping[str, Any]) -> None:
    """Refuse names that are kept for the server. Raises RequestError."""
    for name in parameters:
        if name.startswith(RESERVED) and name != _EXEMPT:
            raise RequestError(f"the parameter {name!r} is reserved", expected=f"no name with {RESERVED!r}")


def check_unique(names: Sequence[str], what: str) -> None:
    """Refuse a name that stands twice. Raises RequestError."""
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RequestError(f"{what} {twice!r} stands twice")


def check_shape(shape: Sequence[Any], name: str) -> tuple[int, ...]:
    """A shape of sizes from a request. Raises RequestError: not sizes, too many, too large together."""
    if any(type(size) is not int or not 0 <= size <= ELEMENTS_MAX for size in shape):
        raise RequestError(
            f"input {name!r} has a bad shape", expected="sizes, 0 or more", found=str(shape)[:80]
        )
    if len(shape) > MAX_DEPTH or math.prod(size or 1 for size in shape) > ELEMENTS_MAX:
        raise RequestError(f"input {name!r} has too large a shape", found=str(list(shape))[:80])
    return tuple(shape)


def _array(given: Given, spec: TensorSpec) -> Array:
    name, dtype = given.name, DATATYPES.get(given.datatype)
    if dtype is None:
        raise RequestError(
            f"input {name!r} has an unknown datatype",
            expected=", ".join(DATATYPES),
            found=given.datatype[:32],
        )
    if dtype != spec.dtype:
        raise RequestError(
            f"input {name!r} has the wrong datatype", expected=datatype_name(spec.dtype), found=given.datatype
        )
    if given.raw is not None:
        return from_raw(given.raw, dtype, given.shape, name)
    if given.datatype in RAW_ONLY:
        raise RequestError(
            f"input {name!r} is {given.datatype}, whose values only have a raw form",
            hint="send it as binary data (REST) or in raw_input_contents (gRPC)",
        )
    array = to_array(given.values, TensorSpec(name, dtype, None), name)
    if array.shape != given.shape:
        # Flat values may have any shape; nested ones say their own.
        if array.ndim != 1 or array.size != math.prod(given.shape):
            raise RequestError(
                f"input {name!r} has data that does not fit its shape",
                expected=f"{show_shape(given.shape)}, {math.prod(given.shape)} elements",
                found=f"{show_shape(array.shape)}, {array.size} elements",
            )
        array = _reshaped(array, given.shape, name)
    return array


def _reshaped(array: Array, shape: Sequence[int], name: str) -> Array:
    try:
        return array.reshape(tuple(shape))
    except ValueError as error:
        raise RequestError(
            f"input {name!r} has a shape that no array has", found=show_shape(tuple(shape))
        ) from error


def from_raw(raw: Buffer, dtype: str, shape: Sequence[int], name: str) -> Array:
    """A tensor's raw bytes as an array; a view of them where that is possible. Raises RequestError."""
    import numpy as np

    count = math.prod(shape)
    if dtype == "string":
        return _reshaped(texts_of(raw, count, name), shape, name)
    size = DTYPES[dtype].byte_size(count)
    if len(raw) != size:
        raise RequestError(
            f"input {name!r} has the wrong number of bytes",
            expected=f"{size} for {datatype_name(dtype)} {show_shape(tuple(shape))}",
            found=len(raw),
        )
    if dtype == "bool" and size and int(np.frombuffer(raw, np.uint8).max()) > 1:
        raise RequestError(f"input {name!r} has a bool that is neither 0 nor 1")
    array = np.frombuffer(raw, DTYPES[dtype].to_numpy()) if size else np.empty(0, DTYPES[dtype].to_numpy())
    return _reshaped(array if array.flags.aligned else array.copy(), shape, name)


def to_raw(array: Array) -> bytes:
    """An array's raw bytes."""
    if array.dtype.kind not in "OU":
        return array.tobytes()
    pieces: list[bytes] = []
    for word in array.ravel().tolist():
        data = word if isinstance(word, bytes) else word.encode()
        pieces += (len(data).to_bytes(4, "little"), data)
    return b"".join(pieces)


def _lone(body: Buffer, signature: Signature) -> dict[str, Array]:
    """A model's one input from a body that is nothing but its bytes: one row, at most one size unknown."""
    if len(signature.inputs) != 1:
        raise RequestError(
            "a raw binary request is for a model with one input", found=f"{len(signature.inputs)} inputs"
        )
    alias, spec = next(iter(signature.inputs.items()))
    if spec.dtype == "string":
        import numpy as np

        word = np.empty(1, object)
        word[0] = text(body, alias)
        return {alias: word.reshape((1,) * (1 if spec.shape is None else len(spec.shape)))}
    sizes = [-1 if isinstance(size, str) else size for size in spec.shape or ()]
    if signature.batch_axis is not None and sizes:
        sizes[0] = 1
    if spec.shape is None or sizes.count(-1) > 1:
        raise RequestError(
            f"the shape of input {alias!r} does not follow from its bytes",
            expected="at most one variable size",
            found=show_shape(spec.shape),
        )
    if -1 in sizes:
        row = DTYPES[spec.dtype].byte_size(math.prod(size for size in sizes if size != -1))
        sizes[sizes.index(-1)] = len(body) // row if row else 0
    return {alias: from_raw(body, spec.dtype, sizes, alias)}


def classify(array: Array, classes: int, labels: Sequence[str], *, rows: bool) -> Array:
    """The largest elements of each row (or of the whole) as text "value:index[:label]", best first.

    Raises RequestError for text and booleans.
    """
    import numpy as np

    if array.dtype.kind in "OUSb":
        raise RequestError("only an output of numbers can be classified")
    numbers = array.astype(np.float32) if array.dtype.kind == "V" or array.dtype == np.float16 else array
    apart = rows and numbers.ndim
    # Not -1 for the second: numpy has no such shape for no rows.
    flat = numbers.reshape(len(numbers), math.prod(numbers.shape[1:])) if apart else numbers.reshape(1, -1)
    keys = np.where(np.isnan(flat), -np.inf, flat) if flat.dtype.kind == "f" else flat
    # Among equals the first one counts, so the order is reversed twice.
    last = flat.shape[1] - 1
    best = last - np.argsort(keys[:, ::-1], axis=1, kind="stable")[:, ::-1][:, :classes]
    values = np.take_along_axis(flat, best, axis=1)
    texts = np.empty(best.shape, object)
    form = "%f" if flat.dtype.kind == "f" else "%d"
    for at, index in np.ndenumerate(best):
        label = labels[int(index)] if index < len(labels) else ""
        texts[at] = form % values[at] + f":{index}" + (f":{label}" if label else "")
    return texts if apart else texts[0]
