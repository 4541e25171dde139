"""The batcher by itself: histories of events and times, no clock, no thread."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mserve.batching.batcher import Batcher, Entry, Limits
from mserve.errors import Overloaded
from mserve.loader.servable import Batching


class Model:
    """Stands for a servable, which the batcher only tells apart."""

    batching: Batching | None = None


MODELS = (Model(), Model())
ALWAYS = lambda head, rows: True  # noqa: E731


def entry(model: int = 0, rows: int = 1, width: int = 4, *, at: int = 0, alone: bool = False) -> Entry:
    servable: Any = MODELS[model]
    inputs = {"x": np.empty((rows, width), np.float32)}
    return Entry(servable, "s", inputs, rows, alone, lambda result: None, at)


CASES = [
    ("without delay, one request is a batch", Limits(8, 0, 99), [entry()], 0, [[0]]),
    ("requests of one shape share a batch", Limits(8, 0, 99), [entry(), entry(rows=2)], 0, [[0, 1]]),
    ("a batch holds at most max_batch_rows", Limits(4, 0, 99), [entry(rows=3), entry(rows=2)], 0, [[0], [1]]),
    (
        "a request larger than a batch runs by itself",
        Limits(4, 0, 99),
        [entry(rows=9), entry()],
        0,
        [[0], [1]],
    ),
    ("other shapes do not mix", Limits(8, 0, 99), [entry(), entry(width=5), entry()], 0, [[0, 2], [1]]),
    ("other models do not mix", Limits(8, 0, 99), [entry(0), entry(1), entry(0)], 0, [[0, 2], [1]]),
    (
        "requests that must be alone are",
        Limits(8, 0, 99),
        [entry(alone=True), entry(alone=True)],
        0,
        [[0], [1]],
    ),
    ("with a delay, nothing closes too early", Limits(8, 100, 99), [entry(at=0)], 99, []),
    (
        "with a delay, the head's age closes the batch",
        Limits(8, 100, 99),
        [entry(at=0), entry(at=90)],
        100,
        [[0, 1]],
    ),
    ("a full batch does not wait", Limits(2, 100, 99), [entry(at=0), entry(at=0)], 1, [[0, 1]]),
    ("alone does not wait for company", Limits(8, 100, 99), [entry(at=0, alone=True)], 1, [[0]]),
]


@pytest.mark.parametrize(("what", "limits", "entries", "now", "expected"), CASES, ids=[c[0] for c in CASES])
def test_which_batch_closes(
    what: str, limits: Limits, entries: list[Entry], now: int, expected: list[list[int]]
) -> None:
    batcher = Batcher(limits)
    for e in entries:
        batcher.add(e)
    closed = []
    while (batch := batcher.next_batch(now, ALWAYS)) is not None:
        closed.append([entries.index(e) for e in batch.entries])
    assert closed == expected, what


def test_queues_take_turns() -> None:
    """A model with a long queue does not keep another one waiting."""
    batcher = Batcher(Limits(1, 0, 99))
    for _ in range(3):
        batcher.add(entry(0))
    batcher.add(entry(1))
    order = []
    while (batch := batcher.next_batch(0, ALWAYS)) is not None:
        order.append(MODELS.index(batch.entries[0].servable))  # type: ignore[arg-type]
    assert order == [0, 1, 0, 0]


def test_a_batch_waits_for_a_free_executor_and_another_queue_may_pass() -> None:
    batcher = Batcher(Limits(8, 0, 99))
    batcher.add(entry(0, rows=5))
    batcher.add(entry(1, rows=1))
    small = batcher.next_batch(0, lambda head, rows: rows < 3)
    assert small is not None
    assert small.entries[0].servable is MODELS[1]
    assert batcher.next_batch(0, lambda head, rows: rows < 3) is None
    assert len(batcher) == 1


def test_a_full_queue_refuses_and_says_how_full() -> None:
    batcher = Batcher(Limits(8, 0, max_queue_rows=4))
    batcher.add(entry(rows=3))
    batcher.add(entry(rows=2))
    with pytest.raises(Overloaded, match=r"fewer than 4 rows waiting.*5 rows in 2 requests") as caught:
        batcher.add(entry(rows=1))
    assert caught.value.retry_after_s == 1
    assert batcher.rows == 5


def test_a_servable_that_is_asked_too_much_leaves_room_for_the_others() -> None:
    batcher = Batcher(Limits(8, 0, max_queue_rows=4))
    for _ in range(4):
        batcher.add(entry(model=0))
    with pytest.raises(Overloaded):
        batcher.add(entry(model=0))
    batcher.add(entry(model=1))
    assert batcher.next_batch(0, ALWAYS) is not None
    batcher.add(entry(model=0))


def test_requests_without_rows_fill_the_queue_too() -> None:
    batcher = Batcher(Limits(8, 0, max_queue_rows=4))
    for _ in range(4):
        batcher.add(entry(rows=0, alone=True))
    with pytest.raises(Overloaded):
        batcher.add(entry(rows=0, alone=True))


def test_a_request_larger_than_the_queue_is_taken_when_nothing_waits() -> None:
    batcher = Batcher(Limits(8, 0, max_queue_rows=4))
    batcher.add(entry(rows=50))
    assert batcher.next_batch(0, ALWAYS) is not None


STEP = st.one_of(
    st.tuples(st.just("add"), st.integers(0, 1), st.integers(1, 6), st.integers(1, 2), st.booleans()),
    st.tuples(st.just("take"), st.integers(0, 12)),
    st.tuples(st.just("drop"), st.integers(0, 9)),
    st.tuples(st.just("wait"), st.integers(0, 200)),
)


@given(st.lists(STEP, max_size=60), st.integers(1, 8), st.sampled_from([0, 50, 1000]))
@settings(max_examples=400, deadline=None)
def test_every_history_keeps_the_promises(steps: list[tuple[Any, ...]], most: int, delay: int) -> None:
    """Nothing is lost or doubled, order holds within a queue, batches are pure and within their size."""
    batcher = Batcher(Limits(most, delay, 40))
    waiting: list[Entry] = []
    now = 0
    for step in steps:
        if step[0] == "add":
            _, model, rows, width, alone = step
            new = entry(model, rows, width, at=now, alone=alone)
            try:
                batcher.add(new)
                waiting.append(new)
            except Overloaded:
                same = [e for e in waiting if e.servable is new.servable]
                assert max(sum(e.rows for e in same), len(same)) >= 40
        elif step[0] == "take":
            free_rows = step[1]
            batch = batcher.next_batch(now, lambda head, rows, most=free_rows: rows <= most)
            if batch is None:
                continue
            entries = batch.entries
            head = entries[0]
            same = [e for e in waiting if _kind(e) == _kind(head)]
            assert entries == same[: len(entries)]
            assert batch.rows == sum(e.rows for e in entries)
            assert len(entries) == 1 or batch.rows <= most
            assert len(entries) == 1 or not head.alone
            full = sum(e.rows for e in same) >= most
            assert delay == 0 or full or head.alone or now - head.arrived_ns >= delay
            waiting = [e for e in waiting if e not in entries]
        elif step[0] == "drop":
            victim = waiting[step[1]] if step[1] < len(waiting) else None
            removed = batcher.remove(lambda e, v=victim: e is v)
            assert removed == ([victim] if victim else [])
            waiting = [e for e in waiting if e is not victim]
        else:
            now += step[1]
        assert batcher.rows == sum(e.rows for e in waiting)
        assert len(batcher) == len(waiting)
        assert sorted(map(id, batcher.waiting())) == sorted(map(id, waiting))
        oldest = min((e.arrived_ns for e in waiting), default=None)
        assert batcher.due_at_ns() == (None if oldest is None else oldest + delay)
    now += 10_000
    while batcher.next_batch(now, ALWAYS):
        pass
    assert len(batcher) == 0


def _kind(e: Entry) -> tuple[object, ...]:
    shape = e.inputs["x"].shape
    return (e.servable, e.alone, shape if e.alone else shape[1:])
