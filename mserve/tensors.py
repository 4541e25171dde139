"""Dtypes, TensorSpec and Signature, and the check of arrays against a signature.

A shape is a tuple whose entries are integers (fixed), symbols such as "batch" (any
size, and the same size wherever the symbol stands in one signature's inputs), or "?"
(any size). A shape of None means that even the rank is unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from .dtypes import BY_ONNX as BY_ONNX
from .dtypes import DTYPES as DTYPES
from .dtypes import SHORT_TYPES as SHORT_TYPES
from .dtypes import DType as DType
from .errors import MetaGraphMalformed, RequestError
from .padding import Pad, Value
from .sparse import IDS, VALUES, Sparse, check_entries, entry_names

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Array: TypeAlias = "npt.NDArray[Any]"
ANY_DIM = "?"
Dim = int | str
Shape = tuple[Dim, ...] | None


def dtype_of(array: Array) -> str:
    """Our name of an array's dtype: "string" for text, bytes and objects, else numpy's name."""
    return "string" if array.dtype.kind in "OUST" else _name_of(array.dtype)


@lru_cache(64)
def _name_of(dtype: np.dtype[Any]) -> str:
    """Our name of a dtype, or numpy's; kept, since numpy puts its name together at each asking."""
    return next((known.name for known in DTYPES.values() if known.numpy == dtype.name), dtype.name)


def plain_text(array: Array) -> Array:
    """Text as ONNX Runtime takes it, an object array of str; other arrays as they are.

    Bytes are read as UTF-8. ONNX Runtime would take any object as its `str()`, so that b"x"
    and None would become the texts "b'x'" and "None"; a RequestError is raised instead.
    """
    import numpy as np

    if array.dtype.kind not in "OUST":
        return array
    try:
        words = [x.decode() if isinstance(x, bytes) else x for x in array.ravel().tolist()]
    except UnicodeDecodeError as error:
        raise RequestError("text is not UTF-8", found=error) from error
    odd = next((x for x in words if not isinstance(x, str)), "")
    if not isinstance(odd, str):
        raise RequestError("an array of objects holds no text", expected="str", found=type(odd).__name__)
    text: Array = np.empty(len(words), dtype=object)
    text[:] = words
    return text.reshape(array.shape)


