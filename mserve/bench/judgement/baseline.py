"""Baseline: a comparison with a result that was stored by `--json`, instead of a second target.

The two were not measured in turn, so that whatever changed on the machine in between counts
as a difference; a result from another machine, or from other versions, is not accepted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import InputError, UsageError
from ...files import read_text
from ..results.environment import differences
from ..results.report import Report
from .against import Comparison, Options
from .paired import unpaired, verdict
from .verdict import Load

_BYTES_MAX = 64 << 20
_METRICS = {"p50": "p50_ms", "p99": "p99_ms", "throughput": "seconds"}
_NOT_IN_TURN = "not measured in turn: what changed on this machine since the baseline counts as a difference"


@dataclass(frozen=True, slots=True)
class Baseline:
    """One stored measurement: its load, its windows by metric in log units, and where it was taken."""

    load: Load
    windows: Mapping[str, list[float]]
    environment: Mapping[str, Any]
    target: Mapping[str, Any]


def read(path: Path) -> Baseline:
    """Read a stored result. Raises InputError."""
    try:
        document = json.loads(read_text(path, _BYTES_MAX))
        if document["kind"] != "bench":
            raise InputError(
                "not a result of bench", where=path, expected="bench", found=str(document["kind"])
            )
        [report] = document["reports"]
        if not report["windows"]:
            raise InputError(
                "the stored run has no latencies to compare with",
                where=path,
                expected="a run that was measured",
                found=str(report["verdict"]["code"]),
                hint="measure it again",
            )
        return Baseline(
            _load(report["load"]),
            {name: [_log(w[key]) for w in report["windows"]] for name, key in _METRICS.items()},
            dict(document["environment"]),
            dict(report["target"]),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            "the baseline cannot be used",
            where=path,
            expected="the output of `mserve bench TARGET --json` with one measurement that has percentiles",
            found=f"{type(error).__name__}: {error}",
        ) from error


def _log(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"not a cost: {value}")
    return math.log(value)


def _load(stored: Mapping[str, Any]) -> Load:
    load = Load(
        duration_s=float(stored["duration_s"]),
        warmup_s=float(stored["warmup_s"]),
        timeout_s=float(stored["timeout_s"]),
    )
    if stored["loop"] == "closed":
        return replace(load, concurrency=int(stored["concurrency"]))
    rate, seed = float(stored["rate"]), int(stored["seed"])
    return replace(load, rate=rate, arrivals=str(stored["arrivals"]), seed=seed)


def check(baseline: Baseline, environment: Mapping[str, Any], *, force: bool) -> list[str]:
    """The differences between the two machines. Raises UsageError when there are some, unless forced."""
    found = differences(environment, baseline.environment)
    if found and not force:
        raise UsageError(
            "the baseline was measured elsewhere",
            found="; ".join(found),
            hint="measure a baseline here, or compare all the same with --force",
        )
    return found


def compare(baseline: Baseline, report: Report, options: Options) -> Comparison:
    """Compare a report with a baseline. Raises InputError where one of them has too few requests."""
    windows = report.windows()
    result = Comparison(options, (dict(baseline.target), dict(report.target)), baseline.load.rate or 0.0)
    result.requests = [0, report.total]
    result.failed = [0, report.total - report.ok]
    result.warnings = [_NOT_IN_TURN]
    if report.seen.phase.stopped:
        result.code, result.reason = "stopped", report.seen.phase.stopped
        return result
    if not windows or not baseline.windows["p50"]:
        result.reason = str(report.verdict) if not report.quotable() else "too few requests"
        return result
    # Open loops answer at the rate at which they ask: only a closed one has a throughput.
    names = _METRICS if baseline.load.rate is None else ("p50", "p99")
    result.metrics = [
        unpaired(name, baseline.windows[name], [_log(w[_METRICS[name]]) for w in windows], options.margin)
        for name in names
        if name in (options.metrics or _METRICS)
    ]
    result.code = verdict(result.metrics)
    named = [m for m in result.metrics if m.outcome == result.code]
    result.reason = ", ".join(f"{m.name} {m.ratio - 1:+.1%}" for m in named)
    return result
