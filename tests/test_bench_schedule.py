"""Schedules: independent of the server, reproducible, and of the distribution they claim."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mserve.bench.schedule import REQUESTS_MAX, schedule
from mserve.errors import UsageError

SECOND = 1_000_000_000
SEEDS = (1, 2, 3)


@pytest.mark.parametrize("seed", SEEDS)
def test_poisson_gaps_are_exponential(seed: int) -> None:
    due = schedule("poisson", 2000.0, 10.0, (seed,))
    gaps = np.sort(np.diff(due)) * (2000.0 / SECOND)
    n = len(gaps)
    expected = 1 - np.exp(-gaps)
    above = (np.arange(1, n + 1) / n - expected).max()
    below = (expected - np.arange(n) / n).max()
    assert max(above, below) < 1.63 / math.sqrt(n)  # Kolmogorov and Smirnov, 1 % level


@pytest.mark.parametrize("seed", SEEDS)
def test_poisson_counts_vary_as_much_as_their_mean(seed: int) -> None:
    due = schedule("poisson", 2000.0, 20.0, (seed,))
    counts = np.bincount(due // (SECOND // 100), minlength=2000)
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.12)


def test_a_thinned_poisson_schedule_is_poisson() -> None:
    due = schedule("poisson", 4000.0, 20.0, (1,))
    kept = due[np.random.default_rng(5).random(len(due)) < 0.5]
    counts = np.bincount(kept // (SECOND // 100), minlength=2000)
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.12)


@pytest.mark.parametrize("arrivals", ["poisson", "constant"])
def test_the_same_seed_gives_the_same_times(arrivals: str) -> None:
    first, again = (schedule(arrivals, 500.0, 2.0, (7, 1)) for _ in range(2))
    assert first.dtype == np.int64
    assert (first == again).all()


def test_every_phase_has_times_of_its_own() -> None:
    assert schedule("poisson", 500.0, 1.0, (7, 1))[0] != schedule("poisson", 500.0, 1.0, (7, 2))[0]


def test_constant_times_are_even_and_start_at_once() -> None:
    assert schedule("constant", 4.0, 1.0, (1,)).tolist() == [0, SECOND // 4, SECOND // 2, 3 * SECOND // 4]


@given(
    st.sampled_from(["poisson", "constant"]),
    st.floats(1.0, 5000.0),
    st.floats(1.0, 3.0),
    st.integers(0, 1000),
)
def test_times_ascend_within_the_duration(arrivals: str, rate: float, seconds: float, seed: int) -> None:
    due = schedule(arrivals, rate, seconds, (seed,))
    assert len(due) >= 1
    assert (np.diff(due) >= 0).all()
    assert due[0] >= 0
    assert len(due) == 1 or due[-1] <= seconds * SECOND
    assert abs(len(due) - rate * seconds) <= 8 * math.sqrt(rate * seconds) + 1


@pytest.mark.parametrize(
    ("arrivals", "rate", "seconds", "why"),
    [
        ("regular", 10.0, 1.0, "a kind nobody knows"),
        ("bursty:11", 10.0, 1.0, "half of the parameters"),
        ("bursty:11:200", 10.0, 1.0, "a tenth of the time cannot hold more than all requests"),
        ("bursty:5:x", 10.0, 1.0, "no number"),
        ("poisson", 0.0, 1.0, "nothing is ever due"),
        ("poisson", -5.0, 1.0, "a negative rate"),
        ("poisson", float("nan"), 1.0, "not a number"),
        ("poisson", float("inf"), 1.0, "not finite"),
        ("constant", 1.0, 0.5, "less than one request in all"),
        ("poisson", 1e6, REQUESTS_MAX / 1e6 + 1, "more than the recorder may hold"),
    ],
)
def test_impossible_schedules_are_refused(arrivals: str, rate: float, seconds: float, why: str) -> None:
    with pytest.raises(UsageError):
        schedule(arrivals, rate, seconds, (1,))
