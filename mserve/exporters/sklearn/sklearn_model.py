"""scikit-learn estimators, from pickles and live ones, through skl2onnx, which is mended where it is wrong.

What the converter gets wrong by itself, silently or not, and what is done here:
text is lowered in a locale that slim systems lack (`C.UTF-8` is set); tokens are ASCII
(Unicode letters and digits are); attributes that are numpy's booleans break onnx (they are
made integers); answers of classifiers are lists of maps (they are columns). The rest is for
the comparison with the estimator itself to find.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from ...tensors import BY_ONNX, DEFAULT_SIGNATURE, Array, TensorSpec
from .. import answers
from ..kinds import Converted, ConvertOptions, Kind
from ..zipmap import without_maps
from . import sklearn_files, sklearn_inputs
from .sklearn_inputs import Inputs

if TYPE_CHECKING:
    import onnx

OPSET, ML_OPSET = 18, 3
TRIAL_ROWS = 100
# scikit-learn's own tokens, and those of one letter too, in the regular expressions of ONNX Runtime.
TOKENS = {r"(?u)\b\w\w+\b": r"[\p{L}\p{N}_]{2,}", r"(?u)\b\w+\b": r"[\p{L}\p{N}_]+"}
LOCALE = "C.UTF-8"


def convert(source: str, options: ConvertOptions) -> Converted:
    """The estimator of a pickle or a joblib file. Raises InputError."""
    return converted(sklearn_files.load_pickle(source, options), source, options)


def converted(estimator: Any, source: str, options: ConvertOptions) -> Converted:
    """A fitted estimator as ONNX, compared with itself.

    Raises InputError, naming every step that cannot be converted.
    """
    import skl2onnx
    import sklearn

    _check_steps(estimator, source)
    for step in _steps(estimator):
        if hasattr(step, "flatten_transform"):  # of no concern to predictions, and the converter minds it
            step.flatten_transform = False
    inputs = sklearn_inputs.inputs_of(estimator, options)
    model = without_maps(_onnx(estimator, inputs, options, source))
    _set_locale(model)
    outputs, assets = _named(model, estimator)
    signature, files = sklearn_inputs.signature_of(inputs, outputs)
    return Converted(
        model,
        {DEFAULT_SIGNATURE: signature},
        assets={**files, **assets},
        draw=lambda _, rows: inputs.draw(rows),
        reference=lambda _, given: _answer(estimator, inputs.feed(given), outputs),
        compared_with=f"scikit-learn {sklearn.__version__}",
        rows=TRIAL_ROWS,
        versions={"scikit-learn": sklearn.__version__, "skl2onnx": skl2onnx.__version__},
    )


def _steps(estimator: Any) -> Iterator[Any]:
    """An estimator and all that it is made of."""
    yield estimator
    parts = [step for _, step in getattr(estimator, "steps", ())]
    parts += [part for _, part, *_ in getattr(estimator, "transformers_", ())]
    parts += [part for _, part in getattr(estimator, "transformer_list", ())]
    for part in parts:
        if hasattr(part, "get_params"):
            yield from _steps(part)


def _check_steps(estimator: Any, source: str) -> None:
    """Raises InputError naming every step that has no form in ONNX, and why."""
    from skl2onnx._supported_operators import sklearn_operator_name_map as known

    found = []
    for step in _steps(estimator):
        name = type(step).__name__
        made_of_steps = hasattr(step, "steps") or hasattr(step, "transformers_")
        if name == "FunctionTransformer" and step.func is not None:
            found.append(f"{name} (a function of Python: {getattr(step.func, '__name__', 'unnamed')})")
        elif name == "HashingVectorizer" or (type(step) not in known and not made_of_steps):
            found.append(name)
        if getattr(step, "strip_accents", None):
            found.append(f"{name} (strip_accents={step.strip_accents!r})")
        if callable(getattr(step, "tokenizer", None)) or callable(getattr(step, "preprocessor", None)):
            found.append(f"{name} (a tokenizer or preprocessor of Python)")
    if found:
        raise InputError(
            "steps of the model cannot be converted",
            where=source,
            expected="estimators that skl2onnx knows, without functions of Python",
            found=", ".join(dict.fromkeys(found)),
            hint="do these steps before the model, in the client or before training, and export the rest",
        )


def _onnx(estimator: Any, inputs: Inputs, options: ConvertOptions, source: str) -> onnx.ModelProto:
    """The converter's model, its inputs named. Raises InputError for what it raises."""
    from skl2onnx import convert_sklearn
    from skl2onnx.common import data_types

    kinds = {
        "float32": data_types.FloatTensorType,
        "int64": data_types.Int64TensorType,
        "string": data_types.StringTensorType,
    }
    specs, _ = inputs.specs()
    initial = [(name, kinds[spec.dtype]([None, *(spec.shape or ())[1:]])) for name, spec in specs.items()]
    known = _converter_options(estimator)
    opsets = {"": options.opset or OPSET, "ai.onnx.ml": ML_OPSET}

    last = _last(estimator)

    def attempt(chosen: dict[Any, Any]) -> onnx.ModelProto:
        found: onnx.ModelProto = convert_sklearn(
            estimator, initial_types=initial, options=chosen, target_opset=opsets, name="model"
        )
        return found

    try:
        with _plain_attributes():
            try:
                return attempt({**known, id(last): {"zipmap": False}} if hasattr(last, "classes_") else known)
            except NameError:  # LinearSVC has no such option, and gets it unless it is given others
                return attempt({**known, id(last): {}})
    except Exception as error:  # skl2onnx has no class of its own for what it cannot do
        raise InputError(
            "the model cannot be converted",
            where=source,
            found=f"{type(error).__name__}: {' '.join(str(error).split())}"[:600],
            hint="if it says that a parameter is not supported, train with another value of it",
        ) from error


