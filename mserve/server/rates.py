"""Rates: two readings of a server's counters in, what happened between them out. Pure.

Counters only grow, so one smaller than before means that the server, or the version,
started anew; what it shows now has then happened since, as Prometheus takes it.

A percentile comes from the histogram of the interval, the difference of the two readings'
buckets. It is interpolated within its bucket, as if durations were spread evenly there.
In the first bucket, and above the last bound, only a limit is known: `<` and `>` say so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..errors import EnvironmentProblem

PHASES = ("parse", "queue", "compute", "encode")
PERCENTILES = (0.5, 0.95, 0.99)
_SERIES = ("model", "version", "signature", "protocol")
_VERSION = ("model", "version")

Key = tuple[str, ...]
Table = dict[Key, dict[str, float]]


@dataclass(slots=True)
class Reading:
    """One look at /metrics; times are seconds.

    `codes`, `buckets` (cumulative, by upper bound) and `phases` by model, version, signature
    and protocol; `versions` has the counters and gauges of each model and version, and
    `states` the state that each is in.
    """

    codes: Table = field(default_factory=dict)
    buckets: Table = field(default_factory=dict)
    phases: Table = field(default_factory=dict)
    versions: Table = field(default_factory=dict)
    states: dict[Key, str] = field(default_factory=dict)


class VersionStatus(NamedTuple):
    """One line of /v1/models: a version's state as TensorFlow Serving calls it, and why."""

    model: str
    version: str
    state: str
    reason: str
    labels: tuple[str, ...]


class Quantile(NamedTuple):
    """A percentile in seconds; `bound` is "<" or ">" where only a limit is known."""

    seconds: float
    bound: str = ""


# Samples that are kept: where, by which labels, and the label, or the word, that names the value.
_TABLES: Mapping[str, tuple[str, Key, str]] = {
    "mserve_requests_total": ("codes", _SERIES, "code"),
    "mserve_request_seconds_bucket": ("buckets", _SERIES, "le"),
    "mserve_phase_seconds_sum": ("phases", _SERIES, "phase"),
}
_OF_VERSION: Mapping[str, str] = {
    "mserve_batch_rows_count": "batches",
    "mserve_batch_rows_sum": "rows",
    "mserve_inline_batches_total": "inline",
    "mserve_run_seconds_total": "run_s",
    "mserve_in_flight": "in_flight",
    "mserve_version_bytes": "bytes",
}
_GAUGES = frozenset({"in_flight", "bytes"})


def read_metrics(text: str, where: str = "") -> Reading:
    """A page of Prometheus text. Raises EnvironmentProblem when it is not an mserve server's."""
    from prometheus_client.parser import text_string_to_metric_families

    reading, ours = Reading(), False
    try:
        for family in text_string_to_metric_families(text):
            ours = ours or family.name.startswith("mserve_")
            for sample in family.samples:
                _take(reading, sample.name, sample.labels, float(sample.value))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise not_mserve(where, f"{type(error).__name__}: {error}"[:120]) from error
    if not ours:
        raise not_mserve(where, "metrics of another program" if text.strip() else "an empty page")
    return reading


def _take(reading: Reading, name: str, labels: Mapping[str, str], value: float) -> None:
    if name in _TABLES:
        table, by, column = _TABLES[name]
        key = tuple(labels.get(label, "") for label in by)
        getattr(reading, table).setdefault(key, {})[labels[column]] = _checked(name, value)
    elif name in _OF_VERSION:
        key = tuple(labels.get(label, "") for label in _VERSION)
        reading.versions.setdefault(key, {})[_OF_VERSION[name]] = _checked(name, value)
    elif name == "mserve_version_state" and value == 1:
        reading.states[tuple(labels.get(label, "") for label in _VERSION)] = labels["state"]


def _checked(name: str, value: float) -> float:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value}")
    return value


