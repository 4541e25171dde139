"""MLPerf's scenarios: the rules as LoadGen has them, and LoadGen itself on the same server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_tools import ANSWER, MS, Behaviour, bench_json, fake_server, phase_of, run_bench
from server_tools import serving

import mserve
from mserve.bench.judgement.evidence import over_allowed
from mserve.bench.judgement.scenario import SCENARIOS, Rules, judged
from mserve.bench.judgement.verdict import Load
from mserve.bench.load.load_job import scenario_job
from mserve.bench.load.recorder import OK, Phase
from mserve.bench.load.session import Session

STREAM, MULTI, SERVER, OFFLINE = (
    SCENARIOS[n] for n in ("single-stream", "multi-stream", "server", "offline")
)


@pytest.mark.parametrize(
    ("p", "needed"),
    [
        (0.90, {0: 44, 1: 64, 2: 81, 5: 127, 10: 197, 50: 681}),
        (0.95, {0: 90, 1: 130, 2: 165, 5: 259, 10: 398, 50: 1372}),
        (0.99, {0: 459, 1: 662, 2: 838, 5: 1307, 10: 2010, 50: 6898}),
        (0.999, {0: 4603, 1: 6636, 2: 8403, 5: 13105, 10: 20140, 50: 69058}),
    ],
)
def test_the_published_table_of_early_stopping(p: float, needed: dict[int, int]) -> None:
    """So many queries allow so many slow ones, and one query fewer does not."""
    assert {over: over_allowed(n, p) for over, n in needed.items()} == {over: over for over in needed}
    assert {over: over_allowed(n - 1, p) for over, n in needed.items()} == {over: over - 1 for over in needed}


def rules(scenario: Any, queries: int = 100, seconds: float = 0.1, **rest: Any) -> Rules:
    return Rules(scenario, seconds, queries, **rest)


RISING = np.arange(1.0, 201.0)  # 200 queries; at p90 they allow ten slow ones
BOUND = {"bound_ns": 190 * MS, "percentile": 0.9}
LAST_S = 0.399  # the last of them is due after 199 ms and takes 200 ms


@pytest.mark.parametrize(
    ("phase", "asked", "value", "reason", "why"),
    [
        (phase_of(RISING), rules(STREAM), 191.0 * MS, "", "the tenth slowest"),
        (phase_of(RISING[:63]), rules(STREAM, 10, 0.01), None, "too few for early stopping", "needs 64"),
        (phase_of(RISING), rules(STREAM, 201), 191.0 * MS, "at least 201 are needed", "too few queries"),
        (phase_of(RISING), rules(STREAM, seconds=10.0), 191.0 * MS, "at least 10 s are", "too short"),
        (phase_of(RISING, outcomes=[500] + [OK] * 199), rules(STREAM), 192.0 * MS, "failed", "one failed"),
        (phase_of(RISING), rules(SERVER, **BOUND), 200 / LAST_S, "", "ten of 200 over the bound"),
        (phase_of(RISING + 1), rules(SERVER, **BOUND), 500.0, "11 of 200 took over 190.0 ms", "eleven"),
        (phase_of(RISING, stopped="interrupted"), rules(SERVER, **BOUND), 200 / LAST_S, "interrupted", "cut"),
        (phase_of(RISING), rules(OFFLINE), 200 / LAST_S, "", "by the time of the last answer"),
    ],
)
def test_figures_and_validity(phase: Phase, asked: Rules, value: float | None, reason: str, why: str) -> None:
    found = judged(asked, phase)
    assert found.value == (value if value is None else pytest.approx(value, rel=1e-6))
    assert found.valid is (reason == "")
    assert reason in "; ".join(found.invalid)
    assert found.to_json()["valid"] is found.valid
    assert any("submissions last 600 s" in note for note in found.notes)


def test_a_query_of_eight_is_as_slow_as_its_slowest_sample() -> None:
    latencies = np.ones((700, 8))
    latencies[:, 3] = 5.0
    found = judged(rules(MULTI, 662), phase_of(latencies.ravel(), gap_ms=0.1))
    assert found.valid
    assert found.queries == 700
    assert found.value == 5.0 * MS


def test_offline_sends_as_much_as_the_duration_takes() -> None:
    warmup = phase_of(np.ones(1000))  # a thousand answers in a second
    job = scenario_job(rules(OFFLINE, 10, 4.0), Load(), warmup, (1,))
    assert job.due is not None
    assert len(job.due) == pytest.approx(6000, rel=0.01)
    assert not job.due.any()


def of_fake(behave: Behaviour, asked: Rules, load: Load, *, loadgen: bool = False) -> Any:
    async def work() -> Any:
        async with fake_server(behave) as server:
            session = Session(server, load, None, lambda _: None)
            return await session.scenario(asked, loadgen=loadgen)

    return asyncio.run(work())


@pytest.mark.parametrize("name", ["single-stream", "multi-stream", "server", "offline"])
@pytest.mark.slow
def test_loadgen_itself_agrees(name: str) -> None:
    """A server that answers after 5 ms: MLPerf's library and our own driver say the same of it.

    How close their figures are is for `benchmarks/bench_truth.py`; here, what no machine can change.
    """
    scenario = SCENARIOS[name]
    bound = {"bound_ns": 400 * MS, "percentile": 0.9} if name == "server" else {}
    least = {"multi-stream": 662, "offline": 2000}.get(name, 200)
    asked = rules(scenario, least, 1.0, **bound)
    load = Load(200.0 if name == "server" else None, 8, 1.0, 0.2)
    result = of_fake(lambda _: (0.005, ANSWER), asked, load, loadgen=True)
    ours, theirs = result.scenario.to_json(), result.loadgen
    assert ours["valid"], ours
    assert theirs["valid"], theirs
    assert theirs["unit"] == ours["unit"]
    assert theirs["failed"] == 0
    for value in (ours["value"], theirs["value"]):
        if name == "offline":
            assert 0 < value <= 8 / 0.005
        elif name == "server":
            assert value == pytest.approx(200.0, rel=0.4)
        else:
            assert value >= 5.0
    if scenario.streams:
        assert 5.0 <= ours["low"] <= ours["value"] == ours["high"]


def test_streams_wait_for_the_query_before() -> None:
    report = of_fake(lambda _: (0.005, ANSWER), rules(MULTI, 20, 0.1), Load(None, 8, 0.1, 0.0)).reports[0]
    recorder = report.seen.phase.recorder
    intended = recorder.intended[: recorder.count].reshape(-1, 8)
    done = recorder.done[: recorder.count].reshape(-1, 8)
    assert len(intended) >= 20
    assert (intended == intended[:, :1]).all()
    assert (intended[1:, 0] >= done[:-1].max(axis=1)).all()


QUICK = ("--warmup", 0.2, "--duration", 0.5)


def test_the_command(mlp_file: Path, tmp_path: Path) -> None:
    base = mserve.export(mlp_file, tmp_path / "mnist", golden=2).path.parent
    with serving(base, tmp_path / "log.txt") as server:
        document = bench_json(server.url, *QUICK, "--scenario", "single-stream")
    assert document["scenario"]["valid"]
    assert document["scenario"]["name"] == "single-stream"
    assert document["loadgen"] is None
    done = run_bench(base, *QUICK, "--scenario", "offline", "--queries", 100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "VALID" in done.stdout


@pytest.mark.slow
def test_the_command_at_a_rate(mlp_file: Path, tmp_path: Path) -> None:
    """It takes a machine that keeps the rate: INVALID is exit 1."""
    base = mserve.export(mlp_file, tmp_path / "mnist", golden=2).path.parent
    quick, offered = QUICK, ("--scenario", "server", "--qps", 400)
    with serving(base, tmp_path / "log.txt") as server:
        done = run_bench(server.url, *quick, *offered, "--slo", "p50=2s", "--loadgen")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "LoadGen\t" in done.stdout
        done = run_bench(server.url, *quick, *offered, "--slo", "p99=1us")
        assert done.returncode == 1
        assert "INVALID: " in done.stdout
