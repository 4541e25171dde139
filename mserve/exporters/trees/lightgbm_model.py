"""LightGBM models, the text that `save_model` writes, read without LightGBM.

The head and every tree are lines of `key=value`; a tree's values are parallel lists over
its splits and its leaves, and a child below zero is the leaf `-1 - child`. A row goes left
where its feature is at most the threshold, or where its category stands in the split's bit
set. `decision_type` packs what a split is: bit 0 categorical, bit 1 missing values go
left, bits 2 and 3 what counts as missing (nothing, zero, NaN).

Thresholds are float64 and inputs float32 here: a threshold is rounded down to float32, which
sends every float32 input where it went before (values up to 1e-35 count as zero). Where
nothing counts as missing, NaN is 0.
The `objective` line says how sums become answers, with parameters that change them
(`sigmoid:2`, `sqrt`); `average_output` (random forests) divides by the number of rounds.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from ...files import read_input
from ...tensors import Array
from .. import answers
from ..build import Graph, predicts
from ..documents import Doc
from ..kinds import Converted, ConvertOptions, Kind, Seen
from . import tree_rows
from .forest import EQUAL, LEAF, LESS_EQUAL, Forest, Tree
from .tree_rows import TreeRows

if TYPE_CHECKING:
    from ..answers import Answers

MAX_FEATURES = 1 << 24
MAX_OUTPUTS = 1 << 16
# The largest category that is a whole number in float32.
MAX_CATEGORY = 1 << 24
TRIAL_ROWS = 256
# LightGBM's own bound below which a value counts as zero.
ZERO = 1e-35
CATEGORICAL, LEFT = 1, 2
NOTHING, AS_ZERO, AS_NAN = 0, 1, 2
IDENTITY = "regression regression_l1 huber fair quantile mape lambdarank rank_xendcg custom".split()
EXP = "poisson gamma tweedie".split()
SIGMOID = "cross_entropy xentropy".split()
SOFTPLUS = "cross_entropy_lambda xentlambda".split()
CLASSES = "binary multiclass multiclassova".split()
OBJECTIVES = (*IDENTITY, *EXP, *SIGMOID, *SOFTPLUS, *CLASSES)


def _matches(seen: Seen) -> bool:
    return seen.head[:64].split(b"\n")[0].strip() == b"tree" and b"\nversion=" in seen.head[:256]


def convert(source: str, options: ConvertOptions) -> Converted:
    """The model as ONNX. Raises InputError for what is malformed or cannot be mapped."""
    path = Path(source)
    head, trees = _sections(path)
    features = (head / "max_feature_idx").integer(0, MAX_FEATURES - 1) + 1
    outputs = (head / "num_tree_per_iteration").integer(1, MAX_OUTPUTS)
    forest, zeros = _forest(trees, features, outputs, path)
    names = (head / "feature_names").text().split() if "feature_names" in head else []
    graph, rows = Graph(), tree_rows.of(forest, names, options)
    given = _missing(graph, rows.take(graph), {rows.places[f] for f in zeros}, forest.features)
    if forest.category_features:
        given = _whole(graph, given, sorted(forest.category_features), forest.features)
    sums = forest.build(graph, given)
    if "average_output" in head:
        sums = graph.add("Div", sums, graph.scalar(max(1, len(trees) // outputs)))
    objective = (head / "objective").text().split() if "objective" in head else []
    found = _answers(graph, sums, Doc(objective, f"{path}: objective"), outputs, options)
    signature = predicts(rows.ports, found.outputs)
    converted = Converted(
        graph.model(signature),
        {"serving_default": signature},
        assets={**rows.assets, **found.assets},
        draw=lambda _, count: rows.draw(count),
        rows=TRIAL_ROWS,
        versions={"model": (head / "version").text()},
    )
    _compare(converted, rows, path)
    return converted


def _sections(path: Path) -> tuple[Doc, list[Doc]]:
    """The head and the trees, each as a document of texts. Raises InputError when the end is missing."""
    text = read_input(path).decode(errors="replace")
    lines, ended = text.splitlines(), False
    sections: list[dict[str, Any]] = [{}]
    for line in lines:
        ended = ended or line == "end of trees"
        if ended:
            break
        key, found, value = line.partition("=")
        if found and key == "Tree":
            sections.append({})
        elif line:
            sections[-1][key] = value
    if not ended:
        raise InputError(
            "the model is truncated",
            where=f"{path}, line {len(lines)}",
            expected='the line "end of trees"',
            found="the end of the file",
        )
    head, *trees = (
        Doc(section, f"{path}{f': tree {i - 1}' if i else ''}") for i, section in enumerate(sections)
    )
    sizes = len((head / "tree_sizes").text().split()) if "tree_sizes" in head else len(trees)
    if sizes != len(trees):
        raise InputError("trees are missing", where=path, expected=f"{sizes} trees", found=len(trees))
    return head, trees


def _list(doc: Doc, key: str, count: int) -> Array:
    """The numbers of a line, float64 [count]; an empty line where there are none."""
    import numpy as np

    words = (doc / key).text().split() if count or key in doc else []
    try:
        values = np.array([float(word) for word in words], np.float64)
    except ValueError as error:
        raise InputError(
            "a number of a tree is malformed", where=f"{doc.where}.{key}", found=error
        ) from error
    if len(values) != count:
        expected = f"{count} numbers"
        raise InputError(
            "a tree is malformed", where=f"{doc.where}.{key}", expected=expected, found=len(values)
        )
    return values


def _integers(doc: Doc, key: str, count: int) -> list[int]:
    import numpy as np

    values = _list(doc, key, count)
    if not (np.isfinite(values) & (values == np.floor(values)) & (np.abs(values) < 2**53)).all():
        raise InputError("a tree is malformed", where=f"{doc.where}.{key}", expected="whole numbers")
    return [int(v) for v in values]


def _forest(trees: list[Doc], features: int, outputs: int, path: Path) -> tuple[Forest, set[int]]:
    """The forest, and the features whose zeros count as missing."""
    forest = Forest(str(path), features, outputs)
    rules: dict[int, set[int]] = {}
    linear = [doc.where for doc in trees if doc.value.get("is_linear", "0").strip() == "1"]
    if linear:
        raise InputError(
            "trees with linear models in their leaves cannot be converted",
            where=path,
            found=f"{len(linear)} of {len(trees)} trees",
            hint="train without linear_tree",
        )
    for index, doc in enumerate(trees):
        forest.grow(_tree(doc, index % outputs, rules))
    zeros = {feature for feature, seen in rules.items() if AS_ZERO in seen}
    mixed = sorted(feature for feature in zeros if len(rules[feature]) > 1)
    if mixed:
        raise InputError(
            "some trees take the zeros of a feature for missing and some do not",
            where=path,
            found=f"features {', '.join(map(str, mixed[:8]))}",
            hint="train all rounds with the same zero_as_missing",
        )
    return forest, zeros


def _tree(doc: Doc, target: int, rules: dict[int, set[int]]) -> Tree:
    leaves = (doc / "num_leaves").integer(1, 2**31 - 1)
    splits = leaves - 1
    weights = _list(doc, "leaf_value", leaves).tolist()
    if splits == 0:
        return Tree([LEAF], [0], [0.0], [0], [0], [False], weights, target)
    features, kinds = (_integers(doc, key, splits) for key in ("split_feature", "decision_type"))
    left, right = (_integers(doc, key, splits) for key in ("left_child", "right_child"))
    values = _list(doc, "threshold", splits)
    sets = _sets(doc) if any(kind & CATEGORICAL for kind in kinds) else []
    modes, missing, categories = [], [], {}
    for node, kind in enumerate(kinds):
        rule = kind >> 2 & 3
        if kind & CATEGORICAL:
            modes.append(EQUAL)
            missing.append(False)
            categories[node] = _members(doc, sets, float(values[node]))
            continue
        rules.setdefault(features[node], set()).add(rule)
        modes.append(LESS_EQUAL)
        missing.append(bool(values[node] >= 0) if rule == NOTHING else bool(kind & LEFT))
    below = _down(values)

    def place(child: int) -> int:  # leaves are numbered after the splits
        return splits + (-1 - child) if child < 0 else child if child < splits else -1

    return Tree(
        [*modes, *[LEAF] * leaves],
        [*features, *[0] * leaves],
        [*below, *[0.0] * leaves],
        [*map(place, left), *[0] * leaves],
        [*map(place, right), *[0] * leaves],
        [*missing, *[False] * leaves],
        [*[0.0] * splits, *weights],
        target,
        categories,
    )


def _down(values: Array) -> list[float]:
    """float64 thresholds as the largest float32 that is not above them.

    LightGBM takes values up to ZERO for 0, so none between -ZERO and ZERO is told from another.
    """
    import numpy as np

    zero = np.float32(ZERO)
    with np.errstate(over="ignore"):
        near = values.astype(np.float32)
        lower = np.nextafter(near, np.float32(-np.inf))
    found = np.where(near > values, lower, near)
    found = np.where((found >= 0) & (found < zero), zero, found)
    below = np.nextafter(-zero, np.float32(-np.inf))
    return [float(x) for x in np.where((found >= -zero) & (found < 0), below, found)]


def _sets(doc: Doc) -> list[list[int]]:
    """The bit sets of a tree, each a list of 32-bit words: cut by bounds out of one list."""
    count = (doc / "num_cat").integer(0, 2**31 - 1)
    bounds = _integers(doc, "cat_boundaries", count + 1)
    words = _integers(doc, "cat_threshold", bounds[-1] if 0 <= bounds[-1] < 2**31 else 0)
    if bounds[0] != 0 or any(low > high for low, high in pairwise(bounds)):
        raise InputError("the sets of categories overlap", where=f"{doc.where}.cat_boundaries")
    return [words[low:high] for low, high in pairwise(bounds)]


def _members(doc: Doc, sets: list[list[int]], index: float) -> list[int]:
    """The categories in a bit set, whose number stands where other splits have their threshold."""
    if not (0 <= index < len(sets) and index == int(index)):
        expected = f"0 to {len(sets) - 1}"
        raise InputError("a set of categories is not there", where=doc.where, expected=expected, found=index)
    words = sets[int(index)]
    found = [32 * at + bit for at, word in enumerate(words) for bit in range(32) if word >> bit & 1]
    if found and found[-1] >= MAX_CATEGORY:
        expected = f"at most {MAX_CATEGORY - 1}"
        raise InputError(
            "a category is not a whole number in float32", where=doc.where, expected=expected, found=found[-1]
        )
    return found


def _missing(graph: Graph, inputs: str, zeros: set[int], features: int) -> str:
    """The inputs with NaN for the zeros that count as missing."""
    import numpy as np

    if not zeros:
        return inputs
    mask = np.zeros(features, bool)
    mask[sorted(zeros)] = True
    small = graph.add("LessOrEqual", graph.add("Abs", inputs), graph.scalar(ZERO))
    gone = graph.add("And", small, graph.weight(mask, "zero_is_missing"))
    return graph.add("Where", gone, graph.scalar(np.nan), inputs)


def _whole(graph: Graph, inputs: str, columns: list[int], features: int) -> str:
    """The inputs with categories cut towards zero, as a cast to an integer does."""
    import numpy as np

    mask = np.zeros(features, bool)
    mask[columns] = True
    cut = graph.add("Mul", graph.add("Sign", inputs), graph.add("Floor", graph.add("Abs", inputs)))
    return graph.add("Where", graph.weight(mask, "categorical"), cut, inputs)


def _answers(graph: Graph, sums: str, doc: Doc, outputs: int, options: ConvertOptions) -> Answers:
    name, *words = doc.value or ["custom"]
    parameters = dict(word.partition(":")[::2] for word in words)
    if name not in OBJECTIVES:
        known = ", ".join(OBJECTIVES)
        raise InputError("an objective that is not known here", where=doc.where, expected=known, found=name)
    if name in CLASSES:
        if name == "multiclass":
            return answers.classes(graph, graph.add("Softmax", sums, axis=1), outputs, options)
        slope = _number(parameters.get("sigmoid", "1"), doc.where)
        chances = graph.add("Sigmoid", graph.add("Mul", sums, graph.scalar(slope)))
        if name == "binary" and outputs == 1:
            return answers.binary(graph, chances, options)
        return answers.classes(graph, chances, outputs, options)
    if name in EXP:
        sums = graph.add("Exp", sums)
    elif name in SIGMOID:
        sums = graph.add("Sigmoid", sums)
    elif name in SOFTPLUS:
        sums = graph.add("Softplus", sums)
    elif "sqrt" in parameters:
        sums = graph.add("Mul", graph.add("Abs", sums), sums)
    return answers.scores(graph, sums, outputs)


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise InputError(
            "a parameter of the objective is malformed", where=where, expected="sigmoid > 0", found=text
        )
    return value


def _compare(converted: Converted, rows: TreeRows, path: Path) -> None:
    """Have the conversion compared with LightGBM itself where it is installed."""
    try:
        import lightgbm
    except ImportError:
        return
    with warnings.catch_warnings():  # that it takes the parameters in the file, and this one all the same
        warnings.simplefilter("ignore", UserWarning)
        booster = lightgbm.Booster(model_file=str(path), params={"verbosity": -1})

    def reference(name: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        import numpy as np

        found = np.asarray(booster.predict(rows.dense(inputs).astype(np.float64)))
        signature = (converted.signatures or {})["serving_default"]
        if "label" not in signature.outputs:
            return {"score": found}
        if found.ndim == 1:
            return {"probabilities": np.stack([1 - found, found], 1), "label": found > 0.5}
        return {"probabilities": found, "label": found.argmax(1)}

    converted.reference, converted.compared_with = reference, f"lightgbm {lightgbm.__version__}"


def _accepts(source: Any) -> bool:
    ours = any(one.__module__.partition(".")[0] == "lightgbm" for one in type(source).__mro__)
    return ours and (hasattr(source, "save_model") or hasattr(source, "booster_"))


def _save(source: Any, directory: Path, options: ConvertOptions) -> tuple[str, ConvertOptions]:
    """The text of a Booster up to its best round, as `predict` uses it; names of a classifier's classes."""
    from dataclasses import replace

    path = directory / "model.txt"
    names = getattr(source, "classes_", None)
    if names is not None and options.labels is None:
        (directory / "labels.txt").write_bytes(answers.lines([str(name) for name in names]))
        options = replace(options, labels=directory / "labels.txt")
    booster = getattr(source, "booster_", source)
    booster.save_model(str(path))
    return str(path), options


KIND = Kind(
    name="lightgbm",
    what="a LightGBM model (.txt)",
    matches=_matches,
    convert=convert,
    extra="lightgbm",
    compares="lightgbm",
    options=("labels", "sparse"),
    accepts=_accepts,
    save=_save,
)
