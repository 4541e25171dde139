"""Sparse requests in batches: however rows are spread over requests, answers are the rows' own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import builders
import numpy as np
import pytest
import sparse_models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sparse_models import draw, parts

import mserve
from mserve.batching.assembly import run_batch
from mserve.batching.batcher import Batch, Batcher, Entry, Limits
from mserve.batching.form import MUCH
from mserve.errors import Overloaded
from mserve.loader.servable import Servable
from mserve.rows import Cuts
from mserve.tensors import Array, Signature, TensorSpec, check_inputs

SIZE = 200
WEIGHTS = builders.floats(SIZE, 1)
NAME = "serving_default"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servable]:
    """Sparse, dense and ragged inputs in one signature."""
    servable = mserve.load(sparse_models.mixed(tmp_path_factory.mktemp("mixed"), WEIGHTS))
    yield servable
    servable.close()


def inputs_of(count: int, seed: int) -> tuple[dict[str, Array], Array]:
    """Inputs of so many rows, and their answers from dense rows, in doubles."""
    rng = np.random.default_rng(seed)
    rows, dense = draw(count, SIZE, 6, seed), rng.standard_normal((count, 3)).astype(np.float32)
    lengths = rng.integers(0, 4, count)
    ragged = rng.standard_normal((int(lengths.sum()), 2)).astype(np.float32)
    inputs = {**parts(rows, "x"), "d": dense, "r.values": ragged, "r.lengths": lengths}
    wide = np.zeros((count, SIZE))
    for at, (ids, values) in enumerate(rows):
        np.add.at(wide[at], np.asarray(ids, np.int64), values)
    sums = [piece.sum() for piece in np.split(ragged, np.cumsum(lengths)[:-1])] if count else []
    expected = wide @ WEIGHTS[:, 0] + dense.sum(1) + 2 * np.array(sums)
    return inputs, expected.reshape(count, 1)


def ask(servable: Servable, inputs: dict[str, Array], answers: list[Any]) -> Entry:
    rows = check_inputs(servable.signatures[NAME], inputs)
    servable.in_flight += 1
    return Entry(servable, NAME, inputs, rows, rows == 0, answers.append, 0)


def run(batcher: Batcher) -> list[Batch]:
    """Close, run and answer every batch that may close now."""
    batches = []
    while (batch := batcher.next_batch(1)) is not None:
        batches.append(batch)
        for entry, outputs in zip(batch.entries, run_batch(batch), strict=True):
            entry.answer(outputs)
    return batches


LIMITS = st.builds(
    lambda most, allowed: Limits(
        most, allowed=(*sorted({n for n in allowed if n < most}), most) if allowed else ()
    ),
    st.integers(1, 9),
    st.lists(st.integers(1, 8), max_size=3),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    counts=st.lists(st.one_of(st.integers(0, 4), st.integers(0, 30)), min_size=1, max_size=8),
    limits=LIMITS,
    seed=st.integers(0, 999),
)
def test_any_split_gives_the_rows_own_answers(
    model: Servable, counts: Sequence[int], limits: Limits, seed: int
) -> None:
    inputs, expected = inputs_of(sum(counts), seed)
    cuts, batcher, answers = (
        Cuts(model.signatures[NAME], inputs),
        Batcher(limits),
        [list[Any]() for _ in counts],
    )
    at = 0
    for count, answer in zip(counts, answers, strict=True):
        batcher.add(ask(model, cuts.rows(at, at + count), answer))
        at += count
    for batch in run(batcher):
        assert batch.rows <= limits.max_batch_rows
        assert not limits.allowed or not batch.rows or batch.rows + batch.padding in limits.allowed
    at = 0
    for count, answer in zip(counts, answers, strict=True):
        ((output,),) = answer
        np.testing.assert_allclose(output, expected[at : at + count], rtol=1e-4, atol=1e-4)
        at += count
    assert model.in_flight == 0


def test_a_batch_is_joined_and_padded_with_empty_rows(model: Servable) -> None:
    seen = list[dict[str, Array]]()

    class Watched:
        """The servable, which notes what it computes with."""

        signatures, batching, stats, predictable, in_flight = model.signatures, None, model.stats, True, 0

        def compute(self, name: str, inputs: dict[str, Array], *rest: Any, **more: Any) -> Any:
            seen.append(inputs)
            return model.compute(name, inputs, *rest, **more)

    watched: Any = Watched()
    batcher, answers = Batcher(Limits(8, allowed=(4, 8))), list[Any]()
    for seed in (1, 2):
        batcher.add(ask(watched, inputs_of(1 + seed // 2, seed)[0], answers))
    (batch,) = run(batcher)
    assert (batch.rows, batch.padding) == (3, 1)
    (joined,) = seen
    assert joined["x.lengths"].tolist()[3:] == [0]
    assert joined["r.lengths"].tolist()[3:] == [0]
    assert joined["x.lengths"].sum() == len(joined["x.ids"]) == len(joined["x.values"])
    assert len(joined["d"]) == 4
    assert check_inputs(model.signatures[NAME], joined) == 4


def test_bytes_are_counted_by_entries(model: Servable) -> None:
    """A queue is full by what its requests hold, not by what a row of their shape would."""
    one = {
        **parts([(range(50), [1.0] * 50)], "x"),
        "d": np.zeros((1, 3), np.float32),
        "r.values": np.zeros((9000, 2), np.float32),
        "r.lengths": np.array([9000]),
    }
    size = sum(x.nbytes for x in one.values())
    batcher, answers = Batcher(Limits(8, max_queue_bytes=2 * size)), list[Any]()
    batcher.add(ask(model, one, answers))
    assert batcher.backlog(model).nbytes == size
    batcher.add(ask(model, one, answers))
    with pytest.raises(Overloaded):
        batcher.add(ask(model, one, answers))
    model.in_flight -= 1
    assert size > MUCH
    run(batcher)
    assert batcher.backlog(model).nbytes == 0
    assert len(answers) == 2


def test_what_holds_many_entries_does_not_run_on_the_loop(model: Servable) -> None:
    """Times are known by rows; a row of many entries is not as short as the others were."""
    few, _ = inputs_of(1, 3)
    batcher, answers = Batcher(Limits(8)), list[Any]()
    for _ in range(2):
        batcher.add(ask(model, few, answers))
        (batch,) = run(batcher)
        batcher.ran(batch, 1000)
    batcher.add(ask(model, few, answers))
    batch = batcher.next_batch(1, free=False, room_ns=1e6, rest_ns=1e6)  # type: ignore[assignment]
    assert batch is not None
    assert batch.inline
    many = {**few, "r.values": np.zeros((MUCH, 2), np.float32), "r.lengths": np.array([MUCH])}
    batcher.add(ask(model, many, answers))
    assert batcher.next_batch(1, free=False, room_ns=1e6, rest_ns=1e6) is None
    model.in_flight = 0


def test_a_request_that_fails_is_found_among_sparse_neighbours(model: Servable) -> None:
    """Halving a batch keeps each request's parts together."""
    batcher, answers = Batcher(Limits(8)), [list[Any]() for _ in range(4)]
    asked = [inputs_of(2, seed) for seed in range(4)]
    for (inputs, _), answer in zip(asked, answers, strict=True):
        batcher.add(ask(model, inputs, answer))
    batch = batcher.next_batch(1)
    assert batch is not None
    for half in batcher.halves(batch):
        for entry, outputs in zip(half.entries, run_batch(half), strict=True):
            entry.answer(outputs)
    for (_, expected), answer in zip(asked, answers, strict=True):
        np.testing.assert_allclose(answer[0][0], expected, rtol=1e-4, atol=1e-4)


def test_dense_signatures_know_nothing_of_it() -> None:
    """What is asked of a dense signature's requests are empty sets."""
    from mserve.batching.form import Form

    form = Form("s", Signature("predict", {"x": TensorSpec("x", "float32", ("batch", 4))}, {}, 0))
    assert not form.varies
    assert not form.entries
    assert not form.lengths