def _last(estimator: Any) -> Any:
    """The step that answers."""
    while hasattr(estimator, "steps"):
        estimator = estimator.steps[-1][1]
    return estimator


def _converter_options(estimator: Any) -> dict[Any, Any]:
    """Unicode tokens, for every vectorizer that has scikit-learn's own, or these and single letters."""
    return {
        id(step): {"tokenexp": TOKENS[step.token_pattern]}
        for step in _steps(estimator)
        if getattr(step, "token_pattern", None) in TOKENS and step.analyzer == "word"
    }


@contextmanager
def _plain_attributes() -> Iterator[None]:
    """Attributes without numpy's scalars, of which onnx refuses booleans."""
    import numpy as np
    from onnx import helper

    original: Callable[..., Any] = helper.make_attribute

    def plain(value: Any) -> Any:
        if isinstance(value, np.bool_ | bool):
            return int(value)
        if isinstance(value, np.generic):
            return value.item()
        return [plain(one) for one in value] if isinstance(value, list | tuple) else value

    def make_attribute(key: str, value: Any, *arguments: Any, **named: Any) -> Any:
        return original(key, plain(value), *arguments, **named)

    helper.make_attribute = make_attribute
    try:
        yield
    finally:
        helper.make_attribute = original


def _set_locale(model: onnx.ModelProto) -> None:
    """Lower text in a locale that is there on every system with a C library of its own."""
    from onnx import helper

    for node in model.graph.node:
        if node.op_type == "StringNormalizer" and not any(a.name == "locale" for a in node.attribute):
            node.attribute.append(helper.make_attribute("locale", LOCALE))


