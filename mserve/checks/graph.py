"""The graph: what onnx itself says of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..format import Bundle
from ..format.hazards import integer_divisions
from ..format.inner import checkable, inner_tensors
from ..format.prune import Parts
from ..wire import protobuf
from .findings import Finding

if TYPE_CHECKING:
    import onnx


def checker(bundle: Bundle) -> Iterator[Finding]:
    """onnx.checker over the graph's bytes, and no path to a file that has no digest."""
    import onnx

    try:
        model = onnx.ModelProto.FromString(bundle.meta)
        loose = [t for t in inner_tensors(model) if t.data_location == t.EXTERNAL]
        if not loose:  # the checker would look for their files in the working directory
            onnx.checker.check_model(_without_shards(model))
    except Exception as error:  # protobuf's and the checker's own exceptions
        yield Finding("onnx-checker", "export.meta", _short(error))
        return
    for tensor in loose:
        places = {e.key: e.value for e in tensor.external_data}
        yield Finding("inner-external", tensor.name, f"lies in {places.get('location')!r}")


def _without_shards(model: onnx.ModelProto) -> onnx.ModelProto:
    external = [t.name for t in model.graph.initializer if t.data_location == t.EXTERNAL]
    return checkable(model, external)


def inference(bundle: Bundle) -> Iterator[Finding]:
    """onnx's shape inference finds no contradiction."""
    import onnx

    try:
        model = _without_shards(onnx.ModelProto.FromString(bundle.meta))
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except Exception as error:
        yield Finding("shape-inference", "export.meta", _short(error))


def divisions(bundle: Bundle) -> Iterator[Finding]:
    """Whole numbers divided by what may be -1: the lowest number by -1 ends the process."""
    import onnx

    try:
        nodes = integer_divisions(onnx.ModelProto.FromString(bundle.meta))
    except Exception:  # a graph that makes no sense: the checker has said so
        return
    for node in nodes:
        yield Finding(
            "integer-division", node, "the lowest whole number by -1 ends the process: clamp the divisor"
        )


def unused(bundle: Bundle) -> Iterator[Finding]:
    """Weights that nothing reads: they cost space in every copy, and memory when they are inline."""
    try:
        read = Parts(bundle.meta).read()
    except protobuf.Malformed:  # the checker has said so
        return
    for weight in bundle.graph.weights:
        if weight.name not in read:
            yield Finding(
                "unused-weight", weight.name, f"{weight.length} bytes in {weight.shard or 'export.meta'}"
            )


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__
