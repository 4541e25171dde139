"""What classify and regress mean: which signature answers, and its outputs as classes or values.

A signature answers the method that it was exported with. (A predict signature does not:
nothing says which of its outputs would be scores, and in which order.) Its outputs are, for
classify, `scores` and `classes`, or one of them; for regress `outputs`. Where nobody
names a signature, `serving_default` answers if the method is its own, else the only
signature with that method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..errors import ExecutionFailed, RequestError
from ..loader.servable import Servable
from ..tensors import DEFAULT_SIGNATURE, Array, Signature, show_shape

# The words that TensorFlow Serving has for a method, and the outputs of its signatures.
_METHODS = {
    "classify": ("classification", "scores, classes, or one of them"),
    "regress": ("regression", "outputs"),
}


class Fit(NamedTuple):
    """The outputs that a method reads, by alias; "" for one that there is not."""

    values: str
    classes: str = ""


def fit(signature: Signature, method: str) -> Fit | None:
    """Which outputs of a signature a method reads, None when it cannot be asked so."""
    if signature.method != method:
        return None
    texts = {alias: spec.dtype == "string" for alias, spec in signature.outputs.items()}
    value = "outputs" if method == "regress" else "scores"
    found = Fit(
        value if texts.get(value) is False else "",
        "classes" if method == "classify" and texts.get("classes") else "",
    )
    return found if any(found) else None


def choose(servable: Servable, method: str, name: str) -> tuple[str, Signature]:
    """The signature that answers a method. Raises NotFound (no such one), RequestError (none that fits)."""
    own = [n for n, s in servable.signatures.items() if fit(s, method)]
    if not name and own:
        if DEFAULT_SIGNATURE not in own and len(own) > 1:
            expected = f"one of {', '.join(map(repr, own))}"
            raise RequestError(f"no signature is the one to answer {method}", expected=expected)
        name = DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in own else own[0]
    name, chosen = servable.signature(name)
    if name not in own:
        raise _refused(name, chosen, method, own)
    return name, chosen


def _refused(name: str, chosen: Signature, method: str, own: Sequence[str]) -> RequestError:
    kind, outputs = _METHODS[method]
    was = f"tensorflow/serving/{chosen.method}"
    hint = f"ask with {chosen.method}" if chosen.method != method else ""
    if own:
        hint += f"{' or ' if hint else ''}one of the signatures {', '.join(map(repr, own))}"
    else:
        hint += (
            f"{', or ' if hint else ''}export a signatures file with method = {method!r}, outputs: {outputs}"
        )
    return RequestError(
        f"Expected {kind} signature method_name to be tensorflow/serving/{method}. Was: {was}",
        where=f"signature {name!r}",
        found=", ".join(f"{alias} ({spec.dtype})" for alias, spec in chosen.outputs.items()),
        hint=hint,
    )


def classes(servable: Servable, name: str, outputs: Mapping[str, Array]) -> tuple[list[Sequence[str]], Array]:
    """Labels and scores of a classify call: a list of labels for each row, and scores [rows, classes].

    Without a `classes` output the labels are the lines of the scores' label file, or "".
    Scores are zeros where the model gives none. Raises ExecutionFailed.
    """
    import numpy as np

    found = fit(servable.signatures[name], "classify") or Fit("")
    texts = _matrix(found.classes, outputs[found.classes]) if found.classes else None
    if not found.values:
        assert texts is not None
        return texts.tolist(), np.zeros(texts.shape, np.float32)
    scores = _matrix(found.values, outputs[found.values])
    if texts is None:
        known = servable.labels(name, found.values)
        width = scores.shape[1]
        return [(*known[:width], *[""] * (width - len(known)))] * len(scores), scores
    if texts.shape != scores.shape:
        raise ExecutionFailed(
            f"the model's outputs {found.classes!r} and {found.values!r} do not go together",
            expected="a class for each score",
            found=f"{show_shape(texts.shape)} and {show_shape(scores.shape)}",
            hint="ask with predict, or export a classify signature with a label file",
        )
    return texts.tolist(), scores


def _matrix(alias: str, output: Array) -> Array:
    """An output [rows] or [rows, classes] as the latter."""
    if output.ndim not in (1, 2):
        raise ExecutionFailed(
            f"the model's output {alias!r} holds no classes",
            expected="[rows, classes]",
            found=show_shape(output.shape),
        )
    return output.reshape(len(output), -1) if output.size else output.reshape(len(output), 0)


def values(signature: Signature, outputs: Mapping[str, Array]) -> Array:
    """The values of a regress call, [rows]. Raises ExecutionFailed."""
    alias = (fit(signature, "regress") or Fit("")).values
    output = outputs[alias]
    if output.ndim == 2 and output.shape[1] == 1:
        output = output[:, 0]
    if output.ndim != 1:
        raise ExecutionFailed(
            f"the model's output {alias!r} holds no value for each row",
            expected="[rows] or [rows, 1]",
            found=show_shape(output.shape),
        )
    return output
