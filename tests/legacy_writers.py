"""Files of old formats for tests, written byte by byte, and what their conversions answer."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from mserve.exporters import sources
from mserve.exporters.kinds import Converted, ConvertOptions
from mserve.exporters.operators import check_operators
from mserve.wire.protobuf import encode_bytes, encode_varint


def convert(kind: str, path: Path, **options: Any) -> Converted:
    """A source, converted in this process."""
    converter = sources.named(kind).convert
    assert converter is not None
    return converter(str(path), ConvertOptions(**options))


def answers(converted: Converted, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What a converted model answers, by output; its operators are all ONNX's."""
    model = converted.model
    assert not isinstance(model, Path)
    check_operators(model, "the model", "here")
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, dict(inputs)), strict=True))


@dataclass(eq=False)
class Obj:
    """An object of Torch7: its class and its fields."""

    name: str
    fields: dict[Any, Any] = field(default_factory=dict)


class T7:
    """Writes what `torch.save` would, binary or ascii."""

    def __init__(self, *, ascii_form: bool = False) -> None:
        self.out = bytearray()
        self.ascii = ascii_form
        self.known: dict[int, int] = {}
        self.kept: list[Any] = []

    def numbers(self, form: str, values: Sequence[float]) -> None:
        if not self.ascii:
            self.out += struct.pack(f"<{len(values)}{form}", *values)
        else:
            self.out += " ".join(f"{v:.9g}" if form in "df" else str(int(v)) for v in values).encode() + b"\n"

    def text(self, data: bytes) -> None:
        self.numbers("i", [len(data)])
        self.out += data + (b"\n" if self.ascii else b"")

    def value(self, value: Any) -> T7:
        if value is None:
            self.numbers("i", [0])
        elif isinstance(value, bool):
            self.numbers("i", [5, value])
        elif isinstance(value, int | float):
            self.numbers("i", [1])
            self.numbers("d", [value])
        elif isinstance(value, str):
            self.numbers("i", [2])
            self.text(value.encode())
        elif isinstance(value, dict | Obj | np.ndarray | list):
            self._object(value)
        return self

    def _object(self, value: Any) -> None:
        self.numbers("i", [3 if isinstance(value, dict) else 4])
        seen = id(value) in self.known
        index = self.known.setdefault(id(value), len(self.known) + 1)
        self.kept.append(value)
        self.numbers("i", [index])
        if seen:
            return
        if isinstance(value, dict):
            self._table(value)
        elif isinstance(value, Obj):
            self._head(value.name)
            self.value(dict(value.fields))
        elif isinstance(value, list):
            self._head("torch.LongStorage")
            self.numbers("q", [len(value)])
            self.numbers("q", value)
        else:
            self._tensor(value)

    def _head(self, name: str) -> None:
        self.text(b"V 1")
        self.text(name.encode())

    def _table(self, table: dict[Any, Any]) -> None:
        self.numbers("i", [len(table)])
        for key, value in table.items():
            self.value(key)
            self.value(value)

    def _tensor(self, array: Any) -> None:
        self._head("torch.FloatTensor")
        self.numbers("i", [array.ndim])
        self.numbers("q", array.shape)
        self.numbers("q", [stride // array.itemsize for stride in array.strides])
        self.numbers("q", [1])
        self.numbers("i", [4, len(self.known) + 1])
        self.known[-len(self.known) - 1] = 0
        self._head("torch.FloatStorage")
        self.numbers("q", [array.size])
        self.numbers("f", array.ravel().tolist())


def t7(value: Any, path: Path, *, ascii_form: bool = False) -> Path:
    path.write_bytes(bytes(T7(ascii_form=ascii_form).value(value).out))
    return path


def sequential(*layers: Obj, **fields: Any) -> Obj:
    return Obj("nn.Sequential", {"modules": dict(enumerate(layers, 1)), **fields})


def caffemodel(layers: Mapping[str, Sequence[Any]], path: Path, *, old: bool = False) -> Path:
    """Weights by layer. The old form has layers as field 2, and four dims instead of a shape."""
    out = encode_bytes(1, b"net")
    for name, blobs in layers.items():
        content = encode_bytes(4 if old else 1, name.encode())
        for blob in blobs:
            dims = [*[1] * (4 - blob.ndim), *blob.shape] if old else blob.shape
            packed = b"".join(encode_varint(dim) for dim in dims)
            shape = encode_bytes(7, encode_bytes(1, packed))
            if old:
                shape = b"".join(encode_varint(i << 3) + encode_varint(d) for i, d in enumerate(dims, 1))
            data = encode_bytes(5, blob.astype("<f4").tobytes())
            content += encode_bytes(6 if old else 7, shape + data)
        out += encode_bytes(2 if old else 100, content)
    path.write_bytes(out)
    return path
