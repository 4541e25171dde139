"""What TensorFlow answers to examples: `python tests/tf_answers.py MODEL SIGNATURE BATCHES.json DIRECTORY`.

The file has a list of batches, each a list of examples, each features by name: lists of whole
numbers, floats or texts. The answers of batch 3 are `3.npz`. A process of its own, since
TensorFlow prints, warns and never lets go of its memory.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def serialised(example: Mapping[str, list[Any]]) -> bytes:
    import tensorflow as tf

    found = tf.train.Example()
    for name, values in example.items():
        if not values:
            continue
        feature = found.features.feature[name]
        if all(isinstance(value, str) for value in values):
            feature.bytes_list.value.extend(value.encode() for value in values)
        elif all(isinstance(value, int) for value in values):
            feature.int64_list.value.extend(values)
        else:
            feature.float_list.value.extend(values)
    return bytes(found.SerializeToString())


def main(model: str, signature: str, batches: Path, directory: Path) -> None:
    import tensorflow as tf

    loaded = tf.saved_model.load(model)
    ask = loaded.signatures[signature]
    for number, batch in enumerate(json.loads(batches.read_text())):
        answers = ask(examples=tf.constant([serialised(example) for example in batch]))
        plain = {name: tensor.numpy() for name, tensor in answers.items()}
        texts = {name: array.astype(str) for name, array in plain.items() if array.dtype == object}
        np.savez(directory / f"{number}.npz", **plain | texts)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