def show_shape(shape: Shape) -> str:
    """A shape as people write it: `[batch, 784]`, `[]` for a scalar, `[...]` for unknown rank."""
    return "[...]" if shape is None else "[" + ", ".join(str(d) for d in shape) + "]"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor's name in the graph, its dtype (a key of DTYPES) and its shape.

    What a signature may say besides: a sentence of documentation; for inputs, a `default`
    (a JSON value for one row), the `range` in which made-up values lie, how it is padded to
    share batches with rows of other lengths, or the padded input whose length it is
    (`length_of`); for outputs, the asset whose lines are the `labels` of the last axis.
    """

    name: str
    dtype: str
    shape: Shape
    doc: str = ""
    default: Any = None
    range: tuple[float, float] | None = None
    labels: str = ""
    pad: Pad | None = None
    length_of: str = ""

    @property
    def optional(self) -> bool:
        """Whether a request may leave this input out."""
        return self.default is not None or self.length_of != ""

    def __str__(self) -> str:
        return f"{self.dtype} {show_shape(self.shape)}"

    def to_json(self) -> dict[str, Any]:
        extra: dict[str, Any] = {"doc": self.doc, "default": self.default, "labels": self.labels}
        extra["range"] = None if self.range is None else list(self.range)
        extra["pad"] = None if self.pad is None else self.pad.to_json()
        extra["length_of"] = self.length_of
        return {
            "tensor": self.name,
            "dtype": self.dtype,
            "shape": None if self.shape is None else list(self.shape),
        } | {key: value for key, value in extra.items() if value not in ("", None)}

    @classmethod
    def from_json(cls, value: Any, where: str) -> TensorSpec:
        """Read what `to_json` wrote. Raises MetaGraphMalformed, naming `where`."""
        if not isinstance(value, dict):
            raise MetaGraphMalformed("a tensor description is not an object", where=where)
        name, dtype, shape = value.get("tensor"), value.get("dtype"), value.get("shape")
        if not isinstance(name, str) or not name:
            raise MetaGraphMalformed("a tensor description has no tensor name", where=where)
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise MetaGraphMalformed("unknown dtype", where=where, expected="a known dtype", found=dtype)
        if shape is not None and not (isinstance(shape, list) and all(is_dim(d) for d in shape)):
            raise MetaGraphMalformed("bad shape", where=where, expected="sizes >= 0 and symbols", found=shape)
        doc, labels, span = value.get("doc", ""), value.get("labels", ""), value.get("range")
        if not (isinstance(doc, str) and isinstance(labels, str) and (span is None or is_range(span))):
            raise MetaGraphMalformed("bad doc, labels or range", where=where, found=[doc, labels, span])
        length_of = value.get("length_of", "")
        if not isinstance(length_of, str):
            raise MetaGraphMalformed("bad length_of", where=where, expected="an input", found=length_of)
        try:
            pad = Pad.from_json(value["pad"]) if value.get("pad") is not None else None
        except ValueError as error:
            raise MetaGraphMalformed("bad pad", where=where, expected=error, found=value["pad"]) from error
        dims = None if shape is None else tuple(shape)
        limits = tuple(span) if span else None
        return cls(name, dtype, dims, doc, value.get("default"), limits, labels, pad, length_of)


def is_range(value: object) -> bool:
    """Whether a value is [low, high]."""
    numbers = isinstance(value, list) and all(type(x) in (int, float) for x in value)
    return numbers and len(value) == 2 and value[0] <= value[1]  # type: ignore[arg-type, index]


def is_dim(value: object) -> bool:
    """Whether a value is a size or a symbol."""
    if isinstance(value, bool):
        return False
    return (isinstance(value, int) and value >= 0) or (isinstance(value, str) and value != "")


Ports = Mapping[str, TensorSpec | Sparse]
# Rows without elements cost nothing to send, and counters add them up.
ROWS_MAX = 2**31 - 1
METHODS = ("predict", "classify", "regress")
DEFAULT_SIGNATURE = "serving_default"


@dataclass(frozen=True, slots=True)
class Signature:
    """A named promise: a method, and inputs and outputs by alias.

    `batch_axis` is 0 when the rows of one run are independent, so that requests may be
    joined along axis 0 of every input and split along axis 0 of every output; it is
    None when each request must run alone. `inputs` are the arrays of a request: those of the
    `sparse` inputs stand in it as their parts (see `sparse.py`), such as `features.ids`.
    `examples`, where it is not empty, is the name under which a predict request may carry
    serialised tf.Examples instead of the inputs, as clients of the original graph do.
    """

    method: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    batch_axis: int | None = None
    sparse: Mapping[str, Sparse] = field(default_factory=dict)
    examples: str = ""

    @classmethod
    def of(
        cls,
        method: str,
        ports: Ports,
        outputs: Mapping[str, TensorSpec],
        batch_axis: int | None = None,
    ) -> Signature:
        """A signature whose inputs may be sparse. Raises ValueError where a part has another's name."""
        inputs: dict[str, TensorSpec] = {}
        for alias, port in ports.items():
            for name, spec in (_parts(alias, port) if isinstance(port, Sparse) else {alias: port}).items():
                if name in inputs or (name != alias and name in ports):
                    raise ValueError(f"the input {name!r} once, though {alias!r} has a part of that name")
                inputs[name] = spec
        sparse = {alias: port for alias, port in ports.items() if isinstance(port, Sparse)}
        return cls(method, inputs, outputs, batch_axis, sparse)

    def ports(self) -> Ports:
        """The inputs as their author names them: a sparse one is one."""
        owners = {name: alias for alias, s in self.sparse.items() for name in s.names(alias).values()}
        return {
            owners.get(name, name): self.sparse.get(owners.get(name, ""), spec)
            for name, spec in self.inputs.items()
        }

    def tensors(self) -> list[tuple[str, str]]:
        """The graph's inputs that it feeds, each behind the input that it belongs to."""
        return [
            (alias, tensor)
            for alias, port in self.ports().items()
            for tensor in (port.tensors.values() if isinstance(port, Sparse) else (port.name,))
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "batch_axis": self.batch_axis,
            "inputs": {alias: port.to_json() for alias, port in self.ports().items()},
            "outputs": {alias: spec.to_json() for alias, spec in self.outputs.items()},
            **({"examples": self.examples} if self.examples else {}),
        }

    @classmethod
    def from_json(cls, value: Any, where: str) -> Signature:
        """Read what `to_json` wrote; unknown keys are ignored. Raises MetaGraphMalformed."""
        if not isinstance(value, dict):
            raise MetaGraphMalformed("a signature is not an object", where=where)
        method, axis = value.get("method"), value.get("batch_axis")
        if method not in METHODS:
            raise MetaGraphMalformed("bad method", where=where, expected="/".join(METHODS), found=method)
        if axis is not None and (isinstance(axis, bool) or axis != 0):
            raise MetaGraphMalformed("bad batch_axis", where=where, expected="0 or null", found=axis)
        for side in ("inputs", "outputs"):
            if not isinstance(value.get(side), dict):
                raise MetaGraphMalformed(f"a signature has no {side}", where=where)
        inputs = {a: _port(port, f"{where}.inputs.{a}") for a, port in value["inputs"].items()}
        outputs = {
            a: TensorSpec.from_json(port, f"{where}.outputs.{a}") for a, port in value["outputs"].items()
        }
        if not outputs:
            raise MetaGraphMalformed("a signature has no outputs", where=where)
        try:
            found = cls.of(method, inputs, outputs, axis)
        except ValueError as error:
            raise MetaGraphMalformed("two inputs have one name", where=where, expected=error) from error
        examples = value.get("examples", "")
        if not isinstance(examples, str) or examples in inputs or examples in found.inputs:
            raise MetaGraphMalformed(
                "bad examples", where=where, expected="a name that is no input's", found=examples
            )
        for alias, problem in pad_problems(found.inputs):
            raise MetaGraphMalformed(
                "inputs cannot be padded so", where=f"{where}.inputs.{alias}", found=problem
            )
        return replace(found, examples=examples)


