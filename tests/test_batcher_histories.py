"""Random histories of the batcher, held against a plain list of what waits.

The ordinary run takes some ten thousand steps; MSERVE_BATCHER_STEPS=5000000 takes so many.
"""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import pytest
from test_batcher import Model

from mserve.batching.batcher import (
    DEADLINE_SLACK,
    DEADLINE_SLACK_NS,
    Batch,
    Batcher,
    Entry,
    Limits,
)
from mserve.errors import MserveError, Overloaded
from mserve.loader.servable import Batching

STEPS = int(os.environ.get("MSERVE_BATCHER_STEPS", "40000"))
HISTORY = 400
QUEUE_ROWS, QUEUE_BYTES = 60, 2000
MS = 1_000_000
OUTPUT = np.arange(1000, dtype=np.float32)


class Asked:
    """A request as its client sees it: what it was answered."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.answers: list[Any] = []
        entry.reply = self.answers.append


class History:
    """One batcher, the entries that wait in it as a plain list, and time."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now = 1
        allowed = tuple(sorted(rng.sample(range(1, 9), rng.randint(0, 3))))
        most = allowed[-1] if allowed else rng.randint(1, 8)
        preferred = tuple(sorted(rng.sample(range(1, most + 1), rng.randint(0, min(2, most)))))
        delay = rng.choice([0, 0, 3 * MS, 50 * MS])
        limits = Limits(most, delay, QUEUE_ROWS, QUEUE_BYTES, allowed=allowed, preferred=preferred)
        self.batcher = Batcher(limits)
        override = Batching(rng.randint(1, 5), rng.choice([0, 10 * MS]))
        self.models = [Model(), Model(), Model(override)]
        self.asked: list[Asked] = []
        self.waiting: list[Entry] = []
        self.running: list[Batch] = []

    def batching(self, entry: Entry) -> Batching:
        return entry.servable.batching or self.batcher.limits

    def step(self) -> None:
        self.rng.choices(
            (self.add, self.take, self.end, self.leave, self.sweep, self.wait), (40, 30, 15, 3, 2, 10)
        )[0]()
        assert len(self.batcher) == len(self.waiting)
        assert bool(self.batcher) == bool(self.waiting)
        assert self.batcher.rows == sum(e.rows for e in self.waiting)
        for model in self.models:
            mine = [e for e in self.waiting if e.servable is model]  # type: ignore[comparison-overlap]
            backlog = self.batcher.backlog(model)  # type: ignore[arg-type]
            assert (backlog.rows, backlog.requests) == (sum(e.rows for e in mine), len(mine))
            assert backlog.nbytes == sum(e.nbytes for e in mine)

    def add(self) -> None:
        rng = self.rng
        model: Any = rng.choice(self.models)
        rows = rng.choice([0, 1, 1, 1, 2, 3, 5, 17])
        alone = rows == 0 or rng.random() < 0.1
        deadline = self.now + rng.choice([1, 5 * MS, 80 * MS]) if rng.random() < 0.4 else 0
        x = np.empty((rows, rng.choice([1, 1, 2])), np.float32)
        new = Entry(model, "s", {"x": x}, rows, alone, lambda result: None, self.now, deadline)
        mine = [e for e in self.waiting if e.servable is model]
        full = max(sum(e.rows for e in mine), len(mine)) >= QUEUE_ROWS
        full |= sum(e.nbytes for e in mine) >= QUEUE_BYTES
        try:
            self.batcher.add(new)
        except Overloaded:
            assert full
            return
        assert not (mine and full)
        known = {id(e) for e in self.waiting}
        queued = [e for e in self.batcher.waiting() if id(e) not in known]
        assert sum(e.rows for e in queued) == rows
        most = self.batching(new).max_batch_rows
        assert queued == [new] if alone or rows <= most else all(e.rows <= most for e in queued)
        model.in_flight += 1
        self.asked.append(Asked(new))
        for part in queued:
            part.reply = new.reply
        self.waiting += queued

    def take(self) -> None:
        free, room = self.rng.random() < 0.7, self.rng.choice([0, MS, 100 * MS])
        batch = self.batcher.next_batch(self.now, free=free, room_ns=room)
        gone, self.batcher.gone = self.batcher.gone, []
        for entry in gone:
            assert entry.cancelled or 0 < entry.deadline_ns <= self.now
            self.waiting.remove(entry)
            entry.answer(MserveError("gone"))
        if batch is None:
            if free and not gone:
                assert not [e for e in self.heads() if self.should_close(e)]
            return
        assert free or batch.inline
        self.check(batch, len(gone))
        for entry in batch.entries:
            self.waiting.remove(entry)
        self.running.append(batch)

    def heads(self) -> list[Entry]:
        return list({_kind(e): e for e in reversed(self.waiting)}.values())

    def should_close(self, head: Entry) -> bool:
        batching, same = self.batching(head), [e for e in self.waiting if _kind(e) == _kind(head)]
        rows = sum(e.rows for e in same)
        if head.alone or batching.delay_ns == 0 or rows >= batching.max_batch_rows:
            return True
        preferred = bool(batching.preferred) and rows >= batching.preferred[0]
        return preferred or self.now - head.arrived_ns >= batching.delay_ns

    def check(self, batch: Batch, gone: int) -> None:
        """It is pure, in order, within its size, filled up as it should be, and its reason is true."""
        entries, head = batch.entries, batch.entries[0]
        batching = self.batching(head)
        same = [e for e in self.waiting if _kind(e) == _kind(head)]
        assert entries == [e for e in same if e in entries]
        assert not any(e.cancelled or 0 < e.deadline_ns <= self.now for e in entries)
        assert batch.rows == sum(e.rows for e in entries)
        if not gone:
            assert entries == same[: len(entries)]
            assert self.should_close(head) or batch.reason == "deadline"
        if head.alone:
            assert (len(entries), batch.padding, batch.reason) == (1, 0, "alone")
            return
        assert batch.rows <= batching.max_batch_rows
        sizes = [n for n in batching.allowed if n >= batch.rows]
        assert batch.rows + batch.padding == (sizes[0] if batching.allowed else batch.rows)
        rows = sum(e.rows for e in same)
        waited = max(self.now - e.arrived_ns for e in same)
        assert batch.reason in ("full", "split", "no-delay", "preferred", "due", "deadline")
        assert (batch.reason in ("full", "split")) <= (gone > 0 or rows >= batching.max_batch_rows)
        assert (batch.reason == "no-delay") <= (batching.delay_ns == 0)
        assert (batch.reason == "due") <= (gone > 0 or waited >= batching.delay_ns > 0)
        if batch.reason == "deadline" and not gone:
            stats = head.servable.stats
            bits = (batch.rows + batch.padding).bit_length()
            run = batch.times.runs[bits] or max(batch.times.runs[:bits])
            run = run or (stats.run_ns / stats.batches if stats.batches else 0)
            first = min(e.deadline_ns for e in same if e.deadline_ns)
            assert first - self.now <= run * DEADLINE_SLACK + DEADLINE_SLACK_NS + 1

    def end(self) -> None:
        """A run ends, well or not: each of its entries is answered, or the halves run again."""
        if not self.running:
            return
        batch = self.running.pop(self.rng.randrange(len(self.running)))
        run_ns = self.rng.choice([1000, MS, 20 * MS])
        stats = batch.entries[0].servable.stats
        stats.batches, stats.run_ns = stats.batches + 1, stats.run_ns + run_ns
        failed = self.rng.random() < 0.2
        self.batcher.ran(batch, run_ns, failed=failed)
        if failed and len(batch.entries) > 1:
            halves = self.batcher.halves(batch)
            assert [e for half in halves for e in half.entries] == batch.entries
            assert sum(half.rows for half in halves) == batch.rows
            self.running += halves
            return
        for entry in batch.entries:
            entry.answer(MserveError("failed") if failed else [OUTPUT[: entry.rows]])

    def leave(self) -> None:
        if self.asked:
            self.rng.choice(self.asked).entry.cancelled = True

    def sweep(self) -> None:
        lost = [e for e in self.waiting if e.cancelled or 0 < e.deadline_ns <= self.now]
        removed = self.batcher.remove(lambda e: e.cancelled or 0 < e.deadline_ns <= self.now)
        assert sorted(map(id, removed)) == sorted(map(id, lost))
        for entry in removed:
            self.waiting.remove(entry)
            entry.answer(MserveError("late"))

    def wait(self) -> None:
        due = self.batcher.due_at_ns()
        assert (due is None) == (not self.waiting)
        jump = self.rng.choice([1, MS, 30 * MS])
        self.now = due if due is not None and due > self.now and self.rng.random() < 0.5 else self.now + jump
        if due == self.now and not any(e.cancelled for e in self.waiting):
            assert self.batcher.next_batch(self.now - 1, free=False) is None

    def finish(self) -> None:
        """Everything that waits is run when the time has passed, and everybody has one answer."""
        for _ in range(10_000):
            if not self.waiting and not self.running:
                break
            self.now += 60 * MS
            self.take()
            self.end()
        assert not self.waiting
        assert not self.batcher
        for asked in self.asked:
            assert len(asked.answers) <= 1
            assert asked.answers or asked.entry.cancelled
            for answer in asked.answers:
                assert isinstance(answer, MserveError) or len(answer[0]) == asked.entry.rows
        for model in self.models:
            assert model.in_flight == 0


