"""`mserve bench`: the options about the load, and what they amount to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from . import _output

if TYPE_CHECKING:
    from ..bench.scenario import Outcome, Rules
    from ..bench.session import Means
    from ..bench.slo import Slo
    from ..bench.targets import Target
    from ..bench.verdict import Load

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
    typer.Option(metavar="LOG[@SPEED]", help="Open loop: the arrival times of a request log."),
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


def means(load: Load, generators: int | None, replay: str | None, *, in_process: bool) -> tuple[Load, Means]:
    """The generators and the recording that the options name, and the load with its rate and length.

    Raises UsageError, InputError.
    """
    from dataclasses import replace

    from ..bench import placement
    from ..bench.request_log import read_log
    from ..bench.schedule import replayed
    from ..bench.session import Means

    recording = None
    if replay is not None:
        path, speed = parse_replay(replay)
        recording = replayed(read_log(path)[0], speed)
        span_s = max(float(recording[-1]) / 1e9, 1e-3)
        load = replace(load, rate=len(recording) / span_s, duration_s=span_s, arrivals=f"replay of {replay}")
    scenario = load.scenario
    if in_process and generators not in (None, 1):
        raise UsageError("a bundle in this process has one generator", hint="measure a server's URL")
    cpus = placement.cpus()
    if scenario in ("single-stream", "multi-stream") and generators not in (None, 1):
        raise UsageError("a stream comes from one generator", found=f"--generators {generators}")
    count = generators or (1 if in_process else placement.generators_for(load.rate, len(cpus)))
    placed = placement.place(count, cpus) if count > 1 else placement.Placement((placement.ANY,))
    return load, Means(placed, recording)


def rules(name: str | None, load: Load, queries: int | None, slo: Slo | None) -> tuple[Load, Rules | None]:
    """The rules of `--scenario` and the load that it is; no rules without one. Raises UsageError."""
    if name is None:
        if queries is not None:
            raise UsageError("--queries is for a scenario", hint="--scenario single-stream, for example")
        return load, None
    from dataclasses import replace

    from ..bench.scenario import Rules, named

    scenario = named(name)
    objectives = slo.objectives if slo else ()
    if name == "server" and (load.rate is None or len(objectives) != 1):
        raise UsageError("the server scenario needs --qps RATE and one --slo such as p99=15ms")
    if name != "server" and (load.rate is not None or objectives):
        raise UsageError("only the server scenario has a rate and an objective", found=name)
    bound = objectives[0] if objectives else None
    width = scenario.samples if scenario.streams else load.concurrency
    least = scenario.queries_min if queries is None else queries
    found = Rules(scenario, load.duration_s, least, *((bound.limit_ns, bound.p) if bound else ()))
    return replace(load, scenario=name, concurrency=width), found


def check_scenario(scenario: str | None, qps: str | None, replay: str | None, *, loadgen: bool) -> None:
    """Refuse what does not go with a scenario, or without one. Raises UsageError."""
    if scenario is None and loadgen:
        raise UsageError("--loadgen is for a scenario", hint="--scenario single-stream, for example")
    one_rate = qps is None or (qps != "auto" and ":" not in qps)
    if scenario is not None and not (one_rate and replay is None):
        raise UsageError(
            "a scenario has at most one rate", hint="--scenario server --qps RATE --slo p99=15ms"
        )


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


def check_reload(
    where: str | None, publish: list[Path] | None, scenario: str | None, qps: str | None
) -> None:
    """Refuse what does not go with `--during-reload`. Raises UsageError."""
    if where is None and publish:
        raise UsageError("--publish is for --during-reload", hint="--during-reload BASE_PATH --publish DIR")
    if where is not None and (scenario is not None or qps == "auto"):
        raise UsageError("--during-reload goes with a rate, no search or scenario", hint="--qps RATE")


def with_reload(
    means: Means, where: str | None, publish: list[Path] | None, every_s: float, target: Target
) -> Means:
    """The means with the swaps of `--during-reload`. Raises UsageError or InputError."""
    if where is None:
        return means
    from dataclasses import replace

    from ..bench.reload import Reload, open_publisher

    return replace(means, reload=Reload(open_publisher(where, publish or (), target.describe()), every_s))
