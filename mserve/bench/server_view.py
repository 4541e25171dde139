"""What the server itself counted while it was measured: batch sizes, queue and run times. Pure."""

from __future__ import annotations

from dataclasses import dataclass, fields
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


@dataclass(slots=True)
class Counters:
    """Totals since the server started; `run_s` adds up batches, `queue_s` requests, in seconds."""

    requests: float = 0.0
    batches: float = 0.0
    rows: float = 0.0
    inline: float = 0.0
    run_s: float = 0.0
    queue_s: float = 0.0

    def __sub__(self, earlier: Counters) -> Counters:
        return Counters(*(getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self)))


def read_metrics(text: str, model: str) -> Counters | None:
    """The counters of a model in Prometheus text, or None where the server does not keep them."""
    from prometheus_client.parser import text_string_to_metric_families

    counters, found = Counters(), False
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                counter = _METRICS.get(sample.name)
                if counter and sample.labels.get("model") == model:
                    setattr(counters, counter, getattr(counters, counter) + sample.value)
                    found = True
    except ValueError:  # something else answers at /metrics
        return None
    return counters if found else None


def server_view(before: Counters | None, after: Counters | None) -> dict[str, Any] | None:
    """Means over the time between two readings; None where they cannot be compared.

    They cannot when the server keeps no counters, or unloaded a version in between.
    """
    if before is None or after is None:
        return None
    delta = after - before
    if delta.batches <= 0 or min(getattr(delta, f.name) for f in fields(delta)) < 0:
        return None
    return {
        "requests": int(delta.requests),
        "batches": int(delta.batches),
        "mean_batch_rows": delta.rows / delta.batches,
        "inline_share": delta.inline / delta.batches,
        "mean_run_ms": delta.run_s / delta.batches * 1e3,
        "mean_queue_ms": delta.queue_s / delta.requests * 1e3 if delta.requests else None,
    }
