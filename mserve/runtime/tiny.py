"""The smallest model worth running: y = x + x, two floats. Written out, since onnx takes long to import."""

from __future__ import annotations

from ..wire.protobuf import encode_bytes, encode_varint

# Field numbers: onnx/onnx.proto3, https://github.com/onnx/onnx.
_IR_VERSION, _OPSET = 8, 17


def doubling() -> bytes:
    """The model's bytes."""
    node = b"".join(encode_bytes(n, t) for n, t in ((1, b"x"), (1, b"x"), (2, b"y"), (4, b"Add")))
    graph = encode_bytes(1, node) + encode_bytes(2, b"doubling")
    graph += encode_bytes(11, _two_floats(b"x")) + encode_bytes(12, _two_floats(b"y"))
    return _number(1, _IR_VERSION) + encode_bytes(7, graph) + encode_bytes(8, _number(2, _OPSET))


def _two_floats(name: bytes) -> bytes:
    """A ValueInfoProto: float32 [2]."""
    shape = encode_bytes(1, _number(1, 2))
    tensor = _number(1, 1) + encode_bytes(2, shape)
    return encode_bytes(1, name) + encode_bytes(2, encode_bytes(1, tensor))


def _number(field: int, value: int) -> bytes:
    return encode_varint(field << 3) + encode_varint(value)
