"""Paired statistics: exact where they can be, honest about chance, unmoved by a stalled round."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mserve.bench.judgement.evidence import level_of_look
from mserve.bench.judgement.paired import (
    INCONCLUSIVE,
    LEVEL,
    OK,
    REGRESSION,
    bootstrap,
    false_positives,
    hodges_lehmann,
    holm,
    judge,
    noise_floor,
    signed_rank,
    unpaired,
    verdict,
)

ROUNDS = 12


def simulated(
    rng: np.random.Generator, shift: float, n: int = ROUNDS, noise: float = 0.03
) -> dict[str, list[float]]:
    """Log ratios of three metrics, with the tails of a shared machine: one round in ten is stalled."""
    stalls = np.where(rng.random((3, n)) < 0.1, rng.normal(0, 10 * noise, (3, n)), 0.0)
    table = math.log1p(shift) + rng.normal(0, noise, (3, n)) + stalls
    return dict(zip(("p50", "p99", "throughput"), table.tolist(), strict=True))


@given(st.lists(st.floats(-10, 10).filter(lambda x: abs(x) > 1e-6), min_size=1, max_size=11))
def test_signed_ranks_are_exact(values: list[float]) -> None:
    """Against all ways of choosing signs, one by one."""
    sizes = np.abs(np.array(values))
    ranks = np.array([(sizes < x).sum() + ((sizes == x).sum() + 1) / 2 for x in sizes])
    reached = ranks[np.array(values) > 0].sum()
    ways = [sum(chosen) >= reached - 1e-9 for chosen in _subsets(ranks.tolist())]
    assert signed_rank(np.array(values)) == pytest.approx(sum(ways) / len(ways))


def _subsets(ranks: list[float]) -> list[tuple[float, ...]]:
    picks = itertools.product((0.0, 1.0), repeat=len(ranks))
    return [tuple(r * k for r, k in zip(ranks, pick, strict=True)) for pick in picks]


def test_signed_ranks_agree_with_another_implementation() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(1).normal(0.3, 1.0, 25)
    theirs = stats.wilcoxon(values, alternative="greater", mode="exact").pvalue
    assert signed_rank(values) == pytest.approx(float(theirs), rel=1e-9)


@pytest.mark.parametrize(
    ("values", "p", "why"),
    [
        ([1.0] * 6, 1 / 64, "six rounds all worse"),
        ([-1.0] * 6, 1.0, "six rounds all better"),
        ([0.0, 0.0], 1.0, "no difference says nothing"),
        ([], 1.0, "no round says nothing"),
        ([1.0, 2.0, -3.0], 5 / 8, "the ranks 1 and 2 against the rank 3"),
    ],
)
def test_signed_ranks_of_small_samples(values: list[float], p: float, why: str) -> None:
    assert signed_rank(np.array(values)) == pytest.approx(p)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_between_each_p_and_bonferroni_s(p_values: list[float]) -> None:
    corrected = holm(p_values)
    for p, q in zip(p_values, corrected, strict=True):
        assert p <= q <= min(1.0, len(p_values) * p) or q >= max(holm([x for x in p_values if x <= p]))
    assert min(corrected) == pytest.approx(min(1.0, len(p_values) * min(p_values)))


def test_holm_of_a_textbook_s_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_the_estimate_is_not_moved_by_a_stalled_round() -> None:
    values = np.array([0.10, 0.11, 0.09, 0.10, 0.12, 0.08, 5.0])
    assert hodges_lehmann(values) == pytest.approx(0.105, abs=0.02)


def test_the_interval_covers_the_truth() -> None:
    rng, covered = np.random.default_rng(2), 0
    for _ in range(200):
        low, high = bootstrap(rng.normal(0.05, 0.03, 16))
        covered += low <= 0.05 <= high
    assert covered >= 175


def test_a_version_against_itself_is_seldom_called_worse() -> None:
    """At no margin at all, which is the hardest: over 200 comparisons no more than the level allows."""
    rng = np.random.default_rng(3)
    wrong = sum(verdict(judge(simulated(rng, 0.0), 0.0)) == REGRESSION for _ in range(200))
    assert wrong <= 18  # 200 at 5 %: more in one of a hundred such tests
    within = [verdict(judge(simulated(rng, 0.0), 0.05)) for _ in range(200)]
    assert REGRESSION not in within
    assert within.count(OK) > 100


def test_looking_until_decided_is_not_more_often_wrong() -> None:
    rng, wrong = np.random.default_rng(4), 0
    for _ in range(60):
        rounds = simulated(rng, 0.0, 36)
        for look, n in enumerate((12, 24, 36)):
            part = {name: values[:n] for name, values in rounds.items()}
            if verdict(judge(part, 0.0, level_of_look(look, LEVEL / 2))) == REGRESSION:
                wrong += 1
                break
    assert wrong <= 8  # 60 at 5 %: more than eight in one of a hundred such tests


def test_a_slower_version_is_called_worse() -> None:
    rng = np.random.default_rng(5)
    found = [verdict(judge(simulated(rng, 0.10, 24), 0.05)) for _ in range(100)]
    assert found.count(REGRESSION) >= 90
    assert OK not in found


@pytest.mark.parametrize(
    ("shift", "outcome", "why"),
    [
        (0.20, REGRESSION, "far above the margin"),
        (-0.20, OK, "better is not worse"),
        (0.0, OK, "the same"),
        (0.05, INCONCLUSIVE, "exactly at the margin"),
    ],
)
def test_outcomes(shift: float, outcome: str, why: str) -> None:
    values = math.log1p(shift) + np.random.default_rng(7).normal(0, 0.01, 16)
    values += math.log1p(shift) - hodges_lehmann(values)
    [metric] = judge({"p50": values.tolist()}, 0.05)
    assert metric.outcome == outcome
    assert metric.low <= metric.ratio <= metric.high
    assert metric.ratio == pytest.approx(1 + shift)


def test_the_noise_floor_grows_with_the_noise() -> None:
    rng = np.random.default_rng(8)
    quiet, loud = (judge(simulated(rng, 0.0, noise=n), 0.05)[0] for n in (0.005, 0.1))
    assert noise_floor(quiet) < 0.02 < noise_floor(loud)
    assert false_positives(simulated(rng, 0.0), 0.05) == 0.0
    assert false_positives(simulated(rng, 0.0), 0.0) <= 0.1


@pytest.mark.parametrize(("shift", "outcome"), [(0.1, REGRESSION), (0.0, OK), (0.05, INCONCLUSIVE)])
def test_samples_that_were_not_measured_in_turn(shift: float, outcome: str) -> None:
    rng = np.random.default_rng(9)
    found = unpaired("p50", rng.normal(0, 0.02, 20), math.log1p(shift) + rng.normal(0, 0.02, 20), 0.05)
    assert found.outcome == outcome
    assert found.low < found.ratio < found.high
    assert found.ratio == pytest.approx(1 + shift, abs=0.03)
