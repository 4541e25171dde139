"""Recorder: the times and the outcome of each request, and what they amount to. Pure.

    intended ──lag──> taken ──wait──> sent ────> first byte ────> done
                                      └───────── service ──────────┘
    └─────────────────────────── latency ──────────────────────────┘

Latency is counted from when the request was due (`intended`), not from when it could be
sent: a server that stalls delays the requests behind the stall too, and a measurement
that starts at `sent` would leave that out (coordinated omission). `lag` is the client's
own fault and decides whether the run is valid; `wait` is for a free connection. Times
are nanoseconds of one monotonic clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ...wire.grpc_answer import status_name
from ..judgement.quantiles import NEVER_NS, Ints, nearest_rank, window_medians
from .schedule import Times

# Outcomes: 0, an HTTP status, GRPC plus a status of gRPC, or one of these.
OK = 0
PENDING = -1
UNFINISHED = -2
UNSENT = -3
CONNECTION = -4
NOT_HTTP = -5
WRONG = -6
GRPC = 1000

_NAMES = {
    OK: "ok",
    PENDING: "pending",
    UNFINISHED: "unfinished",
    UNSENT: "unsent",
    CONNECTION: "connection",
    NOT_HTTP: "not HTTP",
    WRONG: "wrong result",
}
_UNANSWERED = (UNFINISHED, UNSENT)

# Why a phase was stopped when somebody pressed Ctrl-C.
INTERRUPTED = "interrupted"


def outcome_name(outcome: int) -> str:
    """An outcome's class, as reports name it."""
    if outcome > GRPC:
        return f"gRPC {status_name(outcome - GRPC)}"
    return _NAMES.get(outcome) or f"status {outcome}"


COLUMNS = ("intended", "taken", "sent", "first", "done")
ROW_BYTES = 8 * len(COLUMNS) + 2


class Recorder:
    """Columns for the requests of one phase; the first `count` rows are in use.

    They lie in `memory`, at least `capacity * ROW_BYTES` bytes of zeros, where it is given: so
    that another process can see them, whatever becomes of this one. `first` is 0 where no
    byte of an answer was seen.
    """

    def __init__(self, capacity: int, memory: memoryview | None = None) -> None:
        self.count = 0
        self.capacity = capacity
        if memory is None:
            memory = np.zeros(max(1, capacity * ROW_BYTES), dtype=np.uint8).data
        shape, end = (len(COLUMNS), capacity), 8 * len(COLUMNS) * capacity
        self.intended, self.taken, self.sent, self.first, self.done = np.ndarray(shape, np.int64, memory)
        self.outcome = np.ndarray(capacity, np.int16, memory, end)
        self._cells = self.taken.data, self.intended.data, self.outcome.data

    @classmethod
    def scheduled(cls, start_ns: int, due: Times) -> Recorder:
        """A recorder whose requests are due at `start_ns` plus the schedule's times."""
        recorder = cls(len(due))
        recorder.plan(start_ns, due)
        return recorder

    @classmethod
    def merged(cls, parts: Sequence[Recorder]) -> Recorder:
        """The requests of several recorders in the order in which they were due."""
        whole = cls(sum(part.count for part in parts))
        whole.count = whole.capacity
        due = np.concatenate([part.intended[: part.count] for part in parts])
        order = np.argsort(due, kind="stable")
        for name in (*COLUMNS, "outcome"):
            rows = np.concatenate([getattr(part, name)[: part.count] for part in parts])
            getattr(whole, name)[:] = rows[order]
        return whole

    def plan(self, start_ns: int, due: Times) -> None:
        """Note when each request is due: `start_ns` plus the schedule's times."""
        self.intended[:] = start_ns + due
        self.outcome[:] = PENDING

    @property
    def full(self) -> bool:
        """Whether every row is in use."""
        return self.count == self.capacity

    def add(self, now_ns: int) -> int:
        """A new row for a request that is due now; returns its index. For the closed loop.

        Raises IndexError when every row is in use.
        """
        index = self.count
        taken, intended, outcome = self._cells
        taken[index] = intended[index] = now_ns
        outcome[index] = PENDING
        self.count = index + 1
        return index

    def finish(self, end_ns: int) -> None:
        """Give up on what has no outcome yet: sent and not answered, or never sent."""
        used = slice(0, self.count)
        pending = self.outcome[used] == PENDING
        unsent = pending & (self.sent[used] == 0)
        self.outcome[used][pending] = UNFINISHED
        self.outcome[used][unsent] = UNSENT
        self.done[used][pending] = end_ns
        self.sent[used][unsent] = end_ns

    def drop_pending(self) -> None:
        """Forget rows without an outcome: the run was cut short, and they are nobody's fault."""
        keep = np.flatnonzero(self.outcome[: self.count] != PENDING)
        for name in (*COLUMNS, "outcome"):
            column = getattr(self, name)
            column[: len(keep)] = column[keep]
        self.count = len(keep)

    # what the rows amount to

    def _column(self, column: npt.NDArray[np.int64]) -> Ints:
        return column[: self.count]

    def latencies(self) -> Ints:
        """Latency in order of sending; NEVER_NS for what was never answered, failures left out.

        Requests that were refused or broken have no latency: they are counted as errors.
        """
        return self._population(self.intended)

    def service_times(self) -> Ints:
        """As `latencies`, counted from the sending: what a naive client would report."""
        return self._population(self.sent)

    def first_byte_times(self) -> Ints:
        """From the sending to the first byte, of the requests that were answered with success."""
        used = self.outcome[: self.count] == OK
        times: Ints = (self._column(self.first) - self._column(self.sent))[used]
        return times

    def lags(self) -> Ints:
        """How late the client itself was with each request."""
        return self._column(self.taken) - self._column(self.intended)

    def waits(self) -> Ints:
        """How long each request waited for a free connection."""
        return self._column(self.sent) - self._column(self.taken)

    def _population(self, since: npt.NDArray[np.int64]) -> Ints:
        outcome = self.outcome[: self.count]
        latency = self._column(self.done) - self._column(since)
        latency[np.isin(outcome, _UNANSWERED)] = NEVER_NS
        counted: Ints = latency[(outcome == OK) | np.isin(outcome, _UNANSWERED)]
        return counted

    def errors(self) -> dict[int, int]:
        """How many requests ended in each outcome but OK."""
        outcomes, counts = np.unique(self.outcome[: self.count], return_counts=True)
        return {int(o): int(c) for o, c in zip(outcomes, counts, strict=True) if o != OK}

    def ok(self) -> int:
        """How many requests were answered with success."""
        return int(np.count_nonzero(self.outcome[: self.count] == OK))

    def in_flight_ns(self) -> int:
        """The requests' times on their way, added up: rate times mean time of Little's law."""
        return int((self._column(self.done) - self._column(self.sent)).sum())


