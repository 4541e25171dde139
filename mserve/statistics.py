"""Statistics of scores: how far two distributions are apart, whether two rankings agree, how good one is.

Pure functions over one-dimensional arrays; NaN is refused by none of them and orders as numpy sorts
it, last. Definitions are the usual ones, and the tests hold them against SciPy and scikit-learn.
"""

from __future__ import annotations

import math

from .tensors import Array

PSI_BINS = 10
PSI_EMPTY = 1e-4  # the share that an empty bin counts as: a logarithm of zero says nothing
PROBABILITY_EPS = 1e-15


def population_stability(expected: Array, actual: Array, bins: int = PSI_BINS) -> float:
    """Population stability index: sum of (a - e) * ln(a / e) over bins that hold equal shares of `expected`.

    Below 0.1 is commonly read as no shift, above 0.25 as a large one. 0 for empty arrays.
    """
    import numpy as np

    if not expected.size or not actual.size:
        return 0.0
    edges = np.unique(np.quantile(expected.astype(np.float64), np.linspace(0, 1, bins + 1)[1:-1]))
    shares = []
    for values in (expected, actual):
        places = np.searchsorted(edges, values.astype(np.float64), side="right")
        share = np.bincount(places, minlength=len(edges) + 1) / values.size
        shares.append(np.maximum(share, PSI_EMPTY))
    e, a = shares
    return float(np.sum((a - e) * np.log(a / e)))


def kolmogorov_smirnov(one: Array, other: Array) -> float:
    """The largest distance between the two empirical distribution functions, 0 to 1."""
    import numpy as np

    if not one.size or not other.size:
        return 0.0
    a, b = np.sort(one), np.sort(other)
    at = np.concatenate([a, b])
    below_a = np.searchsorted(a, at, side="right") / a.size
    below_b = np.searchsorted(b, at, side="right") / b.size
    return float(np.abs(below_a - below_b).max())


def kendall_tau(one: Array, other: Array) -> float:
    """Kendall's tau-b of two rankings of the same items, -1 to 1, in O(n log² n); NaN if one is constant."""
    import numpy as np

    n = one.size
    _, x = np.unique(one, return_inverse=True)
    _, y = np.unique(other, return_inverse=True)
    order = np.lexsort((y, x))
    x, y = x[order], y[order]
    pairs = n * (n - 1) // 2
    ties_x, ties_y = _ties(x), _ties(y)
    ties_both = _ties(x * (int(y.max(initial=0)) + 1) + y)
    if pairs in (ties_x, ties_y):
        return math.nan
    discordant = _inversions(y)
    concordant_less_discordant = pairs - ties_x - ties_y + ties_both - 2 * discordant
    return float(concordant_less_discordant / math.sqrt((pairs - ties_x) * (pairs - ties_y)))


def _ties(values: Array) -> int:
    """Pairs of equal values."""
    import numpy as np

    counts = np.unique(values, return_counts=True)[1].astype(object)
    return int((counts * (counts - 1) // 2).sum()) if counts.size else 0


def _inversions(ranks: Array) -> int:
    """Pairs i < j with ranks[i] > ranks[j]: among those that agree in all higher bits, one bit at a time."""
    import numpy as np

    total = 0
    for bit in range(int(ranks.max(initial=0)).bit_length() - 1, -1, -1):
        ranks = ranks[np.argsort(ranks >> (bit + 1), kind="stable")]
        ones, group = (ranks >> bit) & 1, ranks >> (bit + 1)
        seen = np.cumsum(ones)
        starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
        before = np.repeat(np.r_[0, seen][starts], np.diff(np.r_[starts, ranks.size]))
        total += int((seen - before)[ones == 0].sum())
    return total


def top_overlap(one: Array, other: Array, k: int) -> float:
    """The share of the `k` highest of one ranking that are among the `k` highest of the other.

    Among equal scores the item that comes first counts as the higher one.
    """
    import numpy as np

    k = min(k, one.size)
    if k <= 0:
        return 1.0
    tops = [np.argsort(-scores.astype(np.float64), kind="stable")[:k] for scores in (one, other)]
    return float(np.intersect1d(tops[0], tops[1]).size / k)


def auc(labels: Array, scores: Array) -> float:
    """Area under the ROC curve of binary labels; NaN if all are the same. Equal scores count half."""
    import numpy as np

    positive = labels.astype(bool)
    count = int(positive.sum())
    if count in (0, labels.size):
        return math.nan
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # equal scores share their mean rank
    above = float(ranks[positive].sum()) - count * (count + 1) / 2
    return above / (count * (labels.size - count))


def log_loss(labels: Array, probabilities: Array) -> float:
    """Mean negative log-likelihood, in nats.

    `probabilities` is [rows] for binary labels, or [rows, classes] for labels 0 to classes - 1, whose
    rows are brought to a sum of 1. Probabilities are kept 1e-15 away from 0 and 1.
    """
    import numpy as np

    p = probabilities.astype(np.float64)
    if p.ndim == 1:
        p = np.stack([1 - p, p], axis=1)
    p = np.clip(p, PROBABILITY_EPS, 1 - PROBABILITY_EPS)
    p = p / p.sum(axis=1, keepdims=True)
    chosen = p[np.arange(len(p)), labels.astype(np.int64)]
    return float(-np.log(chosen).mean())
