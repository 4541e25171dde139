"""Schedules: when each request of an open loop is due, in nanoseconds after the start. Pure.

A schedule is complete before the first request is sent, so nothing that the server does
can change it. The closed loop has no schedule: there each answer causes the next request.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ..errors import UsageError

Times = npt.NDArray[np.int64]

ARRIVALS = ("poisson", "constant")
REQUESTS_MAX = 20_000_000
_NS = 1e9


def schedule(arrivals: str, rate: float, duration_s: float, seed: tuple[int, ...]) -> Times:
    """Due times for `rate` requests per second over `duration_s` seconds, ascending.

    The same arguments always give the same times. Raises UsageError as `check_schedule`.
    """
    check_schedule(arrivals, rate, duration_s)
    if arrivals == "constant":
        return constant(rate, duration_s)
    return poisson(rate, duration_s, seed)


def check_schedule(arrivals: str, rate: float, duration_s: float) -> None:
    """Refuse arrivals of no known kind, and runs of no request or too many. Raises UsageError."""
    if arrivals not in ARRIVALS:
        raise UsageError("no such arrivals", expected=" or ".join(ARRIVALS), found=repr(arrivals))
    if not (math.isfinite(rate) and rate > 0):
        raise UsageError("bad rate", expected="a number of requests per second above 0", found=f"{rate:g}")
    if not 1 - 1e-9 <= rate * duration_s <= REQUESTS_MAX:
        raise UsageError(
            "the run would hold too few or too many requests",
            expected=f"1 to {REQUESTS_MAX:,}",
            found=f"{rate:g}/s for {duration_s:g} s: {rate * duration_s:,.1f}",
            hint="change --duration or --qps",
        )


def constant(rate: float, duration_s: float) -> Times:
    """Evenly spaced due times, the first at 0."""
    count = math.ceil(rate * duration_s - 1e-9)
    return np.round(np.arange(count) * (_NS / rate)).astype(np.int64)


def poisson(rate: float, duration_s: float, seed: tuple[int, ...]) -> Times:
    """Independent exponential gaps: what many independent users send together.

    At least one request is due, whatever is drawn.
    """
    rng = np.random.default_rng(seed)
    expected = rate * duration_s
    count = int(expected + 8 * math.sqrt(expected) + 16)  # eight standard deviations: surely enough
    due: Times = np.round(np.cumsum(rng.exponential(_NS / rate, count))).astype(np.int64)
    return due[: max(1, int(np.searchsorted(due, duration_s * _NS)))]
