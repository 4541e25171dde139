"""libFM models, the text that `-save_model` writes: a bias, a weight and a vector for each feature.

    y = w0 + sum of w_i x_i + sum over pairs i < j of <v_i, v_j> x_i x_j

and the sum over pairs is half of (x V) squared less x squared times V squared, summed over
the factors. The file says neither what y means nor the range of the training targets that
libFM cuts its answers to: `--task` and `--clip` do. Classifiers learned by stochastic
gradients (sgd, sgda) take a sigmoid of y, those learned by sampling or alternating least
squares (mcmc, als) the normal distribution.
"""

from __future__ import annotations

import math
from pathlib import Path

from ...errors import InputError, UsageError
from ...files import read_input
from ...tensors import Array
from .. import answers
from ..build import Graph, predicts
from ..feature_rows import DenseRows, FeatureRows, SparseRows, chosen
from ..kinds import Converted, ConvertOptions, Kind, Seen
from . import text as linear

BIAS, UNARY, PAIRWISE = b"#global bias W0", b"#unary interactions Wj", b"#pairwise interactions Vj,f"
TASKS = ("regression", "sigmoid", "probit")


def convert(source: str, options: ConvertOptions) -> Converted:
    """The model as ONNX. Raises InputError for what is malformed, UsageError without a task."""
    path = Path(source)
    if options.task not in TASKS:
        raise UsageError(
            "a libFM model does not say what its answers are",
            where=path,
            expected="--task regression (with --clip LO,HI, the range of the training targets), "
            "sigmoid (learned by sgd, sgda) or probit (mcmc, als)",
            found=options.task or "no --task",
        )
    if options.clip is not None and options.task != "regression":
        raise UsageError(
            "only regression answers are cut to a range", where=path, found=f"--task {options.task}"
        )
    bias, weights, factors = _read(path)
    count = len(weights)
    rows = SparseRows(count) if chosen(count, options) else DenseRows(count)
    graph = Graph()
    sums = _sums(graph, rows, bias, weights, factors)
    if options.task == "regression":
        low, high = options.clip or (-math.inf, math.inf)
        if options.clip is not None:
            sums = graph.add("Clip", sums, graph.scalar(low), graph.scalar(high))
        found = answers.scores(graph, sums, 1)
    else:
        chances = graph.add("Sigmoid", sums) if options.task == "sigmoid" else _normal(graph, sums)
        found = answers.binary(graph, chances, options)
    signature = predicts(rows.ports(), found.outputs)
    note = "answers are not cut to a range, as libFM cuts them: give --clip LO,HI"
    return Converted(
        graph.model(signature),
        {"serving_default": signature},
        assets=found.assets,
        notes=(note,) if options.task == "regression" and options.clip is None else (),
        draw=lambda _, count: rows.draw(count),
    )


def _read(path: Path) -> tuple[float, Array, Array]:
    """Bias, weights [features], factors [features, dimensions], float64; a part left out is zero."""
    import numpy as np

    parts: dict[bytes, list[bytes]] = {}
    current: list[bytes] | None = None
    for number, line in enumerate(read_input(path).splitlines(), 1):
        if line.startswith(b"#"):
            if line.strip() not in (BIAS, UNARY, PAIRWISE) or line.strip() in parts:
                raise InputError(
                    "not a part of a libFM model",
                    where=f"{path}, line {number}",
                    expected=", ".join(x.decode() for x in (BIAS, UNARY, PAIRWISE)),
                    found=line.decode(errors="replace")[:60],
                )
            current = parts.setdefault(line.strip(), [])
        elif current is not None:
            current.append(line)
    biases = linear.numbers(parts.get(BIAS, [b"0"]), 1, f"{path}: bias")
    weights = linear.numbers(parts.get(UNARY, []), None, f"{path}: unary")
    rows = parts.get(PAIRWISE, [])
    widths = {len(row.split()) for row in rows}
    if len(widths) > 1 or PAIRWISE not in parts:
        found = f"rows of {', '.join(map(str, sorted(widths)[:4]))} factors" if widths else "no pairwise part"
        raise InputError("the model is truncated", where=f"{path}: pairwise", found=found)
    count = max(len(weights), len(rows))
    for part, name, size in ((UNARY, "unary", len(weights)), (PAIRWISE, "pairwise", len(rows))):
        if part in parts and size != count:
            where, expected = f"{path}: {name}", f"{count} rows"
            raise InputError("the model is truncated", where=where, expected=expected, found=size)
    if count == 0:
        raise InputError("the model has no features", where=path)
    width = next(iter(widths), 0)
    factors = linear.numbers_of_lines(rows, len(rows) * width, f"{path}: pairwise").reshape(len(rows), width)
    return float(biases[0]), weights if UNARY in parts else np.zeros(count), factors


def _sums(graph: Graph, rows: FeatureRows, bias: float, weights: Array, factors: Array) -> str:
    """y, float32 [batch, 1]."""
    import numpy as np

    single = rows.dots(graph, weights.astype(np.float32)[:, None], np.array([bias], np.float32))
    if not factors.shape[1]:
        return single
    once, twice = rows.moments(graph, factors.astype(np.float32))
    pairs = graph.add("Sub", graph.add("Mul", once, once), twice)
    summed = graph.add("ReduceSum", pairs, graph.weight(np.array([1])), keepdims=1)
    return graph.add("Add", single, graph.add("Mul", summed, graph.scalar(0.5)))


def _normal(graph: Graph, sums: str) -> str:
    """The normal distribution's value: (1 + erf(y / sqrt 2)) / 2."""
    bent = graph.add("Erf", graph.add("Mul", sums, graph.scalar(math.sqrt(0.5))))
    return graph.add("Mul", graph.add("Add", bent, graph.scalar(1.0)), graph.scalar(0.5))


def _matches(seen: Seen) -> bool:
    return seen.head.startswith((BIAS, UNARY, PAIRWISE))


KIND = Kind(
    name="libfm",
    what="a libFM model",
    matches=_matches,
    convert=convert,
    options=("task", "clip", "labels", "sparse"),
)
