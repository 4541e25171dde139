"""Objectives: `p99<50ms`, `errors<0.1%`, and whether a measurement meets them. Pure.

An objective is met, missed, or neither is proven yet (see `evidence`). What is counted is
a Tally, which adds up over the extensions of a probe.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import UsageError
from .dependence import INDEPENDENT, correlation_time
from .evidence import early_stopping_needed, level_of_look, proves
from .quantiles import Ints

DEFAULT = "p99=50ms"
PASS, FAIL, INCONCLUSIVE = "pass", "fail", "inconclusive"
# A run is planned so that it can prove an objective in spite of so many slow requests.
SLOW_EXPECTED = 5

_LATENCY = re.compile(r"p(\d{1,2}(?:\.\d+)?)\s*(?:<=|<|=)\s*(\d+(?:\.\d+)?)\s*(us|µs|ms|s)")
_ERRORS = re.compile(r"errors\s*(?:<=|<|=)\s*(\d+(?:\.\d+)?)\s*(%?)")
UNITS_NS = {"us": 1e3, "µs": 1e3, "ms": 1e6, "s": 1e9}


@dataclass(frozen=True, slots=True)
class Objective:
    """A percentile of the latency and its limit in nanoseconds."""

    p: float
    limit_ns: int
    text: str


@dataclass(frozen=True, slots=True)
class Slo:
    """Objectives that must all be met, and the share of requests that may fail."""

    objectives: tuple[Objective, ...] = ()
    errors_max: float = 0.0
    errors_text: str = "errors=0"

    def __str__(self) -> str:
        return ", ".join([*(o.text for o in self.objectives), self.errors_text])

    def samples_needed(self) -> int:
        """How many requests a measurement should hold to decide every objective."""
        return max((early_stopping_needed(SLOW_EXPECTED, o.p) for o in self.objectives), default=1)

    def limit_ns(self) -> int | None:
        """The longest latency that any objective speaks of: a slower answer is no good one."""
        return max((o.limit_ns for o in self.objectives), default=None)


@dataclass(frozen=True, slots=True)
class Slow:
    """How many of a number of requests were slower than a limit.

    `size` and `over` are what the same would be among independent requests: a hundred slow
    ones in one stall are one event, not a hundred.
    """

    n: int = 0
    late: int = 0
    size: int = 0
    over: int = 0

    def __add__(self, other: Slow) -> Slow:
        return Slow(self.n + other.n, self.late + other.late, self.size + other.size, self.over + other.over)


@dataclass(frozen=True, slots=True)
class Tally:
    """What counts for an SLO: all requests, the failed ones, and the slow ones by objective."""

    total: int
    failed: int
    slow: tuple[Slow, ...]

    def __add__(self, other: Tally) -> Tally:
        slow = tuple(a + b for a, b in zip(self.slow, other.slow, strict=True))
        return Tally(self.total + other.total, self.failed + other.failed, slow)


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether one objective is met: PASS, FAIL or INCONCLUSIVE, and what was counted."""

    outcome: str
    text: str


def parse(expressions: Sequence[str]) -> Slo:
    """The objectives of `--slo` texts; without one about errors, none may happen. Raises UsageError."""
    objectives = []
    errors_max, errors_text = 0.0, "errors=0"
    for expression in expressions:
        text = "".join(expression.split())
        if latency := _LATENCY.fullmatch(text):
            p = float(latency[1]) / 100
            limit = float(latency[2]) * UNITS_NS[latency[3]]
            if not (0 < p < 1 and limit > 0):
                raise _bad(expression)
            objectives.append(Objective(p, round(limit), text))
        elif errors := _ERRORS.fullmatch(text):
            errors_max = float(errors[1]) / (100 if errors[2] else 1)
            errors_text = text
            if errors_max > 1:
                raise _bad(expression)
        else:
            raise _bad(expression)
    return Slo(tuple(objectives), errors_max, errors_text)


def _bad(expression: str) -> UsageError:
    return UsageError("bad --slo", expected="p99=50ms, p99.9<2s, errors<0.1%", found=repr(expression))


def tally(slo: Slo, series: Ints, failed: int, total: int) -> Tally:
    """Count a measurement: latencies in nanoseconds in the order of sending, and how many requests failed."""
    return Tally(total, failed, tuple(_slow(series, o.limit_ns) for o in slo.objectives))


def _slow(series: Ints, limit_ns: int) -> Slow:
    events = series > limit_ns
    n, late = len(events), int(events.sum())
    time = correlation_time(events)
    time = 1.0 if time < INDEPENDENT else time
    return Slow(n, late, round(n / time), min(late, max(1, round(late / time)) if late else 0))


def decide(slo: Slo, counted: Tally, look: int = 0) -> list[Finding]:
    """What a tally proves of each objective. `look`: how often the same probe was looked at before."""
    if counted.total == 0:
        return [Finding(INCONCLUSIVE, "no request was measured")]
    level = level_of_look(look)
    found = [_errors(slo, counted, level)]
    for objective, slow in zip(slo.objectives, counted.slow, strict=True):
        proven = proves(slow.size, slow.over, objective.p, level)
        text = f"{objective.text}: {slow.late} of {slow.n} took longer"
        if proven is None:
            text += f"; {_needed(slow, objective.p, level)} such requests would prove it"
        found.append(Finding({True: PASS, False: FAIL, None: INCONCLUSIVE}[proven], text))
    return found


def _needed(slow: Slow, p: float, level: float) -> str:
    """How many requests would do, with as many slow ones; more slow ones need more requests."""
    needed = early_stopping_needed(slow.over, p, level)
    return f"{round(needed * slow.n / max(1, slow.size)):,}"


def _errors(slo: Slo, counted: Tally, level: float) -> Finding:
    """A budget is an account: within it is met. Over it by what may be chance is not decided."""
    text = f"{slo.errors_text}: {counted.failed} of {counted.total} requests failed"
    if counted.failed <= slo.errors_max * counted.total * (1 + 1e-9):
        return Finding(PASS, text)
    missed = slo.errors_max == 0 or proves(counted.total, counted.failed, 1 - slo.errors_max, level) is False
    return Finding(FAIL if missed else INCONCLUSIVE, text)


def outcome(findings: Sequence[Finding]) -> str:
    """One word for several objectives, which must all be met."""
    outcomes = {finding.outcome for finding in findings}
    return FAIL if FAIL in outcomes else INCONCLUSIVE if INCONCLUSIVE in outcomes else PASS