def read_statuses(body: bytes, where: str = "") -> list[VersionStatus]:
    """The page /v1/models: each version that has not ended, and each model that has none.

    Labels are shown where the page has them, as a model's `labels`: {label: version}.
    Raises EnvironmentProblem.
    """
    found = []
    try:
        for model in json.loads(body)["models"]:
            name, labels = str(model["name"]), model.get("labels") or {}
            entries = [e for e in model["model_version_status"] if e["state"] != "END"]
            for entry in entries:
                version = str(entry["version"])
                own = tuple(sorted(str(k) for k, v in labels.items() if str(v) == version))
                reason = str(entry.get("status", {}).get("error_message", ""))
                found.append(VersionStatus(name, version, str(entry["state"]), reason, own))
            if not entries:
                found.append(VersionStatus(name, "", "NONE", str(model.get("problem", "")), ()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise not_mserve(where, f"{type(error).__name__}: {error}"[:120]) from error
    return found


def not_mserve(where: str, found: str) -> EnvironmentProblem:
    """The error for a page that another program has answered."""
    return EnvironmentProblem(
        "this is not an mserve server",
        where=where,
        expected="the pages /metrics and /v1/models of mserve serve",
        found=found,
        hint="is this the HTTP port? mserve serve prints it; 8501 unless told otherwise",
    )


def delta(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """How far counters that belong together have come; from 0 if they started anew."""
    if any(after.get(name, 0.0) < value for name, value in before.items()):
        return dict(after)
    return {name: value - before.get(name, 0.0) for name, value in after.items()}


def quantile(buckets: Mapping[str, float], p: float) -> Quantile | None:
    """The p-quantile of a cumulative histogram by upper bound in seconds; None when it is empty."""
    rows = sorted((float(bound), count) for bound, count in buckets.items())
    if not rows or rows[-1][1] <= 0:
        return None
    rank, lower, below = p * rows[-1][1], 0.0, 0.0
    for index, (upper, count) in enumerate(rows):
        if count >= rank and count > below:
            if math.isinf(upper):
                return Quantile(lower, ">")
            if index == 0:
                return Quantile(upper, "<")
            return Quantile(lower + (upper - lower) * (rank - below) / (count - below))
        lower, below = upper, max(below, count)
    return Quantile(lower, ">")


def is_error(code: str) -> bool:
    """Whether a status, of HTTP or of gRPC, is one of failure."""
    return code != "OK" and not code.startswith("2")


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests of one interval: counts by code, the latencies' histogram, seconds by phase."""

    seconds: float
    codes: Mapping[str, float]
    buckets: Mapping[str, float]
    phases: Mapping[str, float]

    @property
    def rate(self) -> float:
        """Requests a second, good and bad."""
        return sum(self.codes.values()) / self.seconds

    @property
    def errors(self) -> dict[str, float]:
        """Errors a second by code, those that occurred."""
        return {c: n / self.seconds for c, n in sorted(self.codes.items()) if n and is_error(c)}

    def shares(self) -> dict[str, float] | None:
        """Which part of the requests' time each phase took; None when there was none."""
        total = sum(self.phases.values())
        return {p: self.phases.get(p, 0.0) / total for p in PHASES} if total > 0 else None

    def to_json(self) -> dict[str, Any]:
        """Rates a second; latencies in milliseconds and shares, both of requests without an error."""
        return {
            "requests": int(sum(self.codes.values())),
            "codes": {code: int(n) for code, n in sorted(self.codes.items()) if n},
            "requests_per_s": self.rate,
            "errors_per_s": sum(self.errors.values()),
            "latency_ms": {f"p{100 * p:g}": _in_ms(quantile(self.buckets, p)) for p in PERCENTILES},
            "phase_shares": self.shares(),
        }


def _in_ms(found: Quantile | None) -> dict[str, Any] | None:
    return None if found is None else {"value": found.seconds * 1e3, "bound": found.bound or "="}


@dataclass(frozen=True, slots=True)
class Version:
    """One version: what it is now, and what its batches were in the interval; None without any."""

    status: VersionStatus
    in_flight: int
    size: int | None
    batches: int
    mean_rows: float | None
    inline_share: float | None
    busy: float

    def to_json(self) -> dict[str, Any]:
        """`busy` is the seconds of running the model in each second."""
        return {
            **self.status._asdict(),
            "in_flight": self.in_flight,
            "bytes": self.size,
            "batches": self.batches,
            "mean_batch_rows": self.mean_rows,
            "inline_share": self.inline_share,
            "busy": self.busy,
        }


@dataclass(frozen=True, slots=True)
class View:
    """What an interval looked like."""

    seconds: float
    traffic: Mapping[Key, Traffic]
    versions: Sequence[Version]

    def total(self) -> Traffic:
        """All traffic together."""
        every = self.traffic.values()
        return Traffic(
            self.seconds, _sum(t.codes for t in every), _cumulative(every), _sum(t.phases for t in every)
        )

    def to_json(self) -> dict[str, Any]:
        """The interval as `--json` prints it."""
        return {
            "interval_s": self.seconds,
            "requests": [
                {**dict(zip(_SERIES, key, strict=True)), **t.to_json()} for key, t in self.traffic.items()
            ],
            "versions": [v.to_json() for v in self.versions],
            "total": {**self.total().to_json(), "in_flight": sum(v.in_flight for v in self.versions)},
        }


def _sum(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total


def _cumulative(every: Iterable[Traffic]) -> dict[str, float]:
    """Histograms joined; those of one server have the same bounds."""
    return _sum(t.buckets for t in every)


def view(before: Reading, after: Reading, statuses: Sequence[VersionStatus], seconds: float) -> View:
    """What happened in the `seconds` between two readings; series without requests are left out."""
    traffic = {}
    for key, codes in sorted(after.codes.items()):
        parts = (
            delta(getattr(before, table).get(key, {}), getattr(after, table).get(key, {}))
            for table in ("codes", "buckets", "phases")
        )
        found = Traffic(seconds, *parts)
        if codes and found.rate:
            traffic[key] = found
    return View(seconds, traffic, [_version(before, after, status, seconds) for status in statuses])


def _version(before: Reading, after: Reading, status: VersionStatus, seconds: float) -> Version:
    key = (status.model, status.version)
    now = after.versions.get(key, {})
    old = {name: value for name, value in before.versions.get(key, {}).items() if name not in _GAUGES}
    counted = delta(old, {name: value for name, value in now.items() if name not in _GAUGES})
    batches = counted.get("batches", 0.0)
    return Version(
        status,
        int(now.get("in_flight", 0)),
        int(now["bytes"]) if "bytes" in now else None,
        int(batches),
        counted.get("rows", 0.0) / batches if batches else None,
        counted.get("inline", 0.0) / batches if batches else None,
        counted.get("run_s", 0.0) / seconds,
    )
