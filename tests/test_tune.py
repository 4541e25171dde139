"""Tuning: the search on systems whose optimum is known, and the command on a real bundle."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import builders
import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

import mserve
from mserve.bench.judgement.slo import parse
from mserve.bench.requests.bundle_inputs import bundle_samples
from mserve.bench.targets.target import Ask
from mserve.cli import build
from mserve.errors import MserveError
from mserve.format import open_bundle
from mserve.format.serving import Serving, read_serving
from mserve.loader.servable import Batching, load
from mserve.tensors import Signature, TensorSpec
from mserve.workflows.tune import costs, workflow
from mserve.workflows.tune.curve import QUANTILES, Curve, crowding, curve_of, measure, sizes_to
from mserve.workflows.tune.grid import Goal, Search, delays_ms, highest, sizes, steps
from mserve.workflows.tune.report import toml
from mserve.workflows.tune.simulate import System

MS = 1e6
SIGNATURE = Signature(
    "predict", {"x": TensorSpec("x", "float32", ("n", 2))}, {"y": TensorSpec("y", "float32", ("n",))}, 0
)


def exact(run: Callable[[int], float], most: int = 64) -> Curve:
    """A curve without spread."""
    return curve_of({n: [run(n)] for n in sizes_to(most)})


def searched(curve: Curve, slo: str, *, workers: int = 1, rows: int = 1) -> Search:
    requests = [({"x": np.zeros((rows, 2), np.float32)}, rows)]
    return Search(System(SIGNATURE, requests, curve, workers, inline=False), curve, Goal(parse([slo])))


# the curve


@pytest.mark.parametrize(
    ("most", "rows", "expected"),
    [
        (1, 1, [1]),
        (8, 1, [1, 2, 3, 4, 6, 8]),
        (10, 1, [1, 2, 3, 4, 6, 8, 10]),
        (4, 5, [5, 10, 15, 20]),
    ],
)
def test_which_sizes_are_measured(most: int, rows: int, expected: list[int]) -> None:
    assert sizes_to(most, rows) == expected


def test_a_curve_keeps_its_tail_and_is_a_line_between_and_beyond_its_sizes() -> None:
    curve = curve_of({2: [10.0] * 99 + [1000.0], 4: [20.0] * 99 + [2000.0]})
    assert (curve.median(1), curve.median(2), curve.median(3), curve.median(4)) == (10, 10, 15, 20)
    assert curve.median(8) == 40
    assert [curve(n)[-1] for n in (2, 3, 4)] == [1000, 1500, 2000]
    assert len(curve(3)) == QUANTILES


def test_a_measurement_that_drifts_is_noise() -> None:
    assert curve_of({1: [10.0, 10, 10, 10]}).noise == 0
    assert curve_of({1: [10.0, 10, 20, 20]}).noise == 1


def test_a_real_model_is_measured_as_far_as_its_runs_are_worth_it(version: Path) -> None:
    servable = load(version)
    feeds = [dict(s.arrays) for s in bundle_samples(version, Ask()).requests]
    name = servable.signature()[0]
    whole = measure(servable, name, feeds, [1, 2, 4], 0.0)
    cut = measure(servable, name, feeds, [1, 2, 4], 0.0, worth=lambda rows, ns: rows < 4)
    assert whole.sizes == (1, 2, 4)
    assert cut.sizes == (1, 2)
    assert all(list(t) == sorted(t) and t[0] > 0 for t in whole.times)
    servable.close()


def test_how_much_workers_are_in_each_others_way_is_measured(version: Path) -> None:
    servable = load(version)
    feeds = [dict(s.arrays) for s in bundle_samples(version, Ask()).requests]
    assert crowding(servable, servable.signature()[0], feeds, 4, workers=2, budget_s=0.05) >= 1
    servable.close()


def test_the_way_to_a_model_is_measured_without_the_model(version: Path) -> None:
    servable = load(version)
    found = costs.measure(servable, servable.signature()[0], bundle_samples(version, Ask()), 0.4)
    assert found.request > 0
    assert 0 < found.share < 3
    for values in (found.handover, found.wake, found.timer):
        assert len(values) == QUANTILES
        assert list(values) == sorted(values)
    assert servable.stats.rows == 0
    servable.close()


# the search


@pytest.mark.parametrize("limit", [0.7, 5.0, 99.0, 12345.0])
@pytest.mark.parametrize("guess", [0.001, 40.0, 1e6])
def test_the_highest_rate_is_found_from_any_guess(limit: float, guess: float) -> None:
    found = highest(lambda rate: rate <= limit, guess, tolerance=0.02)
    assert found is not None
    assert limit / 1.021 <= found <= limit


def test_a_rate_that_fails_below_one_that_holds_does_not_hide_it() -> None:
    assert highest(lambda rate: 30 < rate < 100, 25) == pytest.approx(97, rel=0.05)


def test_there_need_not_be_such_a_rate() -> None:
    assert highest(lambda rate: False, 10) is None


def test_what_is_tried() -> None:
    curve = exact(lambda n: 1000.0 * n)
    assert sizes(curve, 1) == [1, 2, 4, 8, 16, 32, 64]
    assert sizes(curve, 5) == [5, 10, 20, 40]
    assert delays_ms(10_000_000) == [1.0, 2.0, 5.0]
    assert delays_ms(1000) == []
    assert steps(curve, 64) == ()
    assert steps(exact(lambda n: 3000.0 if n & (n - 1) else 1000.0), 8) == (1, 2, 4, 8)


FIXED, ROW = 2 * MS, 0.05 * MS


@pytest.mark.slow
def test_where_batches_pay_the_largest_ones_carry_what_arithmetic_says() -> None:
    """t(n) = a + n * b: batches of m rows carry m / (a + m * b), the more the larger m is."""
    search = searched(exact(lambda n: FIXED + n * ROW), "p99<100ms")
    best = search.run(Batching(1))
    assert best[0].batching.max_batch_rows == 64
    assert best[0].rate == pytest.approx(64 / (FIXED + 64 * ROW) * 1e9, rel=0.08)
    alone = next(c for c in best if c.batching == Batching(1))
    assert alone.rate == pytest.approx(1 / (FIXED + ROW) * 1e9, rel=0.1)


@pytest.mark.slow
def test_where_batches_cost_more_than_they_save_there_are_none() -> None:
    """t(n) = n * n: a batch of m rows carries 1 / m."""
    search = searched(exact(lambda n: n * n * MS, 16), "p99<40ms")
    best = search.run(Batching(16))
    assert best[0].batching == Batching(1)
    assert best[0].rate is not None
    assert 850 < best[0].rate < 1000


@pytest.mark.slow
def test_two_workers_carry_twice_as_much() -> None:
    rates = []
    for workers in (1, 2):
        best = searched(exact(lambda n: 5 * MS + n * MS, 4), "p99<200ms", workers=workers).run(Batching(4))
        rates.append(best[0].rate or 0)
    assert rates[1] / rates[0] == pytest.approx(2, rel=0.12)


def test_sizes_are_filled_up_where_others_cost_more() -> None:
    """A size that is no power of two takes five times as long, up to more than the objective."""

    def run(n: int) -> float:
        return (1 if n & (n - 1) == 0 else 5) * (MS + n * 0.1 * MS)

    best = searched(exact(run, 16), "p99<9ms").run(Batching(16))
    assert best[0].batching.allowed[-1] == 16


def test_an_objective_that_nobody_meets_leaves_no_rate() -> None:
    best = searched(exact(lambda n: 5 * MS), "p99<4ms").run(Batching(8))
    assert [c.rate for c in best] == [None]
    assert best[0].idle.quantile(0.99) >= 5 * MS


def test_a_recording_is_replayed_at_other_rates() -> None:
    recorded = np.array([0, 10, 30, 100], np.int64) * 1_000_000
    goal = Goal(parse(["p99<1s"]), recording=recorded)
    due = goal.due(80, 4, 1)
    assert due.tolist() == (recorded // 2).tolist()


# the command


def tune(*arguments: object) -> Result:
    return CliRunner().invoke(build(), ["tune", *map(str, arguments)])


def found(result: Result) -> dict[str, Any]:
    document = result.stdout[result.stdout.index("{") :]
    value: dict[str, Any] = json.loads(document)
    return value


QUICK: Sequence[str] = ("--duration", "0.4", "--max-batch", "4", "--verify", "1", "--json")


def test_a_bundle_is_tuned_and_written(root: Path, tmp_path: Path) -> None:
    base = tmp_path / "digits"
    mserve.export(root / "samples/digits/digits.onnx", base)
    result = tune(base, "--slo", "p99<5s", "--slo", "errors<1%", "--write", "--dedup", *QUICK)
    assert result.exit_code == 0, result.output
    report = found(result)
    best, old, new = report["best"], open_bundle(base / "00000001"), open_bundle(base)
    assert report["written"] == str(new.path)
    assert new.version == 2
    assert new.metagraph.content == old.metagraph.content
    said = read_serving(new)
    assert said == Serving.from_json(best["batching"], "report")
    assert said.max_batch
    table = tomllib.loads(report["toml"])["models"]["digits"]["batching"]
    assert Serving.from_json(table, "toml") == said
    for check in report["checks"]:
        assert check["predicted"]["p50_ms"] > 0
        assert check["rate"] > 0
    assert any(c["met"] and c["rate"] == best["rate"] for c in report["checks"])
    assert [row["rows"] for row in report["curve"]] == [1, 2, 3, 4]
    again = load(new.path)
    assert again.serving == said
    again.close()


def test_an_objective_that_nothing_meets_is_told_with_what_is_reached(version: Path) -> None:
    result = tune(version, "--slo", "p99<1us", *QUICK[:-1])
    assert result.exit_code == 1, result.output
    assert "no setting meets p99<1us, errors=0 at any rate" in result.output
    result = tune(version, "--slo", "p99<1us", "--write", *QUICK)
    report = found(result)
    assert (result.exit_code, report["reachable"], report["written"]) == (1, False, None)
    assert report["checks"] == []
    assert report["fastest_ms"]["p99<1us"] > 0.001
    assert [p.name for p in version.parent.iterdir()] == ["00000001"]


@pytest.mark.slow
def test_a_model_without_batches_says_so(tmp_path: Path) -> None:
    mserve.export(builders.mlp(batch=1), tmp_path / "m")
    report = found(tune(tmp_path / "m", "--slo", "p99<5s", *QUICK))
    assert report["batched"] is False
    assert any("there are no batches to tune" in note for note in report["notes"])
    assert len(report["candidates"]) == 1


BAD = [
    ((), 2, "without an objective there is nothing to aim at"),
    (("--slo", "p99"), 2, "an objective without a limit"),
    (("--slo", "errors<1%"), 2, "errors alone do not tell one setting from another"),
    (("--slo", "p99<1s", "--arrivals", "sometimes"), 2, "arrivals of no known kind"),
    (("--slo", "p99<1s", "--version", "7"), 2, "a version without --write"),
    (("--slo", "p99<1s", "--dedup"), 2, "sharing without --write"),
    (("--slo", "p99<1s", "--max-batch", "0"), 2, "no rows"),
    (("--slo", "p99<1s", "--replay", "absent.jsonl"), 3, "a recording that is not there"),
    (("--slo", "p99<1s", "--signature", "none"), 3, "a signature that the bundle lacks"),
    (("--slo", "p99<1s", "--device", "moon"), 2, "no such device"),
]


@pytest.mark.parametrize(("arguments", "code", "why"), BAD, ids=[b[2] for b in BAD])
def test_bad_options(version: Path, arguments: Sequence[str], code: int, why: str) -> None:
    result = tune(version, *arguments)
    error = result.exception
    assert (error.exit_code if isinstance(error, MserveError) else result.exit_code) == code, result.output


def test_what_is_no_bundle(tmp_path: Path) -> None:
    error = tune(tmp_path / "absent", "--slo", "p99<1s").exception
    assert isinstance(error, MserveError)
    assert error.exit_code == 3


def test_a_name_with_a_dot_is_quoted() -> None:
    text = toml("a.b", Batching(8, 1_500_000, allowed=(4, 8)))
    table = tomllib.loads(text)["models"]["a.b"]["batching"]
    assert table == {"max_batch": 8, "delay_ms": 1.5, "allowed_batch": [4, 8]}


def test_who_comes_second_is_not_beaten_by_one_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both were foretold too much; the default carries more, and what carries less is not asked on and on."""
    default, large, small = (Batching(rows, 0) for rows in (128, 256, 4))
    carries = {default: 60_000, large: 42_000, small: 10_000}
    asked: list[tuple[int, float]] = []

    def check(_: object, __: object, batching: Batching, rate: float, ___: object) -> Any:
        asked.append((batching.max_batch_rows, rate))
        rates = SimpleNamespace(achieved=rate)
        met = rate <= carries[batching]
        return SimpleNamespace(stopped="", met=met, rate=rate, report=SimpleNamespace(rates=rates))

    monkeypatch.setattr(workflow, "check", check)
    found = [
        SimpleNamespace(batching=b, rate=r) for b, r in ((large, 134e3), (default, 121e3), (small, 90e3))
    ]
    measured = SimpleNamespace(default=default, trial=None, system=None)
    checks: Any = workflow._verify(measured, None, found, 3, lambda _: None)  # type: ignore[arg-type]
    met = {rows: rate for (rows, rate), one in zip(asked, checks, strict=True) if one.met}
    assert met == {256: 41_500, 128: 53_400}
    assert [rate for rows, rate in asked if rows == 4] == [81_000, 56_700]
