"""Paired: what interleaved measurements of two versions prove about their ratio. Pure.

A machine that other people use is now slower and now faster, by more than the difference
looked for. So A and B are measured in turn, in rounds of A B B A or B A A B, and each round
gives one number for each metric: the logarithm of B's cost over A's. What the machine did
meanwhile it did to both, a steady drift cancels within the round, and what remains is
judged by ranks, which one stalled round cannot move far.

    estimate      Hodges and Lehmann: the median of the means of all pairs of rounds
    interval      bootstrap of that estimate
    test          Wilcoxon's signed ranks, exact, one-sided, against the margin, both ways:
                  "worse by more than the margin" and "not worse by as much"
    several       Holm's correction over the metrics before any of them is called worse;
                  for OK every metric must be proven within the margin, which needs none
    looks         a comparison goes on until it is decided: each look spends half of the
                  level that the one before it had
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

OK, REGRESSION, INCONCLUSIVE = "ok", "regression", "inconclusive"
LEVEL = 0.05
RESAMPLES = 1000
NOTHING: Mapping[str, float] = {}


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric of a comparison: B's cost over A's, with the ends of its 95 % interval.

    `p_worse` is the chance of such rounds if B were within the margin, `p_within` if it were
    not. `outcome` is OK, REGRESSION or INCONCLUSIVE.
    """

    name: str
    ratio: float
    low: float
    high: float
    p_worse: float
    p_within: float
    outcome: str = INCONCLUSIVE

    def to_json(self) -> dict[str, Any]:
        """The metric as `--json` prints it."""
        return {name: getattr(self, name) for name in self.__slots__}


def judge(
    rounds: Mapping[str, Sequence[float]],
    margin: float,
    level: float = LEVEL,
    margins: Mapping[str, float] = NOTHING,
) -> list[Metric]:
    """Judge the rounds' log ratios, by name of the metric; above 0 means that B costs more.

    `margin` is a share: 0.05 lets B cost up to 5 % more; `margins` are those of single metrics.
    """
    metrics = [
        _metric(name, np.asarray(values, float), margins.get(name, margin)) for name, values in rounds.items()
    ]
    corrected = holm([m.p_worse for m in metrics])
    return [
        Metric(
            *(m.name, m.ratio, m.low, m.high, m.p_worse, m.p_within),
            REGRESSION if worse <= level else OK if m.p_within <= level else INCONCLUSIVE,
        )
        for m, worse in zip(metrics, corrected, strict=True)
    ]


def verdict(metrics: Sequence[Metric]) -> str:
    """REGRESSION if any metric is worse, OK if all are within the margin."""
    outcomes = {m.outcome for m in metrics}
    if REGRESSION in outcomes:
        return REGRESSION
    return OK if outcomes == {OK} else INCONCLUSIVE


def _metric(name: str, logs: Floats, margin: float) -> Metric:
    low, high = bootstrap(logs)
    beyond = logs - math.log1p(margin)
    return Metric(
        name,
        math.exp(hodges_lehmann(logs)),
        math.exp(low),
        math.exp(high),
        signed_rank(beyond),
        signed_rank(-beyond),
    )


def hodges_lehmann(values: Floats) -> float:
    """The median of the means of all pairs, each value paired with itself too."""
    i, j = np.triu_indices(len(values))
    return float(np.median((values[i] + values[j]) / 2))


def bootstrap(values: Floats, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of the Hodges-Lehmann estimate by resampling the rounds, always with the same seed."""
    n = len(values)
    drawn = values[np.random.default_rng(n).integers(0, n, (RESAMPLES, n))]
    i, j = np.triu_indices(n)
    estimates = np.median((drawn[:, i] + drawn[:, j]) / 2, axis=1)
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(estimates, [tail, 100 - tail])
    return float(low), float(high)


def signed_rank(values: Floats) -> float:
    """Wilcoxon's exact one-sided p: the chance of ranks so high if the values were symmetric around 0.

    Equal sizes share their mean rank; zeros are left out. 1.0 for no value.
    """
    values = values[values != 0]
    if len(values) == 0:
        return 1.0
    _, inverse, counts = np.unique(np.abs(values), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    doubled = (2 * ends - counts + 1)[inverse]  # twice the mean rank, so that it is whole
    reached = int(doubled[values > 0].sum())
    ways = np.zeros(int(doubled.sum()) + 1)
    ways[0] = 1.0
    for rank in doubled.tolist():
        ways[rank:] = (ways[rank:] + ways[:-rank]) / 2
        ways[:rank] /= 2
    return min(1.0, float(ways[reached:].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's corrected p-values, in the given order."""
    corrected, worst = [0.0] * len(p_values), 0.0
    for position, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        worst = max(worst, min(1.0, (len(p_values) - position) * p_values[index]))
        corrected[index] = worst
    return corrected


def unpaired(name: str, a: Sequence[float], b: Sequence[float], margin: float) -> Metric:
    """A metric of which `b` was not measured in turn with `a`: log costs of parts of two runs.

    The median of all differences, and its bootstrap over both samples.
    """
    first, second = np.asarray(a, float), np.asarray(b, float)
    rng = np.random.default_rng(len(first) + len(second))
    drawn_a = first[rng.integers(0, len(first), (RESAMPLES, len(first)))]
    drawn_b = second[rng.integers(0, len(second), (RESAMPLES, len(second)))]
    shifts = np.median((drawn_b[:, :, None] - drawn_a[:, None, :]).reshape(RESAMPLES, -1), axis=1)
    low, high = np.exp(np.percentile(shifts, [2.5, 97.5]))
    limit = math.log1p(margin)
    p_worse, p_within = float((shifts <= limit).mean()), float((shifts >= limit).mean())
    outcome = REGRESSION if p_worse <= LEVEL / 2 else OK if p_within <= LEVEL / 2 else INCONCLUSIVE
    ratio = math.exp(float(np.median(second[:, None] - first[None, :])))
    return Metric(name, ratio, float(low), float(high), p_worse, p_within, outcome)


def noise_floor(metric: Metric) -> float:
    """The smallest margin that this comparison of a version with itself would have called OK."""
    return max(abs(metric.low - 1), abs(metric.high - 1))


def false_positives(rounds: Mapping[str, Sequence[float]], margin: float, trials: int = 200) -> float:
    """The share of comparisons of a version with itself that would say REGRESSION on this machine.

    Each trial draws rounds of the measured ones, and which of the two was called B in each.
    """
    rng = np.random.default_rng(trials)
    names, table = list(rounds), np.array([rounds[name] for name in rounds], float)
    n, wrong = table.shape[1], 0
    for _ in range(trials):
        drawn = table[:, rng.integers(0, n, n)] * rng.choice([-1.0, 1.0], n)
        p_values = [signed_rank(row - math.log1p(margin)) for row in drawn]
        wrong += min(holm(p_values)) <= LEVEL if names else False
    return wrong / trials
