"""What the server itself counted while it was measured: parts of requests' time, batch sizes. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

# The server's metric for each counter; summed over the versions of one model.
_METRICS = {
    "mserve_requests_total": "requests",
    "mserve_batch_rows_count": "batches",
    "mserve_batch_rows_sum": "rows",
    "mserve_inline_batches_total": "inline",
    "mserve_run_seconds_total": "run_s",
    "mserve_queue_seconds_total": "queue_s",
}
_PHASE = "mserve_phase_seconds_"
_BUCKET = "mserve_batch_rows_bucket"
_TOTALS = tuple(_METRICS.values())
PHASES = ("parse", "queue", "compute", "encode")


@dataclass(slots=True)
class Counters:
    """Totals since the server started; `run_s` adds up batches, `queue_s` requests, in seconds.

    `phases` has, for each part of a request's time, how many requests and their seconds;
    `batch_rows` how many batches by the largest number of rows that they may have had. Not
    every server tells which batches ran inline.
    """

    requests: float = 0.0
    batches: float = 0.0
    rows: float = 0.0
    inline: float = 0.0
    run_s: float = 0.0
    queue_s: float = 0.0
    phases: dict[str, tuple[float, float]] = field(default_factory=dict, compare=False)
    batch_rows: dict[float, float] = field(default_factory=dict, compare=False)
    knows_inline: bool = field(default=True, compare=False)

    def __sub__(self, earlier: Counters) -> Counters:
        delta = Counters(*(getattr(self, name) - getattr(earlier, name) for name in _TOTALS))
        delta.knows_inline = self.knows_inline
        for phase, (count, seconds) in self.phases.items():
            before = earlier.phases.get(phase, (0.0, 0.0))
            delta.phases[phase] = count - before[0], seconds - before[1]
        for size, count in self.batch_rows.items():
            delta.batch_rows[size] = count - earlier.batch_rows.get(size, 0.0)
        return delta

    def add_phase(self, phase: str, count: float, seconds: float) -> None:
        """Add requests and their time in one part."""
        known = self.phases.get(phase, (0.0, 0.0))
        self.phases[phase] = known[0] + count, known[1] + seconds

    def sizes(self) -> list[dict[str, Any]]:
        """Batches by size, ascending: up to `rows_max` rows (None: any), and more than the size before."""
        return [
            {"rows_max": int(size) if math.isfinite(size) else None, "batches": int(count)}
            for size, count in sorted(self.batch_rows.items())
            if count > 0
        ]


def read_metrics(text: str, model: str) -> Counters | None:
    """The counters of a model in Prometheus text, or None where the server does not keep them."""
    from prometheus_client.parser import text_string_to_metric_families

    counters, found, running = Counters(), False, dict[float, float]()
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.labels.get("model") != model:
                    continue
                if counter := _METRICS.get(sample.name):
                    setattr(counters, counter, getattr(counters, counter) + sample.value)
                    found = True
                elif sample.name == _BUCKET:
                    bound = float(sample.labels["le"])
                    running[bound] = running.get(bound, 0.0) + sample.value
                elif sample.name.startswith(_PHASE):
                    _add_phase(counters, sample.name, sample.labels.get("phase", ""), sample.value)
    except (ValueError, KeyError):  # something else answers at /metrics
        return None
    below = 0.0
    for bound in sorted(running):  # buckets count what is below, too
        counters.batch_rows[bound], below = running[bound] - below, running[bound]
    return counters if found else None


def _add_phase(counters: Counters, name: str, phase: str, value: float) -> None:
    if name == f"{_PHASE}sum":
        counters.add_phase(phase, 0.0, value)
    elif name == f"{_PHASE}count":
        counters.add_phase(phase, value, 0.0)


def server_view(before: Counters | None, after: Counters | None) -> dict[str, Any] | None:
    """Means over the time between two readings; None where they cannot be compared.

    They cannot when the server keeps no counters, or unloaded a version in between.
    """
    if before is None or after is None:
        return None
    delta = after - before
    if delta.batches <= 0 or min(getattr(delta, name) for name in _TOTALS) < 0:
        return None
    return {
        "requests": int(delta.requests),
        "batches": int(delta.batches),
        "mean_batch_rows": delta.rows / delta.batches,
        "inline_share": delta.inline / delta.batches if delta.knows_inline else None,
        "mean_run_ms": delta.run_s / delta.batches * 1e3,
        "mean_queue_ms": delta.queue_s / delta.requests * 1e3 if delta.requests else None,
        "phases_ms": {
            phase: delta.phases[phase][1] / delta.phases[phase][0] * 1e3
            for phase in PHASES
            if delta.phases.get(phase, (0.0, 0.0))[0] > 0
        },
        "batch_rows": delta.sizes(),
    }
