"""`mserve bench`: latency and capacity of a bundle or a server."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from . import _bench_against, _bench_live, _bench_load, _bench_report
from ._bench_targets import TargetOptions
from ._options import with_options

if TYPE_CHECKING:
    from ..bench.judgement.slo import Slo
    from ..bench.judgement.verdict import Load
    from ..bench.results.report import Report
    from ..bench.results.result import Result
    from ..bench.targets.opening import Ask
    from ..bench.targets.target import Target
    from ..outfiles import OutFiles

AUTO = "auto"
SWEEP_MAX = 1000
DURATION_S = 5.0


@with_options(asked=TargetOptions, options=_bench_load.LoadOptions)
def command(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET", help="A bundle, or a server's URL: http://HOST:PORT or grpc://HOST:PORT."
        ),
    ],
    qps: _bench_report.Qps = None,
    duration: _bench_report.Duration = None,
    slo: _bench_report.Objectives = None,
    seed: Annotated[
        int,
        typer.Option(
            help="Seed of the arrivals and of the requests.", min=0, rich_help_panel=_bench_report.LOAD
        ),
    ] = 1,
    timeout: _bench_report.Timeout = 10.0,
    strict: _bench_report.Strict = False,
    asserts: _bench_report.Asserts = None,
    report: _bench_report.Html = None,
    csv: _bench_report.Csv = None,
    hdr: _bench_report.Hdr = None,
    junit: _bench_report.Junit = None,
    against: _bench_against.Against = None,
    against_device: _bench_against.AgainstDevice = "",
    margin: _bench_against.Margin = _bench_against.MARGIN,
    metric: _bench_against.Metrics = None,
    rounds: _bench_against.Rounds = _bench_against.ROUNDS,
    aa: _bench_against.AA = False,
    force: _bench_against.Force = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON document.", rich_help_panel=_bench_report.OUTPUT),
    ] = False,
    *,
    asked: TargetOptions,
    options: _bench_load.LoadOptions,
) -> None:
    """Measure latency and capacity, from the time when each request was due.

    Exit 1: --slo missed, --assert does not hold, B is slower, or no request was answered; 4:
    nothing listens, or the server died.
    """
    from ..bench.judgement import assertions
    from ..bench.judgement.slo import DEFAULT, parse
    from ..bench.load import session

    rates, searching = parse_qps(qps), qps == AUTO
    objectives = parse(slo or [DEFAULT]) if slo or searching else None
    _check(qps, options, objectives)
    default_s = session.PROBE_S if searching else _bench_load.SCENARIO_S if options.scenario else DURATION_S
    load = options.load(rates, duration or default_s, searching=searching)
    load = replace(load, timeout_s=timeout, seed=seed)
    session.check(load, rates)
    where = _bench_load.SPAWN if asked.spawn else _bench_load.IN_PROCESS
    where = _bench_load.URL if "://" in target else where
    loads = _bench_load.plan(options, load, rates, objectives, where)
    ask = replace(asked.ask(seed), placement=loads.means.placement, reload=options.during_reload or "")
    if options.replay is not None and ask.inputs is None:
        ask = replace(ask, inputs=_bench_load.parse_replay(options.replay)[0])  # its own requests
    plan = Plan(target, ask, loads, objectives, searching)
    demands = assertions.parse(asserts or [])
    wanted = _bench_report.Wanted(as_json, strict, demands, report, csv, hdr, junit)
    other = _bench_against.Asked(against, against_device, margin, tuple(metric or ()), rounds, aa, force)
    if other.wanted() and duration is not None:
        raise UsageError("a comparison is as long as its rounds", hint="--rounds N instead of --duration")
    with wanted.files() as files:
        run = _compare(plan, other, wanted) if other.wanted() else _measure(plan, wanted, files)
    raise typer.Exit(run)


def _measure(plan: Plan, wanted: _bench_report.Wanted, files: OutFiles) -> int:
    """One session; returns the exit code."""
    from ..bench.load.jitter import measure_jitter
    from ..bench.results import environment

    stamp = plan.stamp()
    opened, jitter, before = plan.open(), measure_jitter(), environment.Ticks.now()
    result = plan.run(opened, plan.load)
    stamp["interference"] = environment.interference(before, jitter)
    return _bench_report.finish(result, stamp, wanted, files, asserted=plan.asserted)


def _compare(plan: Plan, asked: _bench_against.Asked, wanted: _bench_report.Wanted) -> int:
    """One comparison; returns the exit code."""
    if plan.searching or len(plan.loads.rates) > 1 or plan.objectives or wanted.demanding():
        raise UsageError(
            "a comparison takes one load and writes no files",
            hint="leave out --slo, --assert, --report, --csv, --hdr, --junit and rates but one",
        )
    plan.loads.options.check_comparable()
    stamp, stored = plan.stamp(), asked.baseline()
    if stored is not None:
        if plan.load.rate is not None:
            raise UsageError("a baseline has a load of its own", hint="leave out --qps")

        def measured(load: Load) -> Report:
            return plan.run(plan.open(), load).reports[0]

        found = _bench_against.compare_stored(stored, stamp, asked, measured, strict=wanted.strict)
    else:
        options = asked.options(plan.load, strict=wanted.strict)
        other = replace(
            plan,
            target=asked.other or plan.target,
            ask=replace(plan.ask, device=asked.device or plan.ask.device),
        )
        found = _bench_against.compare(plan.open, other.open, options)
    return _bench_against.finish(found, stamp, as_json=wanted.as_json)


@dataclass(frozen=True, slots=True)
class Plan:
    """What the command line asks to measure."""

    target: str
    ask: Ask
    loads: _bench_load.Plan
    objectives: Slo | None
    searching: bool

    @property
    def load(self) -> Load:
        """What is offered first."""
        return self.loads.load

    @property
    def asserted(self) -> bool:
        """Whether somebody named objectives: those of a search are its own business."""
        return self.objectives is not None and not self.searching

    def stamp(self) -> dict[str, Any]:
        """The circumstances, before anything is loaded."""
        from ..bench.results import environment

        found = environment.stamp(sys.argv[1:], self.load.seed, self.target) | {"started": time.time()}
        return found | ({"network": "loopback"} if self.ask.spawn else {})

    def open(self) -> Target:
        """The target, ready to be measured."""
        from ..bench.targets.opening import open_target

        return open_target(self.target, self.ask)

    def run(self, opened: Target, load: Load) -> Result:
        """A session with this load, watched by whoever sits before the terminal."""
        from ..bench.load import session

        live = _bench_live.Live()
        loads = replace(self.loads, load=load, rates=self._rates(load))
        work = loads.session(opened, self.objectives, live.note)
        live.records = work.records
        with live.shown():
            return session.run(loads.work(work, searching=self.searching))

    def _rates(self, load: Load) -> list[float]:
        return [load.rate] if load.rate and len(self.loads.rates) < 2 else self.loads.rates


def parse_qps(text: str | None) -> list[float]:
    """The rates of `--qps`: none for the closed loop and the search. Raises UsageError."""
    if text is None or text == AUTO:
        return []
    try:
        parts = [float(part) for part in text.split(":")]
    except ValueError:
        parts = []
    if len(parts) not in (1, 3) or not all(0 < part < float("inf") for part in parts):
        raise UsageError("bad --qps", expected="a rate above 0, LO:HI:STEP, or no value", found=repr(text))
    if len(parts) == 1:
        return parts
    low, high, step = parts
    count = int((high - low) / step + 1e-9) + 1
    if low > high or count > SWEEP_MAX:
        raise UsageError("bad --qps", expected=f"LO <= HI, at most {SWEEP_MAX} steps", found=repr(text))
    return [low + i * step for i in range(count)]


def _check(qps: str | None, options: _bench_load.LoadOptions, slo: Slo | None) -> None:
    options.check(qps)
    if qps is not None and options.concurrency is not None:
        raise UsageError(
            "--qps and --concurrency exclude each other",
            hint="--qps opens as many connections as its rate needs; --concurrency is the closed loop",
        )
    if qps is None and options.replay is None and slo is not None and slo.objectives:
        raise UsageError(
            "a closed loop says nothing about a latency objective",
            found=str(slo),
            hint="offer a rate: --qps RATE; or search for the highest one: --qps",
        )
