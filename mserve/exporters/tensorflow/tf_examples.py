"""Rows as serialised tf.Examples: what a graph that parses them is asked with, to compare its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...sparse import LENGTHS, VALUES, Sparse
from ...tensors import Array, Signature, TensorSpec
from .tf_parse import Feature


def serialised(features: Sequence[Feature], signature: Signature, inputs: Mapping[str, Array]) -> Array:
    """The rows of features as serialised examples."""
    import numpy as np
    import tensorflow as tf

    ports = signature.ports()
    columns = {f.key: _column(f.key, ports[f.key], inputs) for f in features if f.key in ports}
    examples = []
    for row in range(min(map(len, columns.values()))):
        example = tf.train.Example()
        for key, column in columns.items():
            feature = example.features.feature[key]
            values = column[row].reshape(-1)
            if values.dtype.kind == "O":
                feature.bytes_list.value.extend(x.encode() for x in values)
            elif values.dtype.kind == "f":
                feature.float_list.value.extend(values.tolist())
            else:
                feature.int64_list.value.extend(values.tolist())
        examples.append(example.SerializeToString())
    return np.array(examples, dtype=object)


def _column(key: str, port: TensorSpec | Sparse, inputs: Mapping[str, Array]) -> Sequence[Array]:
    """The values of each row."""
    import numpy as np

    if not isinstance(port, Sparse):
        return list(inputs[key])
    names = port.names(key)
    ends = np.cumsum(inputs[names[LENGTHS]])[:-1]
    return list(np.split(inputs[names[VALUES]], ends))
