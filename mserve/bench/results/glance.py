"""Glance: what the last seconds of a running measurement look like. Pure; for people who watch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..judgement.quantiles import nearest_rank
from ..judgement.verdict import show
from ..load.recorder import OK, PENDING, Recorder

SECONDS = 3.0
_ROWS_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Glance:
    """Answers per second and latencies of the last seconds; `failed` and `answered` since the start."""

    rate: float
    p50_ns: int | None
    p99_ns: int | None
    answered: int
    failed: int

    def __str__(self) -> str:
        text = f"{self.rate:,.0f}/s, p50 {show(self.p50_ns)}, p99 {show(self.p99_ns)}"
        return text + f", {self.answered:,} answered, {self.failed:,} failed"


def glance(records: Sequence[Recorder], now_ns: int, seconds: float = SECONDS) -> Glance:
    """Look at recorders that others may be writing to; a row that is half written may be missed."""
    latencies, answered, failed, first = [], 0, 0, now_ns
    for recorder in records:
        n = recorder.count
        if n == 0:
            continue
        outcome = recorder.outcome[:n]
        settled = outcome != PENDING
        answered += int(np.count_nonzero(settled))
        failed += int(np.count_nonzero(settled & (outcome != OK)))
        first = min(first, int(recorder.intended[0]))
        last = slice(max(0, n - _ROWS_MAX), n)
        recent = (outcome[last] == OK) & (recorder.done[last] > now_ns - seconds * 1e9)
        latencies.append((recorder.done[last] - recorder.intended[last])[recent])
    found = np.sort(np.concatenate(latencies)) if latencies else np.zeros(0, np.int64)
    span_s = max(0.1, min(seconds, (now_ns - first) / 1e9))
    middle, tail = (nearest_rank(found, p) if len(found) else None for p in (0.5, 0.99))
    return Glance(len(found) / span_s, middle, tail, answered, failed)
