"""Verify: one setting at one rate, forecast and then measured by a real open-loop run in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ...bench.judgement.quantiles import samples_needed
from ...bench.judgement.verdict import Load
from ...bench.load import session
from ...bench.load.recorder import INTERRUPTED
from ...bench.load.schedule import Times
from ...bench.results.report import Report
from ...bench.targets.in_process import InProcess
from ...loader.servable import Batching, Servable
from ...readers.requests import Samples
from .grid import SEEDS, Forecast, Goal, Runs, forecast
from .simulate import System

# Prediction and measurement that are further apart are said to disagree.
AGREED = 0.15
QUANTILES = (0.5, 0.99)
MAX_WARMUP_S = 5.0
# A slow model's run goes on until it holds the samples that the objectives need, but not for ever.
RUN_S_MAX = 60.0
FORECAST_MAX = 50_000


@dataclass(frozen=True, slots=True)
class Trial:
    """How real runs are made: `opened` loads the model, once for each run, which lasts so long."""

    opened: Callable[[], Servable]
    device: str
    signature: str
    samples: Samples
    seconds: float


@dataclass(frozen=True, slots=True)
class Check:
    """A setting at a rate: what was forecast, and what was measured."""

    batching: Batching
    rate: float
    forecast: Forecast
    report: Report
    stopped: str = ""

    def predicted(self) -> dict[float, int]:
        """Percentiles in nanoseconds, by simulation."""
        return {p: self.forecast.quantile(p) for p in QUANTILES}

    def measured(self) -> dict[float, int | None]:
        """The same of the real run; None where it carries none."""
        quotable = self.report.quotable()
        return {p: self.report.percentile(p).value_ns if quotable else None for p in QUANTILES}

    def error(self, p: float) -> float | None:
        """By which part of the measured percentile the predicted one is off; None where none was measured."""
        measured = self.measured()[p]
        return None if not measured else (self.predicted()[p] - measured) / measured

    @property
    def met(self) -> bool:
        """Whether the run met the objectives as counted, or at least proved nothing against them."""
        slo = self.report.slo
        return (
            self.report.quotable()
            and all(
                (value := self.report.percentile(o.p).value_ns) is not None and value <= o.limit_ns
                for o in (slo.objectives if slo else ())
            )
            and self.report.total - self.report.ok <= (slo.errors_max if slo else 0) * self.report.total
        )

    def to_json(self) -> dict[str, Any]:
        """One line of the table; times in milliseconds."""
        measured = self.measured()
        return {
            "rate": self.rate,
            "verdict": self.report.verdict.code,
            "reason": self.report.verdict.reason,
            "met": self.met,
            "predicted": {f"p{p * 100:g}_ms": ns / 1e6 for p, ns in self.predicted().items()},
            "measured": {f"p{p * 100:g}_ms": None if ns is None else ns / 1e6 for p, ns in measured.items()},
            "error": {f"p{p * 100:g}": self.error(p) for p in QUANTILES},
        }


def check(trial: Trial, system: System, batching: Batching, rate: float, goal: Goal) -> Check:
    """Forecast a rate, and measure it. Raises what loading and running the bundle raise."""
    needed_s = 1.2 * max(goal.slo.samples_needed(), samples_needed(QUANTILES[-1])) / rate
    seconds = max(trial.seconds, min(RUN_S_MAX, needed_s))
    count = min(FORECAST_MAX, max(1000, int(rate * seconds)))
    seen = forecast(system, batching, rate, goal, Runs(count, SEEDS))
    target = InProcess(trial.opened(), trial.signature, trial.samples, verify=False, settings=batching)
    target.device = trial.device
    base = Load(
        rate, duration_s=trial.seconds, max_warmup_s=MAX_WARMUP_S, arrivals=goal.arrivals, seed=goal.seed
    )
    means = session.Means(recording=_times(goal, rate, count))
    work = session.Session(target, base, goal.slo, _quiet, means)
    result = session.run(work.sweep([rate]))
    if result.stopped == INTERRUPTED:
        raise KeyboardInterrupt
    return Check(batching, rate, seen, result.reports[0], result.stopped)


def _times(goal: Goal, rate: float, count: int) -> Times | None:
    return None if goal.recording is None else goal.due(rate, count, 1)


def disagreements(checks: Sequence[Check]) -> list[str]:
    """A sentence for each percentile that was predicted badly."""
    found = []
    for one in checks:
        for p in QUANTILES:
            error = one.error(p)
            if error is not None and abs(error) > AGREED:
                found.append(
                    f"max_batch {one.batching.max_batch_rows}, delay {one.batching.delay_ns / 1e6:g} ms: "
                    f"p{p * 100:g} was predicted {abs(error):.0%} too {'high' if error > 0 else 'low'}"
                )
    return found


def _quiet(text: str) -> None:
    """Nobody watches the single phases."""