def _port(value: Any, where: str) -> TensorSpec | Sparse:
    """One input, of any kind. Raises MetaGraphMalformed."""
    if not isinstance(value, dict) or not isinstance(value.get("tensor"), dict):
        return TensorSpec.from_json(value, where)
    try:
        return Sparse.from_json(value, DTYPES)
    except ValueError as error:
        raise MetaGraphMalformed("bad sparse input", where=where, expected=error, found=value) from error


def _parts(alias: str, sparse: Sparse) -> dict[str, TensorSpec]:
    """The arrays of a sparse input in a request."""
    entries, found = f"{alias}.entries", dict[str, TensorSpec]()
    for part, name in sparse.names(alias).items():
        tensor = sparse.tensors.get(part, name)
        if part == VALUES:
            shape = (entries, *sparse.shape[2:])
            default: Any = 1 if sparse.kind == "sparse" else None
            if sparse.optional and default is None:
                default = "" if sparse.dtype == "string" else 0
            found[name] = TensorSpec(tensor, sparse.dtype, shape, sparse.doc, default, sparse.range)
        else:
            span = (sparse.first_id, sparse.size - 1) if part == IDS and sparse.size else None
            shape = (entries if part == IDS else sparse.shape[0],)
            found[name] = TensorSpec(
                tensor, "int64", shape, default=0 if sparse.optional else None, range=span
            )
    return found


def pad_problems(inputs: Mapping[str, TensorSpec]) -> Iterator[tuple[str, str]]:
    """What is wrong with how the inputs are padded: the alias, and a sentence."""
    padded: dict[str, Pad] = {}
    for alias, spec in inputs.items():
        if spec.pad is not None:
            symbol = spec.shape[spec.pad.axis] if spec.shape and spec.pad.axis < len(spec.shape) else None
            if not isinstance(symbol, str) or symbol == ANY_DIM:
                yield alias, f"axis {spec.pad.axis} of {show_shape(spec.shape)} has no symbol"
                continue
            first = padded.setdefault(symbol, spec.pad)
            if not first.buckets or first.buckets != spec.pad.buckets:
                yield alias, f"inputs with {symbol!r} need the same buckets, and at least one"
            if not _fits(spec.pad.value, spec.dtype):
                yield alias, f"the value {spec.pad.value!r} is no {spec.dtype}"
    for alias, spec in inputs.items():
        axes = [i for i, dim in enumerate(spec.shape or ()) if dim in padded]
        if axes != ([] if spec.pad is None else [spec.pad.axis]):
            names = ", ".join(map(repr, padded))
            yield alias, f"axes called {names} are padded wherever they stand, one an input"
        source = inputs.get(spec.length_of)
        numbers = "int" in spec.dtype and len(spec.shape or ()) == 1
        if spec.length_of and not (numbers and source is not None and source.pad is not None):
            yield alias, "length_of names a padded input, and the input is of integers, [batch]"


