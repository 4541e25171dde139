"""Charts of measurements: distribution, course, curve of a sweep, batch sizes. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..judgement.quantiles import NEVER_NS, nearest_rank
from ..load.recorder import OK
from .report import Report
from .svg import Axis, Chart, linear, logarithmic, nines

_POINTS = 400
_WINDOWS = (10, 120)
_WINDOW_SAMPLES = 100
_CURVES = ((0.5, "first", "p50"), (0.95, "second", "p95"), (0.99, "third", "p99"))


def milliseconds_text(value: float) -> str:
    """A number of milliseconds for an axis."""
    if value >= 1000:
        return f"{value / 1000:g} s"
    return f"{value:g} ms" if value >= 1 else f"{value * 1000:g} µs"


def distribution(report: Report) -> str:
    """Latency over percentile, corrected and uncorrected; "" where no percentile may be quoted."""
    if not report.quotable():
        return ""
    answered = [x[x != NEVER_NS] / 1e6 for x in (report.latencies, report.service_times)]
    if not len(answered[0]):
        return ""
    low = max(1e-3, min(float(x[0]) for x in answered))
    high = max(float(x[-1]) for x in answered)
    chart = Chart(
        nines("percentile", len(report.latencies)),
        logarithmic("latency", low, high, milliseconds_text),
        "Latency by percentile",
    )
    for values, kind in zip(reversed(answered), ("second", "first"), strict=True):
        chart.line(_curve(values, len(report.latencies)), kind)
    for objective in report.slo.objectives if report.slo else ():
        chart.level(objective.limit_ns / 1e6, objective.text)
    return str(chart)


def _curve(ascending: Any, n: int) -> list[tuple[float, float]]:
    """Points (1 / share above, value), evenly spaced on the axis of nines."""
    shares = np.unique(np.geomspace(1.0, 1.0 / n, _POINTS))[::-1]
    ranks = np.minimum(np.ceil((1 - shares) * n).astype(int), len(ascending) - 1)
    points = zip(shares.tolist(), ranks.tolist(), strict=True)
    return [(1 / share, float(ascending[rank])) for share, rank in points]


def course(report: Report, swaps: Sequence[tuple[float, float]] = ()) -> str:
    """Median, p99 and maximum in windows over the run; `swaps` are (start, end) in seconds."""
    recorder = report.seen.phase.recorder
    used = recorder.outcome[: recorder.count] == OK
    due = recorder.intended[: recorder.count][used]
    if len(due) < 2 * _WINDOWS[0]:
        return ""
    answered = (recorder.done - recorder.intended)[: recorder.count][used] / 1e6
    seconds = (due - recorder.intended[: recorder.count].min()) / 1e9
    order = np.argsort(seconds, kind="stable")
    seconds, answered = seconds[order], answered[order]
    windows = max(_WINDOWS[0], min(_WINDOWS[1], len(seconds) // _WINDOW_SAMPLES))
    parts = [np.sort(part) for part in np.array_split(answered, windows)]
    middles = [float(np.median(part)) for part in np.array_split(seconds, windows)]
    chart = Chart(
        linear("seconds after the first request was due", 0.0, float(seconds[-1])),
        logarithmic("latency", max(1e-3, float(answered.min())), float(answered.max()), milliseconds_text),
        "Latency over time",
    )
    for start, end in swaps:
        chart.band(start, end)
    for p, kind in ((1.0, "fourth"), (0.99, "third"), (0.5, "first")):
        values = [float(part[max(0, int(np.ceil(p * len(part))) - 1)]) for part in parts]
        chart.line(list(zip(middles, values, strict=True)), kind)
    return str(chart)


def curve(reports: Sequence[Report]) -> str:
    """Latency over achieved rate, where several rates were measured; unstable rates have no point."""
    reports = sorted((r for r in reports if r.load.rate and r.quotable()), key=lambda r: r.rates.achieved)
    if len({r.load.rate for r in reports}) < 2:
        return ""
    lines = {kind: _by_rate(reports, p) for p, kind, _ in _CURVES}
    values = [y for points in lines.values() for _, y in points]
    if not values:
        return ""
    chart = Chart(
        linear("answers per second", 0.0, 1.02 * reports[-1].rates.achieved, lambda x: f"{x:,.0f}"),
        logarithmic("latency", min(values) / 1.2, max(values) * 1.2, milliseconds_text),
        "Latency by rate",
    )
    for _, kind, name in _CURVES:
        points = lines[kind]
        chart.line(points, kind)
        chart.dots(points, kind, [f"{name} at {x:,.0f}/s: {y:.3f} ms" for x, y in points])
    slo = reports[0].slo
    for objective in slo.objectives if slo else ():
        chart.level(objective.limit_ns / 1e6, objective.text)
    return str(chart)


def _by_rate(reports: Sequence[Report], p: float) -> list[tuple[float, float]]:
    found = [(r.rates.achieved, nearest_rank(r.latencies, p)) for r in reports]
    return [(rate, value / 1e6) for rate, value in found if value != NEVER_NS]


def batches(server: Mapping[str, Any] | None) -> str:
    """How many batches of each size the server ran; "" where it does not tell."""
    sizes = [s for s in (server or {}).get("batch_rows") or [] if isinstance(s, Mapping)]
    while sizes and not sizes[-1]["batches"]:
        sizes.pop()
    if not sizes:
        return ""
    names = [str(s["rows_max"]) if s["rows_max"] is not None else "more" for s in sizes]
    counts = [float(s["batches"]) for s in sizes]
    rows = Axis(
        "rows of the batch, at most", -0.6, len(sizes) - 0.4, range(len(sizes)), lambda x: names[int(x)]
    )
    chart = Chart(rows, linear("batches", 0.0, 1.05 * max(counts), lambda x: f"{x:,.0f}"), "Batches by size")
    chart.bars(counts, "first")
    return str(chart)
