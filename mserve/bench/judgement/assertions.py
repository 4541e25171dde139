"""Assertions: `p99<10ms`, `qps>500`: what a CI run demands of a report. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...errors import UsageError
from ..results.report import Report
from .quantiles import milliseconds
from .slo import UNITS_NS

EXPECTED = "p99<10ms, mean<5ms, max<1s, qps>500, goodput>400, errors<0.1%, batch>2 or queue<1ms"

_TEXT = re.compile(
    r"(?P<name>p\d{1,2}(?:\.\d+)?|mean|max|qps|goodput|errors|batch|queue)"
    r"(?P<sign><=|>=|<|>|=)(?P<value>\d+(?:\.\d+)?)(?P<unit>us|µs|ms|s|%|)"
)
_TIMES = ("mean", "max", "queue")
_MORE_IS_BETTER = ("qps", "goodput", "batch")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


@dataclass(frozen=True, slots=True)
class Assertion:
    """One demand: latencies in milliseconds, errors as a share, the rest as it is."""

    text: str
    name: str
    sign: str
    value: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether an assertion holds for a report, and what was found; `told` tells that the report says it."""

    text: str
    holds: bool
    found: str
    told: bool = True

    def __str__(self) -> str:
        return f"{self.text}: {self.word}: {self.found}"

    @property
    def word(self) -> str:
        """What became of it, for people."""
        return "holds" if self.holds else "does not hold" if self.told else "cannot be told"


def parse(texts: Sequence[str]) -> list[Assertion]:
    """The assertions of `--assert` texts; `=` reads as "or better". Raises UsageError."""
    return [_parsed(text) for text in texts]


def _parsed(text: str) -> Assertion:
    found = _TEXT.fullmatch("".join(text.split()))
    if found is None:
        raise _bad(text)
    name, sign, value, unit = found["name"], found["sign"], float(found["value"]), found["unit"]
    timed = name in _TIMES or name.startswith("p")
    wrong_unit = timed != (unit in UNITS_NS) or (unit == "%" and name != "errors")
    if wrong_unit or (name.startswith("p") and float(name[1:]) == 0):
        raise _bad(text)
    value *= UNITS_NS[unit] / 1e6 if timed else 0.01 if unit == "%" else 1.0
    if sign == "=":
        sign = ">=" if name in _MORE_IS_BETTER else "<="
    return Assertion(text, name, sign, value)


def _bad(text: str) -> UsageError:
    return UsageError("bad --assert", expected=EXPECTED, found=repr(text))


def check(assertions: Sequence[Assertion], report: Report) -> list[Outcome]:
    """Whether each holds; what the report cannot say does not hold."""
    return [_check(assertion, report) for assertion in assertions]


def _check(assertion: Assertion, report: Report) -> Outcome:
    found = value_of(assertion.name, report)
    if isinstance(found, str):
        return Outcome(assertion.text, False, found, told=False)
    holds = _COMPARE[assertion.sign](found, assertion.value)
    timed = assertion.name in _TIMES or assertion.name.startswith("p")
    text = f"{found:.3f} ms" if timed else f"{found:.3%}" if assertion.name == "errors" else f"{found:,.1f}"
    return Outcome(assertion.text, holds, text)


def value_of(name: str, report: Report) -> float | str:
    """A number of a report by its name in assertions, or why there is none."""
    if name == "errors":
        return (report.total - report.ok) / report.total if report.total else "no request was measured"
    if name == "qps":
        return report.rates.ok
    if name in ("batch", "queue"):
        key = "mean_batch_rows" if name == "batch" else "mean_queue_ms"
        seen = (report.seen.server or {}).get(key)
        return "the server does not tell" if seen is None else float(seen)
    if not report.quotable():
        return str(report.verdict)
    if name == "goodput":
        good = report.goodput()
        return "needs a latency objective (--slo)" if good is None else good
    return _latency(name, report)


def _latency(name: str, report: Report) -> float | str:
    if name.startswith("p"):
        quoted = report.percentile(float(name[1:]) / 100)
        if quoted.value_ns is None:
            return f"needs {quoted.needed} samples, has {len(report.latencies)}"
        found = milliseconds(quoted.value_ns)
    elif name == "mean":
        found = report.mean_ms()
    else:
        found = milliseconds(int(report.latencies[-1]))
    return "some requests were never answered" if found is None else found
