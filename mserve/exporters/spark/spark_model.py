"""Spark ML models and pipelines, and MLlib's linear models, from their directories, without Java.

The last predictor of a pipeline answers; of the stages before it those are converted that its
features come from, so that what was only there for training (an index of the label) asks for
nothing. Columns that no stage makes become inputs of their names.
"""

from __future__ import annotations

from pathlib import Path

from ...errors import InputError, UsageError
from ...sparse import Sparse
from ...tensors import Array, TensorSpec
from .. import answers, ports
from ..answers import Answers
from ..build import Graph, predicts
from ..feature_rows import SparseRows
from ..kinds import Converted, ConvertOptions, Kind, Seen
from ..legacy import networks
from . import spark_mllib
from .spark_columns import Column, Number, Table, Text, Vector, dense
from .spark_features import FEATURES
from .spark_files import Stage, read_stage, stages
from .spark_predictors import PREDICTORS, Answer
from .spark_text import TEXTS

OPSET = 20  # the first that splits text
TUNED = ("CrossValidatorModel", "TrainValidationSplitModel")
MAX_DEPTH = 8
TRANSFORMERS = FEATURES | TEXTS
_COLUMNS = "inputCol inputCols featuresCol".split()


def convert(source: str, options: ConvertOptions) -> Converted:
    """The model as ONNX. Raises InputError for what is malformed or cannot be mapped."""
    root = read_stage(Path(source))
    chain = [root] if root.package.startswith(spark_mllib.PACKAGE) else _chain(root, 0)
    known = dict.fromkeys((*TRANSFORMERS, *PREDICTORS, *spark_mllib.MODELS))
    networks.check_known([stage.name for stage in _needed(chain)], known, "the pipeline", source)
    table = Table(Graph(), ports.specs(options.input), bool(options.sparse))
    found = Answer()
    extras: dict[str, Column] = {}
    for stage in _needed(chain):
        if stage.package.startswith(spark_mllib.PACKAGE):
            found = spark_mllib.MODELS[stage.name](table, stage)
        elif stage.name in PREDICTORS:
            found = PREDICTORS[stage.name](table, stage)
            if found.label:
                table.columns[stage.text("predictionCol", "prediction")] = Number(
                    table.graph.cast(found.label, "float32")
                )
        else:
            TRANSFORMERS[stage.name](table, stage)
            extras = _after(table, stage) if found != Answer() or stage is chain[-1] else extras
    ports.only_known(table.described, list(table.inputs), source)
    if options.sparse and not any(isinstance(port, Sparse) for port in table.inputs.values()):
        raise UsageError("no input is a vector", where=source, expected="no --sparse")
    outputs = _outputs(table, found, extras, _classes(chain), options)
    signature = predicts(table.inputs, outputs.outputs)
    return Converted(
        table.graph.model(signature, OPSET),
        {"serving_default": signature},
        assets=outputs.assets,
        notes=_notes(table),
        draw=lambda _, rows: _draw(table, rows),
        versions={"model": root.version},
    )


def _chain(stage: Stage, depth: int) -> list[Stage]:
    """The stages of a model, those of pipelines in pipelines too. Raises InputError when they do not end."""
    if depth > MAX_DEPTH:
        raise InputError("pipelines do not end", where=stage.where, expected=f"{MAX_DEPTH} inside each other")
    if stage.name in TUNED:
        return _chain(read_stage(stage.path / "bestModel"), depth + 1)
    if stage.name == "PipelineModel":
        return [one for inner in stages(stage.path) for one in _chain(inner, depth + 1)]
    return [stage]


def _needed(chain: list[Stage]) -> list[Stage]:
    """The stages that the answer is made of, in their order."""
    predictors = [i for i, stage in enumerate(chain) if stage.name in PREDICTORS]
    last = predictors[-1] if predictors else len(chain) - 1
    wanted: set[str] = set()
    kept = []
    for index, stage in reversed(list(enumerate(chain))):
        made = {stage.text(key) for key in ("outputCol", "predictionCol") if key in stage.params}
        made.update(stage.texts("outputCols"))
        if index >= last or made & wanted:
            kept.append(stage)
            for key in _COLUMNS:
                value = stage.params.get(key)
                wanted.update([value] if isinstance(value, str) else stage.texts(key))
    return kept[::-1]


def _after(table: Table, stage: Stage) -> dict[str, Column]:
    """What a stage behind the predictor, or at the end of a pipeline without one, makes."""
    names = stage.columns("outputCol", "outputCols")
    return {name: table.columns[name] for name in names}


def _classes(chain: list[Stage]) -> list[str]:
    """The names of the classes, where an indexer of the same pipeline made the labels."""
    predictors = [stage for stage in chain if stage.name in PREDICTORS]
    if not predictors or "labelCol" not in predictors[-1].params:
        return []
    wanted = predictors[-1].text("labelCol")
    for stage in chain:
        if stage.name == "StringIndexerModel" and stage.params.get("outputCol") == wanted:
            row = stage.row()
            first = (row / "labelsArray").items()[0] if "labelsArray" in row else row / "labels"
            return [one.text() for one in first.items()]
    return []