# Nanoseconds between which a version was seen to answer, to the watcher's accuracy.
Sighting = tuple[int, int]


@dataclass(slots=True)
class Phase:
    """What a driver hands back.

    `span_ns` is how long it sent, `busiest` how many requests were on their way at once at
    most, `in_flight_ns` their number added up over time; `stopped` says why the phase ended
    early, or is "". `broken` says why what was seen proves nothing: a generator died.
    `messages` holds the first message of each kind of failure, `cpu_share` what the (busiest)
    client process used of a CPU, `sightings` when each model version answered first and last.
    """

    recorder: Recorder
    span_ns: int
    busiest: int
    in_flight_ns: int
    stopped: str = ""
    messages: dict[int, str] = field(default_factory=dict)
    broken: str = ""
    cpu_share: float = 0.0
    sightings: dict[bytes, Sighting] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rates:
    """Requests per second: due, answered (in any way), and answered with success."""

    offered: float
    achieved: float
    ok: float

    @property
    def ratio(self) -> float:
        """Achieved over offered."""
        return self.achieved / self.offered if self.offered else 0.0


def open_rates(recorder: Recorder, span_ns: int) -> Rates:
    """Rates of an open loop whose schedule lasts `span_ns`.

    The answers' span is longer than the schedule's by as much as the latency grew. The
    growth is read off the medians of the first and the last tenth of the requests, so
    that a single late answer does not pass for a lower rate.
    """
    n = recorder.count
    if n == 0 or span_ns <= 0:
        return Rates(0.0, 0.0, 0.0)
    elapsed = recorder.done[:n] - recorder.intended[:n]
    medians = window_medians(elapsed, min(10, n))
    span_s = (span_ns + max(0, medians[-1] - medians[0])) / 1e9
    lost = sum(count for outcome, count in recorder.errors().items() if outcome in _UNANSWERED)
    return Rates(n / (span_ns / 1e9), (n - lost) / span_s, recorder.ok() / span_s)


def closed_rates(recorder: Recorder) -> Rates:
    """Rates of a closed loop: what is offered is what was answered."""
    n = recorder.count
    if n == 0:
        return Rates(0.0, 0.0, 0.0)
    span_s = max(1, int(recorder.done[:n].max() - recorder.sent[:n].min())) / 1e9
    lost = sum(count for outcome, count in recorder.errors().items() if outcome in _UNANSWERED)
    return Rates((n - lost) / span_s, (n - lost) / span_s, recorder.ok() / span_s)


def lag_p99(recorder: Recorder) -> int:
    """The client's own lateness at the 99th percentile, in nanoseconds."""
    lags = np.sort(recorder.lags())
    return nearest_rank(lags, 0.99) if len(lags) else 0
