"""Objectives, and the search against servers that exist only as a rule."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest

from mserve.bench.quantiles import NEVER_NS
from mserve.bench.search import PROBES_MAX, Measure, Probe, Search, find
from mserve.bench.slo import misses, parse
from mserve.errors import UsageError

MS = 1_000_000


def search(measure: Measure, start: float = 100.0, cap: float = 1e6) -> Search:
    return asyncio.run(find(measure, start, cap))


def capacity(limit: float) -> Measure:
    """Passes up to a rate, fails above."""

    async def measure(rate: float) -> Probe:
        return Probe(rate, rate <= limit, "" if rate <= limit else "too slow")

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
        return Probe(rate, rate <= 1000 * rng.uniform(0.9, 1.1), "missed")

    found = search(noisy)
    assert found.rate is not None
    assert 800 <= found.rate <= 1100


def test_a_lucky_pass_is_not_believed() -> None:
    """A rate that passes once and never again is lowered until it passes a second time."""
    lucky: set[float] = set()

    async def measure(rate: float) -> Probe:
        passed = rate <= 1000 or rate not in lucky
        lucky.add(rate)
        return Probe(rate, passed and rate <= 1100, "missed")

    found = search(measure)
    assert found.rate is not None
    assert found.rate <= 1050
    assert found.probes[-1].passed


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
        return Probe(rate, not fatal, "the server is gone", fatal)

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


FAST, SLOW = [1.0] * 990, [100.0] * 10


@pytest.mark.parametrize(
    ("latencies", "failed", "met", "undecided", "why"),
    [
        (ms(*FAST, *SLOW), 0, True, False, "ten of a thousand may be slow"),
        (ms(*FAST[:-1], *SLOW, 100.0), 0, False, False, "eleven may not"),
        (ms(*FAST), 0, False, True, "990 samples do not carry a p99"),
        (ms(*[100.0] * 20), 0, False, False, "too few to pass, enough to fail"),
        (ms(*FAST, *SLOW), 1, False, False, "no request may fail"),
        (np.r_[ms(*FAST, *SLOW[1:]), NEVER_NS], 0, True, False, "one of the ten was never answered"),
        (np.r_[ms(*FAST[:-2]), [NEVER_NS] * 12], 0, False, False, "twelve were never answered"),
        (ms(), 5, False, True, "nothing was answered"),
    ],
)
def test_whether_an_objective_is_met(
    latencies: np.ndarray, failed: int, met: bool, undecided: bool, why: str
) -> None:
    found = misses(parse(["p99=50ms"]), latencies, failed, len(latencies) + failed)
    assert (not found) is met
    assert any(m.undecided for m in found) is undecided


def test_an_error_budget_allows_its_share() -> None:
    slo = parse(["errors=1%"])
    assert misses(slo, ms(*[1.0] * 99), 1, 100) == []
    assert len(misses(slo, ms(*[1.0] * 98), 2, 100)) == 1