def _named(model: onnx.ModelProto, estimator: Any) -> tuple[dict[str, TensorSpec], dict[str, bytes]]:
    """The outputs by the names that a person would use, and the classes as a file."""
    outputs: dict[str, TensorSpec] = {}
    classes = getattr(estimator, "classes_", None)
    assets = {}
    if classes is not None and getattr(classes, "ndim", 0) == 1:
        assets = {answers.LABELS_FILE: answers.lines([str(name) for name in classes.tolist()])}
    for value in model.graph.output:
        alias = _alias(value.name, estimator)
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        dtype = BY_ONNX[value.type.tensor_type.elem_type].name
        width = shape[1] if len(shape) > 1 else 0
        flat = alias in ("score", "scores", "label") and width <= 1
        if flat:
            _squeeze(model, value)
        dims = ("batch",) if flat else ("batch", *([width or "columns"] if len(shape) > 1 else []))
        named = bool(assets) and classes is not None and width == len(classes) and alias != "label"
        outputs[alias] = TensorSpec(value.name, dtype, dims, labels=answers.LABELS_FILE if named else "")
    used = any(spec.labels for spec in outputs.values())
    return outputs, assets if used else {}


def _alias(name: str, estimator: Any) -> str:
    """What the converter's `variable`, `output_label` and so on are called here."""
    if "label" in name:
        return "label"
    if hasattr(estimator, "predict_proba"):
        return "probabilities"
    if hasattr(estimator, "predict"):
        return "scores" if name in ("scores", "probabilities", "output_probability") else "score"
    return "transformed"


def _squeeze(model: onnx.ModelProto, value: onnx.ValueInfoProto) -> None:
    """Make an output [batch] of one that is [batch, 1]; one that is [batch] stays."""
    import numpy as np
    from onnx import helper, numpy_helper

    if len(value.type.tensor_type.shape.dim) < 2:
        return
    inner = f"{value.name}_column"
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [inner if name == value.name else name for name in names]
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1]), f"{value.name}_flat"))
    model.graph.node.append(helper.make_node("Reshape", [inner, f"{value.name}_flat"], [value.name]))
    del value.type.tensor_type.shape.dim[1:]


def _answer(estimator: Any, rows: Any, outputs: Mapping[str, TensorSpec]) -> dict[str, Array]:
    """The estimator's own answers."""
    import warnings

    import numpy as np

    ways: dict[str, Callable[[], Any]] = {
        "label": lambda: np.asarray(estimator.predict(rows)),
        "score": lambda: np.asarray(estimator.predict(rows)),
        "probabilities": lambda: estimator.predict_proba(rows),
        "scores": lambda: _scores(estimator, rows, len(outputs["scores"].shape or ())),
        "transformed": lambda: _dense(estimator.transform(rows)),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of features without names
        return {
            alias: np.asarray(ways[alias]()).reshape(-1) if len(spec.shape or ()) == 1 else ways[alias]()
            for alias, spec in outputs.items()
        }


def _scores(estimator: Any, rows: Any, axes: int) -> Array:
    """Decisions, a column for each class, as the converter has them; distances for clusters."""
    import numpy as np

    if not hasattr(estimator, "decision_function"):
        return np.asarray(estimator.transform(rows))
    found = np.asarray(estimator.decision_function(rows))
    if axes <= 1:
        return found
    return np.stack([-found, found], 1) if found.ndim == 1 else found


def _dense(found: Any) -> Array:
    import numpy as np

    return np.asarray(found.toarray() if hasattr(found, "toarray") else found)


def _accepts(source: Any) -> bool:
    return any((c.__module__, c.__name__) == ("sklearn.base", "BaseEstimator") for c in type(source).__mro__)


def _save(source: Any, directory: Path, options: ConvertOptions) -> tuple[str, ConvertOptions]:
    """The estimator as a joblib file; example rows by input."""
    path = directory / "model.joblib"
    _check_steps(source, type(source).__name__)
    if options.example is not None and not isinstance(options.example, str | Path):
        inputs = sklearn_inputs.inputs_of(source, options)
        options = replace(options, example=inputs.arrays(options.example))
    sklearn_files.pickled(source, path)
    return str(path), options


KIND = Kind(
    name="sklearn",
    what="a scikit-learn pickle (pickle, joblib)",
    matches=sklearn_files.is_pickle,
    convert=convert,
    extra="sklearn",
    modules=("sklearn", "skl2onnx", "joblib"),
    runs_code="the classes and functions that the pickle names",
    options=("input", "opset", "allow_version_mismatch"),
    accepts=_accepts,
    save=_save,
)
