"""What a report claims, and what it refuses to claim."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from bench_tools import phase_of

from mserve.bench.judgement.slo import parse
from mserve.bench.judgement.verdict import CLOSED_LABEL, Load, Measurement
from mserve.bench.load.recorder import INTERRUPTED, OK, UNFINISHED, Phase
from mserve.bench.load.server_view import Counters, read_metrics, server_view
from mserve.bench.results.report import Report, facts
from mserve.bench.results.result import Result

TARGET = {"kind": "url", "url": "http://h/v1/models/m:predict", "model": "m", "rows": 1, "request_bytes": 9}
OPEN, CLOSED = Load(rate=1000.0), Load(rate=None)
N = 2000
STEADY = np.full(N, 5.0)


def report(phase: Phase, load: Load = OPEN, slo: str = "", **rest: Any) -> Report:
    seen = Measurement(phase, **rest)
    return Report.of(TARGET, load, seen, parse([slo]) if slo else None)


SOME = [OK] * (N - 5) + [503] * 5


@pytest.mark.parametrize(
    ("phase", "load", "slo", "code", "quoted", "why"),
    [
        (phase_of(STEADY), OPEN, "", "measured", True, "nothing wrong, nothing asked"),
        (phase_of(STEADY), OPEN, "p99=50ms", "pass", True, "the objective is met"),
        (phase_of(STEADY), OPEN, "p99=4ms", "fail", True, "the objective is missed"),
        (phase_of(STEADY[:400]), OPEN, "p99=50ms", "inconclusive", True, "459 would prove it"),
        (phase_of(STEADY[:459]), OPEN, "p99=50ms", "pass", True, "459 prove it, though no p99 is quoted"),
        (phase_of(STEADY, outcomes=SOME), OPEN, "", "errors", True, "some requests failed"),
        (phase_of(STEADY, outcomes=SOME), OPEN, "p99=50ms", "fail", True, "none may fail"),
        (phase_of(STEADY, outcomes=SOME), OPEN, "errors=1%", "pass", True, "so few may fail"),
        (phase_of(STEADY, outcomes=400), OPEN, "", "errors", False, "every request failed"),
        (phase_of(STEADY, lags_ms=1.5), OPEN, "", "invalid", False, "the client was late"),
        (phase_of(STEADY * 10, lags_ms=1.5), OPEN, "", "measured", True, "late by little of the latency"),
        (phase_of(STEADY, lags_ms=1.5), OPEN, "p99=4ms", "invalid", False, "a miss may be the client's"),
        (phase_of(STEADY, lags_ms=1.5), OPEN, "p99=50ms", "pass", True, "met in spite of the client"),
        (phase_of(np.linspace(1, 2000, N)), OPEN, "", "unstable", False, "half is answered in time"),
        (phase_of(np.linspace(1, 15, N)), OPEN, "", "unstable", False, "slow growth, no end"),
        (
            phase_of(np.linspace(1, 2000, N), lags_ms=np.linspace(0, 1990, N)),
            OPEN,
            "",
            "invalid",
            False,
            "what falls behind is the client",
        ),
        (
            phase_of(STEADY, outcomes=[OK] * 1900 + [UNFINISHED] * 100),
            OPEN,
            "",
            "unstable",
            False,
            "5 % lost",
        ),
        (phase_of(STEADY), CLOSED, "", "measured", True, "a closed loop"),
        (phase_of(STEADY, stopped="the server is gone"), OPEN, "p99=50ms", "stopped", True, "it died"),
        (phase_of([]), OPEN, "", "invalid", False, "nothing was sent"),
    ],
)
def test_verdicts(phase: Phase, load: Load, slo: str, code: str, quoted: bool, why: str) -> None:
    found = report(phase, load, slo)
    assert found.verdict.code == code
    assert bool(found.percentiles()) is quoted
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (document["latency"] is not None) is quoted
    assert facts(found)


def test_in_process_lateness_is_latency() -> None:
    """On one loop a request that is taken up late waited for the model."""
    seen = Measurement(phase_of(STEADY, lags_ms=4.0))
    assert Report.of(TARGET, OPEN, seen, shares_loop=True).verdict.code == "measured"
    seen = Measurement(phase_of(np.linspace(1, 2000, N), lags_ms=np.linspace(0, 1990, N)))
    assert Report.of(TARGET, OPEN, seen, shares_loop=True).verdict.code == "unstable"


def test_a_closed_loop_is_labelled() -> None:
    assert CLOSED_LABEL in report(phase_of(STEADY), CLOSED).verdict.reason
    assert CLOSED_LABEL in report(phase_of(STEADY, outcomes=SOME), CLOSED).notes()


def test_percentiles_that_the_sample_does_not_carry_are_refused() -> None:
    document = report(phase_of(STEADY)).to_json()["latency"]
    by_p = {p["p"]: p for p in document["percentiles"]}
    assert by_p[0.99]["value_ms"] == 5.0
    assert by_p[0.99]["low_ms"] == by_p[0.99]["high_ms"] == 5.0
    assert by_p[0.999]["value_ms"] is None
    assert by_p[0.999]["refused"] == "needs 10000 samples"


def test_the_unanswered_reach_into_the_percentiles() -> None:
    phase = phase_of(STEADY, outcomes=[OK] * (N - 21) + [UNFINISHED] * 21)
    seen = report(phase, Load(rate=None)).to_json()["latency"]
    p99 = next(p for p in seen["percentiles"] if p["p"] == 0.99)
    assert p99["unanswered"]
    assert p99["value_ms"] is None
    assert seen["mean_ms"] is None


@pytest.mark.parametrize(
    ("rest", "text"),
    [
        ({"versions": {"1": 5, "2": 5}}, "several model versions answered: 1, 2"),
        ({"cpu_share": 0.97}, "97% of a CPU"),
        ({"server": {"requests": 4000}}, "it has other clients"),
    ],
)
def test_notes(rest: dict[str, Any], text: str) -> None:
    assert any(text in note for note in report(phase_of(STEADY), **rest).notes())
    assert not any(text in note for note in report(phase_of(STEADY)).notes())


def test_a_broken_count_shows_in_little_s_law() -> None:
    phase = phase_of(STEADY)
    assert report(phase).notes() == []
    phase.in_flight_ns *= 2
    assert any("Little's law" in note for note in report(phase).notes())


@pytest.mark.parametrize(
    ("phases", "stopped", "asserted", "code", "why"),
    [
        ([phase_of(STEADY)], "", False, 0, "measured"),
        ([phase_of(STEADY)], "", True, 0, "met"),
        ([phase_of(STEADY * 20)], "", True, 1, "missed"),
        ([phase_of(STEADY * 20)], "", False, 0, "missed, and nobody had asked"),
        ([phase_of(STEADY, lags_ms=4.9)], "", False, 0, "invalid is a verdict"),
        ([phase_of(STEADY, outcomes=400)], "", False, 1, "nothing worked"),
        ([phase_of(STEADY), phase_of(STEADY * 20)], "", True, 0, "one rate of a sweep meets it"),
        ([phase_of(STEADY)], INTERRUPTED, True, 130, "Ctrl-C"),
        ([phase_of(STEADY)], "the server is gone", False, 4, "the server died"),
    ],
)
def test_exit_codes(phases: list[Phase], stopped: str, asserted: bool, code: int, why: str) -> None:
    slo = "p99=50ms" if asserted else ""
    result = Result([report(phase, slo=slo) for phase in phases], stopped=stopped)
    assert result.exit_code(asserted=asserted) == code


METRICS = """# TYPE mserve_requests_total counter
mserve_requests_total{code="200",model="m"} 90.0
mserve_requests_total{code="400",model="m"} 10.0
mserve_requests_total{code="200",model="other"} 7.0
# TYPE mserve_batch_rows histogram
mserve_batch_rows_bucket{le="+Inf",model="m",version="1"} 20.0
mserve_batch_rows_count{model="m",version="1"} 20.0
mserve_batch_rows_sum{model="m",version="1"} 80.0
mserve_batch_rows_count{model="m",version="2"} 5.0
mserve_batch_rows_sum{model="m",version="2"} 10.0
# TYPE mserve_run_seconds_total counter
mserve_run_seconds_total{model="m",version="1"} 0.5
# TYPE mserve_queue_seconds_total counter
mserve_queue_seconds_total{model="m",version="1"} 0.1
# TYPE mserve_inline_batches_total counter
mserve_inline_batches_total{model="m",version="1"} 15.0
"""


def test_the_server_s_counters_are_summed_over_versions() -> None:
    counters = read_metrics(METRICS, "m")
    assert counters == Counters(requests=100, batches=25, rows=90, inline=15, run_s=0.5, queue_s=0.1)
    view = server_view(Counters(), counters)
    assert view is not None
    assert view["mean_batch_rows"] == pytest.approx(3.6)
    assert view["inline_share"] == pytest.approx(0.6)
    assert view["mean_run_ms"] == pytest.approx(20.0)
    assert view["mean_queue_ms"] == pytest.approx(1.0)


@pytest.mark.parametrize("text", ["", "<html>", "other_metric 1", "mserve_x{", "# TYPE a counter\na_total x"])
def test_a_server_without_our_counters_is_tolerated(text: str) -> None:
    assert read_metrics(text, "m") is None


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (None, Counters(1), "no counters before"),
        (Counters(1), None, "no counters after"),
        (Counters(1), Counters(1), "no batch in between"),
        (Counters(9, 9, 9, 9), Counters(10, 10, 8, 10), "a version was unloaded and took its counts with it"),
    ],
)
def test_readings_that_cannot_be_compared_give_no_view(
    before: Counters | None, after: Counters | None, why: str
) -> None:
    assert server_view(before, after) is None
