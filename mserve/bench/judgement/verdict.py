"""The verdict on one measurement: whether its numbers mean anything, and what they decide. Pure.

A number that cannot be trusted is not printed with a warning: it is not printed. A run
whose client was late is INVALID, one whose server fell behind is UNSTABLE; neither has
percentiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..load.recorder import Phase, Rates, Recorder, lag_p99, outcome_name
from ..load.reload import Swaps
from .quantiles import NEVER_NS, Percentile, grows_throughout, nearest_rank
from .slo import FAIL, INCONCLUSIVE, PASS, Slo, Tally, decide, outcome, tally

ACHIEVED_MIN = 0.99
LAG_MIN_NS = 1_000_000
LAG_SHARE = 0.05
CLOSED_LABEL = "closed loop: not valid for latency-SLO claims"


@dataclass(frozen=True, slots=True)
class Load:
    """What is offered: `rate` requests per second in an open loop, or a closed loop when it is None.

    `timeout_s` is how long answers are waited for after the last request was sent.
    """

    rate: float | None = None
    concurrency: int = 16
    duration_s: float = 5.0
    warmup_s: float = 1.0
    timeout_s: float = 10.0
    arrivals: str = "poisson"
    seed: int = 1
    # Warm-up until latencies are steady, so many seconds at most; 0: `warmup_s`, whatever happens.
    max_warmup_s: float = 0.0
    scenario: str = ""

    def __str__(self) -> str:
        if self.scenario:
            return f"MLPerf {self.scenario}, {f'{self.rate:g}/s, ' if self.rate else ''}{self.duration_s:g} s"
        if self.rate is None:
            return f"closed loop, {self.concurrency} connections, {self.duration_s:g} s"
        return f"open loop, {self.arrivals}, {self.rate:g}/s for {self.duration_s:g} s"

    def to_json(self) -> dict[str, Any]:
        loop: dict[str, Any] = {"loop": "closed", "concurrency": self.concurrency}
        if self.rate is not None:
            loop = {"loop": "open", "arrivals": self.arrivals, "rate": self.rate, "seed": self.seed}
        times = {"duration_s": self.duration_s, "warmup_s": self.warmup_s, "timeout_s": self.timeout_s}
        return loop | times


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was seen: by the client, by the server, and which model versions answered."""

    phase: Phase
    warmup: Phase | None = None
    server: Mapping[str, Any] | None = None
    versions: Mapping[str, int] = field(default_factory=dict)
    cpu_share: float = 0.0
    warmup_end: str = ""
    cold_ns: int | None = None
    swaps: Swaps | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """One word, and why."""

    code: str
    reason: str = ""

    MEASURED = "measured"
    PASS = PASS
    FAIL = FAIL
    INCONCLUSIVE = INCONCLUSIVE
    ERRORS = "errors"
    UNSTABLE = "unstable"
    INVALID = "invalid"
    STOPPED = "stopped"

    def __str__(self) -> str:
        loud = self.code in (self.INVALID, self.UNSTABLE, self.INCONCLUSIVE)
        code = self.code.upper() if loud else self.code
        return f"{code}: {self.reason}" if self.reason else code


def judge(
    load: Load,
    seen: Measurement,
    rates: Rates,
    slo: Slo | None = None,
    *,
    shares_loop: bool = False,
    earlier: Sequence[Tally] = (),
) -> Verdict:
    """The verdict on a measurement. `shares_loop`: client and server run on one event loop.

    `earlier` holds what earlier looks at the same rate counted: this one extends them.
    """
    recorder = seen.phase.recorder
    total, ok = recorder.count, recorder.ok()
    if seen.phase.broken:
        return Verdict(Verdict.INVALID, seen.phase.broken)
    if seen.phase.stopped:
        return Verdict(Verdict.STOPPED, f"{seen.phase.stopped}, after {seen.phase.span_ns / 1e9:.1f} s")
    if total == 0:
        return Verdict(Verdict.INVALID, "no request was measured")
    if ok == 0:
        return Verdict(Verdict.ERRORS, f"every request failed: {_worst(seen.phase)}")
    late = None
    if load.rate is not None:
        # On a shared loop, a request taken up late waited for the model, as it would have
        # waited in a server's socket: that is latency, and nobody's lateness.
        late = None if shares_loop else late_client(recorder)
        if (behind := _falls_behind(recorder, rates)) is not None:
            return Verdict(Verdict.INVALID, late) if late and _mostly_lag(recorder) else behind
    findings = decide(slo, total_of(slo, seen.phase, earlier), len(earlier)) if slo else []
    decided = outcome(findings) if slo else None
    if decided == Verdict.PASS:
        return Verdict(Verdict.PASS, str(slo))  # lateness can only have made this harder
    if late is not None:
        return Verdict(Verdict.INVALID, late)
    if decided is not None:
        return Verdict(decided, "; ".join(f.text for f in findings if f.outcome == decided))
    if ok < total:
        return Verdict(Verdict.ERRORS, f"{total - ok} of {total} requests failed: {_worst(seen.phase)}")
    return Verdict(Verdict.MEASURED, CLOSED_LABEL if load.rate is None else "")


def total_of(slo: Slo, phase: Phase, earlier: Sequence[Tally] = ()) -> Tally:
    """What a phase and the looks before it counted for the objectives."""
    recorder = phase.recorder
    counted = tally(slo, recorder.latencies(), recorder.count - recorder.ok(), recorder.count)
    return sum(earlier, counted)


def _worst(phase: Phase) -> str:
    """The most frequent class of failure, with its first message."""
    worst, _ = max(phase.recorder.errors().items(), key=lambda item: item[1])
    message = phase.messages.get(worst, "")
    return outcome_name(worst) + (f": {message[:200]}" if message else "")


def late_client(recorder: Recorder) -> str | None:
    """What the client did wrong: it may be late by a small part of what it measures."""
    p99 = nearest_rank(np.sort(recorder.latencies()), 0.99)
    lag = lag_p99(recorder)
    limit = max(LAG_MIN_NS, 0 if p99 == NEVER_NS else int(LAG_SHARE * p99))
    if lag <= limit:
        return None
    return f"the client itself was late: its lag's p99 is {show(lag)}, allowed is {show(limit)}"


def _mostly_lag(recorder: Recorder) -> bool:
    """Whether requests were slow because the client sent them late, not because the server was slow."""
    return 2 * lag_p99(recorder) > nearest_rank(np.sort(recorder.latencies()), 0.99)


def _falls_behind(recorder: Recorder, rates: Rates) -> Verdict | None:
    why = ""
    if rates.ratio < ACHIEVED_MIN:
        why = f"{rates.achieved:,.1f}/s answered of {rates.offered:,.1f}/s offered"
    elif grows_throughout(recorder.latencies()):
        why = "latency grew from beginning to end"
    return Verdict(Verdict.UNSTABLE, f"offered load above capacity: {why}") if why else None


def interval(found: Percentile) -> str:
    """A percentile's confidence interval for people."""
    if found.low_ns is None and found.high_ns is None:
        return "run too short"
    return f"{show(found.low_ns)} to {show(found.high_ns)}"


def show(ns: int | None) -> str:
    """A time for people: `0.312 ms`, three digits or more."""
    if ns is None:
        return "-"
    if ns == NEVER_NS:
        return "no answer"
    value = ns / 1e6
    decimals = 3 if value < 10 else 2 if value < 100 else 1
    return f"{value:.{decimals}f} ms"