def _outputs(
    table: Table, found: Answer, extras: dict[str, Column], classes: list[str], options: ConvertOptions
) -> Answers:
    """The answers under the names that a person would give them."""
    graph, outputs, assets = table.graph, {}, {}
    invalid = _any(graph, table.invalid)
    if found.probabilities:
        assets = answers.given_labels(options, found.classes)
        if not assets and len(classes) == found.classes:
            assets = {answers.LABELS_FILE: answers.lines(classes)}
        _valid(graph, found.probabilities, invalid, "probabilities")
        labels = answers.LABELS_FILE if assets else ""
        shape = ("batch", found.classes)
        outputs["probabilities"] = TensorSpec("probabilities", "float32", shape, labels=labels)
    if found.label:
        _valid(graph, found.label, invalid, "label", whole=True)
        outputs["label"] = TensorSpec("label", "int64", ("batch",))
    score = found.score or ("" if found.probabilities else found.raw)
    if score:
        columns = 1 if found.score else found.classes
        outputs.update(answers.scores(graph, _valid(graph, score, invalid), columns).outputs)
    for name, column in extras.items():
        outputs[name] = _plain(graph, name, column, invalid)
    if not outputs:
        raise InputError("the pipeline answers nothing", where="the last stage", expected="a predictor")
    return Answers(outputs, assets)


def _plain(graph: Graph, name: str, column: Column, invalid: str) -> TensorSpec:
    """A column as an output of its name."""
    if isinstance(column, Text):
        graph.add("Identity", column.tensor, name=name)
        return TensorSpec(name, "string", ("batch",))
    if isinstance(column, Number):
        one = graph.add("Unsqueeze", column.tensor, _axis(graph))
        graph.add("Squeeze", _valid(graph, one, invalid), _axis(graph), name=name)
        return TensorSpec(name, "float32", ("batch",))
    if not isinstance(column, Vector):
        raise InputError("words cannot be answered", where=f"column {name}", expected="numbers or text")
    _valid(graph, dense(graph, column), invalid, name)
    return TensorSpec(name, "float32", ("batch", column.size))


def _axis(graph: Graph) -> str:
    import numpy as np

    return graph.weight(np.array([1]))


def _any(graph: Graph, invalid: list[str]) -> str:
    """The rows that have no answer, bool [batch]; "" where there are never any."""
    found = invalid[0] if invalid else ""
    for other in invalid[1:]:
        found = graph.add("Or", found, other)
    return found


def _valid(graph: Graph, tensor: str, invalid: str, name: str = "", *, whole: bool = False) -> str:
    """The tensor with NaN, or -1 where numbers are whole, in the rows that have no answer."""
    if not invalid:
        return graph.add("Identity", tensor, name=name)
    rows = invalid if whole else graph.add("Unsqueeze", invalid, _axis(graph))
    nothing = graph.scalar(-1, "int64") if whole else graph.scalar(float("nan"))
    return graph.add("Where", rows, nothing, tensor, name=name)


def _notes(table: Table) -> tuple[str, ...]:
    if not table.invalid:
        return ()
    return (
        "where Spark fails or leaves a row out (an unknown category, a missing number), the row's "
        "numbers are NaN and its label is -1",
    )


def _draw(table: Table, rows: int) -> dict[str, Array]:
    """Rows that try the model: texts that it knows and some that it does not, numbers around zero."""
    import numpy as np

    rng = np.random.default_rng(rows)
    made: dict[str, Array] = {}
    for alias, spec in table.inputs.items():
        if isinstance(spec, Sparse):
            made |= SparseRows(int(spec.shape[1]), alias=alias).draw(rows)
            continue
        shape = [rows, *[dim for dim in (spec.shape or ())[1:] if isinstance(dim, int)]]
        if spec.dtype == "string":
            known = [*(table.texts.get(alias) or ("some  words", "of a text", "")), "unknown"]
            made[alias] = rng.choice(np.array(known, object), shape)
        else:
            made[alias] = rng.standard_normal(shape).astype(np.float32)
    return made


def _matches(seen: Seen) -> bool:
    if not seen.is_dir or "metadata" not in seen.names:
        return False
    try:
        parts = sorted(p for p in (seen.path / "metadata").iterdir() if p.name.startswith("part-"))
        with parts[0].open("rb") as file:
            return b'"org.apache.spark.' in file.read(4096)
    except (OSError, IndexError):
        return False


KIND = Kind(
    name="spark",
    what="a Spark ML or MLlib model",
    matches=_matches,
    convert=convert,
    extra="spark",
    modules=("pyarrow",),
    answers=False,  # Spark itself needs Java
    options=("input", "labels", "sparse"),
)
