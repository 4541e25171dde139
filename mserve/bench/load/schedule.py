"""Schedules: when each request of an open loop is due, in nanoseconds after the start. Pure.

A schedule is complete before the first request is sent, so nothing that the server does
can change it. The closed loop has no schedule: there each answer causes the next request.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ...errors import UsageError

Times = npt.NDArray[np.int64]

ARRIVALS = ("poisson", "constant", "bursty", "bursty:FACTOR:ON_MS")
BURST_FACTOR, BURST_ON_MS = 5.0, 200.0
# Of the time, a burst lasts so much; a factor above its inverse would leave nothing for the rest.
_BURST_SHARE = 0.1
REQUESTS_MAX = 20_000_000
_NS = 1e9


def schedule(arrivals: str, rate: float, duration_s: float, seed: tuple[int, ...]) -> Times:
    """Due times for `rate` requests per second over `duration_s` seconds, ascending.

    The same arguments always give the same times. Raises UsageError as `check_schedule`.
    """
    check_schedule(arrivals, rate, duration_s)
    if arrivals == "constant":
        return constant(rate, duration_s)
    if arrivals == "poisson":
        return poisson(rate, duration_s, seed)
    return bursty(rate, duration_s, seed, *burst_of(arrivals))


def check_schedule(arrivals: str, rate: float, duration_s: float) -> None:
    """Refuse arrivals of no known kind, and runs of no request or too many. Raises UsageError."""
    if arrivals not in ("poisson", "constant"):
        burst_of(arrivals)
    if not (math.isfinite(rate) and rate > 0):
        raise UsageError("bad rate", expected="a number of requests per second above 0", found=f"{rate:g}")
    if not 1 - 1e-9 <= rate * duration_s <= REQUESTS_MAX:
        raise UsageError(
            "the run would hold too few or too many requests",
            expected=f"1 to {REQUESTS_MAX:,}",
            found=f"{rate:g}/s for {duration_s:g} s: {rate * duration_s:,.1f}",
            hint="change --duration or --qps",
        )


def burst_of(arrivals: str) -> tuple[float, float]:
    """The factor and the mean length in milliseconds of bursts. Raises UsageError."""
    kind, *parts = arrivals.split(":")
    try:
        factor, on_ms = (float(p) for p in parts or (BURST_FACTOR, BURST_ON_MS))
    except ValueError:
        factor = on_ms = math.nan
    if kind != "bursty" or not (1 <= factor <= 1 / _BURST_SHARE and 1 <= on_ms <= 60_000):
        raise UsageError(
            "no such arrivals",
            expected=f"{' or '.join(ARRIVALS)}, FACTOR 1 to {1 / _BURST_SHARE:g}, ON_MS 1 to 60000",
            found=repr(arrivals),
        )
    return factor, on_ms


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


def bursty(
    rate: float,
    duration_s: float,
    seed: tuple[int, ...],
    factor: float = BURST_FACTOR,
    on_ms: float = BURST_ON_MS,
) -> Times:
    """A Markov-modulated Poisson process with two states; at least one request is due.

    In bursts the rate is `factor` times the mean one; they last `on_ms` on average, with
    exponential lengths, as have the pauses, and take a tenth of the time. Between them the
    rate is such that the mean is `rate`.
    """
    rng = np.random.default_rng((*seed, 1))
    on_s = on_ms / 1e3
    off_s = on_s * (1 - _BURST_SHARE) / _BURST_SHARE
    cycles = 16 + math.ceil(2 * duration_s / (on_s + off_s) + 8 * math.sqrt(duration_s / (on_s + off_s)))
    lengths = np.column_stack([rng.exponential(off_s, cycles), rng.exponential(on_s, cycles)]).ravel()
    if rng.random() < _BURST_SHARE:  # begins in a burst as often as there is one
        lengths = lengths[1:]
        first = 1
    else:
        first = 0
    low = rate * (1 - _BURST_SHARE * factor) / (1 - _BURST_SHARE)
    rates = np.where((np.arange(len(lengths)) + first) % 2, rate * factor, low)
    # A Poisson process of rate 1, its time stretched so that it passes at the state's rate.
    ends = np.concatenate([[0.0], np.cumsum(lengths)])
    mass = np.concatenate([[0.0], np.cumsum(lengths * rates)])
    expected = float(np.interp(duration_s, ends, mass))
    count = int(expected + 8 * math.sqrt(expected) + 16)
    passed = np.cumsum(rng.exponential(1.0, count))
    passed = passed[: max(1, int(np.searchsorted(passed, expected)))]
    due: Times = np.round(np.interp(passed, mass, ends) * _NS).astype(np.int64)
    return due


def replayed(offsets_ns: Times, speed: float) -> Times:
    """A recording's arrival times after its first request, `speed` times as fast. Raises UsageError."""
    if not (math.isfinite(speed) and speed > 0):
        raise UsageError("bad speed", expected="a number above 0", found=f"{speed:g}")
    if not 1 <= len(offsets_ns) <= REQUESTS_MAX:
        raise UsageError(
            "the recording holds too few or too many requests",
            expected=f"1 to {REQUESTS_MAX:,}",
            found=len(offsets_ns),
        )
    ascending = np.sort(offsets_ns)
    due: Times = np.round((ascending - ascending[0]) / speed).astype(np.int64)
    return due
