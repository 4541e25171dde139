"""The outputs level: both versions answer the same requests, and the answers are held side by side.

Requests are OLD's golden samples, else NEW's, or those that the caller gives. Both versions run here and
now, each in a process of its own (see `child`), so that neither machine nor engine differs. Renamed
signatures and ports are asked under their new names: whether answers moved is a question of its own.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import statistics
from ..checks.answers import fits
from ..errors import InputError, MserveError, UsageError
from ..files import open_input, read_input, read_text
from ..format.golden import read_npz, unpack
from ..numerics import ATOL, RTOL, Difference
from ..numerics import compare as compare_arrays
from ..runtime.engines import RUN_S
from ..tensors import DEFAULT_SIGNATURE, Array, Signature, dtype_of, show_shape
from .change import OUTPUTS, Change, Level
from .child import Answers, ask
from .model import SAVED_MODEL, Model
from .signature import Pair

WORST_ROWS = 5
RANKED_ROWS = 10  # fewer rows have no ranking worth a number
DRIFT_ROWS = 50  # nor fewer a distribution
TOP_SHARE = 0.1
STRAYS, STRAY = 1e-3, 10.0
MAX_LABELS = 1 << 30
Requests = dict[str, Mapping[str, Array]]


@dataclass(frozen=True, slots=True)
class Options:
    """What to ask, and how to judge. `run`: True, False, or None for wherever requests are recorded.

    `inputs` (npz, or a JSON request) are for the signature `signature`, "" being the default one;
    `tolerances` are (rtol, atol) by `signature.output`, where they are not the common ones.
    `labels` (npy, npz, or text with a number a line) has one for each row. `seconds` is what one
    version may take to load and answer.
    """

    run: bool | None = None
    inputs: Path | None = None
    labels: Path | None = None
    signature: str = ""
    rtol: float = RTOL
    atol: float = ATOL
    tolerances: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    seconds: float = RUN_S


def compare(old: Model, new: Model, pairs: list[Pair], options: Options) -> Level:
    """Run both and compare. Raises InputError or UsageError for files and names that make no sense."""
    for model in (old, new):
        if model.kind == SAVED_MODEL:
            return Level(OUTPUTS, skipped="a SavedModel is not run: mserve has no TensorFlow")
    requests = _requests(old, new, pairs, options)
    if not requests:
        text = f"no golden samples are recorded; {_how_to_record(new)}"
        if options.run is None:
            return Level(OUTPUTS, skipped=text)
        return Level(OUTPUTS, (Change("no-samples", "golden samples", text),), "nothing to ask")
    labels = _labels(options.labels) if options.labels else None
    by_new = {pair.new: _renamed(requests[pair.old], pair.inputs) for pair in pairs if pair.old in requests}
    sides = []
    for model, asked in ((old, requests), (new, by_new)):
        with tempfile.TemporaryDirectory(prefix="mserve-diff-") as directory:
            kept = {name: x for name, x in asked.items() if name in model.signatures}
            sides.append(ask(model, kept, Path(directory), options.seconds))
    answers = (sides[0], sides[1])
    changes = [c for pair in pairs if pair.old in requests for c in _judged(new, pair, answers, options)]
    unmatched = [name for name in requests if name not in {pair.old for pair in pairs}]
    changes += [Change("no-counterpart", name, "NEW has no such signature to ask") for name in unmatched]
    if labels is not None:
        changes += _metrics(pairs, answers, labels, options.signature)
    counts = [f"{name}: {_rows(x)} row(s)" for name, x in requests.items()]
    return Level(OUTPUTS, tuple(changes), ", ".join(counts))


def _renamed(inputs: Mapping[str, Array], names: Mapping[str, str]) -> dict[str, Array]:
    return {names.get(alias, alias): x for alias, x in inputs.items()}


def _rows(inputs: Mapping[str, Array]) -> int:
    return len(next(iter(inputs.values()))) if inputs and all(x.ndim for x in inputs.values()) else 1


def _how_to_record(model: Model) -> str:
    base = model.path.parent if model.bundle is not None else "BASE_PATH"
    record = f"mserve export MODEL.onnx {base} --golden REQUESTS.npz"
    return f"record some: {record}; or give some: --inputs REQUESTS.npz"


# --- what is asked


def _requests(old: Model, new: Model, pairs: list[Pair], options: Options) -> Requests:
    """Inputs by OLD's signatures and aliases."""
    if options.inputs is not None:
        name = _chosen(old, options.signature)
        return {name: _read(options.inputs, old.signatures[name])}
    found: Requests = {}
    for pair in pairs:
        back = {b: a for a, b in pair.inputs.items()}
        for alias, x in _golden(new).items():
            if alias == pair.new:
                found[pair.old] = _renamed(x, back)
    return found | _golden(old)


