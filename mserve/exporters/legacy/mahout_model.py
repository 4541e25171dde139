"""Mahout models: logistic regression learned online, and naive Bayes.

Both are Hadoop Writables, big endian. `OnlineLogisticRegression` begins with its class as
text, and has a row of weights for each category but the first, whose score is zero.
`naiveBayesModel.bin` begins with a smoothing number and a flag for the complementary kind, and
has sums of weights by feature and by label, and of both. A vector has flags (dense 1, by rising
index 2, named 4, floats 8) and its size; unless dense, pairs of index and value follow, and with
the second flag indices are counted from the one before.

The priors of a logistic regression age weights that no example has touched for some time; that
happens when Mahout closes a model. One that was saved before is said to be so.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError
from ...files import read_input
from ...tensors import Array
from .. import answers
from ..answers import Answers
from ..build import Graph, predicts
from ..kinds import Converted, ConvertOptions, Kind, Seen
from . import networks

PACKAGE = "org.apache.mahout."
LOGISTIC = f"{PACKAGE}classifier.sgd.OnlineLogisticRegression"
DENSE, RISING, NAMED, FLOATS = 1, 2, 4, 8
MAX_SIZE = 1 << 27
MAX_CATEGORIES = 1 << 16
# Bytes after the name of a prior.
PRIORS = {"L1": 0, "UniformPrior": 0, "L2": 8, "TPrior": 8}


@dataclass(slots=True)
class Reader:
    """Numbers and vectors of a file, big endian; each raises InputError where the file does not go on."""

    data: bytes
    where: str
    at: int = 0

    def fail(self, expected: object, found: object) -> InputError:
        where = f"{self.where}: byte {self.at}"
        return InputError("the model is truncated or malformed", where=where, expected=expected, found=found)

    def take(self, count: int) -> bytes:
        if not 0 <= count <= len(self.data) - self.at:
            raise self.fail(f"at most {len(self.data) - self.at} bytes", count)
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, form: str) -> float:
        return float(struct.unpack(form, self.take(struct.calcsize(form)))[0])

    def integer(self, low: int, high: int) -> int:
        found = int(struct.unpack(">i", self.take(4))[0])
        if not low <= found <= high:
            raise self.fail(f"{low} to {high}", found)
        return found

    def count(self) -> int:
        found = 0
        for shift in range(0, 35, 7):
            byte = self.take(1)[0]
            found |= (byte & 0x7F) << shift
            if byte < 0x80:
                return found
        raise self.fail("a number of at most five bytes", "more")

    def text(self) -> str:
        return self.take(struct.unpack(">H", self.take(2))[0]).decode("utf-8", "replace")

    def vector(self) -> tuple[Array, int]:
        """Numbers, float64 [size], and how many of them are stored."""
        import numpy as np

        flags = self.take(1)[0]
        if flags > 15:
            raise self.fail("a vector's flags", flags)
        size, width = self.count(), 4 if flags & FLOATS else 8
        if flags & DENSE:
            with np.errstate(invalid="ignore"):  # NaN is refused below
                values = np.frombuffer(self.take(size * width), f">f{width}").astype(np.float64)
            stored = size
        else:
            values, stored = self._sparse(size, width, rising=bool(flags & RISING))
        if flags & NAMED:
            self.text()
        if not np.isfinite(values).all():
            raise InputError("a weight is not a number", where=f"{self.where}: byte {self.at}", found="NaN")
        return values, stored

    def _sparse(self, size: int, width: int, *, rising: bool) -> tuple[Array, int]:
        import numpy as np

        stored, index = self.count(), 0
        if size > MAX_SIZE or stored > size or stored * (width + 1) > len(self.data) - self.at:
            raise self.fail(f"at most {MAX_SIZE} numbers", f"{stored} of {size}")
        values = np.zeros(size)
        for _ in range(stored):
            index = self.count() + (index if rising else 0)
            if index >= size:
                raise self.fail(f"an index below {size}", index)
            values[index] = self.number(">f" if width == 4 else ">d")
        return values, stored


def convert(source: str, options: ConvertOptions) -> Converted:
    """The model as ONNX. Raises InputError for what is malformed or of another class."""
    reader = Reader(read_input(Path(source)), source)
    graph = Graph()
    if reader.data[2:].startswith(PACKAGE.encode()):
        weights, notes = _logistic(reader)
        inputs, assets = answers.features(len(weights))
        scores = graph.add("MatMul", answers.FEATURES, graph.weight(networks.finite(weights, source)))
        found = answers.classes(graph, graph.add("Softmax", scores, axis=1), weights.shape[1], options)
    else:
        weights, notes = _bayes(reader), ()
        inputs, assets = answers.features(len(weights))
        scores = graph.add("MatMul", answers.FEATURES, graph.weight(networks.finite(weights, source)))
        found = _scored(graph, scores, weights.shape[1], options)
    signature = predicts(inputs, found.outputs)
    model = graph.model(signature)
    return Converted(model, {"serving_default": signature}, {**assets, **found.assets}, notes)


def _scored(graph: Graph, scores: str, columns: int, options: ConvertOptions) -> Answers:
    from ...tensors import TensorSpec

    found = answers.scores(graph, scores, columns)
    graph.add("ArgMax", scores, name="label", axis=1, keepdims=0)
    outputs = {"label": TensorSpec("label", "int64", ("batch",)), **found.outputs}
    assets = answers.given_labels(options, columns)
    if assets and columns > 1:
        spec = outputs["score"]
        outputs["score"] = TensorSpec(spec.name, spec.dtype, spec.shape, labels=answers.LABELS_FILE)
    return Answers(outputs, assets)


def _logistic(reader: Reader) -> tuple[Array, tuple[str, ...]]:
    """Weights, float64 [features, categories], and what is to be said."""
    import numpy as np

    name = reader.text()
    if name != LOGISTIC:
        raise InputError(
            "a class that cannot be converted", where=reader.where, expected=LOGISTIC, found=name
        )
    reader.integer(1, 1)  # the layout's version
    reader.take(8 + 8 + 4)
    step = reader.integer(0, 2**31 - 1)
    reader.take(8 + 4)
    categories = reader.integer(2, MAX_CATEGORIES)
    reader.integer(0, 3)  # how the rows are kept in memory; each says it again
    rows, columns = reader.integer(categories - 1, categories - 1), reader.integer(1, MAX_SIZE)
    if columns * categories > MAX_SIZE:
        raise reader.fail(f"at most {MAX_SIZE} weights", columns * categories)
    weights = np.zeros((columns, categories))
    for row in range(rows):
        values, _ = reader.vector()
        if len(values) != columns:
            raise reader.fail(f"{columns} weights", len(values))
        weights[:, row + 1] = values
    return weights, _not_closed(reader, step)


def _not_closed(reader: Reader, step: int) -> tuple[str, ...]:
    prior = reader.text().rpartition(".")[2]
    if prior not in PRIORS:
        return ()
    reader.take(PRIORS[prior])
    reader.vector()
    last, _ = reader.vector()
    behind = int((last < step).sum())
    if not behind or prior == "UniformPrior":
        return ()
    return (
        f"the model was saved before it was closed: Mahout would still age {behind} weights by its prior; "
        "call close() and save it again",
    )


def _bayes(reader: Reader) -> Array:
    """What the counts of a row are multiplied by to give the scores of labels, float64 [features, labels]."""
    import numpy as np

    alpha = reader.number(">f")
    if not alpha > 0 or not math.isfinite(alpha):
        raise reader.fail("a positive smoothing number", alpha)
    complementary = reader.take(1)[0] != 0
    by_feature, known = reader.vector()
    by_label, _ = reader.vector()
    normalizer = reader.vector()[0] if complementary else np.ones(len(by_label))
    labels, features = len(by_label), len(by_feature)
    if not 0 < labels <= MAX_CATEGORIES or not 0 < labels * features <= MAX_SIZE or len(normalizer) != labels:
        raise reader.fail("labels and features", f"{labels} and {features}")
    rows = []
    for _ in range(labels):
        values, _ = reader.vector()
        if len(values) != features:
            raise reader.fail(f"{features} weights", len(values))
        rows.append(values)
    weights = np.stack(rows, 1)
    if complementary:
        above = by_feature[:, None] - weights + alpha
        below = by_label.sum() - by_label + alpha * known
    else:
        above, below = weights + alpha, by_label + alpha * known
    if not ((above > 0).all() and (below > 0).all() and (normalizer != 0).all()):
        raise reader.fail("positive sums", "others")
    sign = -1.0 if complementary else 1.0
    return np.asarray(sign * np.log(above / below) / normalizer)


def _matches(seen: Seen) -> bool:
    head = seen.head
    if head[2:].startswith(PACKAGE.encode()):
        return True
    if len(head) < 8 or head[4] > 1 or head[5] > 3:
        return False
    alpha = struct.unpack(">f", head[:4])[0]
    return 1e-6 <= alpha <= 1e6 and head[6] > 0


KIND = Kind(
    name="mahout",
    what="a Mahout model (OnlineLogisticRegression or naiveBayesModel.bin)",
    matches=_matches,
    convert=convert,
    options=("labels",),
)
