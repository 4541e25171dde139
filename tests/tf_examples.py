"""Examples for a bundle that was a TensorFlow model, and what TensorFlow answers to them."""

from __future__ import annotations

import json
import subprocess
import sys
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mserve.tensors import DTYPES, Signature
from mserve.wire.messages import message

Example = Mapping[str, Sequence[Any]]


def asked(
    model: Path, signature: str, batches: Sequence[Sequence[Example]], directory: Path
) -> list[dict[str, Any]]:
    """TensorFlow's answers to each batch."""
    file = directory / "batches.json"
    file.write_text(json.dumps(batches))
    script = Path(__file__).with_name("tf_answers.py")
    command = [sys.executable, str(script), str(model), signature, str(file), str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = []
    for number in range(len(batches)):
        with np.load(directory / f"{number}.npz") as answers:
            found.append(dict(answers))
    return found


def parts(signature: Signature, batch: Sequence[Example]) -> dict[str, Any]:
    """The examples as what `run` takes, for a signature whose inputs are all ragged."""
    found = {}
    for alias, port in signature.sparse.items():
        rows = [example.get(alias, []) for example in batch]
        kind = DTYPES[port.dtype].to_numpy()
        found[f"{alias}.values"] = np.array([value for row in rows for value in row], kind)
        found[f"{alias}.lengths"] = np.array([len(row) for row in rows], np.int64)
    return found


def serialised(example: Example) -> bytes:
    """A tf.Example of floats, whole numbers or text; features without values are left out."""
    found = message("tensorflow.Example")()
    for name, values in example.items():
        if values:
            kind = {float: "float_list", int: "int64_list", str: "bytes_list"}[type(values[0])]
            given = [v.encode() if isinstance(v, str) else v for v in values]
            getattr(found.features.feature[name], kind).value.extend(given)
    return bytes(found.SerializeToString())


def packed(data: bytes) -> dict[str, str]:
    """Bytes as JSON carries them."""
    return {"b64": b64encode(data).decode()}