def _chosen(model: Model, name: str) -> str:
    """A signature by name; "" is the default one, or the only one. Raises UsageError."""
    if not name:
        only = next(iter(model.signatures)) if len(model.signatures) == 1 else ""
        name = DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in model.signatures else only
    if name not in model.signatures:
        raise UsageError("OLD has no such signature", expected=", ".join(model.signatures), found=repr(name))
    return name


def _golden(model: Model) -> Requests:
    if model.bundle is None or model.bundle.metagraph.golden is None:
        return {}
    record = model.bundle.metagraph.golden
    return {name: g.inputs for name, g in unpack(model.bundle.file(record), model.signatures).items()}


def _read(path: Path, signature: Signature) -> Mapping[str, Array]:
    if path.suffix == ".npz":
        return read_npz(path)
    from ..wire import tfs_json

    try:
        return tfs_json.inputs_of(tfs_json.parse(read_input(path)), signature)[0]
    except InputError:
        raise
    except MserveError as error:
        raise InputError(
            "the inputs are neither npz nor a JSON request of the signature", where=path, found=error
        ) from error


def _labels(path: Path) -> Array:
    """A number for each row, from npy, npz with one array, or text with one a line. Raises InputError."""
    import numpy as np

    if path.suffix == ".npz":
        arrays = read_npz(path)
        if len(arrays) != 1:
            raise InputError("labels are one array", where=path, expected="one", found=", ".join(arrays))
        found: Array = next(iter(arrays.values()))
    elif path.suffix == ".npy":
        try:
            with open_input(path) as file:
                found = np.load(file, allow_pickle=False)
        except ValueError as error:
            raise InputError("cannot read the labels", where=path, found=error) from error
    else:
        try:
            found = np.array([float(line) for line in read_text(path, MAX_LABELS).split()])
        except ValueError as error:
            raise InputError("labels are numbers, one a line", where=path, found=error) from error
    if found.dtype.kind not in "biuf" or not np.isfinite(found.astype(np.float64)).all():
        raise InputError("labels are finite numbers", where=path, found=found.dtype)
    return found.ravel()


# --- how answers differ


def _judged(new: Model, pair: Pair, sides: tuple[Answers, Answers], options: Options) -> Iterator[Change]:
    """The changes of one signature's outputs."""
    one, two = sides
    if pair.old in one.errors:
        both = f"; nor does NEW: {two.errors[pair.new]}" if pair.new in two.errors else ""
        yield Change("old-fails", pair.old, one.errors[pair.old] + both)
        return
    if pair.new in two.errors:
        yield Change("new-fails", pair.new, two.errors[pair.new])
        return
    declared = new.signatures[pair.new].outputs
    for alias, other in pair.outputs.items():
        was, now = one.outputs[pair.old][alias], two.outputs[pair.new][other]
        where = f"{pair.new}.{other}"
        found = f"{dtype_of(now)} {show_shape(now.shape)}"
        if dtype_of(now) != declared[other].dtype or not fits(declared[other], now.shape, None):
            text = f"declared {declared[other]}, returned {found}"
            yield Change("not-as-declared", where, text, str(declared[other]), found)
        if (dtype_of(was), was.shape) != (dtype_of(now), now.shape):
            before = f"{dtype_of(was)} {show_shape(was.shape)}"
            yield Change("answer-shape", where, f"answers {found}, answered {before}", before, found)
        else:
            yield from _moved(where, was, now, options)
    for alias in one.outputs[pair.old]:
        if alias not in pair.outputs:
            yield Change("no-counterpart", f"{pair.old}.{alias}", "NEW has no such output")


