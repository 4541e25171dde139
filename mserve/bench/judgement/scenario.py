"""MLPerf's scenarios, with the rules of its LoadGen. Pure.

    single-stream   one request, the next when it is answered        90th percentile
    multi-stream    eight requests at once, the next eight likewise  99th percentile of the slowest
    server          Poisson arrivals, a bound on the 99th percentile requests per second
    offline         all requests at once                             samples per second

A run is valid when it lasted long enough, held enough queries, and early stopping allows a
statement with 99 % confidence: of n queries so few were slower than the bound that chance
would do no better once in a hundred times. For streams the same rule, turned round, gives
an upper bound of the percentile: with t the largest number of slow queries that n allow,
it is the t-th slowest of all. Rules and defaults: https://github.com/mlcommons/inference,
https://github.com/mlcommons/inference_policies.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import UsageError
from ..load.recorder import OK, Phase
from .evidence import over_allowed
from .quantiles import NEVER_NS, Ints, interval_ranks, nearest_rank
from .verdict import show

# On either side 99 %.
_TWO_SIDED = 0.98
# What a submission to MLPerf needs; LoadGen itself ends after 10 s where nobody says otherwise.
SUBMISSION_S = 600.0
OFFLINE_SAMPLES = 24_576
# How much longer than asked for an offline run is planned: a warm-up knows the rate only roughly.
OFFLINE_MARGIN = 1.5


@dataclass(frozen=True, slots=True)
class Scenario:
    """One of the four: requests a query, the percentile that it is about, and the fewest queries."""

    name: str
    samples: int
    percentile: float
    queries_min: int

    @property
    def streams(self) -> bool:
        """Whether each query waits for the one before."""
        return self.name in ("single-stream", "multi-stream")


SCENARIOS = {
    s.name: s
    for s in (
        Scenario("single-stream", 1, 0.90, 100),
        Scenario("multi-stream", 8, 0.99, 662),
        Scenario("server", 1, 0.99, 100),
        Scenario("offline", 1, 0.0, OFFLINE_SAMPLES),
    )
}


@dataclass(frozen=True, slots=True)
class Rules:
    """What one run must keep: the scenario, seconds, queries, and the server's bound with its percentile."""

    scenario: Scenario
    duration_s: float
    queries: int
    bound_ns: int = 0
    percentile: float = 0.0

    def text(self) -> str:
        """The rules for people."""
        least = "samples" if self.scenario.name == "offline" else "queries"
        return f"at least {self.duration_s:g} s and {self.queries:,} {least}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run amounts to: `value` in nanoseconds for streams, in samples per second otherwise.

    `low` and `high` bound the percentile of streams with a confidence of 99 % on either side.
    """

    rules: Rules
    queries: int
    seconds: float
    value: float | None
    invalid: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def valid(self) -> bool:
        """Whether every rule was kept."""
        return not self.invalid

    @property
    def too_short(self) -> bool:
        """Whether all samples of an offline run were answered before its time was over."""
        return self.rules.scenario.name == "offline" and self.seconds < self.rules.duration_s

    def metric(self) -> str:
        """What the value is."""
        s = self.rules.scenario
        if s.streams:
            return f"p{100 * s.percentile:g} of the query latency, early-stopping estimate"
        return "requests per second within the bound" if s.name == "server" else "samples per second"

    def figure(self) -> str:
        """The value for people."""
        if self.value is None:
            return "none"
        return show(int(self.value)) if self.rules.scenario.streams else f"{self.value:,.1f}/s"

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it; latencies in milliseconds."""
        scale = 1e6 if self.rules.scenario.streams else 1.0
        return {
            "name": self.rules.scenario.name,
            "valid": self.valid,
            "reasons": list(self.invalid),
            "metric": self.metric(),
            "unit": "ms" if self.rules.scenario.streams else "1/s",
            "value": None if self.value is None else self.value / scale,
            "low": None if self.low is None else self.low / scale,
            "high": None if self.high is None else self.high / scale,
            "queries": self.queries,
            "samples_per_query": self.rules.scenario.samples,
            "seconds": self.seconds,
            "notes": list(self.notes),
        }


def named(name: str) -> Scenario:
    """A scenario by its name. Raises UsageError."""
    if name not in SCENARIOS:
        raise UsageError("no such scenario", expected=", ".join(SCENARIOS), found=repr(name))
    return SCENARIOS[name]


def judged(rules: Rules, phase: Phase) -> Outcome:
    """What a phase of a scenario amounts to."""
    recorder, scenario = phase.recorder, rules.scenario
    n = recorder.count
    latency = recorder.done[:n] - recorder.intended[:n]
    latency[recorder.outcome[:n] != OK] = NEVER_NS
    queries = n // scenario.samples
    slowest = np.sort(latency[: queries * scenario.samples].reshape(queries, scenario.samples).max(axis=1))
    begin, end = (int(recorder.intended[:n].min()), int(recorder.done[:n].max())) if n else (0, 0)
    seconds = (end - begin) / 1e9
    failed = n - recorder.ok()
    invalid = [phase.broken] if phase.broken else [phase.stopped] if phase.stopped else []
    invalid += [f"{failed:,} of {n:,} requests failed"] if failed else []
    sent_s = seconds if scenario.name == "offline" else phase.span_ns / 1e9
    if sent_s < rules.duration_s * 0.999:
        invalid.append(f"{sent_s:.1f} s, at least {rules.duration_s:g} s are needed")
    if queries < rules.queries:
        invalid.append(f"{queries:,} queries, at least {rules.queries:,} are needed")
    value, low, high, broken = _figure(rules, slowest, seconds)
    return Outcome(rules, queries, seconds, value, (*invalid, *broken), low, high, _notes(rules))


_Figure = tuple[float | None, float | None, float | None, list[str]]


def _figure(rules: Rules, ascending: Ints, seconds: float) -> _Figure:
    n = len(ascending)
    if rules.scenario.name == "offline":
        return (n / seconds if seconds > 0 else None), None, None, []
    p = rules.scenario.percentile if rules.scenario.streams else rules.percentile
    allowed = over_allowed(n, p)
    if rules.scenario.streams:
        if allowed < 1:
            return None, None, None, [f"{n:,} queries are too few for early stopping"]
        rank, high = interval_ranks(n, p, _TWO_SIDED)[0], int(ascending[n - allowed])
        return high, (int(ascending[rank - 1]) if rank else None), high, []
    over = n - int(np.searchsorted(ascending, rules.bound_ns, side="right"))
    if over <= allowed:
        return n / seconds, None, None, []
    seen = show(nearest_rank(ascending, p)) if n else "-"
    most = f"at most {allowed:,} may" if allowed >= 0 else "too few queries to say anything"
    text = f"{over:,} of {n:,} took over {show(rules.bound_ns)}, {most}; p{100 * p:g} {seen}"
    return n / seconds if n else None, None, None, [text]


def _notes(rules: Rules) -> tuple[str, ...]:
    notes = []
    if rules.duration_s < SUBMISSION_S:
        notes.append(f"MLPerf's submissions last {SUBMISSION_S:g} s or more, this run {rules.duration_s:g} s")
    if rules.queries < rules.scenario.queries_min:
        least = f"{rules.scenario.queries_min:,}"
        notes.append(f"MLPerf's least number of queries is {least}, this run's {rules.queries:,}")
    return tuple(notes)
