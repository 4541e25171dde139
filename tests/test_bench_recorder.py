"""Percentiles, their intervals and refusals; what the recorded times amount to."""

from __future__ import annotations

import math

import numpy as np
import pytest
from bench_tools import MS, phase_of
from hypothesis import given
from hypothesis import strategies as st

from mserve.bench.judgement.quantiles import (
    NEVER_NS,
    grows_throughout,
    interval_ranks,
    nearest_rank,
    percentile,
    samples_needed,
)
from mserve.bench.load.recorder import (
    CONNECTION,
    OK,
    PENDING,
    UNFINISHED,
    UNSENT,
    Recorder,
    closed_rates,
    lag_p99,
    open_rates,
    outcome_name,
)


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


@pytest.mark.parametrize(
    ("n", "p", "rank", "why"),
    [
        (1, 0.5, 1, "one value is every percentile"),
        (2, 0.5, 1, "half of two is the first"),
        (3, 0.5, 2, "the middle of three"),
        (10, 0.9, 9, "nine tenths are exact, in spite of binary fractions"),
        (100, 0.07, 7, "0.07 * 100 is above 7 in floating point"),
        (100, 0.99, 99, "not the largest"),
        (101, 0.99, 100, "rounded up"),
        (1000, 0.999, 999, "not the largest"),
    ],
)
def test_percentiles_are_nearest_rank(n: int, p: float, rank: int, why: str) -> None:
    assert nearest_rank(np.arange(1, n + 1), p) == rank


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=300), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_percentile_is_a_measured_value_that_covers_its_share(values: list[int], p: float) -> None:
    found = nearest_rank(np.sort(np.array(values, dtype=np.int64)), p)
    assert found in values
    assert sum(v <= found for v in values) >= p * len(values) - 1e-6
    assert sum(v < found for v in values) < p * len(values) + 1e-6


@pytest.mark.parametrize(("p", "needed"), [(0.5, 20), (0.9, 100), (0.95, 200), (0.99, 1000), (0.999, 10000)])
def test_a_percentile_is_refused_below_ten_samples_beyond_it(p: float, needed: int) -> None:
    assert samples_needed(p) == needed
    assert percentile(np.arange(needed - 1), p).value_ns is None
    assert percentile(np.arange(needed), p).value_ns == math.ceil(round(p * needed, 6)) - 1


@pytest.mark.parametrize(
    ("n", "ranks", "why"),
    [
        (100, (97, None), "no upper bound"),
        (299, (292, None), "one-sided it would have one; two-sided it has none"),
        (367, (359, None), "0.99 ** 367 is above 2.5 %"),
        (368, (360, 368), "the smallest sample with both ends"),
        (473, (464, 473), "a published pair of ranks"),
        (1000, (983, 997), "p98.3 to p99.7"),
        (5000, (4936, 4964), "p98.72 to p99.28"),
        (10_000, (9880, 9920), "p98.80 to p99.20"),
    ],
)
def test_interval_ranks_of_p99(n: int, ranks: tuple[int, int | None], why: str) -> None:
    assert interval_ranks(n, 0.99, 0.95) == ranks


@given(st.integers(1, 400), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_interval_ranks_are_those_of_the_binomial_distribution(n: int, p: float) -> None:
    """The narrowest ranks that leave at most 2.5 % on each side, by exact summation."""
    cdf = np.cumsum([math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)])
    low, high = interval_ranks(n, p, 0.95)
    slack = 1e-9
    if low is not None:
        assert cdf[low - 1] <= 0.025 + slack or low == 1
        assert cdf[low] > 0.025 - slack
    if high is None:
        assert cdf[n - 1] < 0.975 + slack
    else:
        assert cdf[high - 1] >= 0.975 - slack
        assert high == 1 or cdf[high - 2] < 0.975 + slack


def test_the_interval_covers_the_true_percentile() -> None:
    rng = np.random.default_rng(0)
    truth = -math.log(0.01)
    covered = 0
    for _ in range(400):
        sample = np.sort(rng.exponential(1.0, 2000))
        low, high = interval_ranks(2000, 0.99, 0.95)
        assert low is not None
        assert high is not None
        covered += sample[low - 1] <= truth <= sample[high - 1]
    assert covered / 400 >= 0.92