def _moved(where: str, was: Array, now: Array, options: Options) -> Iterator[Change]:
    """Whether the values of an output differ by more than the tolerance, and what that means for scores."""
    rtol, atol = options.tolerances.get(where, (options.rtol, options.atol))
    found = beyond(was, now, rtol, atol)
    if found.equal:
        if found.worst:
            text = f"within rtol {rtol:g}, atol {atol:g}: worst {found.worst:.3g}"
            yield Change("answers-close", where, text, facts={"worst": _plain(found.worst)})
        return
    facts: dict[str, Any] = {"worst": _plain(found.worst), "at": list(found.where)}
    facts["worst_rows"] = _worst_rows(was, now)
    facts |= _drift(was, now)
    text = ", ".join([found.reason, *(f"{_NAMES[key]} {facts[key]:.3g}" for key in _NAMES if key in facts)])
    yield Change("answers-moved", where, text, facts=facts)


def beyond(was: Array, now: Array, rtol: float, atol: float) -> Difference:
    """Compare floats within atol + rtol * the largest magnitude of the row, all else exactly.

    What a row's values are computed from is of the row's magnitude, and so is what rounding does to
    them: the small ones among them have no better absolute accuracy than the large ones. A model may
    magnify rounding here and there, so one value in a thousand may be STRAY times further off.
    """
    import numpy as np

    if was.ndim < 2 or not was.size or was.dtype.kind != "f":
        return compare_arrays(was, now, rtol, atol)
    rows = np.abs(was.reshape(len(was), -1).astype(np.float64))
    scale = np.where(np.isfinite(rows), rows, 0).max(axis=1).reshape(-1, *[1] * (was.ndim - 1))
    limit = atol + rtol * scale
    found = compare_arrays(was, now, 0.0, limit)
    if not found.equal and was.shape == now.shape:
        with np.errstate(invalid="ignore"):
            near = (
                (np.abs(was.astype(np.float64) - now) <= limit)
                | (np.isnan(was) & np.isnan(now))
                | (was == now)
            )
        if np.count_nonzero(~near) <= was.size * STRAYS:
            loose = compare_arrays(was, now, 0.0, STRAY * limit)
            return loose if loose.equal else found
    return found


_NAMES = {
    "psi": "PSI",
    "ks": "KS",
    "kendall_tau": "Kendall tau",
    "top_overlap": "top overlap",
    "top1_agreement": "top-1 agreement",
}


def _plain(value: float) -> float | str:
    """A number that JSON has a word for."""
    return value if math.isfinite(value) else str(value)


def _worst_rows(was: Array, now: Array) -> list[dict[str, Any]]:
    """The rows that moved furthest: their number, the values of the one that moved furthest, and the gap."""
    import numpy as np

    if was.ndim == 0 or not was.size:
        return []
    if was.dtype.kind not in "biuf":
        gaps = np.asarray(was != now).reshape(len(was), -1).astype(np.float64)
    else:
        a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (was, now))
        with np.errstate(invalid="ignore"):
            gaps = np.abs(a - b)
        gaps[(a == b) | (np.isnan(a) & np.isnan(b))] = 0
        gaps[np.isnan(gaps)] = np.inf
    order = np.argsort(-gaps.max(axis=1), kind="stable")[:WORST_ROWS]
    rows = []
    for row in (int(i) for i in order):
        at = int(np.argmax(gaps[row]))
        if gaps[row, at] > 0:
            values = [_value(x.reshape(len(x), -1)[row, at]) for x in (was, now)]
            rows.append({"row": row, "old": values[0], "new": values[1], "gap": _plain(float(gaps[row, at]))})
    return rows


