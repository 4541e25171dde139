"""`mserve bench`: the options about the load, and what they amount to."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from . import _output

if TYPE_CHECKING:
    from ..bench.judgement.scenario import Outcome, Rules
    from ..bench.judgement.slo import Slo
    from ..bench.judgement.verdict import Load
    from ..bench.load.placement import Placement
    from ..bench.load.schedule import Times
    from ..bench.load.session import Means, Session
    from ..bench.results.result import Result
    from ..bench.targets.target import Target

CONCURRENCY = 16
CONCURRENCY_MAX = 4096
MAX_WARMUP_S = 10.0
PROBE_WARMUP_S = 1.0

Concurrency = Annotated[
    str | None,
    typer.Option(
        metavar="N|LO:HI:STEP", help="Closed loop: so many connections (16 without --qps), or a sweep."
    ),
]
Warmup = Annotated[
    float | None,
    typer.Option(help="Seconds before, not counted; default: until latencies are steady.", min=0, max=86_400),
]
MaxWarmup = Annotated[
    float, typer.Option(help="Seconds until warm-up ends, steady or not.", min=0.1, max=86_400)
]
Arrivals = Annotated[
    str,
    typer.Option(help="Open loop: poisson, constant, bursty[:FACTOR:ON_MS] (5 times for 200 ms)."),
]
Generators = Annotated[
    int | None,
    typer.Option(help="Processes that send; default: as many as the rate takes.", min=1, max=64),
]
Replay = Annotated[
    str | None,
    typer.Option(metavar="LOG[@SPEED]", help="Open loop: a request log's own times, and requests."),
]
DuringReload = Annotated[
    str | None,
    typer.Option(
        metavar="BASE|load|cycle",
        help="Publish copies of the newest version of a base path meanwhile; or call the server's "
        "repository API: load, or unload and load.",
    ),
]
Publish = Annotated[
    list[Path] | None, typer.Option(metavar="DIR", help="Publish these versions in turn; repeatable.")
]
ReloadEvery = Annotated[
    float, typer.Option(help="Seconds between the swaps of --during-reload.", min=0.05, max=3600)
]
RELOAD_EVERY_S = 2.0
URL, SPAWN, IN_PROCESS = "url", "spawn", "in process"
Scenario = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="MLPerf's single-stream, multi-stream, server (with --qps RATE and --slo) or offline.",
    ),
]
Queries = Annotated[
    int | None,
    typer.Option(help="A scenario's least number of queries (offline: samples).", min=1, max=20_000_000),
]
LoadGen = Annotated[
    bool,
    typer.Option("--loadgen", help="Run the scenario by MLPerf's LoadGen too (mserve[mlperf])."),
]
SCENARIO_S = 10.0


@dataclass(frozen=True)
class LoadOptions:
    """How the load is made."""

    concurrency: Concurrency = None
    warmup: Warmup = None
    max_warmup: MaxWarmup = MAX_WARMUP_S
    arrivals: Arrivals = "poisson"
    replay: Replay = None
    generators: Generators = None
    during_reload: DuringReload = None
    publish: Publish = None
    reload_every: ReloadEvery = RELOAD_EVERY_S
    scenario: Scenario = None
    queries: Queries = None
    loadgen: LoadGen = False

    def check(self, qps: str | None) -> None:
        """Refuse options that do not go together, or not with `--qps`. Raises UsageError."""
        one_rate = qps is None or (qps != "auto" and ":" not in qps)
        if self.replay is not None and (qps, self.concurrency) != (None, None):
            raise UsageError("--replay has a rate of its own", hint="leave out --qps and --concurrency")
        if self.scenario is None and self.loadgen:
            raise UsageError("--loadgen is for a scenario", hint="--scenario single-stream, for example")
        if self.scenario is None and self.queries is not None:
            raise UsageError("--queries is for a scenario", hint="--scenario single-stream, for example")
        if self.scenario is not None and not (one_rate and self.replay is None):
            raise UsageError(
                "a scenario has at most one rate", hint="--scenario server --qps RATE --slo p99=15ms"
            )
        if self.during_reload is None and self.publish:
            raise UsageError("--publish is for --during-reload", hint="--during-reload BASE --publish DIR")
        if self.during_reload is not None and (self.scenario is not None or qps == "auto"):
            raise UsageError("--during-reload goes with a rate, no search or scenario", hint="--qps RATE")

    def check_comparable(self) -> None:
        """Refuse what a comparison does not do. Raises UsageError."""
        several = self.concurrency is not None and ":" in self.concurrency
        given = {
            "--scenario": self.scenario, "--replay": self.replay, "--during-reload": self.during_reload,
            "--generators": self.generators not in (None, 1), "--concurrency LO:HI:STEP": several,
        }  # fmt: skip
        if named := [name for name, value in given.items() if value]:
            raise UsageError("a comparison has rounds of its own", found=named[0], hint="leave it out")

    def load(self, rates: list[float], duration_s: float, *, searching: bool) -> Load:
        """What is offered, as far as these options say it. Raises UsageError."""
        from ..bench.judgement.verdict import Load

        return Load(
            rate=rates[0] if rates else None,
            concurrency=(parse_concurrency(self.concurrency) or [CONCURRENCY])[0],
            duration_s=duration_s,
            warmup_s=PROBE_WARMUP_S if self.warmup is None else self.warmup,
            max_warmup_s=self.max_warmup if self.warmup is None and not searching else 0.0,
            arrivals=self.arrivals,
        )


@dataclass(frozen=True)
class Plan:
    """A load with all that the options say about it."""

    options: LoadOptions
    load: Load
    rates: list[float]
    rules: Rules | None
    means: Means

    def session(self, target: Target, slo: Slo | None, progress: Callable[[str], None]) -> Session:
        """A session on a target. Raises UsageError or InputError."""
        from ..bench.load.publishers import open_publisher
        from ..bench.load.reload import Reload
        from ..bench.load.session import Session

        means, options = self.means, self.options
        if options.during_reload is not None:
            publisher = open_publisher(options.during_reload, options.publish or (), target)
            means = replace(means, reload=Reload(publisher, options.reload_every))
        return Session(target, self.load, slo, progress, means)

    def work(self, session: Session, *, searching: bool) -> Coroutine[Any, Any, Result]:
        """What the session is to do."""
        if self.rules is not None:
            return session.scenario(self.rules, loadgen=self.options.loadgen)
        if searching:
            return session.search()
        return session.sweep(self.rates) if self.rates else session.closed(self._widths())

    def _widths(self) -> list[int]:
        return parse_concurrency(self.options.concurrency)


def plan(options: LoadOptions, load: Load, rates: list[float], slo: Slo | None, where: str) -> Plan:
    """Work out recording, scenario and generators. `where` is URL, SPAWN or IN_PROCESS.

    Raises UsageError or InputError.
    """
    load, recording = _recording(options.replay, load)
    load, rules = _rules(options, load, slo)
    placed = _placement(options.generators, load, max(rates, default=load.rate), where)
    from ..bench.load.session import Means

    if recording is not None and load.rate is not None:
        rates = [load.rate]
    return Plan(options, load, rates, rules, Means(placed, recording))


def parse_concurrency(text: str | None) -> list[int]:
    """The numbers of connections of `--concurrency`; none without it. Raises UsageError."""
    if text is None:
        return []
    parts = text.split(":")
    numbers = [int(part) if part.isascii() and part.isdigit() and len(part) < 9 else 0 for part in parts]
    if len(numbers) == 1:
        numbers = [*numbers, *numbers, 1]
    if len(numbers) != 3 or not 1 <= numbers[0] <= numbers[1] <= CONCURRENCY_MAX or not numbers[2]:
        raise UsageError(
            "bad --concurrency", expected=f"1 to {CONCURRENCY_MAX}, or LO:HI:STEP", found=repr(text)
        )
    low, high, step = numbers
    return list(range(low, high + 1, step))


def parse_replay(text: str) -> tuple[Path, float]:
    """The file and the speed of `--replay`; 1 without one. Raises UsageError."""
    path, at, speed = text.rpartition("@")
    if not at:
        return Path(text), 1.0
    try:
        return Path(path), float(speed)
    except ValueError:
        raise UsageError("bad --replay", expected="LOG or LOG@SPEED", found=repr(text)) from None


def _recording(replay: str | None, load: Load) -> tuple[Load, Times | None]:
    """The recorded arrival times, and the load with their rate and length."""
    if replay is None:
        return load, None
    from ..bench.load.schedule import replayed
    from ..bench.requests.request_log import read_log

    path, speed = parse_replay(replay)
    due = replayed(read_log(path)[0], speed)
    span_s = max(float(due[-1]) / 1e9, 1e-3)
    return replace(load, rate=len(due) / span_s, duration_s=span_s, arrivals=f"replay of {replay}"), due


def _placement(generators: int | None, load: Load, rate: float | None, where: str) -> Placement:
    """The CPUs of the generators, as many as the highest rate takes, and of a server of our own."""
    from ..bench.load import placement

    alone = {
        "a bundle in this process has one generator; measure a server's URL": where == IN_PROCESS,
        "a stream comes from one generator": load.scenario in ("single-stream", "multi-stream"),
        "a recording is replayed by one generator": load.arrivals.startswith("replay"),
    }
    why = next((text for text, holds in alone.items() if holds), "")
    if why and generators not in (None, 1):
        raise UsageError(why, found=f"--generators {generators}", hint="leave out --generators")
    cpus = placement.cpus()
    count = generators or (1 if why else placement.generators_for(rate, len(cpus)))
    return placement.place(count, cpus) if count > 1 or where == SPAWN else placement.EVERYWHERE


def _rules(options: LoadOptions, load: Load, slo: Slo | None) -> tuple[Load, Rules | None]:
    """The rules of `--scenario`, and the load that it is."""
    if options.scenario is None:
        return load, None
    from ..bench.judgement.scenario import Rules, named

    scenario = named(options.scenario)
    objectives = slo.objectives if slo else ()
    if scenario.name == "server" and (load.rate is None or len(objectives) != 1):
        raise UsageError("the server scenario needs --qps RATE and one --slo such as p99=15ms")
    if scenario.name != "server" and (load.rate is not None or objectives):
        raise UsageError("only the server scenario has a rate and an objective", found=scenario.name)
    bound = objectives[0] if objectives else None
    width = scenario.samples if scenario.streams else load.concurrency
    least = scenario.queries_min if options.queries is None else options.queries
    found = Rules(scenario, load.duration_s, least, *((bound.limit_ns, bound.p) if bound else ()))
    return replace(load, scenario=scenario.name, concurrency=width), found


def show_scenario(found: Outcome, loadgen: dict[str, Any] | None) -> None:
    """A scenario's outcome for people, and LoadGen's own beside it."""
    rows = [("mserve", found.figure(), "VALID" if found.valid else f"INVALID: {'; '.join(found.invalid)}")]
    if loadgen is not None:
        value = "none" if loadgen["value"] is None else f"{loadgen['value']:,.3f} {loadgen['unit']}"
        broken = [*loadgen["unsatisfied"], *([f"{loadgen['failed']} failed"] if loadgen["failed"] else [])]
        verdict = "VALID" if loadgen["valid"] else f"INVALID: {', '.join(broken) or 'see LoadGen'}"
        rows.append(("LoadGen", value, verdict))
    _output.table((f"MLPerf {found.rules.scenario.name}", found.metric(), "result"), rows)
    for note in found.notes:
        _output.line(f"note: {note}")
