"""Dependence: how much neighbouring requests of a run say the same thing twice. Pure.

In a busy queue a slow request is followed by slow requests, so n latencies hold less
information than n independent ones. The integrated autocorrelation time says how many
requests together are worth one; the effective size of a sample is what remains. It is
measured on the events that a quantile counts, "at most the limit" or not, since latencies
themselves have tails in which correlations drown.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

BLOCK_TIMES = 10
BLOCKS_MIN = 10
# Below this the sample cannot be told from an independent one.
INDEPENDENT = 1.2
_WINDOW_TIMES = 5
_Z = 1.959964


def correlation_time(values: npt.NDArray[Any]) -> float:
    """The integrated autocorrelation time of a series, in elements; at least 1.

    1 + 2 times the sum of the autocorrelations, up to the first lag that is five times the
    sum so far (Sokal's window): what lies further out is noise.
    """
    n = len(values)
    if n < 4:
        return 1.0
    centred = values - values.mean(dtype=np.float64)
    spectrum = np.fft.rfft(centred, 1 << (2 * n - 1).bit_length())
    covariance = np.fft.irfft(spectrum.real**2 + spectrum.imag**2)[:n]
    if covariance[0] <= 1e-12 * n:
        return 1.0
    times = 2 * np.cumsum(covariance / covariance[0]) - 1
    enough = np.flatnonzero(np.arange(n) >= _WINDOW_TIMES * times)
    return max(1.0, float(times[enough[0] if len(enough) else n // 2]))


def effective_size(events: npt.NDArray[np.bool_]) -> int | None:
    """How many independent events carry as much as these; None where the run is too short to say.

    From the variance of the means of blocks of at least ten autocorrelation times; with few
    blocks that variance is itself uncertain, and the size shrinks as Student's t grows.
    """
    n = len(events)
    time = correlation_time(events)
    if time < INDEPENDENT:
        return n
    block = math.ceil(BLOCK_TIMES * time)
    blocks = n // block
    if blocks < BLOCKS_MIN:
        return None
    means = events[: blocks * block].reshape(blocks, block).mean(axis=1)
    share = float(means.mean())
    variance = float(means.var(ddof=1)) / blocks
    if variance <= 0:
        return n
    size = share * (1 - share) / variance * (_Z / student_t(blocks - 1)) ** 2
    return max(1, min(n, int(size)))


def student_t(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, by the expansion around the normal one; 9 degrees or more."""
    z = _Z
    first = (z**3 + z) / (4 * freedom)
    return z + first + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