def _value(x: Any) -> Any:
    plain = x.item() if hasattr(x, "item") else x
    return (
        _plain(plain) if isinstance(plain, float) else plain if isinstance(plain, int | bool) else str(plain)
    )


def scores(array: Array) -> Array | None:
    """One score a row, if that is what an output is: a column, or the second of two (the positive class)."""
    import numpy as np

    if array.dtype.kind != "f" or array.ndim == 0 or array.ndim > 2:
        return None
    columns = array.reshape(len(array), -1) if array.size else array.reshape(len(array), 1)
    if columns.shape[1] not in (1, 2) or not np.isfinite(columns).all():
        return None
    return columns[:, -1]


def _drift(was: Array, now: Array) -> dict[str, Any]:
    """Statistics of scores, or of classes, where there are rows enough."""
    found: dict[str, Any] = {}
    one, two = scores(was), scores(now)
    if one is not None and two is not None:
        rows = len(one)
        if rows >= DRIFT_ROWS:
            found["psi"] = statistics.population_stability(one, two)
            found["ks"] = statistics.kolmogorov_smirnov(one, two)
        if rows >= RANKED_ROWS:
            tau = statistics.kendall_tau(one, two)
            found |= {} if math.isnan(tau) else {"kendall_tau": tau}
            found["top_overlap"] = statistics.top_overlap(one, two, max(1, int(rows * TOP_SHARE)))
    elif was.dtype.kind == "f" and was.ndim == 2 and was.shape[1] > 2 and len(was):
        found["top1_agreement"] = float((was.argmax(axis=1) == now.argmax(axis=1)).mean())
    return found


# --- against labels


def _metrics(
    pairs: list[Pair], sides: tuple[Answers, Answers], labels: Array, signature: str
) -> Iterator[Change]:
    """How well both versions' outputs fit the labels, for every output that they can fit."""
    judged = 0
    for pair in pairs:
        answered = pair.old in sides[0].outputs and pair.new in sides[1].outputs
        if signature not in ("", pair.old) or not answered:
            continue
        for alias, other in pair.outputs.items():
            was = measured(sides[0].outputs[pair.old][alias], labels)
            now = measured(sides[1].outputs[pair.new][other], labels)
            judged += bool(was and now)
            for name in was.keys() & now.keys():
                if was[name] != now[name]:
                    text = f"{name} {was[name]:.5f} -> {now[name]:.5f}"
                    facts = {"metric": name, "old": was[name], "new": now[name], "rows": len(labels)}
                    where = f"{pair.new}.{other}"
                    yield Change("metric", where, text, f"{was[name]:.5f}", f"{now[name]:.5f}", facts)
    if not judged:
        text = (
            f"{len(labels):,} labels fit no output: one a row, 0 and 1 for scores, 0 to K - 1 for K classes"
        )
        yield Change("labels-unfit", "labels", text)


def measured(output: Array, labels: Array) -> dict[str, float]:
    """AUC and log-loss of binary labels, log-loss and accuracy of classes; nothing where labels do not fit.

    `output` is what a version answered, `labels` one number a row. Log-loss needs probabilities.
    """
    import numpy as np

    if output.ndim == 0 or len(output) != len(labels) or not len(labels):
        return {}
    one = scores(output)
    if one is not None and np.isin(labels, (0, 1)).all():
        found = {"AUC": statistics.auc(labels, one)}
        if ((one >= 0) & (one <= 1)).all():
            found["log-loss"] = statistics.log_loss(labels, one)
        return {name: value for name, value in found.items() if not math.isnan(value)}
    classes = output.shape[1] if output.ndim == 2 else 0
    whole = (labels == labels.astype(np.int64)).all() and labels.min() >= 0 and labels.max() < classes
    if output.dtype.kind != "f" or classes < 3 or not whole:
        return {}
    found = {"accuracy": float((output.argmax(axis=1) == labels).mean())}
    if ((output >= 0) & (output <= 1)).all() and np.allclose(output.sum(axis=1), 1, atol=1e-3):
        found["log-loss"] = statistics.log_loss(labels, output)
    return found
