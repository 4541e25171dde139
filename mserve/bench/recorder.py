"""Recorder: four times and an outcome for each request, and what they amount to. Pure.

    intended ──lag──> taken ──wait──> sent ──service──> done
    └────────────────── latency ──────────────────────────┘

Latency is counted from when the request was due (`intended`), not from when it could be
sent: a server that stalls delays the requests behind the stall too, and a measurement
that starts at `sent` would leave that out (coordinated omission). `lag` is the client's
own fault and decides whether the run is valid; `wait` is for a free connection. Times
are nanoseconds of one monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..wire.grpc_answer import status_name
from .quantiles import NEVER_NS, Ints, nearest_rank, window_medians
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


class Recorder:
    """Columns for the requests of one phase; the first `count` rows are in use."""

    def __init__(self, capacity: int) -> None:
        self.count = 0
        self.intended, self.taken, self.sent, self.done = (
            np.zeros(capacity, dtype=np.int64) for _ in range(4)
        )
        self.outcome = np.full(capacity, PENDING, dtype=np.int16)

    @classmethod
    def scheduled(cls, start_ns: int, due: Times) -> Recorder:
        """A recorder whose requests are due at `start_ns` plus the schedule's times."""
        recorder = cls(len(due))
        recorder.intended[:] = start_ns + due
        return recorder

    def add(self, now_ns: int) -> int:
        """A new row for a request that is due now; returns its index. For the closed loop."""
        index = self.count
        if index == len(self.intended):
            self._grow()
        self.count = index + 1
        self.intended[index] = self.taken[index] = now_ns
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
        for name in ("intended", "taken", "sent", "done", "outcome"):
            column = getattr(self, name)
            column[: len(keep)] = column[keep]
        self.count = len(keep)

    def _grow(self) -> None:
        more = max(1024, len(self.intended))
        for name in ("intended", "taken", "sent", "done"):
            setattr(self, name, np.concatenate([getattr(self, name), np.zeros(more, dtype=np.int64)]))
        self.outcome = np.concatenate([self.outcome, np.full(more, PENDING, dtype=np.int16)])

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


@dataclass(slots=True)
class Phase:
    """What a driver hands back.

    `span_ns` is how long it sent, `busiest` how many requests were on their way at once at
    most, `in_flight_ns` their number added up over time; `stopped` says why the phase ended
    early, or is "". `messages` holds the first message of each kind of failure.
    """

    recorder: Recorder
    span_ns: int
    busiest: int
    in_flight_ns: int
    stopped: str = ""
    messages: dict[int, str] = field(default_factory=dict)


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
