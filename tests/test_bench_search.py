"""Objectives, and the search against servers that exist only as a rule."""

from __future__ import annotations

import asyncio
import math
import random
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mserve.bench.judgement.evidence import at_most, early_stopping_needed
from mserve.bench.judgement.quantiles import NEVER_NS, grows_throughout, nearest_rank
from mserve.bench.judgement.search import PROBES_MAX, Measure, Probe, Search, find
from mserve.bench.judgement.slo import FAIL, INCONCLUSIVE, PASS, Slow, Tally, decide, outcome, parse, tally
from mserve.errors import UsageError

MS = 1_000_000


def search(measure: Measure, start: float = 100.0, cap: float = 1e6) -> Search:
    return asyncio.run(find(measure, start, cap))


def capacity(limit: float) -> Measure:
    """Passes up to a rate, fails above."""

    async def measure(rate: float) -> Probe:
        return Probe(rate, PASS if rate <= limit else FAIL, "" if rate <= limit else "too slow")

    return measure


@pytest.mark.parametrize(
    ("limit", "start", "why"),
    [
        (1000.0, 100.0, "the start is far below"),
        (1000.0, 990.0, "the start is close below"),
        (1000.0, 64_000.0, "the start is far above"),
        (1000.0, 1000.0, "the start is the capacity"),
        (3.7, 100.0, "a very slow server"),
        (123_456.0, 1.0, "a very fast server"),
    ],
)
def test_the_capacity_is_found_within_five_percent(limit: float, start: float, why: str) -> None:
    found = search(capacity(limit), start)
    assert found.rate is not None
    assert limit / 1.06 <= found.rate <= limit
    assert len(found.probes) <= PROBES_MAX
    assert "too slow" in found.limit


@pytest.mark.parametrize("seed", range(20))
def test_noise_moves_the_result_by_little(seed: int) -> None:
    rng = random.Random(seed)

    async def noisy(rate: float) -> Probe:
        return Probe(rate, PASS if rate <= 1000 * rng.uniform(0.9, 1.1) else FAIL, "missed")

    found = search(noisy)
    assert found.rate is not None
    assert 800 <= found.rate <= 1100


def test_a_lucky_pass_is_not_believed() -> None:
    """A rate that passes once and never again is lowered until it passes a second time."""
    lucky: set[float] = set()

    async def measure(rate: float) -> Probe:
        passed = rate <= 1000 or rate not in lucky
        lucky.add(rate)
        return Probe(rate, PASS if passed and rate <= 1100 else FAIL, "missed")

    found = search(measure)
    assert found.rate is not None
    assert found.rate <= 1050
    assert found.best() is not None


def test_an_impossible_objective_finds_no_rate_and_says_why() -> None:
    found = search(capacity(0.0))
    assert found.rate is None
    assert "too slow" in found.limit
    assert len(found.probes) <= PROBES_MAX


def test_an_objective_that_is_always_met_ends_at_the_cap() -> None:
    found = search(capacity(float("inf")), cap=5000.0)
    assert found.rate == 5000.0
    assert "5000" in found.limit


@pytest.mark.parametrize("at", [0, 1, 4])
def test_a_fatal_probe_ends_the_search(at: int) -> None:
    async def measure(rate: float) -> Probe:
        fatal = len(probes) == at
        probes.append(rate)
        return Probe(rate, FAIL if fatal else PASS, "the server is gone", fatal)

    probes: list[float] = []
    found = search(measure)
    assert len(found.probes) == at + 1
    assert found.rate is None
    assert "gone" in found.limit


@pytest.mark.parametrize(
    ("text", "p", "limit_ns"),
    [
        ("p99=50ms", 0.99, 50 * MS),
        ("p99<50ms", 0.99, 50 * MS),
        ("p99 <= 50 ms", 0.99, 50 * MS),
        ("p99.9<2s", 0.999, 2000 * MS),
        ("p50=250us", 0.5, 250_000),
        ("p50=250µs", 0.5, 250_000),
        ("p95=1.5ms", 0.95, 1_500_000),
    ],
)
def test_latency_objectives_are_read(text: str, p: float, limit_ns: int) -> None:
    slo = parse([text])
    assert [(o.p, o.limit_ns) for o in slo.objectives] == [(pytest.approx(p), limit_ns)]
    assert slo.errors_max == 0.0


