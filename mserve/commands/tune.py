"""`mserve tune`: which batch settings carry the highest rate within an objective."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from . import _bench_targets, _output

if TYPE_CHECKING:
    from ..bench.load.schedule import Times
    from ..workflows.tune.report import Tuning

INTERRUPTED_EXIT = 130


def command(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A version directory or a base path.")],
    slo: Annotated[
        list[str], typer.Option(help="p99<10ms, p99.9<50ms, errors<0.1%; repeatable, all must hold.")
    ],
    inputs: _bench_targets.Inputs = None,
    signature: _bench_targets.Signature = "",
    rows: _bench_targets.Rows = None,
    device: _bench_targets.Device = "",
    arrivals: Annotated[str, typer.Option(help="poisson, constant, bursty[:FACTOR:ON_MS].")] = "poisson",
    replay: Annotated[
        Path | None, typer.Option(metavar="LOG", help="The arrival times of a request log instead.")
    ] = None,
    max_batch: Annotated[
        int, typer.Option(help="Largest batch to look at, in rows.", min=1, max=1 << 16)
    ] = 256,
    duration: Annotated[float, typer.Option(help="Seconds of each real run.", min=0.2, max=3600)] = 5.0,
    verify: Annotated[int, typer.Option(help="How many settings to try in real runs.", min=1, max=20)] = 3,
    seed: Annotated[int, typer.Option(help="Seed of requests and arrivals.", min=0)] = 1,
    write: Annotated[
        bool, typer.Option("--write", help="Publish a new version of the bundle that says the settings.")
    ] = False,
    version: Annotated[
        int | None, typer.Option(help="With --write: the version's number; default: the next.", min=0)
    ] = None,
    dedup: Annotated[
        bool, typer.Option("--dedup", help="With --write: share the shards by hard links.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Measure run times, simulate the batcher over a grid of settings, and verify the best in real runs.

    Exit 1: no setting meets the objectives.
    """
    if (version is not None or dedup) and not write:
        raise UsageError("--version and --dedup are for --write")
    from ..bench.judgement.slo import parse
    from ..bench.load.schedule import check_schedule
    from ..bench.targets.target import Ask
    from ..workflows.tune.workflow import Asked, tune

    check_schedule(arrivals, 1000.0, 1.0)
    ask = Ask(signature=signature, rows=rows or 0, inputs=inputs, device=device, seed=seed)
    times = None if replay is None else _times(replay)
    kind = arrivals if replay is None else f"replay of {replay}"
    asked = Asked(path, ask, parse(slo), kind, times, duration, max_batch, verify)
    found = tune(asked, _output.note)
    written = _write(found, version, dedup=dedup) if write else None
    if as_json:
        _output.emit_json("tune", {**found.to_json(), "written": written})
    else:
        _show(found, written)
    if found.stopped:
        raise typer.Exit(INTERRUPTED_EXIT)
    raise typer.Exit(0 if found.best() is not None else 1)


def _times(log: Path) -> Times:
    """A recording's arrival times. Raises InputError, UsageError."""
    from ..bench.load.schedule import replayed
    from ..bench.requests.request_log import read_log

    return replayed(read_log(log)[0], 1.0)


def _write(found: Tuning, version: int | None, *, dedup: bool) -> str | None:
    """Publish the best settings; None where there are none."""
    from ..format.republish import republish
    from ..workflows.tune.report import serving_of

    best = found.best()
    if best is None:
        return None
    return str(republish(found.bundle, serving_of(best.batching), version, dedup=dedup).path)


def _show(found: Tuning, written: str | None) -> None:
    from ..bench.judgement.verdict import show
    from ..workflows.tune import report

    _output.table(report.CURVE_COLUMNS, found.curve_rows())
    for count, curve in sorted(found.threads.items()):
        runs = ", ".join(f"{n} rows {show(int(curve.median(n)))}" for n in curve.sizes if n in (1, 8, 64))
        _output.line(f"{count} thread(s) a run: {runs}")
    _output.table(report.CANDIDATE_COLUMNS, found.candidate_rows())
    if found.checks:
        _output.table(report.CHECK_COLUMNS, found.check_rows())
    _output.line(
        f"{found.settings} settings in {found.simulations} simulated runs, {len(found.checks)} real ones"
    )
    for note in found.all_notes():
        _output.line(f"note: {note}")
    best = found.best()
    if best is not None:
        _output.line(f"{found.slo} holds at {best.rate:,.0f}/s, as measured, with:")
        _output.line()
        _output.line(report.toml(found.name, best.batching))
    elif found.reachable:
        _output.line(f"no real run met {found.slo}")
    else:
        reached = ", ".join(f"{text}: {show(ns)}" for text, ns in found.fastest().items())
        _output.line(f"no setting meets {found.slo} at any rate; the best of a request alone is {reached}")
    if written:
        _output.line(f"written: {written}")
