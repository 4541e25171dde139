"""Metrics: plain integers on the hot path, Prometheus text when someone asks.

Labels come from the configuration, the bundles and lists of codes, never from a request,
so their number is bounded; the series of a version end soon after it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from ..batching.batcher import Entry
from ..errors import MserveError
from ..loader.plan import Slot
from ..loader.reconciler import Model
from ..loader.servable import BATCH_BUCKETS, Servable, State
from ..tensors import Array
from .exposition import Family, labels

# Upper bounds in seconds, about two to a doubling: fine enough for a p99.
LATENCY_BUCKETS = tuple(round(0.00001 * 2 ** (i / 2), 8) for i in range(44))
_BUCKETS_NS = tuple(int(s * 1e9) for s in LATENCY_BUCKETS)
PHASES = ("parse", "queue", "compute", "encode")
NOTED_MAX = 2048
# How long the loop works on a page before it looks after requests.
SLICE_NS = 100_000
_PLAIN = (
    (
        "mserve_configuration_refused",
        "gauge",
        "1 while the newest configuration has a problem and is not used.",
    ),
    ("mserve_requests_total", "counter", "Inference requests answered, by status."),
    ("mserve_run_seconds_total", "counter", "Time spent running the model."),
    ("mserve_queue_seconds_total", "counter", "Time that requests waited for a batch."),
    ("mserve_padding_rows_total", "counter", "Rows that were run only to fill a batch up."),
    ("mserve_inline_batches_total", "counter", "Batches run on the event loop."),
    ("mserve_in_flight", "gauge", "Requests accepted and not yet answered."),
    ("mserve_queue_rows", "gauge", "Rows that wait for a batch."),
    ("mserve_version_bytes", "gauge", "Bytes of the version's files."),
    ("mserve_load_seconds", "gauge", "Time that loading the version took."),
    ("mserve_loads_total", "counter", "Loads of versions, by outcome."),
    ("mserve_version_state", "gauge", "1 for the state a version is in."),
    ("mserve_process_up", "gauge", "1 while the process takes requests."),
    ("mserve_process_starts_total", "counter", "Starts of the process."),
    ("mserve_process_connections", "gauge", "Open connections of the process."),
    ("mserve_process_requests_total", "counter", "Inference requests the process has answered."),
)
_HISTOGRAMS = (
    ("mserve_request_seconds", "Time from a request's arrival to its answer.", LATENCY_BUCKETS),
    ("mserve_phase_seconds", "The parts of a request's time.", LATENCY_BUCKETS),
    ("mserve_batch_rows", "Rows of the batches that were run.", BATCH_BUCKETS),
)


class Asker(Protocol):
    """Whose call it is, and when it came."""

    request_id: str
    start_ns: int


class Over(Protocol):
    """What is asked of a call that is over."""

    @property
    def context(self) -> Asker: ...
    @property
    def model(self) -> str: ...
    @property
    def signature(self) -> str: ...
    @property
    def protocol(self) -> str: ...
    @property
    def parsed_ns(self) -> int: ...
    @property
    def entries(self) -> Sequence[Entry]: ...
    def code(self, error: MserveError | None) -> str: ...


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
        self._rendering = asyncio.Lock()

    def observe(self, call: Over, error: MserveError | None, now_ns: int) -> None:
        """Count a call that was answered, or whose client has left."""
        servable = getattr(call, "servable", None)
        version = servable.version if servable else 0
        key = (call.model, version, call.signature, call.protocol)
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

    def _counts(self, call: Over, version: int) -> Counts:
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

    async def render(self) -> bytes:
        """All metrics as Prometheus text, made in slices so that requests are answered meanwhile.

        A series is of one moment, the page as a whole is not. One page is made at a time: many
        that are asked for at once take no more of the loop than one.
        """
        async with self._rendering:
            self._forget()
            page = _page()
            began = time.monotonic_ns()
            for _ in self._write(page):
                if time.monotonic_ns() - began > SLICE_NS:
                    await asyncio.sleep(0)
                    began = time.monotonic_ns()
            return "".join(family.text() for family in page.values()).encode()

    def _write(self, page: Page) -> Iterator[None]:
        """Write everything; yields whenever it could go on later."""
        page["mserve_configuration_refused"].add("", self._refused())
        for key, counts in sorted(self.series.items()):
            _write_series(page, key, counts)
            yield
        for name, model in sorted(self._models.items()):
            for outcome, count in sorted(model.loads.items()):
                named = labels((("model", name), ("outcome", outcome)))
                page["mserve_loads_total"].add(named, count)
            for slot in sorted([*model.slots.values(), *model.retired], key=lambda s: s.version):
                self._write_version(page, name, slot)
                yield
        for process in self.processes():
            _write_process(page, process)

    def _write_version(self, page: Page, model: str, slot: Slot) -> None:
        pairs = ("model", model), ("version", str(slot.version))
        for known in State:
            named = labels((*pairs, ("state", known.value)))
            page["mserve_version_state"].add(named, slot.state is known)
        if slot.servable is None:
            return
        named, stats = labels(pairs), slot.servable.stats
        page["mserve_batch_rows"].add_histogram(named, stats.batch_rows, stats.rows)
        for metric, value in (
            ("mserve_run_seconds_total", stats.run_ns / 1e9),
            ("mserve_queue_seconds_total", stats.queue_ns / 1e9),
            ("mserve_padding_rows_total", stats.padding),
            ("mserve_inline_batches_total", stats.inline),
            ("mserve_in_flight", self.in_flight(slot.servable)),
            ("mserve_queue_rows", self.waiting(slot.servable)),
            ("mserve_version_bytes", slot.servable.bundle.byte_size),
            ("mserve_load_seconds", slot.load_ns / 1e9),
        ):
            page[metric].add(named, value)

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


Page = dict[str, Family]


def _page() -> Page:
    """Every family, in the order of the page, without series."""
    page = {name: Family(name, kind, help) for name, kind, help in _PLAIN}
    for name, help, bounds in _HISTOGRAMS:
        page[name] = Family(name, "histogram", help, bounds)
    return page


def _write_series(page: Page, key: Series, counts: Counts) -> None:
    pairs = tuple(zip(Series._fields, key, strict=True))
    for code, count in sorted(counts.codes.items()):
        page["mserve_requests_total"].add(labels((*pairs, ("code", code))), count)
    total = counts.total
    if not any(total.counts):
        return
    page["mserve_request_seconds"].add_histogram(labels(pairs), total.counts, total.total_ns / 1e9)
    for name, part in zip(PHASES, counts.phases, strict=True):
        named = labels((*pairs, ("phase", name)))
        page["mserve_phase_seconds"].add_histogram(named, part.counts, part.total_ns / 1e9)


def _write_process(page: Page, process: Process) -> None:
    named = labels((("process", str(process.number)),))
    page["mserve_process_up"].add(named, process.up)
    page["mserve_process_starts_total"].add(named, process.starts)
    page["mserve_process_connections"].add(named, process.connections)
    page["mserve_process_requests_total"].add(named, process.requests)
