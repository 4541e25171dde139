"""Jitter: how late this machine wakes a process up. The floor below any measured lateness."""

from __future__ import annotations

import time

SELF_TEST_S = 0.05
_NAP_NS = 500_000


def measure_jitter(seconds: float = SELF_TEST_S) -> int:
    """Nap for half a millisecond over and over; returns the most that one took too long, in ns."""
    worst = 0
    now = time.perf_counter_ns()
    end = now + int(seconds * 1e9)
    while now < end:
        time.sleep(_NAP_NS / 1e9)
        woken = time.perf_counter_ns()
        worst = max(worst, woken - now - _NAP_NS)
        now = woken
    return worst
