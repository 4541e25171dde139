"""Evidence: what counts of slow requests prove about the share of slow requests. Pure.

A percentile objective, p99 <= limit say, holds when at most 1 % of all requests that could
ever be sent are over the limit. A run shows only some of them. The rule of early stopping,
as MLPerf's load generator defines it, accepts when so few slow ones among so many would be
a coincidence (1 %) if the objective were missed; here the same rule, turned round, rejects
when so many would be a coincidence if it were met. Between the two nothing is proven.

Looking again and again until a result suits is a bias of its own: every further look
spends half of the level that the look before it had, so that all looks together err with
less than twice the level of the first one, however often a probe is extended.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

LEVEL = 0.01


def level_of_look(look: int, first: float = LEVEL) -> float:
    """The level that look number `look` (from 0) may spend; the sum over all looks is below 2 * `first`."""
    return first / 2.0**look


@lru_cache(maxsize=1024)
def at_most(k: int, n: int, q: float) -> float:
    """P(Bin(n, q) <= k): the chance of at most `k` events in `n` trials of probability `q`."""
    if k < 0:
        return 0.0
    if k >= n:
        return 1.0
    # Terms further than this below the largest one of the sum add nothing to it.
    first = max(0, min(k, int(n * q)) - int(12 * math.sqrt(n * q * (1 - q)) + 60))
    i = np.arange(first, k)
    log_ratio = np.log((n - i) / (i + 1.0)) + math.log(q / (1 - q))
    log_first = math.lgamma(n + 1) - math.lgamma(first + 1) - math.lgamma(n - first + 1)
    log_first += first * math.log(q) + (n - first) * math.log1p(-q)
    return min(1.0, float(np.exp(log_first + np.concatenate(([0.0], np.cumsum(log_ratio)))).sum()))


@lru_cache(maxsize=1024)
def early_stopping_needed(over: int, p: float, level: float = LEVEL) -> int:
    """The fewest requests that prove the p-quantile within its limit when `over` of them exceeded it.

    The smallest n with P(Bin(n, 1 - p) <= over) <= level: 459 for p99 and none over.
    """
    q = 1 - p
    low, high = over, max(2 * over, math.ceil(8 / q))
    while at_most(over, high, q) > level:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if at_most(over, middle, q) <= level:
            high = middle
        else:
            low = middle
    return high


def over_allowed(n: int, p: float) -> int:
    """How many of n requests may exceed a limit that holds for the p-quantile; -1: n is too small.

    The largest k with P(Bin(n, 1 - p) <= k) <= LEVEL.
    """
    low, high = -1, n
    while high - low > 1:
        middle = (low + high) // 2
        if at_most(middle, n, 1 - p) <= LEVEL:
            low = middle
        else:
            high = middle
    return low


def proves(n: int, over: int, p: float, level: float = LEVEL) -> bool | None:
    """Whether `over` of `n` requests above the limit prove the p-quantile within it.

    True: it is; False: it is not; None: neither is proven.
    """
    if n <= 0:
        return None
    if at_most(over, n, 1 - p) <= level:
        return True
    return False if 1 - at_most(over - 1, n, 1 - p) <= level else None