def _kind(e: Entry) -> tuple[object, ...]:
    shape = e.inputs["x"].shape
    return (e.servable, e.alone, shape if e.alone else shape[1:])


@pytest.mark.timeout(0 if STEPS > 1_000_000 else 120)
def test_every_history_keeps_the_promises() -> None:
    """Nothing is lost or doubled, batches are pure and in order, and close when and only when they may."""
    for seed in range(max(1, STEPS // HISTORY)):
        history = History(random.Random(seed))
        try:
            for _ in range(HISTORY):
                history.step()
            history.finish()
        except AssertionError as error:
            error.add_note(f"history {seed}")
            raise


def test_shares_are_even_whatever_runs_cost() -> None:
    """Of models that always have something to do, none is ahead by more than a run on each worker and two.

    Runs of one model and size may differ, so that what a run is charged at its start is wrong.
    """
    for seed in range(max(1, STEPS // 6000)):
        rng = random.Random(seed)
        batcher = Batcher(Limits(rng.choice([1, 4]), 0, 10**6))
        models = [Model() for _ in range(rng.randint(2, 5))]
        costs = {id(m): rng.choice([(MS // 10, MS), (MS, MS), (MS, 30 * MS)]) for m in models}
        used = dict.fromkeys(costs, 0)
        workers = rng.randint(1, 3)
        running: list[Batch] = []
        for _ in range(1000):
            for model in models:
                while batcher.backlog(model).requests < 5:  # type: ignore[arg-type]
                    batcher.add(_one(model))
            while len(running) < workers:
                batch = batcher.next_batch(0)
                assert batch is not None
                running.append(batch)
            batch = running.pop(rng.randrange(len(running)))
            run_ns = rng.choice(costs[id(batch.entries[0].servable)])
            used[id(batch.entries[0].servable)] += run_ns
            batcher.ran(batch, run_ns)
        longest = max(max(pair) for pair in costs.values())
        assert max(used.values()) - min(used.values()) <= (workers + 2) * longest, (seed, used)


def _one(model: Model) -> Entry:
    servable: Any = model
    return Entry(servable, "s", {"x": np.empty((1, 4), np.float32)}, 1, False, lambda result: None, 0)
