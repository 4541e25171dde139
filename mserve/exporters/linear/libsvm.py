"""LIBSVM models: a text of a head, then the support vectors, each with its coefficients.

A decision is a sum over support vectors, coefficient times kernel, less `rho`; classifiers
have one for each pair of classes. The vectors stand class by class, `nr_sv` of each; the
vector of class i has for its pair with class j the coefficient j - 1 if j is greater, else j.
So all decisions are one matrix product: kernels [batch, vectors] times coefficients
[vectors, pairs]. It is computed in float64, as LIBSVM does.

Without probabilities the class with most votes wins. With them (`probA`, `probB`, from
`-b 1`) LIBSVM answers with the most probable class, which may be another one; so do we.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from ...errors import InputError, UsageError
from ...files import read_input
from ...tensors import Array
from .. import answers
from ..answers import Answers
from ..build import Graph, predicts
from ..feature_rows import DenseRows, FeatureRows, SparseRows
from ..kinds import Converted, ConvertOptions, Kind, Seen
from . import text as linear
from .pairwise import coupled

CLASSIFIERS = ("c_svc", "nu_svc")
REGRESSION = ("epsilon_svr", "nu_svr")
ONE_CLASS = "one_class"
KERNELS = ("linear", "polynomial", "rbf", "sigmoid")
MAX_VECTORS = 1 << 24
# All support vectors as one dense float64 matrix.
MAX_BYTES = 8 << 30


@dataclass(frozen=True, slots=True)
class Vectors:
    """Coefficients [vectors, columns] and the vectors themselves [vectors, features], float64."""

    coefficients: Array
    values: Array


def convert(source: str, options: ConvertOptions) -> Converted:
    """The model as ONNX. Raises InputError for what is malformed or cannot be mapped."""
    path = Path(source)
    lines = read_input(path).splitlines()
    head = linear.head(lines, b"SV", path)
    svm, kernel = head.get("svm_type", ""), head.get("kernel_type", "")
    if svm not in (*CLASSIFIERS, *REGRESSION, ONE_CLASS) or kernel not in KERNELS:
        expected = f"{', '.join((*CLASSIFIERS, *REGRESSION, ONE_CLASS))}; {', '.join(KERNELS)}"
        hint = "a precomputed kernel is not in the model" if kernel == "precomputed" else ""
        names = f"{svm[:40]}; {kernel[:40]}"
        raise InputError(
            "a machine that is not known here", where=path, expected=expected, found=names, hint=hint
        )
    classes = linear.count(head, "nr_class", (1, linear.MAX_CLASSES), path) if svm in CLASSIFIERS else 2
    total = linear.count(head, "total_sv", (1, MAX_VECTORS), path)
    vectors = _vectors(lines[len(head) + 1 :], (total, classes - 1), options.features, path)
    graph, rows = Graph(), _rows(kernel, vectors.values.shape[1], options, path)
    pairs = classes * (classes - 1) // 2
    rho = linear.numbers(head.get("rho", "").split(), pairs, f"{path}: rho")
    matrix = _pairs(vectors.coefficients, head, classes, path) if svm in CLASSIFIERS else vectors.coefficients
    if isinstance(rows, SparseRows):
        decisions = rows.dots(graph, vectors.values.T @ matrix, -rho)
    else:
        kernels = _kernels(graph, graph.cast(answers.FEATURES, "float64"), vectors.values, head, path)
        sums = graph.add("MatMul", kernels, graph.weight(matrix, "coefficients"))
        decisions = graph.add("Sub", sums, graph.weight(rho, "rho"))
    found = _answers(graph, decisions, head, options, path)
    signature = predicts(rows.ports(), found.outputs)
    converted = Converted(
        graph.model(signature),
        {"serving_default": signature},
        assets=found.assets,
        draw=lambda _, count: rows.draw(count),
        rows=64,
    )
    _compare(converted, rows, path, svm, "probA" in head and svm in CLASSIFIERS)
    return converted


def _rows(kernel: str, features: int, options: ConvertOptions, path: Path) -> FeatureRows:
    """Ids of files count from 1; those that no support vector has are passed over, as LIBSVM does.

    LIBSVM passes over 0 as well, which its files have for precomputed kernels alone: here it is refused,
    since rows that count from 0 would get wrong answers.

    Raises UsageError for sparse rows of a kernel that wants whole ones.
    """
    if not options.sparse:
        return DenseRows(features, first=1)
    if kernel != "linear":
        raise UsageError("only a linear kernel takes sparse rows", where=path, found=f"kernel_type {kernel}")
    return SparseRows(features, first=1, beyond=True, dtype="float64")


def _vectors(lines: list[bytes], shape: tuple[int, int], features: int, path: Path) -> Vectors:
    """Read `coefficient... index:value...` lines, `shape` being vectors and coefficients of each."""
    import numpy as np

    total, columns = shape
    rows = [line.split() for line in lines if line.strip()]
    if len(rows) != total:
        what = "the model is truncated" if len(rows) < total else "the model has too many support vectors"
        raise InputError(what, where=f"{path}: SV", expected=f"{total} support vectors", found=len(rows))
    words = [word for row in rows for word in row[:columns]]
    coefficients = linear.numbers(words, total * columns, f"{path}: SV").reshape(total, columns)
    entries = [(at, *word.partition(b":")[::2]) for at, row in enumerate(rows) for word in row[columns:]]
    bad = next((e for e in entries if not (e[1].isdigit() and len(e[1]) < 10 and int(e[1]) > 0)), None)
    if bad is not None:
        found = (bad[1] + b":" + bad[2]).decode(errors="replace")[:40]
        expected = "index:value with an index from 1 on"
        raise InputError(
            "a support vector is malformed", where=f"{path}: SV {bad[0]}", expected=expected, found=found
        )
    column = np.array([int(e[1]) - 1 for e in entries], np.int64)
    values = linear.numbers([e[2] for e in entries], None, f"{path}: SV")
    width = max(int(column.max(initial=-1)) + 1, features, 1)
    if width * total * 8 > MAX_BYTES:
        raise InputError(
            "the support vectors are too many and too wide",
            where=path,
            expected=f"at most {MAX_BYTES} bytes as a dense matrix",
            found=f"{total} x {width}",
        )
    dense = np.zeros((total, width))
    dense[np.array([e[0] for e in entries], np.int64), column] = values
    return Vectors(coefficients, dense)


def _kernels(graph: Graph, inputs: str, vectors: Array, head: dict[str, str], path: Path) -> str:
    """The kernel of every input row with every support vector, float64 [batch, vectors]."""
    import numpy as np

    def parameter(key: str) -> float:
        return float(linear.numbers([head.get(key, "")], 1, f"{path}: {key}")[0])

    products = graph.add("MatMul", inputs, graph.weight(np.ascontiguousarray(vectors.T), "vectors"))
    kernel = head["kernel_type"]
    if kernel == "linear":
        return products
    slope = graph.scalar(parameter("gamma"), "float64")
    if kernel == "rbf":
        axis = graph.weight(np.array([1]))
        own = graph.add("ReduceSum", graph.add("Mul", inputs, inputs), axis)
        lengths = graph.add("Add", own, graph.weight((vectors**2).sum(1), "lengths"))
        distance = graph.add("Sub", lengths, graph.add("Add", products, products))
        return graph.add("Exp", graph.add("Neg", graph.add("Mul", slope, distance)))
    shifted = graph.add("Add", graph.add("Mul", products, slope), graph.scalar(parameter("coef0"), "float64"))
    if kernel == "sigmoid":
        return graph.add("Tanh", shifted)
    degree = linear.count(head, "degree", (0, 1000), path)
    return graph.add("Pow", shifted, graph.scalar(degree, "float64"))


def _pairs(coefficients: Array, head: dict[str, str], classes: int, path: Path) -> Array:
    """The coefficients of each pair of classes as a column, zero for vectors of other classes."""
    import numpy as np

    counts = linear.integers(head.get("nr_sv", ""), classes, f"{path}: nr_sv")
    if min(counts) < 0 or sum(counts) != len(coefficients):
        found = f"{sum(counts)} support vectors"
        raise InputError(
            "the classes do not add up", where=f"{path}: nr_sv", expected=len(coefficients), found=found
        )
    starts = np.concatenate([[0], np.cumsum(counts)])
    matrix = np.zeros((len(coefficients), classes * (classes - 1) // 2))
    for pair, (i, j) in enumerate(combinations(range(classes), 2)):
        for one, column in ((i, j - 1), (j, i)):
            rows = slice(int(starts[one]), int(starts[one + 1]))
            matrix[rows, pair] = coefficients[rows, column]
    return matrix


def _answers(
    graph: Graph, decisions: str, head: dict[str, str], options: ConvertOptions, path: Path
) -> Answers:
    import numpy as np

    svm, narrow = head["svm_type"], graph.cast(decisions, "float32")
    if svm in REGRESSION:
        return answers.scores(graph, narrow, 1)
    zero = graph.scalar(0.0, "float64")
    below = graph.cast(graph.add("LessOrEqual", decisions, zero), "int64")
    probabilities = ""
    if svm == ONE_CLASS:
        labels, columns = [1, -1], 1
        picked = graph.add("Squeeze", below, graph.weight(np.array([1])))
    else:
        classes = linear.count(head, "nr_class", (1, linear.MAX_CLASSES), path)
        labels = linear.integers(head.get("label", ""), classes, f"{path}: label")
        columns = classes * (classes - 1) // 2
        if "probA" in head:
            slopes, shifts = (
                linear.numbers(head.get(key, "").split(), columns, f"{path}: {key}")
                for key in ("probA", "probB")
            )
            probabilities = coupled(graph, decisions, (slopes, shifts), classes)
            picked = graph.add("ArgMax", probabilities, axis=1, keepdims=0)
        else:
            picked = graph.add("ArgMax", _votes(graph, below, classes), axis=1, keepdims=0)
    found = linear.labelled(graph, picked, labels, options, probabilities)
    decided = answers.scores(graph, narrow, columns)
    return Answers({**found.outputs, **decided.outputs}, found.assets)


def _votes(graph: Graph, below: str, classes: int) -> str:
    """The pairs that each class wins, [batch, classes], from 0 (the first wins) or 1 for each pair."""
    import numpy as np

    pairs = list(combinations(range(classes), 2))
    first, second = (np.zeros((len(pairs), classes)) for _ in range(2))
    for at, (i, j) in enumerate(pairs):
        first[at, i] = second[at, j] = 1
    lost = graph.cast(below, "float64")
    gained = graph.add("MatMul", lost, graph.weight(second - first, "votes"))
    return graph.add("Add", gained, graph.weight(first.sum(0), "votes_of_the_first"))


def _compare(converted: Converted, drawn: FeatureRows, path: Path, svm: str, probable: bool) -> None:
    """Have the conversion compared with LIBSVM itself where it is installed.

    Its library is called, not its Python face, which gives nu_svc of many classes room for one decision.
    """
    try:
        from libsvm import svm as face
    except ImportError:
        return
    library, model = face.libsvm, face.libsvm.svm_load_model(str(path).encode())
    classes = library.svm_get_nr_class(model)
    pairs = classes * (classes - 1) // 2 if svm in CLASSIFIERS else 1

    def reference(name: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        import numpy as np

        scores, labels, chances = [], [], []
        for row in drawn.entries(inputs):
            nodes, _ = face.gen_svm_nodearray(row)
            decided, likely = (face.c_double * pairs)(), (face.c_double * classes)()
            labels.append(library.svm_predict_values(model, nodes, decided))
            if probable:
                labels[-1] = library.svm_predict_probability(model, nodes, likely)
            scores.append(list(decided))
            chances.append(list(likely))
        found = {"score": np.array(scores)[:, 0] if pairs == 1 else np.array(scores)}
        if svm not in REGRESSION:
            found["label"] = np.array(labels)
        return found | ({"probabilities": np.array(chances)} if probable else {})

    converted.reference, converted.compared_with = reference, "libsvm"


def _matches(seen: Seen) -> bool:
    return seen.head.startswith(b"svm_type ")


KIND = Kind(
    name="libsvm",
    what="a LIBSVM model",
    matches=_matches,
    convert=convert,
    extra="libsvm",
    compares="libsvm",
    options=("labels", "features", "sparse"),
)