@pytest.mark.parametrize(
    ("text", "share"),
    [("errors=0.1%", 0.001), ("errors<0.5", 0.5), ("errors = 0", 0.0), ("errors=100%", 1.0)],
)
def test_error_budgets_are_read(text: str, share: float) -> None:
    assert parse([text]).errors_max == pytest.approx(share)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "p99",
        "p99=50",
        "p99>50ms",
        "p100=1ms",
        "p0=1ms",
        "p99=0ms",
        "p99=-1ms",
        "99=1ms",
        "errors=101%",
        "x",
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse([text])


def ms(*values: float) -> np.ndarray:
    return np.sort((np.array(values) * MS).astype(np.int64))


def spread(n: int, slow: int, *, at: float = 100.0) -> np.ndarray:
    """n latencies of 1 ms, of which some, evenly spread, are slower."""
    values = np.full(n, 1.0)
    values[np.linspace(0, n - 1, slow).astype(int)] = at
    return (values * MS).astype(np.int64)


@pytest.mark.parametrize(
    ("series", "failed", "found", "why"),
    [
        (spread(2010, 10), 0, PASS, "ten slow ones need 2010 requests"),
        (spread(2009, 10), 0, INCONCLUSIVE, "one request less proves nothing"),
        (spread(459, 0), 0, PASS, "none slow need 459"),
        (spread(458, 0), 0, INCONCLUSIVE, "one request less proves nothing"),
        (spread(2000, 40), 0, FAIL, "twice as many as may be"),
        (spread(1000, 11), 0, INCONCLUSIVE, "one more than allowed may be chance"),
        (spread(20, 20), 0, FAIL, "too few to pass, enough to fail"),
        (spread(2010, 10), 1, FAIL, "no request may fail"),
        (np.r_[spread(2000, 0), np.full(40, 100 * MS)], 0, INCONCLUSIVE, "forty slow ones in one stall"),
        (np.r_[spread(1000, 0), NEVER_NS, spread(1009, 9)], 0, PASS, "one of the ten was never answered"),
        (spread(2000, 40, at=1e9), 0, FAIL, "many were answered after ages"),
        (ms(), 5, FAIL, "nothing was answered"),
    ],
)
def test_whether_an_objective_is_met(series: np.ndarray, failed: int, found: str, why: str) -> None:
    slo = parse(["p99=50ms"])
    assert outcome(decide(slo, tally(slo, series, failed, len(series) + failed))) == found


def test_an_error_budget_allows_its_share() -> None:
    slo = parse(["errors=1%"])
    for failed, expected in ((0, PASS), (1, PASS), (2, INCONCLUSIVE), (9, FAIL)):
        assert outcome(decide(slo, Tally(100, failed, ()))) == expected


def test_every_objective_counts() -> None:
    slo = parse(["p99=10ms", "p99.9=50ms", "errors=0.1%"])
    good = tally(slo, spread(10_000, 10, at=20.0), 1, 10_000)
    assert outcome(decide(slo, good)) == PASS
    slow_tail = tally(slo, spread(10_000, 60, at=60.0), 1, 10_000)
    assert [f.outcome for f in decide(slo, slow_tail)] == [PASS, PASS, FAIL]
    failing = tally(slo, spread(10_000, 10, at=20.0), 40, 10_000)
    assert [f.outcome for f in decide(slo, failing)] == [FAIL, PASS, PASS]


def test_looking_again_does_not_make_a_missed_objective_met() -> None:
    """A rate exactly at its limit, looked at after 1, 2, 3, ... parts: seldom called met or missed."""
    slo, rng, decided = parse(["p99=1ms"]), np.random.default_rng(0), 0
    for _ in range(1000):
        total = Tally(0, 0, (Slow(),))
        for look in range(6):
            late = int(rng.binomial(1500, 0.01))
            total += Tally(1500, 0, (Slow(1500, late, 1500, late),))
            if outcome(decide(slo, total, look)) != INCONCLUSIVE:
                decided += 1
                break
    assert decided / 1000 < 0.05


TABLE = {  # slow requests: 0, 1, 2, 5, 10, 50
    0.90: (44, 64, 81, 127, 197, 681),
    0.95: (90, 130, 165, 259, 398, 1372),
    0.99: (459, 662, 838, 1307, 2010, 6898),
    0.999: (4603, 6636, 8403, 13105, 20140, 69058),
}


@pytest.mark.parametrize("p", TABLE)
def test_the_table_of_early_stopping(p: float) -> None:
    assert tuple(early_stopping_needed(over, p) for over in (0, 1, 2, 5, 10, 50)) == TABLE[p]


