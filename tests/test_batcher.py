"""The batcher by itself: histories of events and times, no clock, no thread."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mserve.batching.batcher import INLINE_RUN_NS, WHOLE_RUN_NS, Batch, Batcher, Entry, Limits
from mserve.batching.times import Times
from mserve.errors import Overloaded
from mserve.loader.servable import Batching, Stats
from mserve.tensors import Signature, TensorSpec

SIGNATURE = Signature(
    "predict",
    {"x": TensorSpec("x", "float32", ("batch", "width"))},
    {"y": TensorSpec("y", "float32", ("batch",))},
    0,
)
MS = 1_000_000


class Model:
    """Stands for a servable, of which the batcher only asks this."""

    in_flight = 0

    def __init__(self, batching: Batching | None = None) -> None:
        self.batching = batching
        self.signatures = {"s": SIGNATURE}
        self.predictable = True
        self.stats = Stats()


MODELS = (Model(), Model())


def entry(
    model: int | Model = 0,
    rows: int = 1,
    width: int = 4,
    *,
    at: int = 0,
    alone: bool = False,
    deadline: int = 0,
) -> Entry:
    servable: Any = MODELS[model] if isinstance(model, int) else model
    inputs = {"x": np.empty((rows, width), np.float32)}
    return Entry(servable, "s", inputs, rows, alone, lambda result: None, at, deadline)


def closed(batcher: Batcher, now: int = 0) -> list[Batch]:
    """All batches that close now."""
    found = []
    while (batch := batcher.next_batch(now)) is not None:
        found.append(batch)
    return found


CASES = [
    ("without delay, one request is a batch", Limits(8, 0, 99), [entry()], 0, [[0]]),
    ("requests of one shape share a batch", Limits(8, 0, 99), [entry(), entry(rows=2)], 0, [[0, 1]]),
    ("a batch holds at most max_batch_rows", Limits(4, 0, 99), [entry(rows=3), entry(rows=2)], 0, [[0], [1]]),
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
    assert [[entries.index(e) for e in batch.entries] for batch in closed(batcher, now)] == expected, what


REASONS = [
    ("no delay", Limits(8, 0), [entry(), entry()], 0, [("no-delay", 2, 0)]),
    ("full, then the rest", Limits(2, 0), [entry()] * 3, 0, [("full", 2, 0), ("no-delay", 1, 0)]),
    ("due", Limits(8, 5), [entry()], 5, [("due", 1, 0)]),
    ("alone", Limits(8, 5), [entry(alone=True)], 0, [("alone", 1, 0)]),
    (
        "filled up to the next allowed size",
        Limits(8, 0, allowed=(1, 4, 8)),
        [entry(rows=3)],
        0,
        [("no-delay", 3, 1)],
    ),
    (
        "an allowed size is not filled up",
        Limits(8, 0, allowed=(1, 4, 8)),
        [entry(rows=4)],
        0,
        [("no-delay", 4, 0)],
    ),
    ("nor is what runs alone", Limits(8, 0, allowed=(4, 8)), [entry(alone=True)], 0, [("alone", 1, 0)]),
    (
        "a preferred size does not wait",
        Limits(8, 5, preferred=(2, 4)),
        [entry()] * 2,
        0,
        [("preferred", 2, 0)],
    ),
    (
        "the largest preferred size that is reached",
        Limits(8, 5, preferred=(2, 4)),
        [entry()] * 7,
        0,
        [("preferred", 4, 0), ("preferred", 2, 0)],
    ),
    ("requests are not torn for it", Limits(8, 5, preferred=(2,)), [entry(rows=3)], 0, [("preferred", 3, 0)]),
    ("without delay nothing waits for it", Limits(8, 0, preferred=(4,)), [entry()], 0, [("no-delay", 1, 0)]),
    (
        "a large request is split, and others join its last part",
        Limits(4, 0),
        [entry(rows=9), entry(rows=2)],
        0,
        [("split", 4, 0), ("split", 4, 0), ("no-delay", 3, 0)],
    ),
    (
        "parts are filled up, too",
        Limits(4, 0, allowed=(2, 4)),
        [entry(rows=5)],
        0,
        [("split", 4, 0), ("no-delay", 1, 1)],
    ),
]


@pytest.mark.parametrize(
    ("what", "limits", "entries", "now", "expected"), REASONS, ids=[c[0] for c in REASONS]
)
def test_why_a_batch_closes(
    what: str, limits: Limits, entries: list[Entry], now: int, expected: list[tuple[str, int, int]]
) -> None:
    batcher = Batcher(limits)
    for e in entries:
        batcher.add(replace(e))
    found = closed(batcher, now)
    assert [(b.reason, b.rows, b.padding) for b in found] == expected, what
    assert [b.number for b in found] == list(range(1, len(found) + 1))


def test_a_batch_closes_early_for_a_deadline() -> None:
    """A run takes 10 ms, as was learned; with a quarter and five milliseconds to spare it starts in time."""
    model = Model()
    batcher = Batcher(Limits(8, 100 * MS))
    batcher.add(entry(model))
    batch = batcher.next_batch(100 * MS)
    assert batch is not None
    batcher.ran(batch, 10 * MS)
    start = 200 * MS
    batcher.add(entry(model, at=start))
    assert batcher.due_at_ns() == start + 100 * MS
    batcher.add(entry(model, at=start + MS, deadline=start + 50 * MS))
    # Two rows were not seen yet: they take at least as long as one.
    due = start + 50 * MS - int(12.5 * MS) - 5 * MS
    assert batcher.due_at_ns() == due
    assert batcher.next_batch(due - 1) is None
    early = batcher.next_batch(due)
    assert early is not None
    assert (early.reason, early.rows) == ("deadline", 2)


def test_who_cannot_be_answered_in_time_or_has_left_is_not_in_the_batch() -> None:
    batcher = Batcher(Limits(8, 0, allowed=(2, 8)))
    late, gone, good = entry(deadline=5), entry(), entry(deadline=6)
    gone.cancelled = True
    for e in (late, gone, good):
        batcher.add(e)
    batch = batcher.next_batch(5)
    assert batch is not None
    assert (batch.entries, batch.rows, batch.padding) == ([good], 1, 1)
    assert batcher.gone == [late, gone]
    assert (len(batcher), batcher.rows) == (0, 0)


@pytest.mark.parametrize(
    ("why", "times", "room", "predictable", "inline"),
    [
        ("a short run that was seen before", 100, 100, True, True),
        ("a worker's run, which takes longer for its cold caches", 200, 100, True, True),
        ("one that is too long", 201, 100, True, False),
        ("one of which nothing is known", 0, 100, True, False),
        ("a model whose time depends on more than sizes", 100, 100, False, False),
    ],
)
def test_what_runs_on_the_loop(why: str, times: int, room: int, predictable: bool, inline: bool) -> None:
    model = Model()
    model.predictable = predictable
    batcher = Batcher(Limits(8, 0))
    batcher.add(entry(model))
    first = batcher.next_batch(0)
    assert first is not None
    assert not first.inline
    if times:
        batcher.ran(first, times)
    batcher.add(entry(model))
    batch = batcher.next_batch(0, free=False, room_ns=room)
    assert (batch is not None and batch.inline) == inline, why


def test_what_was_slow_on_the_loop_is_tried_there_again() -> None:
    times = Times()
    times.learn(1, 900, inline=True)
    assert times.inline[1] == 900
    for _ in range(50):
        times.learn(1, 100, inline=False)
    assert 50 < times.inline[1] < 150, "a worker's runs make it worth a try"
    times.learn(1, 1000, inline=False)
    assert times.inline[1] < 150, "and never tell that it is not"


def test_one_run_that_the_system_interrupted_is_not_taken_for_the_model() -> None:
    times = Times()
    for run_ns in [100] * 10 + [50_000]:
        times.learn(16, run_ns, inline=True)
    assert times.inline[5] <= 125
    assert times.runs[5] == 50_000, "who has a deadline wants the worst"
    for _ in range(20):
        times.learn(16, 1000, inline=True)
    assert times.inline[5] == 1000, "what is slower than it was is known soon"


def test_a_model_that_has_the_server_to_itself_may_hold_the_loop_for_longer() -> None:
    batcher, one, two = Batcher(Limits(64, 0)), Model(), Model()
    batcher.add(entry(one))
    assert batcher.inline_room(500_000) == 500_000
    batcher.add(entry(two))
    assert batcher.inline_room(500_000) == INLINE_RUN_NS
    assert batcher.inline_room(100_000) == 100_000
    batcher.remove(lambda _: True)
    del two
    assert batcher.inline_room(500_000) == 500_000, "the other one is gone"


def test_a_large_batch_of_a_short_model_is_run_on_the_loop_in_pieces() -> None:
    model = Model()
    batcher = Batcher(Limits(64, 0))
    for rows, run_ns in ((15, 100), (60, 400)):
        for _ in range(rows):
            batcher.add(entry(model))
        first = batcher.next_batch(0)
        assert first is not None
        first.inline = True
        batcher.ran(first, run_ns)
    for _ in range(60):
        batcher.add(entry(model))
    assert batcher.next_batch(0, free=False, room_ns=150, rest_ns=399) is None, "all of it takes too long"
    sizes = []
    while batch := batcher.next_batch(0, free=False, room_ns=150, rest_ns=500):
        assert batch.inline
        sizes.append(batch.rows)
    assert sizes == [15, 15, 15, 15]


def test_estimates_rise_at_once_and_fall_slowly() -> None:
    model = Model()
    batcher = Batcher(Limits(8, 0))
    batcher.add(entry(model))
    batch = batcher.next_batch(0)
    assert batch is not None
    seen = []
    for run in (100, 300, 100):
        batcher.ran(batch, run)
        seen.append(batch.times.runs[1])
    batcher.ran(batch, 9999, failed=True)
    assert [*seen, batch.times.runs[1]] == pytest.approx([100, 300, 290, 290])


def test_a_slow_model_gets_its_share_of_the_time_and_not_of_the_turns() -> None:
    """Both always have something to do, on one worker: 10 ms a run against 1 ms."""
    slow, fast = Model(), Model()
    cost = {id(slow): 10 * MS, id(fast): MS}
    batcher = Batcher(Limits(1, 0, 1000))
    used = dict.fromkeys(cost, 0)
    for model in (slow, fast):
        for _ in range(500):
            batcher.add(entry(model))
    for _ in range(440):
        batch = batcher.next_batch(0)
        assert batch is not None
        key = id(batch.entries[0].servable)
        batcher.ran(batch, cost[key])
        used[key] += cost[key]
    assert abs(used[id(slow)] - used[id(fast)]) <= 20 * MS


def test_who_was_idle_has_saved_nothing_up() -> None:
    busy, late = Model(), Model()
    batcher = Batcher(Limits(1, 0, 1000))
    for _ in range(100):
        batcher.add(entry(busy))
    for _ in range(50):
        batch = batcher.next_batch(0)
        assert batch is not None
        batcher.ran(batch, MS)
    for _ in range(100):
        batcher.add(entry(late))
    order = []
    for _ in range(20):
        batch = batcher.next_batch(0)
        assert batch is not None
        batcher.ran(batch, MS)
        order.append(batch.entries[0].servable is late)  # type: ignore[comparison-overlap]
    assert sum(order) == pytest.approx(10, abs=1)


def test_what_is_known_of_a_servable_ends_with_it() -> None:
    batcher = Batcher(Limits(8, 0))
    batcher.add(entry(Model()))
    assert batcher.next_batch(0) is not None
    gc.collect()
    assert batcher._flows == {}


def test_shapes_that_only_clients_know_do_not_pile_up() -> None:
    model = Model()
    batcher = Batcher(Limits(8, 0))
    for width in range(1, 2000):
        batcher.add(entry(model, width=width))
        assert batcher.next_batch(0) is not None
    flow = next(iter(batcher._flows.values()))
    assert len(flow.queues) <= 64


def test_a_queue_is_bounded_in_bytes() -> None:
    batcher = Batcher(Limits(8, 0, max_queue_rows=99, max_queue_bytes=100))
    batcher.add(entry(width=20))
    batcher.add(entry(width=20))
    assert batcher.backlog(MODELS[0]).nbytes == 160  # type: ignore[arg-type]
    with pytest.raises(Overloaded, match=r"and 100 bytes waiting.*160 bytes"):
        batcher.add(entry(width=1))
    assert batcher.next_batch(0) is not None
    batcher.add(entry(width=1))


def test_text_counts_by_its_length() -> None:
    model = Model()
    model.signatures = {
        "s": Signature("predict", {"x": TensorSpec("x", "string", ("batch",))}, SIGNATURE.outputs, 0)
    }
    batcher = Batcher(Limits(5000, 0, max_queue_bytes=10**9))
    for count, low, high in ((1, 1000, 1100), (2000, 2_000_000, 2_200_000)):
        text = np.array(["x" * 1000] * count, dtype=object)
        new = Entry(model, "s", {"x": text}, count, False, lambda result: None, 0)  # type: ignore[arg-type]
        batcher.add(new)
        assert low <= new.nbytes <= high


def test_queues_take_turns() -> None:
    """A model with a long queue does not keep another one waiting."""
    batcher = Batcher(Limits(1, 0, 99))
    for _ in range(3):
        batcher.add(entry(0))
    batcher.add(entry(1))
    order = [MODELS.index(b.entries[0].servable) for b in closed(batcher)]  # type: ignore[arg-type]
    assert order == [0, 1, 0, 0]


def test_a_batch_waits_for_a_free_executor_and_a_short_one_may_pass() -> None:
    slow, fast = Model(), Model()
    batcher = Batcher(Limits(8, 0, 99))
    for model, run in ((slow, 5000), (fast, 50)):
        batcher.add(entry(model))
        batch = batcher.next_batch(0)
        assert batch is not None
        batcher.ran(batch, run)
        batcher.add(entry(model))
    short = batcher.next_batch(0, free=False, room_ns=100)
    assert short is not None
    assert short.entries[0].servable is fast  # type: ignore[comparison-overlap]
    assert batcher.next_batch(0, free=False, room_ns=100) is None
    assert len(batcher) == 1


def test_a_full_queue_refuses_and_says_how_full() -> None:
    batcher = Batcher(Limits(8, 0, max_queue_rows=4))
    batcher.add(entry(rows=3))
    batcher.add(entry(rows=2))
    with pytest.raises(Overloaded, match=r"fewer than 4 rows and.*5 rows in 2 requests") as caught:
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
    assert batcher.next_batch(0) is not None
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
    assert batcher.next_batch(0) is not None


WHOLE = [
    # row, the limits, what a full batch of four rows took, the rows of the batches of a request of ten
    ("nothing is known of its run yet", Limits(4, 0, soft=True), 0, [4, 4, 2]),
    ("its run will be short", Limits(4, 0, soft=True), WHOLE_RUN_NS * 4 // 10, [10]),
    ("its run would be too long", Limits(4, 0, soft=True), WHOLE_RUN_NS * 4 // 10 + 1000, [4, 4, 2]),
    ("somebody has set the limit", Limits(4, 0), 1000, [4, 4, 2]),
    ("the model only takes some sizes", Limits(4, 0, allowed=(1, 4), soft=True), 1000, [4, 4, 2]),
]


@pytest.mark.parametrize(("row", "limits", "run_ns", "expected"), WHOLE, ids=[c[0] for c in WHOLE])
def test_a_large_request_stays_whole_where_its_run_is_short(
    row: str, limits: Limits, run_ns: int, expected: list[int]
) -> None:
    batcher = Batcher(limits)
    batcher.add(entry(rows=4))
    (full,) = closed(batcher)
    if run_ns:
        batcher.ran(full, run_ns)
    batcher.add(entry(rows=10))
    assert [batch.rows for batch in closed(batcher)] == expected


def test_a_whole_request_runs_on_the_loop_only_if_all_of_it_is_short() -> None:
    batcher = Batcher(Limits(4, 0, soft=True))
    batcher.add(entry(rows=4))
    (batch,) = closed(batcher)
    batch.inline = True
    batcher.ran(batch, 1000)
    batcher.add(entry(rows=10))
    found = batcher.next_batch(0, room_ns=2000, rest_ns=2000)
    assert found is not None
    assert (found.rows, found.inline) == (10, False)
