"""CatBoost models (.cbm) and live ones, through CatBoost's own ONNX export.

It wraps probabilities in maps, which are taken out; it knows no categorical, text or
embedding features, whose models are refused with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from ...tensors import BY_ONNX, DEFAULT_SIGNATURE, Array, TensorSpec
from .. import answers
from ..build import predicts
from ..kinds import Converted, ConvertOptions, Kind, Seen
from ..zipmap import without_maps

if TYPE_CHECKING:
    import onnx

MAGIC = b"CBM1"
OPSET = 13
TRIAL_ROWS = 256


def _matches(seen: Seen) -> bool:
    return seen.head.startswith(MAGIC)


def convert(source: str, options: ConvertOptions) -> Converted:
    """The model as ONNX, compared with itself. Raises InputError for what CatBoost cannot export."""
    import catboost
    import onnx

    model = catboost.CatBoost()
    try:
        model.load_model(source)
    except catboost.CatBoostError as error:
        raise InputError("the CatBoost model cannot be read", where=source, found=error) from error
    _check_features(model, source)
    _check_objective(model, source)
    path = Path(options.work) / "catboost.onnx"
    try:
        model.save_model(str(path), format="onnx")
    except catboost.CatBoostError as error:
        raise InputError("CatBoost cannot export the model", where=source, found=error) from error
    proto = without_maps(onnx.load(path))
    if not any(one.domain in ("", "ai.onnx") for one in proto.opset_import):
        proto.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    names = [str(name) for name in model.feature_names_]
    inputs, assets = answers.features(len(names), [] if _numbered(names) else names)
    outputs, files = _outputs(proto, model, options)
    _rename_input(proto)
    signature = predicts(inputs, outputs)
    return Converted(
        proto,
        {DEFAULT_SIGNATURE: signature},
        assets={**assets, **files},
        draw=lambda _, rows: {answers.FEATURES: _drawn(model, len(names), rows)},
        reference=lambda _, given: _answer(model, given[answers.FEATURES], outputs),
        compared_with=f"catboost {catboost.__version__}",
        rows=TRIAL_ROWS,
        versions={"catboost": catboost.__version__},
    )


def _check_features(model: Any, source: str) -> None:
    kinds = {
        "categorical": model.get_cat_feature_indices(),
        "text": model.get_text_feature_indices(),
        "embedding": model.get_embedding_feature_indices(),
    }
    names = [str(name) for name in model.feature_names_]
    found = [f"{kind} {', '.join(names[i] for i in places)}" for kind, places in kinds.items() if places]
    if found:
        raise InputError(
            "CatBoost cannot export features that are not numbers",
            where=source,
            expected="float features only",
            found="; ".join(found),
            hint="encode them as numbers before training (one column for each category, or their means)",
        )


def _check_objective(model: Any, source: str) -> None:
    """CatBoost's export makes classes of all that has several columns, and their softmax."""
    objective = str(model.get_all_params().get("loss_function", ""))
    if objective.startswith(("MultiRMSE", "MultiClassOneVsAll", "MultiLogloss", "MultiCrossEntropy")):
        raise InputError(
            "CatBoost exports this objective as if it were MultiClass, with other answers",
            where=source,
            found=objective,
            hint="train with MultiClass, or one model for each target",
        )


def _numbered(names: list[str]) -> bool:
    """Whether features are only called by their numbers."""
    return names == [str(i) for i in range(len(names))]


def _rename_input(proto: onnx.ModelProto) -> None:
    (given,) = proto.graph.input
    for node in proto.graph.node:
        node.input[:] = [answers.FEATURES if name == given.name else name for name in node.input]
    given.name = answers.FEATURES
    given.type.tensor_type.shape.dim[0].dim_param = "batch"


def _outputs(
    proto: onnx.ModelProto, model: Any, options: ConvertOptions
) -> tuple[dict[str, TensorSpec], dict[str, bytes]]:
    """Probabilities and labels of a classifier, the score of anything else."""
    names = {value.name: value for value in proto.graph.output}
    if "probabilities" not in names:
        return _score(proto, model), {}
    width = names["probabilities"].type.tensor_type.shape.dim[1].dim_value
    classes = [str(name) for name in model.classes_]
    known = classes if len(classes) == width else []
    own = {answers.LABELS_FILE: answers.lines(known)} if known else {}
    files = answers.given_labels(options, width) or own
    dtype = BY_ONNX[names["label"].type.tensor_type.elem_type].name
    labels = answers.LABELS_FILE if files else ""
    return {
        "probabilities": TensorSpec("probabilities", "float32", ("batch", width), labels=labels),
        "label": TensorSpec("label", dtype, ("batch",)),
    }, files


def _score(proto: onnx.ModelProto, model: Any) -> dict[str, TensorSpec]:
    """The sums of the trees, as `predict` of a regressor turns them: rates where these were learned."""
    import numpy as np
    from onnx import helper, numpy_helper

    (value,) = proto.graph.output
    raw, width = value.name, np.asarray(model.predict([[0.0] * len(model.feature_names_)])).size
    if _kind(model) == "Exponent":
        proto.graph.node.append(helper.make_node("Exp", [raw], ["rate"]))
        raw = "rate"
    shape = [-1] if width == 1 else [-1, width]
    proto.graph.initializer.append(numpy_helper.from_array(np.array(shape), "score_shape"))
    proto.graph.node.append(helper.make_node("Reshape", [raw, "score_shape"], ["score"]))
    dims = ("batch",) if width == 1 else ("batch", width)
    value.CopyFrom(helper.make_tensor_value_info("score", value.type.tensor_type.elem_type, dims))
    return {"score": TensorSpec("score", "float32", dims)}


def _kind(model: Any) -> str:
    """What `predict` of CatBoostRegressor answers: rates for the objectives of counts, sums for others."""
    objective = str(model.get_all_params().get("loss_function", "")).partition(":")[0]
    return "Exponent" if objective in ("Poisson", "Tweedie") else "RawFormulaVal"


def _drawn(model: Any, features: int, rows: int) -> Array:
    """Rows about the borders between the bins of each feature."""
    import numpy as np

    rng = np.random.default_rng(rows)
    found = rng.normal(size=(rows, features))
    for feature, borders in (model.get_borders() or {}).items():
        if len(borders):
            low, high = min(borders), max(borders)
            margin = 0.1 * (high - low) + 1e-3
            found[:, feature] = rng.uniform(low - margin, high + margin, rows)
    return found.astype(np.float32)


def _answer(model: Any, rows: Array, outputs: Mapping[str, TensorSpec]) -> dict[str, Array]:
    """CatBoost's own answers."""
    import numpy as np

    if "probabilities" not in outputs:
        return {"score": np.asarray(model.predict(rows, prediction_type=_kind(model)))}
    labels = np.asarray(model.predict(rows, prediction_type="Class")).reshape(-1)
    return {"probabilities": model.predict(rows, prediction_type="Probability"), "label": labels}


def _accepts(source: Any) -> bool:
    return any(one.__module__.partition(".")[0] == "catboost" for one in type(source).__mro__)


def _save(source: Any, directory: Path, options: ConvertOptions) -> tuple[str, ConvertOptions]:
    path = directory / "model.cbm"
    source.save_model(str(path))
    return str(path), options


KIND = Kind(
    name="catboost",
    what="a CatBoost model (.cbm)",
    matches=_matches,
    convert=convert,
    extra="catboost",
    modules=("catboost",),
    options=("labels",),
    accepts=_accepts,
    save=_save,
)
