"""Train a small network on real handwritten digits and export it, as a training job would.

    python samples/digits/train.py BASE_PATH [MODEL.onnx]

Needs nothing but mserve's own dependencies. The last 360 of the 1,797 digits are held
out: the accuracy printed is on those.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import mserve

HERE = Path(__file__).parent
HELD_OUT = 360
STEPS = 2000


def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels [1797, 64] in 0..16, and labels [1797]."""
    with gzip.open(HERE / "digits.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    return table[:, :64], table[:, 64].astype(np.int64)


def train(pixels: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Fit a 64-64-10 network with Adam; returns its weights."""
    rng = np.random.default_rng(seed)
    x, y = pixels / 16, np.eye(10, dtype=np.float32)[labels]
    weights = {
        "W1": rng.normal(0, 0.18, (64, 64)).astype(np.float32),
        "b1": np.zeros(64, np.float32),
        "W2": rng.normal(0, 0.18, (64, 10)).astype(np.float32),
        "b2": np.zeros(10, np.float32),
    }
    mean = {k: np.zeros_like(v) for k, v in weights.items()}
    square = {k: np.zeros_like(v) for k, v in weights.items()}
    for step in range(1, STEPS + 1):
        rows = rng.integers(0, len(x), 128)
        hidden = np.maximum(x[rows] @ weights["W1"] + weights["b1"], 0)
        logits = hidden @ weights["W2"] + weights["b2"]
        exp = np.exp(logits - logits.max(1, keepdims=True))
        error = (exp / exp.sum(1, keepdims=True) - y[rows]) / len(rows)
        back = (error @ weights["W2"].T) * (hidden > 0)
        gradients = {"W1": x[rows].T @ back, "b1": back.sum(0), "W2": hidden.T @ error, "b2": error.sum(0)}
        for name in weights:
            gradient = gradients[name] + 1e-4 * weights[name]
            mean[name] += 0.1 * (gradient - mean[name])
            square[name] += 0.001 * (gradient**2 - square[name])
            unbiased = square[name] / (1 - 0.999**step)
            weights[name] -= 0.002 * mean[name] / (1 - 0.9**step) / (np.sqrt(unbiased) + 1e-8)
    return weights


def to_onnx(weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The network as ONNX: pixels in, probabilities and label out."""
    nodes = [
        helper.make_node("Div", ["pixels", "sixteen"], ["scaled"]),
        helper.make_node("Gemm", ["scaled", "W1", "b1"], ["h1"]),
        helper.make_node("Relu", ["h1"], ["h2"]),
        helper.make_node("Gemm", ["h2", "W2", "b2"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
    ]
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    constants.append(numpy_helper.from_array(np.float32(16), "sixteen"))
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 64])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 10]),
            helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"]),
        ],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def main() -> None:
    base_path = sys.argv[1]
    pixels, labels = read_digits()
    run = 1 + sum(int(path.name) % STEPS == 0 for path in Path(base_path).glob("0*"))
    weights = train(pixels[:-HELD_OUT], labels[:-HELD_OUT], seed=run - 1)
    model = to_onnx(weights)
    if len(sys.argv) > 2:
        onnx.save(model, sys.argv[2])
    export = mserve.export(
        model,
        base_path,
        version=run * STEPS,  # the global step, as in a job that goes on
        golden={"pixels": pixels[-HELD_OUT:][:8]},
        meta={"trained_on": "UCI handwritten digits, first 1437"},
    )
    answers = mserve.load(export.path).run({"pixels": pixels[-HELD_OUT:]})
    accuracy = (answers["label"] == labels[-HELD_OUT:]).mean()
    print(f"exported {export.path}, accuracy on {HELD_OUT} held-out digits: {accuracy:.1%}")


if __name__ == "__main__":
    main()
