"""What requests say that depend on each other: intervals that cover, trends that are overload."""

from __future__ import annotations

import math

import numpy as np
import pytest
from bench_tools import MS, phase_of

from mserve.bench.judgement.dependence import correlation_time, effective_size, student_t
from mserve.bench.judgement.quantiles import (
    grows_throughout,
    interval_ranks,
    nearest_rank,
    percentile_of_series,
)
from mserve.bench.judgement.verdict import Load, Measurement
from mserve.bench.load.recorder import open_rates
from mserve.bench.results.report import Report

TARGET = {"kind": "url", "url": "fake", "model": "m", "rows": 1, "request_bytes": 1}


def sojourns(arrivals_s: np.ndarray, services_s: np.ndarray) -> np.ndarray:
    """Seconds from arrival to answer at one server that takes requests in order."""
    ends = np.cumsum(services_s)
    started = np.maximum.accumulate(arrivals_s - (ends - services_s))
    return started + ends - arrivals_s


def busy_queue(rng: np.random.Generator, n: int, load: float) -> np.ndarray:
    """Latencies in ns of Poisson arrivals and exponential service times of mean 1 ms, in steady state."""
    arrivals = np.cumsum(rng.exponential(1e-3 / load, n + 2000))
    return (sojourns(arrivals, rng.exponential(1e-3, n + 2000))[2000:] * 1e9).astype(np.int64)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_the_correlation_time_of_an_autoregressive_series(rho: float) -> None:
    """Its integrated autocorrelation time is (1 + rho) / (1 - rho)."""
    rng = np.random.default_rng(1)
    noise, series = rng.standard_normal(100_000), np.zeros(100_000)
    for i in range(1, len(series)):
        series[i] = rho * series[i - 1] + noise[i]
    assert correlation_time(series) == pytest.approx((1 + rho) / (1 - rho), rel=0.15)


@pytest.mark.parametrize(("freedom", "t"), [(9, 2.262), (19, 2.093), (29, 2.045), (100, 1.984)])
def test_student_s_quantile(freedom: int, t: float) -> None:
    assert student_t(freedom) == pytest.approx(t, abs=0.004)


def test_independent_samples_keep_their_size_and_their_interval() -> None:
    series = (np.random.default_rng(2).exponential(1.0, 5000) * MS).astype(np.int64)
    ascending = np.sort(series)
    found = percentile_of_series(series, ascending, 0.99)
    low, high = interval_ranks(5000, 0.99)
    assert low is not None
    assert high is not None
    assert found.effective == 5000
    assert (found.low_ns, found.high_ns) == (ascending[low - 1], ascending[high - 1])


@pytest.mark.parametrize(("p", "load"), [(0.5, 0.8), (0.9, 0.8), (0.99, 0.7)])
def test_the_interval_covers_the_true_percentile_of_a_busy_queue(p: float, load: float) -> None:
    """The latency of such a queue is exponential; the interval for independent samples misses it often."""
    rng = np.random.default_rng(3)
    truth = -math.log(1 - p) * 1e6 / (1 - load)
    covered = naive = counted = 0
    for _ in range(100):
        series = busy_queue(rng, 20_000, load)
        ascending = np.sort(series)
        found = percentile_of_series(series, ascending, p)
        if found.low_ns is None or found.high_ns is None:
            continue
        counted += 1
        covered += found.low_ns <= truth <= found.high_ns
        low, high = interval_ranks(len(series), p)
        assert low is not None
        assert high is not None
        naive += ascending[low - 1] <= truth <= ascending[high - 1]
    assert counted > 60
    assert covered / counted >= 0.85
    assert naive / counted < 0.75


def test_a_run_too_short_for_its_correlations_has_no_interval() -> None:
    series = np.r_[np.full(1000, 1 * MS), np.full(1000, 3 * MS)]
    assert effective_size(series <= 1 * MS) is None
    found = percentile_of_series(series, np.sort(series), 0.5)
    assert found.value_ns == MS
    assert found.low_ns is found.high_ns is found.effective is None


# the stall that a naive client does not see


def test_a_stall_s_share_of_the_percentile_is_what_arithmetic_says() -> None:
    """1000 requests a second for 10 s, one connection, a stall of 500 ms: the p99 is 400 ms.

    500 requests are due in the stall and wait evenly from 500 to 0 ms; the 100 slowest of all
    10,000 are those that waited for more than 400 ms. Counted from the sending, one was slow.
    """
    due = np.arange(10_000) * 1e-3
    service = np.full(10_000, 1e-5)
    service[5000] = 0.5
    latency = sojourns(due, service)
    phase = phase_of(latency * 1e3)
    phase.recorder.sent[:] = phase.recorder.done - np.round(service * 1e9).astype(np.int64)
    corrected, uncorrected = np.sort(phase.recorder.latencies()), np.sort(phase.recorder.service_times())
    assert nearest_rank(corrected, 0.99) / MS == pytest.approx(400.0, rel=0.02)
    assert nearest_rank(uncorrected, 0.99) / MS < 1.0
    document = Report.of(TARGET, Load(rate=1000.0), Measurement(phase)).to_json()
    assert document["latency"]["percentiles"][3]["value_ms"] == pytest.approx(400.0, rel=0.02)
    assert document["uncorrected"]["percentiles"][3]["value_ms"] < 1.0


# overload


@pytest.mark.parametrize("load", [1.05, 1.2, 2.0, 5.0])
def test_overload_is_unstable_and_has_no_percentile(load: float) -> None:
    rng = np.random.default_rng(4)
    arrivals = np.cumsum(rng.exponential(1e-3 / load, int(5000 * load)))
    latency = sojourns(arrivals, rng.exponential(1e-3, len(arrivals)))
    phase = phase_of(latency * 1e3, gap_ms=1 / load)
    found = Report.of(TARGET, Load(rate=1000.0 * load), Measurement(phase))
    assert found.verdict.code == "unstable"
    assert found.percentiles() == []
    assert found.to_json()["latency"] is None


def test_a_busy_queue_that_keeps_up_is_not_called_unstable() -> None:
    rng, unstable = np.random.default_rng(5), 0
    for _ in range(200):
        series = busy_queue(rng, 5000, 0.8)
        phase = phase_of(series / MS)
        slow = open_rates(phase.recorder, phase.span_ns).ratio < 0.99
        unstable += grows_throughout(series) or slow
    assert unstable <= 4


def test_goodput_counts_what_is_within_the_objectives() -> None:
    from mserve.bench.judgement.slo import parse

    latencies = np.full(2000, 5.0)
    latencies[::10] = 80.0
    found = Report.of(TARGET, Load(rate=1000.0), Measurement(phase_of(latencies)), parse(["p80=50ms"]))
    assert found.goodput() == pytest.approx(900.0, rel=0.01)
    assert Report.of(TARGET, Load(rate=1000.0), Measurement(phase_of(latencies))).goodput() is None
