"""Objectives: `p99<50ms`, `errors<0.1%`, and whether a measurement meets them. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UsageError
from .quantiles import TAIL_SAMPLES, Ints, samples_needed

DEFAULT = "p99=50ms"

_LATENCY = re.compile(r"p(\d{1,2}(?:\.\d+)?)\s*(?:<=|<|=)\s*(\d+(?:\.\d+)?)\s*(us|µs|ms|s)")
_ERRORS = re.compile(r"errors\s*(?:<=|<|=)\s*(\d+(?:\.\d+)?)\s*(%?)")
_UNITS_NS = {"us": 1e3, "µs": 1e3, "ms": 1e6, "s": 1e9}


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
        """How many requests a measurement must hold to decide every objective."""
        return max((samples_needed(o.p) for o in self.objectives), default=1)


@dataclass(frozen=True, slots=True)
class Miss:
    """One objective that was not met. `undecided`: there were too few samples to say."""

    text: str
    undecided: bool = False


def parse(expressions: Sequence[str]) -> Slo:
    """The objectives of `--slo` texts; without one about errors, none may happen. Raises UsageError."""
    objectives = []
    errors_max, errors_text = 0.0, "errors=0"
    for expression in expressions:
        text = "".join(expression.split())
        if latency := _LATENCY.fullmatch(text):
            p = float(latency[1]) / 100
            limit = float(latency[2]) * _UNITS_NS[latency[3]]
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


def misses(slo: Slo, ascending: Ints, failed: int, total: int) -> list[Miss]:
    """What a measurement lacks: sorted latencies in nanoseconds, and how many of all requests failed.

    A percentile that too few samples carry is a miss too, but an undecided one.
    """
    found = []
    if total == 0:
        return [Miss("no request was measured", undecided=True)]
    if failed / total > slo.errors_max:
        found.append(Miss(f"{slo.errors_text}: {failed} of {total} requests failed"))
    for objective in slo.objectives:
        n, needed = len(ascending), samples_needed(objective.p)
        late = n - int((ascending <= objective.limit_ns).sum())
        allowed = n - math.ceil(round(objective.p * n, 6))
        if late > max(allowed, TAIL_SAMPLES):
            found.append(Miss(f"{objective.text}: {late} of {n} took longer"))
        elif n < needed:
            found.append(Miss(f"{objective.text}: needs {needed} samples, has {n}", undecided=True))
    return found