def _fits(value: Value, dtype: str) -> bool:
    if dtype == "string" or isinstance(value, str):
        return dtype == "string" and isinstance(value, str)
    try:
        whole = "int" in dtype or dtype == "bool"
        return bool(DTYPES[dtype].to_numpy().type(value) == value or (isinstance(value, float) and not whole))
    except (ValueError, OverflowError, TypeError):
        return False


def check_names(inputs: Ports, given: Mapping[str, object]) -> None:
    """Refuse a request that lacks an input without a default, or has one too many. Raises RequestError."""
    if given.keys() == inputs.keys():
        return
    missing = [a for a, spec in inputs.items() if a not in given and not spec.optional]
    extra = [a for a in given if a not in inputs]
    if not missing and not extra:
        return
    raise RequestError(
        "the inputs are not those of the signature",
        expected=", ".join(inputs) or "no inputs",
        found=", ".join([*(f"missing {a!r}" for a in missing), *(f"unknown {a!r}" for a in extra)]),
        hint="`mserve inspect` and the model's /metadata page list the inputs",
    )


def check_inputs(signature: Signature, inputs: Mapping[str, Array]) -> int:
    """Check names, dtypes and shapes of a request's arrays; return its number of rows.

    Rows are the common size of axis 0 for a signature with a batch axis, otherwise 1.
    Raises RequestError naming the input, what was expected and what was found.
    """
    check_names(signature.inputs, inputs)
    symbols: dict[str, int] = {}
    counts = set[int]()
    for alias, spec in signature.inputs.items():
        array = inputs[alias]
        found, shape = dtype_of(array), array.shape
        if found != spec.dtype:
            raise RequestError(f"input {alias!r} has the wrong dtype", expected=spec.dtype, found=found)
        if spec.shape is not None:
            _check_shape(alias, spec.shape, shape, symbols)
        counts.add(shape[0] if shape else -1)
    if signature.sparse:
        inputs = _checked_rows(signature, inputs)
        counts = {array.shape[0] if array.shape else -1 for array in inputs.values()}
    if signature.batch_axis is None:
        return 1
    if len(counts) != 1 or -1 in counts:
        found = ", ".join(f"{a}: {x.shape[0] if x.ndim else 'a scalar'}" for a, x in inputs.items())
        raise RequestError(
            "the inputs do not agree on the number of rows", expected="one size of axis 0", found=found
        )
    (count,) = counts
    if count > ROWS_MAX:
        raise RequestError("a request has too many rows", expected=f"at most {ROWS_MAX}", found=count)
    return count


def _checked_rows(signature: Signature, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Check what the parts of sparse inputs hold; return the arrays whose axis 0 is the rows."""
    for alias, sparse in signature.sparse.items():
        check_entries(alias, sparse, inputs)
    entries = entry_names(signature.sparse)
    return {name: array for name, array in inputs.items() if name not in entries}


def _check_shape(alias: str, spec: tuple[Dim, ...], found: tuple[int, ...], symbols: dict[str, int]) -> None:
    expected = "" if len(spec) == len(found) else show_shape(spec)
    for want, have in zip(spec, found, strict=False):
        if isinstance(want, int):
            if want != have:
                expected = expected or show_shape(spec)
        elif _symbol_differs(want, have, symbols):
            expected = expected or f"{show_shape(spec)} with {want}={symbols[want]}"
    if expected:
        raise RequestError(f"input {alias!r} has the wrong shape", expected=expected, found=show_shape(found))


def _symbol_differs(symbol: str, size: int, symbols: dict[str, int]) -> bool:
    return symbol != ANY_DIM and symbols.setdefault(symbol, size) != size
