"""Dtypes: what elements of tensors are, and what everybody calls them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class DType:
    """One element type: our name, ONNX's number, numpy's name, TensorFlow's name, width in bits.

    `numpy` names a type that numpy (or ml_dtypes, for the short floats and integers)
    knows; `bits` is 0 for strings, whose width varies.
    """

    name: str
    onnx: int
    numpy: str
    tf: str
    bits: int

    def to_numpy(self) -> np.dtype[Any]:
        """The numpy dtype; object for strings."""
        import numpy as np

        if self.numpy in SHORT_TYPES:
            import ml_dtypes

            short: np.dtype[Any] = np.dtype(getattr(ml_dtypes, self.numpy))
            return short
        return np.dtype(self.numpy)

    def byte_size(self, elements: int) -> int:
        """Bytes that `elements` values take when stored; sub-byte types are packed."""
        return (elements * self.bits + 7) // 8


# Types that numpy knows through ml_dtypes only.
SHORT_TYPES = frozenset(
    "bfloat16 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz int4 uint4".split()
)

DTYPES: dict[str, DType] = {
    d.name: d
    for d in (
        DType("float32", 1, "float32", "DT_FLOAT", 32),
        DType("uint8", 2, "uint8", "DT_UINT8", 8),
        DType("int8", 3, "int8", "DT_INT8", 8),
        DType("uint16", 4, "uint16", "DT_UINT16", 16),
        DType("int16", 5, "int16", "DT_INT16", 16),
        DType("int32", 6, "int32", "DT_INT32", 32),
        DType("int64", 7, "int64", "DT_INT64", 64),
        DType("string", 8, "object", "DT_STRING", 0),
        DType("bool", 9, "bool", "DT_BOOL", 8),
        DType("float16", 10, "float16", "DT_HALF", 16),
        DType("float64", 11, "float64", "DT_DOUBLE", 64),
        DType("uint32", 12, "uint32", "DT_UINT32", 32),
        DType("uint64", 13, "uint64", "DT_UINT64", 64),
        DType("bfloat16", 16, "bfloat16", "DT_BFLOAT16", 16),
        DType("float8e4m3fn", 17, "float8_e4m3fn", "DT_FLOAT8_E4M3FN", 8),
        DType("float8e4m3fnuz", 18, "float8_e4m3fnuz", "DT_FLOAT8_E4M3FNUZ", 8),
        DType("float8e5m2", 19, "float8_e5m2", "DT_FLOAT8_E5M2", 8),
        DType("float8e5m2fnuz", 20, "float8_e5m2fnuz", "DT_FLOAT8_E5M2FNUZ", 8),
        DType("uint4", 21, "uint4", "DT_UINT4", 4),
        DType("int4", 22, "int4", "DT_INT4", 4),
    )
}
BY_ONNX: dict[int, DType] = {d.onnx: d for d in DTYPES.values()}
