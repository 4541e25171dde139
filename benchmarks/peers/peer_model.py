"""The network that every other server runs: onnxruntime, one thread, as is best for a model this small."""

from __future__ import annotations

import os

import numpy as np
import onnxruntime as ort


def open_model() -> ort.InferenceSession:
    """The model named by the environment."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(os.environ["PEER_MODEL"], options, providers=["CPUExecutionProvider"])


def run(session: ort.InferenceSession, x: np.ndarray) -> np.ndarray:
    """Rows in, rows out."""
    y: np.ndarray = session.run(None, {"images": x})[0]
    return y
