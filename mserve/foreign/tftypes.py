"""TensorFlow's element types: their numbers, our names, and the width of a stored value.

Source: https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/framework/types.proto
"""

from __future__ import annotations

from dataclasses import dataclass

from ..tensors import DTYPES

REF = 100  # a reference type is its type plus 100


@dataclass(frozen=True, slots=True)
class TfType:
    """TensorFlow's name; ours (a key of DTYPES), or "tf:..." where we have none; bytes for each value.

    A width of 0 means that values have no fixed size.
    """

    name: str
    dtype: str
    width: int


_NAMES = """
    FLOAT DOUBLE INT32 UINT8 INT16 INT8 STRING COMPLEX64 INT64 BOOL QINT8 QUINT8 QINT32 BFLOAT16
    QINT16 QUINT16 UINT16 COMPLEX128 HALF RESOURCE VARIANT UINT32 UINT64 FLOAT8_E5M2 FLOAT8_E4M3FN
    FLOAT8_E4M3FNUZ FLOAT8_E4M3B11FNUZ FLOAT8_E5M2FNUZ INT4 UINT4 INT2 UINT2 FLOAT4_E2M1FN
""".split()
_WIDTHS = {"COMPLEX64": 8, "COMPLEX128": 16, "QINT32": 4, "QINT16": 2, "QUINT16": 2}
_UNSIZED = {"STRING", "RESOURCE", "VARIANT"}
_OURS = {d.tf: d for d in DTYPES.values()}


def _make(name: str) -> TfType:
    ours = _OURS.get(f"DT_{name}")
    # Types shorter than a byte are stored one to a byte.
    width = _WIDTHS.get(name, max(1, ours.bits // 8) if ours else 1)
    return TfType(f"DT_{name}", ours.name if ours else f"tf:{name.lower()}", 0 if name in _UNSIZED else width)


TYPES = {number: _make(name) for number, name in enumerate(_NAMES, 1)}
UNKNOWN = TfType("", "?", 0)


def type_of(number: int) -> TfType:
    """The type of a number, references like what they refer to; 0 is a type that nobody has said."""
    plain = number - REF if number > REF else number
    if plain == 0:
        return UNKNOWN
    return TYPES.get(plain) or TfType(f"DT_{number}", f"tf:{number}", 0)
