"""Simulation: the real batcher, and around it a clock, an event loop, workers and arrivals that are not.

What the Executor does is played by its own rules: requests that are there are queued
first, then batches are closed while a worker is free or the run is short enough for the
loop; the loop thread is one server that takes up requests, runs short batches and hands
answers out; each worker is another. How long a run takes is drawn from the measured runs of its
size. Left out: the network and its codecs, other models, and what the loop and the
workers take from each other; what workers take from each other is one measured factor.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np

from ...batching.batcher import Batcher, Entry, Limits
from ...batching.entry import Batch
from ...batching.executor import inline_ns
from ...bench.judgement.quantiles import NEVER_NS, Ints, nearest_rank
from ...bench.load.schedule import Times
from ...errors import Overloaded
from ...loader.servable import Batching, Servable, Stats
from ...tensors import Array, Signature

# After so many requests, answers get their turn: as the generator has it.
BURST = 64
_DRAWN = 4096

Draw = Callable[[int], Sequence[float]]


def nothing(rows: int) -> Sequence[float]:
    """Run times of a model that takes none."""
    return (0.0,)


@dataclass(frozen=True, slots=True)
class Costs:
    """What a request costs beside the model's runs, in nanoseconds.

    `request`: the loop's time for each, one half before the run and one after. The others are
    rising values to draw from: a run's way to a worker and back, how late a sleeping loop
    notices a request, and how late a timer goes off. `share` is the part of a CPU that this process
    got while it had nothing but work to do.
    """

    request: float = 0.0
    handover: Sequence[float] = (0.0,)
    wake: Sequence[float] = (0.0,)
    timer: Sequence[float] = (0.0,)
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class System:
    """What is simulated: a model's signature, its run times, and the machine around it.

    `requests` are inputs and rows, taken in turn. `runs` and `wide` give the run times of so many
    rows; a `wide` run has all CPUs, and None says that the model has none. `inline` tells
    whether short runs may be made on the loop. A run takes `crowding` times as long where all
    workers run, and in between where some do. `in_thread`: the Executor learns what a run's thread has
    worked, and not how long it was kept waiting; for that the median stands.
    """

    signature: Signature
    requests: Sequence[tuple[Mapping[str, Array], int]]
    runs: Draw
    workers: int = 1
    wide: Draw | None = None
    inline: bool = True
    crowding: float = 1.0
    in_thread: bool = False
    costs: Costs = field(default_factory=Costs)


class Subject:
    """Stands for a servable: all that a batcher asks of one."""

    def __init__(self, system: System, batching: Batching) -> None:
        self.signatures = {"": system.signature}
        self.batching = batching
        self.predictable = system.inline
        self.stats = Stats()
        self.in_flight = 0


class GiveUp(NamedTuple):
    """When a simulation need not go on: more than `late` requests took longer than `limit_ns`."""

    limit_ns: int = NEVER_NS
    late: float = math.inf


@dataclass(frozen=True, slots=True)
class Outcome:
    """Latencies in nanoseconds by request (NEVER_NS: refused), and the sizes of the batches, in order.

    `members` has the requests of each batch. `hopeless`: it was given up early.
    """

    latencies: Ints
    batch_rows: tuple[int, ...]
    members: tuple[tuple[int, ...], ...]
    refused: int = 0
    hopeless: bool = False

    def quantile(self, p: float) -> int:
        """A nearest-rank quantile of the latencies."""
        return nearest_rank(np.sort(self.latencies), p)

    @property
    def mean_rows(self) -> float:
        """Rows of a batch on average."""
        return sum(self.batch_rows) / max(1, len(self.batch_rows))


def simulate(
    system: System, batching: Batching, due: Times, seed: int = 1, give_up: GiveUp | None = None
) -> Outcome:
    """Send requests at their due times (rising, nanoseconds) and see when they are answered."""
    return _Simulation(system, batching, due, seed, give_up or GiveUp()).run()


class _Simulation:
    def __init__(self, system: System, batching: Batching, due: Times, seed: int, stop: GiveUp) -> None:
        limits = Limits(
            batching.max_batch_rows,
            batching.delay_ns,
            allowed=batching.allowed,
            preferred=batching.preferred,
        )
        self.batcher = Batcher(limits)
        self.system = system
        self.subject = cast(Servable, Subject(system, batching))
        self.due = due.tolist()
        self.latencies = np.full(len(self.due), NEVER_NS, np.int64)
        self.rows: list[int] = []
        self.members: list[tuple[int, ...]] = []
        self.refused = 0
        self.free = system.workers
        self.running: list[tuple[float, int, Batch, float]] = []
        self.timer: float | None = None
        self.index: dict[int, int] = {}
        self.half = system.costs.request / 2
        self.limit_ns, self.late_left = stop
        draw = random.Random(seed)
        self.drawn = [draw.random() for _ in range(_DRAWN)]
        self.at = 0

    def run(self) -> Outcome:
        """Go from event to event until everything is answered."""
        now, taken, total = -1.0, 0, len(self.due)  # the first request wakes the loop up
        while (taken < total or self.running or self.timer is not None) and self.late_left >= 0:
            now = self._sleep(now, self.due[taken] if taken < total else None)
            while self.running and self.running[0][0] <= now:
                now = self._worker_done(now)
            first, last, began = taken, min(total, taken + BURST), now + self.half
            while taken < last and self.due[taken] <= now:
                now += self.half
                self._add(taken, now)
                taken += 1
            if self.timer is not None and self.timer <= now:
                self.timer = None
                now = self._pump(now)
            elif taken > first:
                now = self._pump(now, now - began)
        hopeless = self.late_left < 0
        latencies = self.latencies[:taken] if hopeless else self.latencies
        return Outcome(latencies, tuple(self.rows), tuple(self.members), self.refused, hopeless)

    def _pick(self, values: Sequence[float]) -> float:
        """One of the values, drawn."""
        self.at = (self.at + 1) % _DRAWN
        return values[int(self.drawn[self.at] * len(values))]

    def _sleep(self, now: float, due: float | None) -> float:
        """The time of the next event; one that comes while the loop sleeps is noticed a little later."""
        times = [t for t in (due, self.running[0][0] if self.running else None, self.timer) if t is not None]
        first = min(times)
        if first <= now:
            return now
        costs = self.system.costs
        if first == due:
            return first + self._pick(costs.wake)
        return first if first != self.timer else first + self._pick(costs.timer)

    def _add(self, number: int, now: float) -> None:
        inputs, rows = self.system.requests[number % len(self.system.requests)]
        alone = self.system.signature.batch_axis is None
        entry = Entry(self.subject, "", inputs, rows, alone, _no_reply, int(now))
        try:
            self.batcher.add(entry)
        except Overloaded:
            self.refused += 1
        else:
            self.index[id(entry)] = number

    def _pump(self, now: float, tick_ns: float = 0.0) -> float:
        """Close batches while an executor is free for them, in a tick that took so long until here.

        Returns the time when that is done.
        """
        batcher, most, start = self.batcher, inline_ns(tick_ns), int(now)
        left = most
        room = batcher.inline_room(left)
        while batch := batcher.next_batch(start, free=self.free > 0, room_ns=room, rest_ns=left):
            if batch.inline:
                left -= int(batch.charged_ns)
                room = batcher.inline_room(left)
                run = self._pick(self.system.runs(batch.rows + batch.padding))
                now = self._finish(batch, now + run, run)
            else:
                self._send(batch, now)
        if batcher:
            self._come_back(now, spent=left < most)
        return now

    def _send(self, batch: Batch, now: float) -> None:
        """Hand a batch to a worker."""
        system = self.system
        alone = len(batch.entries) == 1 and not self.running and not self.batcher
        draw = system.wide if alone and system.wide is not None else system.runs
        others = len(self.running) / max(1, system.workers - 1)
        crowd = 1 + (system.crowding - 1) * others
        run = self._pick(draw(batch.rows + batch.padding)) * crowd
        self.free -= 1
        end = now + self._pick(system.costs.handover) + run
        heapq.heappush(self.running, (end, batch.number, batch, run))

    def _come_back(self, now: float, *, spent: bool) -> None:
        due = self.batcher.due_at_ns()
        if due is not None and (self.free > 0 or spent) and (self.timer is None or due < self.timer):
            self.timer = max(now, float(due))

    def _worker_done(self, now: float) -> float:
        _, _, batch, run = heapq.heappop(self.running)
        self.free += 1
        now = self._finish(batch, now, run)
        return self._pump(now) if self.batcher else now

    def _finish(self, batch: Batch, now: float, run: float) -> float:
        if self.system.in_thread:
            times = self.system.runs(batch.rows + batch.padding)
            run = min(run, times[len(times) // 2])
        self.batcher.ran(batch, int(run))
        members = []
        for entry in batch.entries:
            now += self.half
            number = self.index.pop(id(entry))
            latency = now - self.due[number]
            self.latencies[number] = latency
            self.late_left -= latency > self.limit_ns
            members.append(number)
        self.rows.append(batch.rows)
        self.members.append(tuple(members))
        return now


def _no_reply(result: Any) -> None:
    """Nobody waits for a simulated answer."""
