"""Metrics: plain integers on the hot path, Prometheus text when someone asks.

Labels come from the configuration, the bundles and lists of codes, never from a request,
so their number is bounded; the series of a version end soon after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import MserveError
from ..loader.reconciler import Model
from ..loader.servable import BATCH_BUCKETS, Servable, State, Stats
from ..tensors import Array

if TYPE_CHECKING:
    from .calls import Call

# Upper bounds in seconds, about two to a doubling: fine enough for a p99.
LATENCY_BUCKETS = tuple(round(0.00001 * 2 ** (i / 2), 8) for i in range(44))
_BUCKETS_NS = tuple(int(s * 1e9) for s in LATENCY_BUCKETS)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PHASES = ("parse", "queue", "compute", "encode")
NOTED_MAX = 2048


class Series(NamedTuple):
    """What requests are told apart by; empty where a request did not get that far."""

    model: str
    version: str
    signature: str
    protocol: str


class Process(NamedTuple):
    """One of several serving processes, which keeps its number when it is started again."""

    number: int
    up: bool
    starts: int
    connections: int
    requests: int


@dataclass(slots=True)
class Histogram:
    """Counts by bucket, one more for what is above the last bound, and the sum."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BUCKETS) + 1))
    total_ns: int = 0

    def observe(self, durations: Array) -> None:
        """Count durations in nanoseconds: int64 [n]."""
        import numpy as np

        places = np.searchsorted(_BUCKETS_NS, durations)
        for place, count in enumerate(np.bincount(places, minlength=len(self.counts)).tolist()):
            self.counts[place] += count
        self.total_ns += int(durations.sum())


class Counts:
    """The requests of one series: answers by code, and where the time of the good ones went.

    `failures` and `failed_ns` count the others; `last_ns` is when the last one was
    answered (monotonic). Times are noted as they come and put into
    histograms many at once, which costs a tenth.
    """

    def __init__(self) -> None:
        self.failures = 0
        self.failed_ns = 0
        self.last_ns = 0
        self.codes: dict[str, int] = {}
        self._total = Histogram()
        self._phases = tuple(Histogram() for _ in PHASES)
        self._noted: list[tuple[int, ...]] = []

    @property
    def last_ms(self) -> int:
        """When the last one was answered, in milliseconds since 1970."""
        return int(time.time() * 1000 - (time.monotonic_ns() - self.last_ns) / 1e6)

    @property
    def total(self) -> Histogram:
        """From arrival to answer."""
        self._fold()
        return self._total

    @property
    def phases(self) -> tuple[Histogram, ...]:
        """The parts of it, in the order of PHASES."""
        self._fold()
        return self._phases

    def note(self, times: tuple[int, ...]) -> None:
        """Note one good answer: when it arrived, and when each phase ended."""
        self._noted.append(times)
        if len(self._noted) >= NOTED_MAX:
            self._fold()

    def _fold(self) -> None:
        if not self._noted:
            return
        import numpy as np

        times = np.array(self._noted, np.int64)
        self._noted.clear()
        self._total.observe(times[:, -1] - times[:, 0])
        for histogram, durations in zip(self._phases, np.diff(times).T, strict=True):
            histogram.observe(durations)


