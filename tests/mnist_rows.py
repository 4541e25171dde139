"""The thousand real digits of the collection: TFRecords of tf.Example, gzipped."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np

from mserve.wire import protobuf


def digits(path: Path) -> tuple[Any, Any]:
    """Pixels, uint8 [1000, 28, 28], and what they show, int64 [1000]."""
    data = gzip.decompress(path.read_bytes())
    images, classes, at = [], [], 0
    while at < len(data):
        size = struct.unpack_from("<Q", data, at)[0]
        record = data[at + 12 : at + 12 + size]
        at += 16 + size
        features = _features(record)
        images.append(features["image_floats"])
        classes.append(int(features["image_class"][0]))
    pixels = np.rint((np.stack(images).reshape(-1, 28, 28) + 0.5) * 255)
    return pixels.astype(np.uint8), np.array(classes)


def _features(record: bytes) -> dict[str, Any]:
    """tf.Example: features = 1; map entries = 1 of a name and a list of bytes, floats or integers."""
    found: dict[str, Any] = {}
    for example in protobuf.fields(record):
        for entry in protobuf.inside(record, example):
            name, value = protobuf.map_entry(record, entry)
            assert value is not None
            for kind in protobuf.inside(record, value):
                for one in protobuf.inside(record, kind):
                    if kind.number == 2:
                        found[name] = np.frombuffer(record[one.start : one.end], "<f4")
                    elif kind.number == 3:
                        found[name] = protobuf.packed_varints(record, one)
    return found
