"""Schedules: independent of the server, reproducible, and of the distribution they claim."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mserve.bench.load.schedule import REQUESTS_MAX, replayed, schedule
from mserve.bench.requests.request_log import read_log
from mserve.errors import InputError, UsageError

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


# bursts


@pytest.mark.parametrize("factor", [1.0, 5.0, 10.0])
def test_bursts_keep_the_mean_rate(factor: float) -> None:
    """The mean over some seeds: of one, the share of time in bursts varies."""
    counts = [len(schedule(f"bursty:{factor}:200", 1000.0, 60.0, (seed,))) for seed in range(30)]
    assert np.mean(counts) == pytest.approx(60_000, rel=0.08)


def test_bursts_are_bursts() -> None:
    """Ten times the mean rate for 200 ms, nothing in between; a tenth of the time."""
    due = schedule("bursty:10:200", 1000.0, 120.0, (4,))
    counts = np.bincount(due // (SECOND // 50), minlength=6000)
    assert counts.var() / counts.mean() > 20, "a Poisson process has 1"
    assert np.quantile(counts, 0.8) == 0
    assert np.median(counts[counts > 100]) == pytest.approx(200, rel=0.1)


def test_a_factor_of_one_is_a_poisson_process() -> None:
    due = schedule("bursty:1:200", 2000.0, 20.0, (1,))
    counts = np.bincount(due // (SECOND // 100), minlength=2000)
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.12)


# recordings


def test_a_recording_is_replayed_with_its_own_times(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"time": 1700000003.5, "code": 200}\n\n{"time": 1700000001.0}\n{"time": 1700000002.0}\n')
    offsets, requests = read_log(path)
    assert offsets.tolist() == [0, SECOND, 2.5 * SECOND]
    assert requests[2]["code"] == 200
    assert replayed(offsets, 2.0).tolist() == [0, SECOND // 2, 1.25 * SECOND]
    assert replayed(offsets + 7, 1.0)[0] == 0


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_speeds_are_refused(speed: float) -> None:
    with pytest.raises(UsageError):
        replayed(np.array([0, 1]), speed)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "empty"),
        ("\n\n", "only empty lines"),
        ("hello", "no JSON"),
        ("[1]", "no object"),
        ('{"time": "now"}', "a time that is text"),
        ('{"time": true}', "a time that is a truth value"),
        ('{"time": -1}', "a time before all"),
        ('{"time": 1e300}', "a time after all"),
        ('{"time": 0}\n{"time": 9.5e9}', "a time between them that int64 nanoseconds cannot hold"),
        ('{"a": 1}', "no time"),
        ('{"time": 1}\n{"time"', "cut off in the middle"),
        ("\x00" * 100, "zeros"),
    ],
)
def test_what_is_no_request_log_is_refused(content: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(content)
    with pytest.raises(InputError):
        read_log(path)


@given(st.binary(max_size=300))
def test_bytes_are_no_request_log(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    path.write_bytes(data)
    try:
        offsets, requests = read_log(path)
    except InputError:
        return
    assert len(offsets) == len(requests) >= 1
