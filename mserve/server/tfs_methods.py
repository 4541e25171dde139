"""What classify and regress mean: which signature answers, and its outputs as classes or values.

A signature answers a method if that is its own, or if it is a predict signature whose
outputs fit: for classify `scores`, or the only output of floats, and `classes`, or the
only output of text, at least one of them; for regress `outputs`, or the only output of
floats. Where nobody names a signature, `serving_default` answers if the method is its
own, else the only signature with that method, else `serving_default` if its outputs fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..errors import ExecutionFailed, RequestError
from ..loader.servable import Servable
from ..tensors import DEFAULT_SIGNATURE, Array, Signature, show_shape


class Fit(NamedTuple):
    """The outputs that a method reads, by alias; "" for one that there is not."""

    values: str
    classes: str = ""


def fit(signature: Signature, method: str) -> Fit | None:
    """Which outputs of a signature a method reads, None when it cannot be asked so."""
    if signature.method not in (method, "predict"):
        return None
    if method == "regress":
        values = _pick(signature, "outputs", text=False)
        return Fit(values) if values else None
    found = Fit(_pick(signature, "scores", text=False), _pick(signature, "classes", text=True))
    return found if any(found) else None


def _pick(signature: Signature, alias: str, *, text: bool) -> str:
    """The output of that alias, else the only one that holds text, or floats; "" for none."""
    spec = signature.outputs.get(alias)
    if spec is not None and (spec.dtype == "string") == text:
        return alias
    alike = [
        a
        for a, s in signature.outputs.items()
        if (s.dtype == "string" if text else s.dtype.startswith(("float", "bfloat")))
    ]
    return alike[0] if len(alike) == 1 else ""


def choose(servable: Servable, method: str, name: str) -> tuple[str, Signature]:
    """The signature that answers a method. Raises NotFound (no such one), RequestError (none that fits)."""
    signatures = servable.signatures
    if name:
        name, chosen = servable.signature(name)
        if fit(chosen, method) is None:
            raise _unfit(f"signature {name!r} does not answer {method}", servable, method)
        return name, chosen
    own = [n for n, s in signatures.items() if s.method == method and fit(s, method)]
    if DEFAULT_SIGNATURE in own:
        return DEFAULT_SIGNATURE, signatures[DEFAULT_SIGNATURE]
    if len(own) == 1:
        return own[0], signatures[own[0]]
    names = list(signatures)
    default = names[0] if len(names) == 1 else DEFAULT_SIGNATURE
    if not own and default in signatures and fit(signatures[default], method):
        return default, signatures[default]
    raise _unfit(f"no signature is the one to answer {method}", servable, method)


def _unfit(what: str, servable: Servable, method: str) -> RequestError:
    fitting = [repr(n) for n, s in servable.signatures.items() if fit(s, method)]
    listed = [
        f"{n}: {s.method} with {', '.join(f'{a} ({o.dtype})' for a, o in s.outputs.items())}"
        for n, s in servable.signatures.items()
    ]
    return RequestError(
        what,
        expected=f"one of {', '.join(fitting)}" if fitting else f"a signature that fits {method}",
        found="; ".join(listed),
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