@pytest.mark.parametrize(
    ("latencies", "grows", "why"),
    [
        (np.linspace(1, 500, 1000), True, "a queue that never empties"),
        (np.full(1000, 5.0), False, "constant"),
        (np.random.default_rng(1).exponential(5.0, 1000), False, "noise"),
        (np.linspace(500, 1, 1000), False, "falling: a cold start"),
        (np.r_[np.full(500, 1.0), np.linspace(1, 300, 100), np.full(400, 1.0)], False, "one stall"),
        (np.linspace(5.0, 5.5, 1000), False, "a rise too small to matter"),
        (np.linspace(1, 500, 50), False, "too few requests to tell"),
    ],
)
def test_latency_that_grows_throughout_is_seen(latencies: np.ndarray, grows: bool, why: str) -> None:
    assert grows_throughout((latencies * MS).astype(np.int64)) is grows


def test_latency_counts_from_the_due_time() -> None:
    recorder = phase_of([5.0, 6.0], lags_ms=[1.0, 4.0]).recorder
    assert recorder.latencies().tolist() == [5 * MS, 6 * MS]
    assert recorder.service_times().tolist() == [4 * MS, 2 * MS]
    assert recorder.lags().tolist() == [1 * MS, 4 * MS]
    assert recorder.waits().tolist() == [0, 0]


def test_failures_are_counted_by_class_and_have_no_latency() -> None:
    outcomes = [OK, 429, 429, 500, CONNECTION, OK]
    recorder = phase_of([1.0] * 6, outcomes=outcomes).recorder
    assert recorder.ok() == 2
    assert len(recorder.latencies()) == 2
    assert recorder.errors() == {429: 2, 500: 1, CONNECTION: 1}
    names = sorted(outcome_name(o) for o in recorder.errors())
    assert names == ["connection", "status 429", "status 500"]


def test_what_was_never_answered_counts_as_the_longest_latency() -> None:
    recorder = phase_of([1.0, 2.0, 3.0], outcomes=[OK, PENDING, PENDING]).recorder
    recorder.sent[2] = 0
    recorder.finish(10 * MS)
    assert recorder.outcome.tolist() == [OK, UNFINISHED, UNSENT]
    assert recorder.latencies().tolist() == [MS, NEVER_NS, NEVER_NS]
    assert recorder.errors() == {UNFINISHED: 1, UNSENT: 1}


def test_an_interrupted_phase_blames_nobody_for_what_was_pending() -> None:
    recorder = phase_of([1.0, 2.0, 3.0], outcomes=[OK, PENDING, 503]).recorder
    recorder.drop_pending()
    assert recorder.count == 2
    assert recorder.errors() == {503: 1}


def test_a_closed_loop_s_record_is_filled_row_by_row() -> None:
    recorder = Recorder(3000)
    assert [recorder.add(now) for now in range(3000)] == list(range(3000))
    assert recorder.full
    assert recorder.intended.tolist() == list(range(3000))
    assert (recorder.outcome == PENDING).all()
    with pytest.raises(IndexError):
        recorder.add(1)


@pytest.mark.parametrize(
    ("latencies", "ratio", "why"),
    [
        (np.full(1000, 5.0), 1.0, "steady"),
        (np.r_[np.full(999, 5.0), 900.0], 1.0, "one late answer at the end is no lower rate"),
        (np.linspace(0, 1000, 1000), 0.52, "latency grows a second in a second: half is answered"),
        (np.linspace(1000, 0, 1000), 1.0, "catching up does not exceed what was offered"),
    ],
)
def test_the_achieved_rate_falls_with_growing_latency(latencies: np.ndarray, ratio: float, why: str) -> None:
    phase = phase_of(latencies)
    assert open_rates(phase.recorder, phase.span_ns).ratio == pytest.approx(ratio, abs=0.02)


def test_requests_without_an_answer_lower_the_achieved_rate_and_refusals_do_not() -> None:
    refused = phase_of([1.0] * 100, outcomes=[OK] * 50 + [429] * 50)
    lost = phase_of([1.0] * 100, outcomes=[OK] * 50 + [UNFINISHED] * 50)
    assert open_rates(refused.recorder, refused.span_ns).ratio == pytest.approx(1.0)
    assert open_rates(refused.recorder, refused.span_ns).ok == pytest.approx(500.0)
    assert open_rates(lost.recorder, lost.span_ns).ratio == pytest.approx(0.5)


def test_rates_and_lag_of_nothing_are_zero() -> None:
    assert open_rates(Recorder(0), MS).achieved == 0.0
    assert closed_rates(Recorder(0)).achieved == 0.0
    assert lag_p99(Recorder(0)) == 0
