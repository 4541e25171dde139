"""Comparisons of servers whose speed is known, of stored results, and as a command."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import builders
import jsonschema
import numpy as np
import pytest
from bench_tools import (
    ANSWER,
    REFUSAL,
    Behaviour,
    FakeServer,
    bench_json,
    phase_of,
    refused,
    run_bench,
    running_bench,
)

import mserve
from mserve.bench.judgement import baseline
from mserve.bench.judgement.against import Comparison, Options, check_margin, compare, fails_more
from mserve.bench.judgement.paired import INCONCLUSIVE, OK, REGRESSION, judge
from mserve.bench.judgement.verdict import Load, Measurement
from mserve.bench.results.report import Report
from mserve.commands._bench_against import looks
from mserve.errors import FindingError, InputError, UsageError

QUICK = Options(
    looks=(6,), part_s=0.03, offered_s=0.03, warmup_s=0.1, metrics=("p10",), concurrency=2, rate=2000.0
)


class Timed(FakeServer):
    """A fake server that lives from the comparison's start to its end."""

    def __init__(self, behave: Behaviour) -> None:
        super().__init__(behave)
        self.closed = False

    async def start(self) -> None:
        await self.open()

    async def close(self) -> None:
        self.die()
        self.closed = True


def after(seconds: float, answer: bytes = ANSWER) -> Behaviour:
    """Each answer after the same time."""
    return lambda _: (seconds, answer)


def test_a_slower_server_is_a_regression() -> None:
    a, b = Timed(after(0.001)), Timed(after(0.004))
    said: list[str] = []
    found = compare(lambda: a, lambda: b, QUICK, said.append)
    assert found.code == REGRESSION
    assert found.exit_code() == 1
    [metric] = found.metrics
    assert metric.name == "p10"
    assert metric.ratio > 1.2
    assert "p10 +" in found.reason
    assert a.closed
    assert b.closed
    assert said[:2] == ["warming up A", "warming up B"]


@pytest.mark.slow
def test_a_faster_server_is_ok() -> None:
    found = compare(lambda: Timed(after(0.004)), lambda: Timed(after(0.001)), QUICK)
    assert found.code == OK
    assert found.exit_code() == 0
    assert len(found.rounds["p10"]) == 6


def test_a_server_that_fails_more_is_a_regression() -> None:
    """As fast as ever, but one request in three is refused."""
    asked = 0

    def sometimes(_: float) -> tuple[float, bytes]:
        nonlocal asked
        asked += 1
        return 0.001, REFUSAL if asked % 3 == 0 else ANSWER

    found = compare(lambda: Timed(after(0.001)), lambda: Timed(sometimes), QUICK)
    assert found.code == REGRESSION
    assert "requests to B failed" in found.reason


@pytest.mark.parametrize(
    ("requests", "failed", "more", "why"),
    [
        ([1000, 1000], [0, 0], False, "none failed"),
        ([1000, 1000], [0, 20], True, "only B's failed"),
        ([1000, 1000], [20, 20], False, "both fail alike"),
        ([1000, 1000], [20, 0], False, "only A's failed"),
        ([10_000, 10_000], [0, 2], False, "two may be chance"),
        ([10_000, 1000], [100, 10], False, "the same share of fewer"),
    ],
)
def test_more_failures_than_chance(requests: list[int], failed: list[int], more: bool, why: str) -> None:
    assert fails_more(requests, failed, 0.025) is more


def test_a_side_that_answers_nothing_is_named() -> None:
    b = Timed(after(0.001, REFUSAL))
    with pytest.raises(FindingError, match=r"every request to B failed.*busy"):
        compare(lambda: Timed(after(0.001)), lambda: b, QUICK)
    assert b.closed


@pytest.mark.parametrize("wrong", [{"margin": -0.1}, {"margin": 11}, {"metrics": ("p42",)}])
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Options(**wrong)


def test_a_margin_below_the_noise_is_refused() -> None:
    rng = np.random.default_rng(1)
    found = Comparison(Options(margin=0.001, aa=True), ({}, {}))
    found.rounds = {"p50": rng.normal(0, 0.05, 12).tolist()}
    found.metrics = judge(found.rounds, 0.001)
    noise = found.to_json()["noise"]
    assert noise["floor"] > 0.005
    assert noise["false_positive_rate"] <= 0.15
    with pytest.raises(UsageError, match="below this machine's noise"):
        check_margin(found)


@pytest.mark.parametrize(
    ("code", "reason", "strict", "exit_code"),
    [
        (OK, "", True, 0),
        (INCONCLUSIVE, "", False, 0),
        (INCONCLUSIVE, "", True, 1),
        (REGRESSION, "", False, 1),
        ("stopped", "interrupted", False, 130),
        ("stopped", "B: the server is gone", False, 4),
    ],
)
def test_exit_codes(code: str, reason: str, strict: bool, exit_code: int) -> None:
    found = Comparison(Options(strict=strict), ({}, {}), code=code, reason=reason)
    assert found.exit_code() == exit_code


# stored results

TARGET = {"kind": "url", "url": "fake", "model": "m", "rows": 1, "request_bytes": 1}


def stored(tmp_path: Path, latency_ms: float = 5.0, **changed: Any) -> Path:
    reports = [measured(latency_ms).to_json()]
    document = {"schema": 1, "kind": "bench", "environment": {"cpu": "c"}, "reports": reports}
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps(document | changed))
    return path


def measured(latency_ms: float) -> Report:
    latencies = np.random.default_rng(1).normal(latency_ms, 0.1, 2000)
    return Report.of(TARGET, Load(rate=1000.0), Measurement(phase_of(latencies)))


