"""The simulator against queues whose waits are known, and against what must hold of any."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mserve.bench.judgement.quantiles import NEVER_NS
from mserve.bench.load.schedule import constant, poisson
from mserve.loader.servable import Batching
from mserve.tensors import Signature, TensorSpec
from mserve.workflows.tune.simulate import Costs, Draw, GiveUp, System, simulate

MS = 1_000_000
SIGNATURE = Signature(
    "predict", {"x": TensorSpec("x", "float32", ("n", 2))}, {"y": TensorSpec("y", "float32", ("n",))}, 0
)


def system(runs: Draw, *, rows: tuple[int, ...] = (1,), workers: int = 1, **more: object) -> System:
    requests = [({"x": np.zeros((n, 2), np.float32)}, n) for n in rows]
    return System(SIGNATURE, requests, runs, workers, inline=False, **more)  # type: ignore[arg-type]


def takes(fixed: float, row: float = 0.0) -> Draw:
    """Run times t(n) = fixed + n * row."""
    return lambda rows: (fixed + rows * row,)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_without_batches_the_mean_wait_is_pollaczek_and_khinchines(load: float) -> None:
    """M/D/1: the mean wait is load * D / (2 * (1 - load))."""
    waits = []
    for seed in range(3):
        due = poisson(load * 1000, 40, (seed,))
        found = simulate(system(takes(MS)), Batching(1), due, seed)
        waits.append(float(found.latencies.mean()) - MS)
    assert np.mean(waits) == pytest.approx(load * MS / (2 * (1 - load)), rel=0.1)


def test_two_servers_wait_less_than_half_as_long_as_one() -> None:
    """M/D/2 at the same load for each server, against M/D/1; by the known formula it is a bit under half."""
    one = simulate(system(takes(MS)), Batching(1), poisson(800, 30, (1,)))
    two = simulate(system(takes(MS), workers=2), Batching(1), poisson(1600, 30, (1,)))
    ratio = (two.latencies.mean() - MS) / (one.latencies.mean() - MS)
    assert 0.35 < ratio < 0.55


def test_regular_arrivals_to_a_regular_server_never_wait() -> None:
    found = simulate(system(takes(MS)), Batching(1), constant(990, 1))
    assert set(found.latencies.tolist()) == {MS}


def test_regular_arrivals_beyond_capacity_wait_by_so_much_more_each() -> None:
    """D/D/1 with a gap of 0.5 ms for runs of 1 ms: request k waits k * 0.5 ms."""
    found = simulate(system(takes(MS)), Batching(1), constant(2000, 0.01))
    assert found.latencies.tolist() == [MS + k * MS // 2 for k in range(20)]


def test_every_cost_is_counted_once() -> None:
    costs = Costs(request=20, handover=(300.0,), wake=(4000.0,))
    found = simulate(system(takes(MS), costs=costs), Batching(1), constant(100, 0.05))
    assert set(found.latencies.tolist()) == {20 + 300 + 4000 + MS}


def test_workers_that_run_together_are_slower() -> None:
    """Two requests at once: the second finds one other run, of two workers, and takes 1.5 times as long."""
    due = np.zeros(2, np.int64)
    found = simulate(system(takes(MS), workers=2, crowding=1.5), Batching(1), due)
    assert found.latencies.tolist() == [MS, 3 * MS // 2]


def test_a_short_run_is_made_on_the_loop_once_its_time_is_known() -> None:
    quick = System(SIGNATURE, [({"x": np.zeros((1, 2), np.float32)}, 1)], takes(5000), 1)
    far = Costs(handover=(100_000.0,))
    found = simulate(
        System(SIGNATURE, quick.requests, quick.runs, 1, costs=far), Batching(1), constant(100, 1)
    )
    assert found.latencies[0] == 105_000
    assert set(found.latencies[1:].tolist()) == {5000}


def test_the_delay_is_waited_for_and_the_timer_ends_it() -> None:
    found = simulate(system(takes(MS)), Batching(8, 2 * MS), constant(10, 0.5))
    assert set(found.latencies.tolist()) == {3 * MS}
    assert found.batch_rows == (1,) * 5


@pytest.mark.parametrize(("fixed", "row"), [(1000, 10), (500, 100), (0, 100)])
def test_the_most_that_batches_carry_is_what_arithmetic_says(fixed: int, row: int) -> None:
    """With t(n) = a + n * b, batches of m rows carry m / (a + m * b): below it holds, above it grows."""
    runs = takes(fixed * 1e3, row * 1e3)
    for most in (4, 32):
        capacity = most / ((fixed + most * row) * 1e-6)
        below, above = (
            simulate(system(runs), Batching(most), poisson(capacity * part, 6000 / capacity, (3,)))
            for part in (0.9, 1.15)
        )
        late = [float(x.latencies[-500:].mean() / x.latencies[:3000].mean()) for x in (below, above)]
        assert late[0] < 3
        assert above.latencies[-1] > 5 * below.latencies[-1]


def test_a_hopeless_load_is_given_up() -> None:
    found = simulate(system(takes(MS)), Batching(1), poisson(5000, 20, (1,)), 1, GiveUp(2 * MS, 100))
    assert found.hopeless
    assert len(found.latencies) < 50_000


def test_a_full_queue_refuses() -> None:
    found = simulate(system(takes(20 * MS)), Batching(1), constant(100_000, 0.1))
    assert found.refused == int((found.latencies == NEVER_NS).sum()) > 0


SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


@settings(max_examples=60, deadline=None)
@given(
    most=st.integers(5, 16),
    delay=st.integers(0, 3 * MS),
    rows=SIZES,
    workers=st.integers(1, 3),
    gaps=st.lists(st.integers(0, 3 * MS), min_size=1, max_size=60),
    fixed=st.integers(1, 2 * MS),
    inline=st.booleans(),
)
def test_requests_are_answered_once_and_in_order(
    most: int, delay: int, rows: tuple[int, ...], workers: int, gaps: list[int], fixed: int, inline: bool
) -> None:
    requests = [({"x": np.zeros((n, 2), np.float32)}, n) for n in rows]
    costs = Costs(request=1000, handover=(5000.0, 50_000.0), wake=(0.0, 80_000.0), timer=(0.0, 1e6))
    about = System(SIGNATURE, requests, takes(fixed, 100), workers, inline=inline, costs=costs)
    due = np.cumsum(np.array(gaps, np.int64))
    found = simulate(about, Batching(most, delay), due)
    counted = Counter(n for batch in found.members for n in batch)
    assert counted == Counter(range(len(due)))
    assert sum(found.batch_rows) == sum(rows[i % len(rows)] for i in range(len(due)))
    assert max(found.batch_rows) <= most
    assert (found.latencies >= fixed).all()
    assert all(list(batch) == list(range(batch[0], batch[0] + len(batch))) for batch in found.members)
    again = simulate(about, Batching(most, delay), due)
    assert again.latencies.tolist() == found.latencies.tolist()
