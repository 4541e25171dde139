"""The flight recorder: the last batches and requests, to tell later where a request's time went.

Everything is noted as it is known anyway, in two rings of a fixed size: a batch when it
has run, a request that has an id when it is answered. Nothing is put into words before
somebody asks.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..batching.batcher import Batch
from ..errors import MserveError
from .calls import Call

BATCHES, REQUESTS = 1000, 4096
MEMBERS_SHOWN = 128


@dataclass(frozen=True, slots=True)
class Run:
    """A batch that has run. `waits` and `sizes` are its requests': microseconds in the queue, rows."""

    number: int
    servable: int
    version: int
    signature: str
    reason: str
    inline: bool
    rows: int
    padding: int
    started_ns: int
    ended_ns: int
    run_ns: int
    waits: array[int]
    sizes: array[int]
    error: str

    def to_json(self) -> dict[str, Any]:
        """Times in milliseconds."""
        return {
            "batch": self.number,
            "version": self.version,
            "signature": self.signature,
            "closed": self.reason,
            "thread": "event loop" if self.inline else "worker",
            "requests": len(self.sizes),
            "rows": self.rows,
            "padding": self.padding,
            "run_ms": self.run_ns / 1e6,
            "took_ms": (self.ended_ns - self.started_ns) / 1e6,
            "members": [
                {"rows": rows, "waited_ms": wait / 1e3}
                for rows, wait in list(zip(self.sizes, self.waits, strict=True))[:MEMBERS_SHOWN]
            ],
        } | ({"error": self.error} if self.error else {})


class Answered(NamedTuple):
    """A request that was answered, or whose client has left: its call's facts, and its entries' runs.

    A run is when it started and ended, its rows, and the number of its batch.
    """

    model: str
    version: int
    signature: str
    protocol: str
    code: str
    error: str
    servable: int
    start_ns: int
    parsed_ns: int
    end_ns: int
    runs: tuple[tuple[int, int, int, int], ...]

    def times(self) -> list[int]:
        """When it arrived, was parsed, started to run, had run, and was answered; as far as it got."""
        ran = [max(run[0] for run in self.runs), max(run[1] for run in self.runs)] if self.runs else []
        return [self.start_ns, self.parsed_ns, *ran, self.end_ns]


class Recorder:
    """Remembers. All calls come from the event loop."""

    def __init__(self) -> None:
        self._runs: dict[int, Run] = {}
        self._answered: dict[str, Answered] = {}

    def on_batch(self, batch: Batch, run_ns: int, error: MserveError | None) -> None:
        """A batch has run."""
        first = batch.entries[0]
        if len(self._runs) >= BATCHES:
            del self._runs[next(iter(self._runs))]
        started = first.started_ns
        self._runs[batch.number] = Run(
            batch.number,
            id(first.servable),
            first.servable.version,
            first.signature,
            batch.reason,
            batch.inline,
            batch.rows,
            batch.padding,
            started,
            first.ended_ns,
            run_ns,
            array("Q", [(started - e.arrived_ns) // 1000 for e in batch.entries]),
            array("Q", [e.rows for e in batch.entries]),
            "" if error is None else error.what,
        )

    def on_call(self, call: Call, error: MserveError | None, now_ns: int) -> None:
        """A call that has an id is over."""
        request_id = call.context.request_id
        self._answered.pop(request_id, None)  # the last one of an id counts, and is the youngest
        if len(self._answered) >= REQUESTS:
            del self._answered[next(iter(self._answered))]
        servable, context = getattr(call, "servable", None), call.context
        self._answered[request_id] = Answered(
            call.model,
            servable.version if servable else 0,
            call.signature,
            call.protocol,
            call.code(error),
            "" if error is None else error.what,
            id(servable),
            context.start_ns,
            call.parsed_ns,
            now_ns,
            tuple([(e.started_ns, e.ended_ns, e.rows, e.batch) for e in call.entries]),
        )

    def explain(self, request_id: str) -> dict[str, Any] | None:
        """What is known of a request, as a JSON object; None where nothing is."""
        known = self._answered.get(request_id)
        if known is None:
            return None
        page = {
            "request_id": request_id,
            "model": known.model,
            "version": known.version or None,
            "signature": known.signature,
            "protocol": known.protocol,
            "code": known.code,
            "rows": sum(run[2] for run in known.runs),
            "ms": _phases(known.times()),
            "batches": [self._runs[n].to_json() for *_, n in known.runs if n in self._runs],
            "ran_meanwhile": self._meanwhile(known),
        }
        return page | ({"error": known.error} if known.error else {})

    def latest(self) -> Iterator[dict[str, Any]]:
        """The last batches, that which ended last first."""
        return (run.to_json() for run in reversed(self._runs.values()))

    def _meanwhile(self, known: Answered) -> dict[str, int]:
        """How many batches of its own and of other versions ran while a request waited."""
        if not known.runs:
            return {}
        _, arrived, started, *_ = known.times()
        own_runs = {number for *_, number in known.runs}
        runs = [
            run
            for run in self._runs.values()
            if run.ended_ns > arrived and run.started_ns < started and run.number not in own_runs
        ]
        own = sum(run.servable == known.servable for run in runs)
        return {"same_version": own, "others": len(runs) - own}


def _phases(times: Sequence[int]) -> dict[str, float]:
    """Milliseconds in each part of a request's time, as far as it got; `total` in all."""
    start, parsed, *run, end = times
    phases = {"total": (end - start) / 1e6}
    if parsed:
        phases["parse"] = (parsed - start) / 1e6
    if run and run[0] and run[1]:
        phases |= {
            "queue": (run[0] - parsed) / 1e6,
            "compute": (run[1] - run[0]) / 1e6,
            "encode": (end - run[1]) / 1e6,
        }
    return phases
