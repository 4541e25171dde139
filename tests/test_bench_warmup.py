"""When a server has settled: rules on latencies that are given."""

from __future__ import annotations

import numpy as np
import pytest

from mserve.bench.load.recorder import Recorder
from mserve.bench.load.warmup import answered, settled, slope, truncation, window_s

MS = 1_000_000
RNG = np.random.default_rng(2)
N = 2000  # one a millisecond: two seconds, windows of 100 ms


def noisy(shape: np.ndarray) -> np.ndarray:
    return shape * (1 + 0.1 * RNG.standard_normal(len(shape)))


@pytest.mark.parametrize(
    ("latency_ms", "steady", "why"),
    [
        (noisy(np.full(N, 5.0)), True, "steady and noisy"),
        (RNG.exponential(5.0, N), False, "so wild that windows of a hundred do not tell"),
        (np.full(N, 5.0), True, "without any noise"),
        (noisy(np.linspace(9.0, 3.0, N)), False, "still falling"),
        (noisy(np.linspace(3.0, 9.0, N)), False, "rising"),
        (noisy(np.r_[np.full(1700, 20.0), np.full(300, 5.0)]), False, "settled only just now"),
        (noisy(np.r_[np.full(300, 20.0), np.full(1700, 5.0)]), True, "settled long ago"),
        (noisy(np.r_[np.full(1800, 5.0), 900.0, np.full(199, 5.0)]), True, "one slow answer"),
        (noisy(np.full(90, 5.0)), False, "too few answers to tell"),
    ],
)
def test_settled(latency_ms: np.ndarray, steady: bool, why: str) -> None:
    done = (np.arange(1, len(latency_ms) + 1) * MS).astype(np.int64)
    assert settled(done, (latency_ms * MS).astype(np.int64), 100 * MS) is steady


def test_windows_hold_twenty_requests() -> None:
    assert window_s(None) == 0.1
    assert window_s(1000.0) == 0.1
    assert window_s(10.0) == 2.0


def test_a_slope_is_the_median_one() -> None:
    assert slope([1.0, 2.0, 3.0, 4.0]) == 1.0
    assert slope([1.0, 2.0, 90.0, 4.0, 5.0]) == pytest.approx(1.0)


def test_the_beginning_is_cut_off_where_it_differs() -> None:
    cut, change = truncation((np.r_[np.full(200, 20.0), np.full(800, 5.0)] * MS).astype(np.int64))
    assert cut == pytest.approx(0.2, abs=0.01)
    assert change == pytest.approx(0.6, rel=0.05)
    assert truncation(np.zeros(3, dtype=np.int64)) == (1.0, 1.0)


def test_answers_of_all_generators_are_looked_at_in_order() -> None:
    records = []
    for times in ([5, 0, 9], [7]):
        record = Recorder.scheduled(0, np.arange(len(times)))
        record.count = record.capacity
        record.done[:] = times
        records.append(record)
    done, latency = answered(records)
    assert done.tolist() == [5, 7, 9], "what has no answer yet is left out"
    assert latency.tolist() == [5, 7, 7]
    assert len(answered([])[0]) == 0