@given(st.integers(0, 200), st.integers(1, 300), st.floats(0.001, 0.999))
def test_binomial_tails_are_exact(k: int, n: int, q: float) -> None:
    exact = math.fsum(math.comb(n, i) * q**i * (1 - q) ** (n - i) for i in range(min(k, n) + 1))
    assert at_most(k, n, q) == pytest.approx(min(1.0, exact), abs=1e-9)


# the search against servers with a known answer


def queued(due: np.ndarray, service_s: float) -> np.ndarray:
    """Seconds that each request spends at one server with a constant service time."""
    work = service_s * np.arange(1, len(due) + 1)
    return np.maximum.accumulate(due - work + service_s) + work - due


@dataclass
class Simulated:
    """Poisson arrivals at one server that takes batches; its p99 is measured as a probe does."""

    alone_s: float
    row_s: float
    batch_max: int
    delay_s: float
    limit_s: float
    seed: int

    def p99_of(self, rate: float, n: int = 1500) -> np.ndarray:
        self.seed += 1
        arrivals = np.cumsum(np.random.default_rng(self.seed).exponential(1 / rate, n + 200))
        if self.batch_max == 1:
            return (queued(arrivals, self.alone_s)[200:] * 1e9).astype(np.int64)
        due = arrivals.tolist()
        latency, free, i = [], 0.0, 0
        while i < len(due):
            first = max(free, due[i])
            close = max(first, due[i] + self.delay_s)
            if i + self.batch_max <= len(due):
                close = min(close, max(first, due[i + self.batch_max - 1]))
            size = min(self.batch_max, bisect_right(due, close) - i)
            free = close + self.alone_s + self.row_s * size
            latency += [free - t for t in due[i : i + size]]
            i += size
        return (np.array(latency[200:]) * 1e9).astype(np.int64)

    async def measure(self, rate: float) -> Probe:
        slo = parse([f"p99={self.limit_s * 1e3:.6f}ms"])
        total = Tally(0, 0, (Slow(),))
        for look in range(3):
            series = self.p99_of(rate, 6000 << max(0, look - 1))
            if grows_throughout(series):
                return Probe(rate, FAIL, "unstable")
            total += tally(slo, series, 0, len(series))
            found = outcome(decide(slo, total, look))
            if found != INCONCLUSIVE:
                break
        return Probe(rate, found, found)

    def truth(self, rate: float) -> bool:
        series = self.p99_of(rate, 60_000)
        return not grows_throughout(series) and nearest_rank(np.sort(series), 0.99) <= self.limit_s * 1e9


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.floats(0.3, 3.0), st.floats(4.0, 12.0), st.integers(0, 1000))
def test_the_search_finds_the_rate_of_a_simulated_queue(alone_ms: float, factor: float, seed: int) -> None:
    """What it finds holds in the long run, and a fifth more does not."""
    server = Simulated(alone_ms / 1e3, 0.0, 1, 0.0, factor * alone_ms / 1e3, seed)
    capacity_guess = 1e3 / alone_ms
    found = asyncio.run(find(server.measure, capacity_guess / 2, 1e6)).rate
    assert found is not None
    assert server.truth(0.97 * found)
    assert not server.truth(1.2 * found)


def test_a_latency_that_falls_with_the_rate_does_not_stop_the_search() -> None:
    """A batcher that waits for more: at low rates every request waits in vain, and is too slow."""
    server = Simulated(0.001, 0.00005, 16, 0.02, 0.018, 1)
    assert not server.truth(100.0)
    assert server.truth(2000.0)
    found = asyncio.run(find(server.measure, 3000.0, 1e6))
    assert found.rate is not None
    assert found.rate > 2000
    assert server.truth(0.97 * found.rate)
    assert any("not monotonic" in warning for warning in found.warnings)


def test_the_steps_of_a_search_are_told() -> None:
    found = search(capacity(1000.0), 500.0)
    assert found.steps[0] == "sweep"
    assert found.steps[-5:] == ["confirm", "confirm", "confirm", "above", "above"]
    assert not found.probes[-1].passed
    document = found.to_json()
    assert document["rate"] == found.rate
    assert {p["outcome"] for p in document["probes"]} == {PASS, FAIL}


def test_an_inconclusive_probe_counts_as_failed() -> None:
    async def measure(rate: float) -> Probe:
        return Probe(rate, PASS if rate <= 1000 else INCONCLUSIVE, "too few")

    found = search(measure)
    assert found.rate is not None
    assert found.rate <= 1000
    assert any("inconclusive" in warning for warning in found.warnings)
