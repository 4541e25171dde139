"""XGBoost models, JSON or UBJSON, read without XGBoost.

Both encodings hold one document. `learner.gradient_booster` is a forest (`gbtree`; `dart`
weighs each tree by `weight_drop`) or a linear model (`gblinear`). A tree is a set of
parallel arrays over its nodes: a row goes left where its feature is less than
`split_conditions`, right where its category stands in the node's set, and to the
`default_left` side where the value is missing; a node without children is a leaf whose
value stands in `split_conditions`. `tree_info` says to which output a tree adds.

The objective then turns sums into answers. `base_score` is stored as an answer, not as a
sum: it goes backwards through the objective's link before it is added. Since version 3 it
is a list, one for each output. Every round counts, as for `Booster.predict`; rounds after
the best one of early stopping are counted too, and said.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from ...files import read_input
from ...tensors import Array
from .. import answers
from ..build import Graph, predicts
from ..documents import Doc
from ..kinds import Converted, ConvertOptions, Kind, Seen
from . import ubjson
from .forest import EQUAL, LEAF, LESS, Forest, Tree

if TYPE_CHECKING:
    from ..answers import Answers

MAX_FEATURES = 1 << 24
MAX_OUTPUTS = 1 << 16
# Categories above this are not whole numbers in float32, and XGBoost takes none.
MAX_CATEGORY = 1 << 24
TRIAL_ROWS = 256
OLD = b"binf"
SIGMOID, EXP, IDENTITY, SOFTMAX, STEP = "Sigmoid", "Exp", "Identity", "Softmax", "step"
# Objective: the link of base_score, how sums become answers, and whether these are classes.
OBJECTIVES = {
    **dict.fromkeys(
        (
            "reg:squarederror reg:linear reg:squaredlogerror reg:pseudohubererror reg:absoluteerror "
            "reg:quantileerror rank:pairwise rank:ndcg rank:map"
        ).split(),
        (IDENTITY, IDENTITY, False),
    ),
    **dict.fromkeys(
        "count:poisson reg:gamma reg:tweedie survival:cox survival:aft".split(), (EXP, EXP, False)
    ),
    "reg:logistic": (SIGMOID, SIGMOID, False),
    "binary:logistic": (SIGMOID, SIGMOID, True),
    "binary:logitraw": (IDENTITY, IDENTITY, False),
    "binary:hinge": (IDENTITY, STEP, False),
    "multi:softprob": (IDENTITY, SOFTMAX, True),
    "multi:softmax": (IDENTITY, SOFTMAX, True),
}


def _matches(seen: Seen) -> bool:
    head = seen.head.lstrip()
    return (
        head.startswith(OLD)
        or (head[:1] == b"{" and b"learner" in head[:64])
        or b'"gradient_booster"' in head[:2048]
    )


def convert(source: str, options: ConvertOptions) -> Converted:
    """The model as ONNX. Raises InputError for what is malformed or cannot be mapped."""
    path = Path(source)
    document = _document(path)
    learner = document / "learner"
    name = (learner / "objective" / "name").text()
    if name not in OBJECTIVES:
        raise InputError(
            "an objective that is not known here",
            where=f"{path}: learner.objective.name",
            expected=", ".join(OBJECTIVES),
            found=name,
            hint="set a built-in objective with the same answers, and save the model again",
        )
    parameters = learner / "learner_model_param"
    count = (parameters / "num_feature").integer(0, MAX_FEATURES)
    outputs = max(
        (parameters / key).integer(0, MAX_OUTPUTS) if key in parameters else 1
        for key in ("num_class", "num_target")
    )
    outputs = max(1, outputs)
    names = [one.text() for one in (learner / "feature_names").items()] if "feature_names" in learner else []
    inputs, assets = answers.features(count, names)
    graph = Graph()
    sums, draw = _sums(graph, learner / "gradient_booster", count, outputs)
    linear = (learner / "gradient_booster" / "name").text() == "gblinear"
    base = _base(parameters / "base_score", name, outputs)
    shift = graph.weight(base[:1] if linear else base, "base_score")  # linear ones add the first to all
    found = _answers(graph, graph.add("Add", sums, shift), name, outputs, options)
    signature = predicts(inputs, found.outputs)
    converted = Converted(
        graph.model(signature),
        {"serving_default": signature},
        assets={**assets, **found.assets},
        notes=_notes(learner),
        draw=lambda _, rows: {answers.FEATURES: draw(rows)},
        rows=TRIAL_ROWS,
        versions={"model": ".".join(str(v) for v in (document / "version").integers().tolist()[:3])},
    )
    _compare(converted, path)
    return converted


def _document(path: Path) -> Doc:
    data = read_input(path)
    if data.startswith(OLD):
        raise InputError(
            "XGBoost's old binary format, which XGBoost itself has given up",
            where=path,
            expected="a .json or .ubj model",
            hint="load it with an XGBoost before 3.1 and save it as .json or .ubj",
        )
    if data.lstrip()[:2] in (b'{"', b"{\n", b"{\r", b"{ ", b"{\t", b"{}"):
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            what = "the model is truncated or malformed"
            raise InputError(what, where=path, expected="a JSON document", found=error) from error
    else:
        value = ubjson.parse(data, path)
    if not isinstance(value, dict):
        raise InputError("not an XGBoost model", where=path, expected="an object with a learner")
    return Doc(value, str(path))


def _sums(graph: Graph, booster: Doc, features: int, outputs: int) -> tuple[str, Any]:
    """The sums before base_score, [batch, outputs], and what draws inputs."""
    kind = (booster / "name").text()
    if kind == "gblinear":
        return _linear(graph, booster / "model", features, outputs)
    if kind not in ("gbtree", "dart"):
        expected = "gbtree, dart or gblinear"
        raise InputError(
            "a booster that is not known here", where=booster.where, expected=expected, found=kind
        )
    model = booster / "gbtree" / "model" if kind == "dart" else booster / "model"
    trees = (model / "trees").items()
    if not trees:
        raise InputError("the model has no trees", where=f"{model.where}.trees", expected="one at least")
    weights = (booster / "weight_drop").floats(len(trees)) if kind == "dart" else None
    targets = (model / "tree_info").integers(len(trees))
    forest = Forest(booster.where, features, outputs)
    for index, tree in enumerate(trees):
        target = int(targets[index])
        if not 0 <= target < outputs:
            expected = f"0 to {outputs - 1}"
            raise InputError("a tree adds to no output", where=tree.where, expected=expected, found=target)
        forest.grow(_tree(tree, target, 1.0 if weights is None else float(weights[index])))
    given = answers.FEATURES
    if forest.category_features:
        given = _whole(graph, given, sorted(forest.category_features), features)
    return forest.build(graph, given), forest.draw


def _whole(graph: Graph, inputs: str, columns: list[int], features: int) -> str:
    """The inputs with categories cut to whole numbers, as XGBoost looks at them."""
    import numpy as np

    mask = np.zeros(features, bool)
    mask[columns] = True
    return graph.add("Where", graph.weight(mask, "categorical"), graph.add("Floor", inputs), inputs)


def _tree(doc: Doc, target: int, weight: float) -> Tree:
    count = (doc / "tree_param" / "num_nodes").integer(1, 2**31 - 1)
    if (doc / "tree_param" / "size_leaf_vector").integer(0, 2**31 - 1) > 1:
        raise InputError(
            "leaves with several values cannot be converted",
            where=doc.where,
            hint='train with multi_strategy="one_output_per_tree"',
        )
    left, right = ((doc / key).integers(count).tolist() for key in ("left_children", "right_children"))
    values = (doc / "split_conditions").floats(count)
    kinds = (doc / "split_type").integers(count).tolist() if "split_type" in doc else [0] * count
    defaults = [bool(x) for x in (doc / "default_left").integers(count).tolist()]
    sets = _categories(doc) if any(kinds) else {}
    modes = [LEAF if child < 0 else EQUAL if kinds[node] else LESS for node, child in enumerate(left)]
    categories = {node: sets.get(node, []) for node, mode in enumerate(modes) if mode == EQUAL}
    # A category of the set goes right: there, yes is right.
    return Tree(
        modes,
        (doc / "split_indices").integers(count).tolist(),
        values.tolist(),
        [right[n] if modes[n] == EQUAL else left[n] for n in range(count)],
        [left[n] if modes[n] == EQUAL else right[n] for n in range(count)],
        [d != (modes[n] == EQUAL) for n, d in enumerate(defaults)],
        (values * weight).tolist(),
        target,
        categories,
    )


def _categories(doc: Doc) -> dict[int, list[int]]:
    """The categories of each node that has some: all in one list, cut by segments and sizes."""
    nodes = (doc / "categories_nodes").integers().tolist()
    starts, sizes = (
        (doc / f"categories_{key}").integers(len(nodes)).tolist() for key in ("segments", "sizes")
    )
    members = (doc / "categories").integers().tolist()
    for start, size in zip(starts, sizes, strict=True):
        if start < 0 or size < 0 or start + size > len(members):
            found = f"{size} from {start}"
            raise InputError(
                "a set of categories is not there",
                where=doc.where,
                expected=f"within {len(members)}",
                found=found,
            )
    if any(not 0 <= member < MAX_CATEGORY for member in members):
        expected = f"0 to {MAX_CATEGORY - 1}"
        raise InputError("a category is out of range", where=f"{doc.where}.categories", expected=expected)
    return {n: members[s : s + k] for n, s, k in zip(nodes, starts, sizes, strict=True)}


def _linear(graph: Graph, model: Doc, features: int, outputs: int) -> tuple[str, Any]:
    """Weights by feature, one for each output, the biases as the last row; a missing value counts as 0."""
    import numpy as np

    weights = (model / "weights").floats((features + 1) * outputs).reshape(features + 1, outputs)
    if not np.isfinite(weights).all():
        raise InputError("a weight is not a number", where=f"{model.where}.weights", found="NaN or infinity")
    known = graph.add("Where", graph.add("IsNaN", answers.FEATURES), graph.scalar(0.0), answers.FEATURES)
    narrow = weights.astype(np.float32)
    sums = graph.add("Gemm", known, graph.weight(narrow[:-1], "weights"), graph.weight(narrow[-1], "bias"))

    def draw(rows: int) -> Array:
        rng = np.random.default_rng(rows)
        made = rng.standard_normal((rows, features)).astype(np.float32)
        made[rng.random(made.shape) < 0.1] = np.nan
        return made

    return sums, draw


def _base(doc: Doc, objective: str, outputs: int) -> Array:
    """The base score as a sum, float32 [outputs]: text, a list as text, or a list."""
    import numpy as np

    parts = doc.value if isinstance(doc.value, list) else doc.text().strip().strip("[]").split(",")
    try:
        values = [float(part) for part in parts]
    except (TypeError, ValueError):
        values = []
    if len(values) not in (1, outputs) or not all(math.isfinite(v) for v in values):
        expected = f"1 or {outputs} numbers"
        raise InputError("a bad base score", where=doc.where, expected=expected, found=str(doc.value)[:80])
    link = OBJECTIVES[objective][0]
    if (link == EXP and min(values) <= 0) or (link == SIGMOID and not all(0 < v < 1 for v in values)):
        raise InputError("a base score that the objective cannot have", where=doc.where, found=values)
    turned = [math.log(v) if link == EXP else math.log(v / (1 - v)) if link == SIGMOID else v for v in values]
    return np.broadcast_to(np.array(turned, np.float32), outputs)


def _answers(graph: Graph, sums: str, objective: str, outputs: int, options: ConvertOptions) -> Answers:
    _, transform, is_class = OBJECTIVES[objective]
    if transform == STEP:
        found = graph.cast(graph.add("Greater", sums, graph.scalar(0.0)), "float32")
    elif transform == SOFTMAX:
        found = graph.add("Softmax", sums, axis=1)
    else:
        found = graph.add(transform, sums)
    if not is_class or (outputs > 1 and transform != SOFTMAX):
        return answers.scores(graph, found, outputs)
    return (
        answers.binary(graph, found, options)
        if outputs == 1
        else answers.classes(graph, found, outputs, options)
    )


def _notes(learner: Doc) -> tuple[str, ...]:
    best = learner.value.get("attributes", {})
    best = best.get("best_iteration") if isinstance(best, dict) else None
    if best is None:
        return ()
    return (
        f"early stopping found round {str(best)[:20]} to be the best; all rounds are used, as "
        "Booster.predict does; to export the best ones, save booster[: best_iteration + 1]",
    )


def _compare(converted: Converted, path: Path) -> None:
    """Have the conversion compared with XGBoost itself where it is installed."""
    try:
        import xgboost
    except ImportError:
        return
    booster = xgboost.Booster(model_file=bytearray(path.read_bytes()))  # of files it believes the name
    signature = (converted.signatures or {})["serving_default"]

    def reference(name: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        import numpy as np

        names, kinds = booster.feature_names, booster.feature_types
        x = inputs[answers.FEATURES]
        data = xgboost.DMatrix(x, feature_names=names, feature_types=kinds, enable_categorical=True)
        margin, found = booster.predict(data, output_margin=True), booster.predict(data)
        if "label" not in signature.outputs:
            return {"score": found}
        if margin.ndim == 1:
            return {"probabilities": np.stack([1 - found, found], 1), "label": found > 0.5}
        powers = np.exp(margin - margin.max(1, keepdims=True))
        return {"probabilities": powers / powers.sum(1, keepdims=True), "label": margin.argmax(1)}

    converted.reference, converted.compared_with = reference, f"xgboost {xgboost.__version__}"


def _accepts(source: Any) -> bool:
    ours = any(one.__module__.partition(".")[0] == "xgboost" for one in type(source).__mro__)
    return ours and hasattr(source, "save_model")


def _save(source: Any, directory: Path, options: ConvertOptions) -> tuple[str, ConvertOptions]:
    """A Booster as it is; one of the scikit-learn classes with the rounds that its `predict` uses."""
    path = directory / "model.json"
    if hasattr(source, "get_booster"):
        best = getattr(source, "best_iteration", None) if _stopped(source) else None
        source = source.get_booster()
        source = source if best is None else source[: best + 1]
    source.save_model(path)
    return str(path), options


def _stopped(estimator: Any) -> bool:
    return "best_iteration" in estimator.get_booster().attributes()


KIND = Kind(
    name="xgboost",
    what="an XGBoost model (.json or .ubj)",
    matches=_matches,
    convert=convert,
    extra="xgboost",
    compares="xgboost",
    options=("labels",),
    accepts=_accepts,
    save=_save,
)
