"""Whether a converted model answers as its source does.

Trials are inputs with the source framework's own answers, computed in the process that
converted; `--check` adds some of the user's. The error of an answer is its difference from
the framework's, divided by the framework's magnitude where that is above one: so one
tolerance serves probabilities and counts. Whole numbers, booleans and text must be equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import FindingError, InputError, RequestError, UsageError
from ..format.golden import Golden, read_npz
from ..rows import row_count
from ..tensors import DTYPES, Array, Signature, check_inputs, plain_text
from .signatures import may_batch, with_batch_axis

Run = Callable[[Signature, Mapping[str, Array]], Mapping[str, Array]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The largest error over all trials and the rows looked at; `error` is None if nothing was compared."""

    error: float | None
    rows: int


def trials_of(path: Path, signatures: Mapping[str, Signature]) -> list[Mapping[str, Golden]]:
    """The inputs and expected outputs of a `--check` file, for the signature that they fit.

    An array is called by its alias, or by `inputs/alias` or `outputs/alias` where both sides have one
    of that name. Raises UsageError when no signature takes them.
    """
    arrays = read_npz(path)
    for name, signature in signatures.items():
        given = {a: _named(arrays, "inputs", a) for a in signature.inputs}
        expected = {a: _named(arrays, "outputs", a) for a in signature.outputs}
        found = {a: x for a, x in expected.items() if x is not None}
        if found and all(x is not None for x in given.values()):
            inputs = {a: plain_text(x) for a, x in given.items() if x is not None}
            kinds = {a: DTYPES[signature.outputs[a].dtype].to_numpy() for a in found}
            return [{name: Golden(inputs, {a: plain_text(x).astype(kinds[a]) for a, x in found.items()})}]
    first = next(iter(signatures.values()))
    raise UsageError(
        "the check file does not fit the model",
        where=path,
        expected=f"inputs {', '.join(first.inputs)}, and some of the outputs {', '.join(first.outputs)}",
        found=", ".join(arrays) or "no arrays",
    )


def _named(arrays: Mapping[str, Array], side: str, alias: str) -> Array | None:
    found = arrays.get(f"{side}/{alias}")
    return arrays.get(alias) if found is None else found


def verify(
    trials: list[Mapping[str, Golden]],
    signatures: Mapping[str, Signature],
    runs: Mapping[str, Run],
    tol: float,
) -> Verdict:
    """Run every trial. Raises FindingError where an answer is off by more than `tol`."""
    worst: float | None = None
    rows = 0
    for trial in trials:
        for name, golden in trial.items():
            signature = signatures[name]
            outputs = _run(name, signature, golden, runs[name])
            rows += _rows(signature, golden) if golden.outputs else 0
            for alias, expected in golden.outputs.items():
                error, reason = difference(expected, outputs[alias], tol)
                if reason:
                    raise FindingError(
                        "the converted model does not answer as its source does",
                        where=f"signature {name}, output {alias}",
                        expected=f"differences up to {tol:g}",
                        found=reason,
                        hint="a larger --tol accepts it, if that is what the numbers mean",
                    )
                worst = error if worst is None else max(worst, error)
    return Verdict(worst, rows)


def _rows(signature: Signature, golden: Golden) -> int:
    if signature.sparse:
        return row_count(signature, golden.inputs)
    return max((len(x) for x in golden.inputs.values() if x.ndim), default=1)


def _run(name: str, signature: Signature, golden: Golden, run: Run) -> Mapping[str, Array]:
    try:
        check_inputs(signature, golden.inputs)
        return run(signature, golden.inputs)
    except RequestError as error:
        raise InputError(
            "the converted model does not take the inputs it was tried with",
            where=f"signature {name}",
            found=error,
        ) from error


def difference(expected: Array, actual: Array, tol: float) -> tuple[float, str]:
    """The error between two outputs, and why it is too much; "" if it is not.

    Infinities and NaNs must stand at the same places.
    """
    import numpy as np

    if expected.shape != actual.shape:
        return float("inf"), f"shape {list(actual.shape)}, not {list(expected.shape)}"
    if expected.dtype.kind not in "fc" and expected.dtype.name not in ("bfloat16",):
        wrong = np.asarray(expected != actual)
        if not wrong.any():
            return 0.0, ""
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        return float("inf"), (
            f"{int(wrong.sum())} of {wrong.size} values differ, "
            f"such as {_item(actual, at)!r}, not {_item(expected, at)!r}, at {list(at)}"
        )
    if expected.size == 0:
        return 0.0, ""
    a, b = expected.astype(np.float64), actual.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.abs(a - b) / np.maximum(1.0, np.where(np.isfinite(a), np.abs(a), 1.0))
    gap = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, gap)
    gap = np.where(np.isnan(gap), np.inf, gap)
    at = tuple(int(i) for i in np.unravel_index(int(np.argmax(gap)), gap.shape))
    worst = float(gap[at])
    if worst <= tol:
        return worst, ""
    many = f"{int((gap > tol).sum())} of {gap.size}"
    return worst, f"{many} values, by up to {worst:.3g}: {b[at]:.9g}, not {a[at]:.9g}, at {list(at)}"


def _item(array: Array, at: tuple[int, ...]) -> Any:
    return array[at].item() if hasattr(array[at], "item") else array[at]


def keep_promises(
    promised: Mapping[str, Signature], settled: Mapping[str, Signature], sizes: Mapping[str, int | None]
) -> dict[str, Signature]:
    """The settled signatures, held to what the converter says of independent rows. Raises FindingError.

    Where no made-up inputs ran (no size), the trials at two batch sizes must do as evidence.
    """
    kept = dict(settled)
    for name, signature in promised.items():
        if signature.batch_axis != 0 or settled[name].batch_axis == 0:
            continue
        if sizes[name] is not None or not may_batch(signature):
            raise FindingError(
                "the conversion lost the batch axis",
                where=f"signature {name}",
                expected="any number of rows, each independent of the others",
                found=", ".join(f"{alias}: {spec}" for alias, spec in settled[name].inputs.items()),
            )
        kept[name] = with_batch_axis(signature)
    return kept
