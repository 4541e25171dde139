"""What two answers to one request say: whether they agree, how scores and rankings moved, how good they are.

Pure functions over arrays of equal shape and dtype, rows first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from .. import statistics
from ..numerics import Difference
from ..numerics import compare as compare_arrays
from ..tensors import Array
from .change import Change

WORST_ROWS = 5
RANKED_ROWS = 10  # fewer rows have no ranking worth a number
DRIFT_ROWS = 50  # nor fewer a distribution
TOP_SHARE = 0.1
STRAYS, STRAY = 1e-3, 10.0
RESAMPLES, RESAMPLED_ROWS = 200, 20_000_000


def moved(where: str, was: Array, now: Array, tolerance: tuple[float, float]) -> Iterator[Change]:
    """Whether the values of an output differ by more than the tolerance, and what that means for scores."""
    rtol, atol = tolerance
    found = beyond(was, now, rtol, atol)
    if found.equal:
        if found.worst:
            text = f"within rtol {rtol:g}, atol {atol:g}: worst {found.worst:.3g}"
            yield Change("answers-close", where, text, facts={"worst": _plain(found.worst)})
        return
    facts: dict[str, Any] = {"worst": _plain(found.worst), "at": list(found.where)}
    facts["rows"] = len(was) if was.ndim else 1
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


def spread(was: Array, now: Array, labels: Array) -> dict[str, tuple[float, float]]:
    """By metric, the 95 % interval of what `now` has more than `was`: a bootstrap over the rows of both.

    The rows are drawn together, since the versions answered the same ones. Always the same draws.
    """
    import numpy as np

    rng = np.random.default_rng(len(labels))
    found: dict[str, list[float]] = {}
    for _ in range(max(RESAMPLES // 5, min(RESAMPLES, RESAMPLED_ROWS // max(1, len(labels))))):
        rows = rng.integers(0, len(labels), len(labels))
        one, two = (measured(x[rows], labels[rows]) for x in (was, now))
        for name in one.keys() & two.keys():
            found.setdefault(name, []).append(two[name] - one[name])
    ends = {name: np.percentile(values, [2.5, 97.5]) for name, values in found.items()}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}