class Metrics:
    """The server's counters. One thread writes them: the event loop."""

    def __init__(
        self,
        models: Mapping[str, Model],
        waiting: Callable[[Servable], int],
        refused: Callable[[], bool] = lambda: False,
    ) -> None:
        """`waiting` tells how many rows wait for a servable, `refused` whether the newest
        configuration is not used. Of several processes `processes` tells, and
        `in_flight` how many requests they have accepted for a servable and not yet answered.
        """
        self.processes: Callable[[], Sequence[Process]] = tuple
        self.in_flight: Callable[[Servable], int] = lambda servable: servable.in_flight
        self._refused = refused
        self._models = models
        self.waiting = waiting
        self.series: dict[Series, Counts] = {}
        self._latest: dict[tuple[str, int, str, str], Counts] = {}

    def observe(self, call: Call, error: MserveError | None, now_ns: int) -> None:
        """Count a call that was answered, or whose client has left."""
        servable = getattr(call, "servable", None)
        version, queried = servable.version if servable else 0, call.queried
        key = (call.model, version, queried[0].signature if queried else "", call.protocol)
        counts = self._latest.get(key)
        if counts is None:
            counts = self._counts(call, version)
        code = call.code(error)
        counts.codes[code] = counts.codes.get(code, 0) + 1
        counts.last_ns = now_ns
        start = call.context.start_ns
        if error is not None:
            counts.failures += 1
            counts.failed_ns += now_ns - start
        else:
            entry = call.entries[-1]
            counts.note((start, call.parsed_ns, entry.started_ns, entry.ended_ns, now_ns))

    def _counts(self, call: Call, version: int) -> Counts:
        """The counts of a call's series, new ones where it is the first."""
        self._forget()
        known = call.model if call.model in self._models else ""
        key = Series(known, str(version) if version else "", call.signature, call.protocol)
        counts = self.series.setdefault(key, Counts())
        if known:
            self._latest[known, version, call.signature, call.protocol] = counts
        return counts

    def take(self) -> dict[Series, Counts]:
        """Hand over what was counted so far, and begin anew."""
        taken, self.series = self.series, {}
        self._latest.clear()
        return taken

    def render(self) -> bytes:
        """All metrics as Prometheus text."""
        from prometheus_client import CollectorRegistry, generate_latest

        self._forget()
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return bytes(generate_latest(registry))

    def _forget(self) -> None:
        """Drop the series of versions that ended a while ago, and of models that left."""
        self._latest.clear()
        for key in list(self.series):
            model = self._models.get(key.model)
            if key.model and model is None:
                del self.series[key]
            elif model is not None and key.version:
                version = int(key.version)
                if version not in (*model.slots, *model.ended, *(s.version for s in model.retired)):
                    del self.series[key]

    def collect(self) -> Iterator[Any]:
        """The metric families; prometheus_client calls this."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        help = "1 while the newest configuration has a problem and is not used."
        yield GaugeMetricFamily("mserve_configuration_refused", help, value=float(self._refused()))
        labels = list(Series._fields)
        requests = CounterMetricFamily(
            "mserve_requests", "Inference requests answered, by status.", labels=[*labels, "code"]
        )
        total = HistogramMetricFamily(
            "mserve_request_seconds", "Time from a request's arrival to its answer.", labels=labels
        )
        phase = HistogramMetricFamily(
            "mserve_phase_seconds", "The parts of a request's time.", labels=[*labels, "phase"]
        )
        for key, counts in sorted(self.series.items()):
            for code, count in sorted(counts.codes.items()):
                requests.add_metric([*key, code], count)
            if not sum(counts.total.counts):
                continue
            total.add_metric([*key], *_seconds(counts.total))
            for name, histogram in zip(PHASES, counts.phases, strict=True):
                phase.add_metric([*key, name], *_seconds(histogram))
        yield from (requests, total, phase)
        yield from self._per_version()
        yield from self._per_process()

    def _per_process(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        found = self.processes()
        if not found:
            return
        labels = ["process"]
        up = GaugeMetricFamily("mserve_process_up", "1 while the process takes requests.", labels=labels)
        starts = CounterMetricFamily("mserve_process_starts", "Starts of the process.", labels=labels)
        connections = GaugeMetricFamily(
            "mserve_process_connections", "Open connections of the process.", labels=labels
        )
        requests = CounterMetricFamily(
            "mserve_process_requests", "Inference requests the process has answered.", labels=labels
        )
        for process in found:
            label = [str(process.number)]
            up.add_metric(label, float(process.up))
            starts.add_metric(label, process.starts)
            connections.add_metric(label, process.connections)
            requests.add_metric(label, process.requests)
        yield from (up, starts, connections, requests)

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
        padding = CounterMetricFamily(
            "mserve_padding_rows", "Rows that were run only to fill a batch up.", labels=labels
        )
        inline = CounterMetricFamily("mserve_inline_batches", "Batches run on the event loop.", labels=labels)
        flight = GaugeMetricFamily(
            "mserve_in_flight", "Requests accepted and not yet answered.", labels=labels
        )
        waiting = GaugeMetricFamily("mserve_queue_rows", "Rows that wait for a batch.", labels=labels)
        size = GaugeMetricFamily("mserve_version_bytes", "Bytes of the version's files.", labels=labels)
        load = GaugeMetricFamily("mserve_load_seconds", "Time that loading the version took.", labels=labels)
        state = GaugeMetricFamily(
            "mserve_version_state", "1 for the state a version is in.", labels=[*labels, "state"]
        )
        loads = CounterMetricFamily(
            "mserve_loads", "Loads of versions, by outcome.", labels=["model", "outcome"]
        )
        for name, model in sorted(self._models.items()):
            for outcome, count in sorted(model.loads.items()):
                loads.add_metric([name, outcome], count)
            for slot in sorted([*model.slots.values(), *model.retired], key=lambda s: s.version):
                label = [name, str(slot.version)]
                for known in State:
                    state.add_metric([*label, known.value], float(slot.state is known))
                if slot.servable is None:
                    continue
                stats: Stats = slot.servable.stats
                batch.add_metric(label, _buckets(BATCH_BUCKETS, stats.batch_rows), stats.rows)
                run.add_metric(label, stats.run_ns / 1e9)
                queue.add_metric(label, stats.queue_ns / 1e9)
                padding.add_metric(label, stats.padding)
                inline.add_metric(label, stats.inline)
                flight.add_metric(label, self.in_flight(slot.servable))
                waiting.add_metric(label, self.waiting(slot.servable))
                size.add_metric(label, slot.servable.bundle.byte_size)
                load.add_metric(label, slot.load_ns / 1e9)
        yield from (batch, run, queue, padding, inline, flight, waiting, size, load, loads, state)


def _seconds(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    return _buckets(LATENCY_BUCKETS, histogram.counts), histogram.total_ns / 1e9


def _buckets(bounds: tuple[float, ...], counts: list[int]) -> list[tuple[str, float]]:
    """Cumulative buckets in Prometheus's form."""
    rows, running = [], 0
    for bound, count in zip((*bounds, float("inf")), counts, strict=True):
        running += count
        rows.append(("+Inf" if bound == float("inf") else str(float(bound)), float(running)))
    return rows
