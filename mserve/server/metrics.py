"""Metrics: plain integers on the hot path, Prometheus text when someone asks.

Labels come from the configuration and from HTTP status codes, never from a request, so
their number is bounded.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..loader.reconciler import Model
from ..loader.servable import BATCH_BUCKETS, State, Stats

# Upper bounds in seconds, about two to a doubling: fine enough for a p99.
LATENCY_BUCKETS = tuple(round(0.0001 * 2 ** (i / 2), 7) for i in range(38))
_BUCKETS_NS = tuple(int(s * 1e9) for s in LATENCY_BUCKETS)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(slots=True)
class Histogram:
    """Counts by bucket, one more for what is above the last bound, and the sum."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BUCKETS) + 1))
    total_ns: int = 0

    def observe(self, ns: int) -> None:
        """Count one duration in nanoseconds."""
        self.counts[bisect_left(_BUCKETS_NS, ns)] += 1
        self.total_ns += ns


class Metrics:
    """The server's counters. One thread writes them: the event loop."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self._models = models
        self._requests: dict[tuple[str, int], int] = {}
        self._latency: dict[str, Histogram] = {}

    def count(self, model: str, status: int, ns: int) -> None:
        """Count one answered inference request of a configured model."""
        key = (model, status)
        self._requests[key] = self._requests.get(key, 0) + 1
        if status == 200:
            if model not in self._latency:
                self._latency[model] = Histogram()
            self._latency[model].observe(ns)

    def render(self) -> bytes:
        """All metrics as Prometheus text."""
        from prometheus_client import CollectorRegistry, generate_latest

        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return bytes(generate_latest(registry))

    def collect(self) -> Iterator[Any]:
        """The metric families; prometheus_client calls this."""
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        requests = CounterMetricFamily(
            "mserve_requests", "Inference requests answered, by HTTP status.", labels=["model", "code"]
        )
        for (model, status), count in sorted(self._requests.items()):
            requests.add_metric([model, str(status)], count)
        yield requests
        latency = HistogramMetricFamily(
            "mserve_request_seconds", "Time from a request's parse to its answer.", labels=["model"]
        )
        for model, histogram in sorted(self._latency.items()):
            latency.add_metric([model], _buckets(LATENCY_BUCKETS, histogram.counts), histogram.total_ns / 1e9)
        yield latency
        yield from self._per_version()

    def _per_version(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        labels = ["model", "version"]
        batch = HistogramMetricFamily(
            "mserve_batch_rows", "Rows of the batches that were run.", labels=labels
        )
        run = CounterMetricFamily("mserve_run_seconds", "Time spent running the model.", labels=labels)
        queue = CounterMetricFamily(
            "mserve_queue_seconds", "Time that requests waited for a batch.", labels=labels
        )
        inline = CounterMetricFamily("mserve_inline_batches", "Batches run on the event loop.", labels=labels)
        flight = GaugeMetricFamily(
            "mserve_in_flight", "Requests accepted and not yet answered.", labels=labels
        )
        size = GaugeMetricFamily("mserve_version_bytes", "Bytes of the version's files.", labels=labels)
        state = GaugeMetricFamily(
            "mserve_version_state", "1 for the state a version is in.", labels=[*labels, "state"]
        )
        for name, model in sorted(self._models.items()):
            for version, slot in sorted(model.slots.items()):
                label = [name, str(version)]
                for known in State:
                    state.add_metric([*label, known.value], float(slot.state is known))
                if slot.servable is None:
                    continue
                stats: Stats = slot.servable.stats
                batch.add_metric(label, _buckets(BATCH_BUCKETS, stats.batch_rows), stats.rows)
                run.add_metric(label, stats.run_ns / 1e9)
                queue.add_metric(label, stats.queue_ns / 1e9)
                inline.add_metric(label, stats.inline)
                flight.add_metric(label, slot.servable.in_flight)
                size.add_metric(label, slot.servable.bundle.byte_size)
        yield from (batch, run, queue, inline, flight, size, state)


def _buckets(bounds: tuple[float, ...], counts: list[int]) -> list[tuple[str, float]]:
    """Cumulative buckets in Prometheus's form."""
    rows, running = [], 0
    for bound, count in zip((*bounds, float("inf")), counts, strict=True):
        running += count
        rows.append(("+Inf" if bound == float("inf") else str(float(bound)), float(running)))
    return rows
