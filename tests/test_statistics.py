"""Statistics of scores, against what SciPy and scikit-learn say, and against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from mserve import statistics

FEW = st.integers(0, 4).map(float)  # few different values: many ties
NUMBERS = st.lists(FEW | st.floats(-1e6, 1e6), min_size=2, max_size=60)
PAIRS = st.lists(st.tuples(FEW | st.floats(-9, 9), FEW | st.floats(-9, 9)), min_size=2, max_size=80)


@settings(max_examples=200, deadline=None)
@given(NUMBERS, NUMBERS)
def test_kolmogorov_smirnov_is_that_of_scipy(one: list[float], other: list[float]) -> None:
    want = stats.ks_2samp(one, other, method="asymp").statistic
    assert statistics.kolmogorov_smirnov(np.array(one), np.array(other)) == pytest.approx(want)


@settings(max_examples=300, deadline=None)
@given(PAIRS)
def test_kendall_tau_is_that_of_scipy(pairs: list[tuple[float, float]]) -> None:
    one, other = (np.array(x) for x in zip(*pairs, strict=True))
    want = stats.kendalltau(one, other).statistic
    found = statistics.kendall_tau(one, other)
    assert (math.isnan(found) and math.isnan(want)) or found == pytest.approx(want)


def test_kendall_tau_of_many_rows() -> None:
    """The work grows a little faster than the number of rows, and nothing overflows."""
    rng = np.random.default_rng(0)
    one = rng.standard_normal(50_000)
    other = (one + rng.standard_normal(50_000)).astype(np.float32)
    assert statistics.kendall_tau(one, other) == pytest.approx(stats.kendalltau(one, other).statistic)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.booleans(), FEW | st.floats(-9, 9)), min_size=1, max_size=60))
def test_auc_is_that_of_scikit_learn(rows: list[tuple[bool, float]]) -> None:
    labels, scores = (np.array(x) for x in zip(*rows, strict=True))
    found = statistics.auc(labels, scores)
    if labels.all() or not labels.any():
        assert math.isnan(found)
    else:
        assert found == pytest.approx(metrics.roc_auc_score(labels, scores))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1)), min_size=1, max_size=40))
def test_binary_log_loss_is_that_of_scikit_learn(rows: list[tuple[int, float]]) -> None:
    labels, p = (np.array(x) for x in zip(*rows, strict=True))
    # scikit-learn keeps away from 0 and 1 by the machine's epsilon, we by 1e-15.
    p = np.clip(p, 1e-12, 1 - 1e-12)
    want = metrics.log_loss(labels, np.stack([1 - p, p], 1), labels=[0, 1])
    assert statistics.log_loss(labels, p) == pytest.approx(want)


def test_log_loss_of_classes_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(5), 100)
    labels = rng.integers(0, 5, 100)
    assert statistics.log_loss(labels, p) == pytest.approx(metrics.log_loss(labels, p, labels=range(5)))


def test_log_loss_is_finite_for_certain_mistakes() -> None:
    assert statistics.log_loss(np.array([1]), np.array([0.0])) == pytest.approx(-math.log(1e-15))


PSI = [
    ("the same values have not shifted", [1, 2, 3, 4], [1, 2, 3, 4], 2, 0.0),
    ("half below and half above the median, then a quarter and three", [1, 2, 3, 4], [1, 3, 3, 4], 2,
     (0.25 - 0.5) * math.log(0.25 / 0.5) + (0.75 - 0.5) * math.log(0.75 / 0.5)),
    ("an empty bin counts as 1e-4", [1, 2, 3, 4], [3, 3, 4, 4], 2,
     (1e-4 - 0.5) * math.log(1e-4 / 0.5) + (1 - 0.5) * math.log(1 / 0.5)),
    ("nothing to compare", [], [1], 10, 0.0),
    ("a constant that stays one", [5, 5, 5], [5, 5], 10, 0.0),
]  # fmt: skip


@pytest.mark.parametrize(("why", "one", "other", "bins", "want"), PSI, ids=[p[0] for p in PSI])
def test_population_stability(why: str, one: list[float], other: list[float], bins: int, want: float) -> None:
    found = statistics.population_stability(np.array(one, float), np.array(other, float), bins)
    assert found == pytest.approx(want, abs=1e-12), why


def test_population_stability_grows_with_the_shift() -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal(10_000)
    shifts = [statistics.population_stability(base, rng.standard_normal(10_000) + s) for s in (0, 0.2, 1)]
    assert shifts[0] < 0.01 < shifts[1] < 0.1 < 0.25 < shifts[2]


TOPS = [
    ("the same order", [3, 2, 1], [30, 20, 10], 2, 1.0),
    ("one of two is another", [3, 2, 1], [3, 1, 2], 2, 0.5),
    ("equal scores: the first counts as higher", [1, 1, 1], [1, 1, 1], 1, 1.0),
    ("more than there are", [2, 1], [1, 2], 5, 1.0),
    ("none", [], [], 3, 1.0),
]


@pytest.mark.parametrize(("why", "one", "other", "k", "want"), TOPS, ids=[t[0] for t in TOPS])
def test_top_overlap(why: str, one: list[float], other: list[float], k: int, want: float) -> None:
    assert statistics.top_overlap(np.array(one, float), np.array(other, float), k) == want, why