@pytest.mark.parametrize(("now_ms", "code"), [(5.0, OK), (5.6, REGRESSION), (4.0, OK)])
def test_a_result_is_compared_with_a_stored_one(now_ms: float, code: str, tmp_path: Path) -> None:
    before = baseline.read(stored(tmp_path))
    assert before.load == Load(rate=1000.0)
    found = baseline.compare(before, measured(now_ms), Options())
    assert found.code == code
    assert {m.name for m in found.metrics} == {"p50", "p99"}
    assert "not measured in turn" in found.warnings[0]


def test_a_run_without_percentiles_is_not_compared(tmp_path: Path) -> None:
    unstable = Report.of(TARGET, Load(rate=1000.0), Measurement(phase_of(np.linspace(1, 3000, 4000))))
    found = baseline.compare(baseline.read(stored(tmp_path)), unstable, Options())
    assert found.code == INCONCLUSIVE
    assert "UNSTABLE" in found.reason


def test_another_environment_is_refused_unless_forced(tmp_path: Path) -> None:
    before = baseline.read(stored(tmp_path))
    assert baseline.check(before, {"cpu": "c"}, force=False) == []
    with pytest.raises(UsageError, match=r"measured elsewhere.*cpu"):
        baseline.check(before, {"cpu": "d"}, force=False)
    assert baseline.check(before, {"cpu": "d"}, force=True) == ["cpu: 'c' then, 'd' now"]


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"kind": "error"}, "another document"),
        ({"reports": []}, "no measurement"),
        ({"reports": [1]}, "not a report"),
        ({"reports": {}}, "not a list"),
        ({"environment": 3}, "no environment"),
        ({"reports": [{"load": {}, "windows": []}]}, "no load"),
    ],
)
def test_other_documents_are_refused(changed: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        baseline.read(stored(tmp_path, **changed))


@pytest.mark.parametrize("content", ["", "[1]", "nonsense", "[" * 100_000, '{"kind": "bench"}'])
def test_files_that_are_no_results_are_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(InputError):
        baseline.read(path)


def test_a_run_that_proved_nothing_is_no_baseline(tmp_path: Path) -> None:
    path = stored(tmp_path)
    document = json.loads(path.read_text())
    document["reports"][0] |= {"windows": None, "verdict": {"code": "invalid"}}
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"no latencies to compare with.*found: invalid.*measure it again"):
        baseline.read(path)


def test_hostile_windows_are_refused(tmp_path: Path) -> None:
    path = stored(tmp_path)
    document = json.loads(path.read_text())
    for value in (0, -1, "x", None, [], float("nan")):
        document["reports"][0]["windows"][3]["p50_ms"] = value
        path.write_text(json.dumps(document))
        with pytest.raises(InputError):
            baseline.read(path)


# the command


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = builders.save(builders.mlp(), tmp_path_factory.mktemp("source") / "mlp.onnx")
    return mserve.export(file, tmp_path_factory.mktemp("bench") / "mnist", golden=2).path


@pytest.fixture(scope="module")
def slow_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = builders.save(builders.mlp(hidden=4000), tmp_path_factory.mktemp("source") / "big.onnx")
    return mserve.export(file, tmp_path_factory.mktemp("bench") / "mnist", golden=2).path


@pytest.mark.slow
def test_a_much_slower_bundle_fails_the_command(bundle: Path, slow_bundle: Path, root: Path) -> None:
    done = run_bench(
        bundle, "--against", slow_bundle, "--warmup", 0.2, "--metric", "p10", "--rounds", 6, "--json"
    )
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    schema = json.loads((root / "tests" / "golden" / "bench-comparison.schema.json").read_text())
    jsonschema.validate(document, schema)
    assert document["verdict"]["code"] == "regression"
    assert document["metrics"][0]["ratio"] > 1.5
    assert [t["path"] for t in document["targets"]] == [str(bundle), str(slow_bundle)]


def test_a_stored_result_is_a_baseline(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    document = bench_json(bundle, "--duration", 0.5, "--warmup", 0.2)
    path.write_text(json.dumps(document))
    done = run_bench(bundle, "--against", path, "--margin", "900%", "--metric", "p50")
    assert done.returncode == 0, done.stderr
    assert "verdict: OK" in done.stdout
    assert "not measured in turn" in done.stderr
    document["environment"]["cpu"] = "another"
    path.write_text(json.dumps(document))
    assert run_bench(bundle, "--against", path).returncode == 2


def test_ctrl_c_ends_a_comparison_with_what_there_is(bundle: Path) -> None:
    with running_bench(bundle, "--aa", first_line="warming up") as process:
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert out.startswith("A: ")


@pytest.mark.parametrize(
    ("rounds", "expected"), [(48, (12, 24, 48)), (6, (6,)), (7, (7,)), (12, (6, 12)), (24, (6, 12, 24))]
)
def test_when_to_look(rounds: int, expected: tuple[int, ...]) -> None:
    assert looks(rounds) == expected


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["B", "--against", "C", "--aa"], "--aa compares"),
        (["B", "--against", "C", "--slo", "errors=0"], "a comparison takes one load"),
        (["B", "--aa", "--qps", "10:20:10"], "a comparison takes one load"),
        (["B", "--aa", "--qps"], "a comparison takes one load"),
        (["B", "--against", "C", "--duration", "9"], "--rounds N instead of --duration"),
        (["B", "--aa", "--margin", "x"], "bad --margin"),
        (["B", "--aa", "--margin", "-5%"], "bad --margin"),
        (["B", "--aa", "--metric", "p42"], "no such metric"),
        (["B", "--assert", "p99"], "bad --assert"),
    ],
)
def test_wrong_usage(arguments: list[str], text: str) -> None:
    done = refused(*arguments)
    assert done.returncode == 2
    assert text in done.stderr
