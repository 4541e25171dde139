"""`mserve bench`: latency and capacity of a bundle or a server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from . import _output

if TYPE_CHECKING:
    from ..bench.report import Report
    from ..bench.result import Result
    from ..bench.slo import Slo

AUTO = "auto"
SWEEP_MAX = 1000
DURATION_S = 5.0


def command(
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="A bundle, or a server's URL (http://HOST:PORT).")
    ],
    qps: Annotated[
        str | None,
        typer.Option(
            metavar="[RATE|LO:HI:STEP]",
            help="Open loop: a rate, a sweep of rates, or, without a value, "
            "the search for the highest rate that meets the objectives.",
        ),
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(help="Closed loop: so many connections (16 without --qps).", min=1, max=4096)
    ] = None,
    duration: Annotated[
        float | None, typer.Option(help="Seconds to measure (5; probes: 2).", min=0.01, max=86_400)
    ] = None,
    warmup: Annotated[float, typer.Option(help="Seconds before, not counted.", min=0, max=86_400)] = 1.0,
    slo: Annotated[
        list[str] | None,
        typer.Option(metavar="EXPR", help="p99=50ms, errors=0.1%: exit 1 if missed; repeatable."),
    ] = None,
    arrivals: Annotated[str, typer.Option(help="Open loop: poisson or constant.")] = "poisson",
    inputs: Annotated[Path | None, typer.Option(help="The request: an npz file or JSON request.")] = None,
    model: Annotated[str, typer.Option(help="Which model of a server with several.")] = "",
    signature: Annotated[str, typer.Option(help="Which signature; default: serving_default.")] = "",
    device: Annotated[str, typer.Option(help="Where a bundle runs: cpu, auto or cuda:0,cuda:1.")] = "",
    rows: Annotated[int | None, typer.Option(help="Rows of each request (1).", min=1, max=1_000_000)] = None,
    seed: Annotated[int, typer.Option(help="Seed of the arrivals.", min=0)] = 1,
    timeout: Annotated[
        float, typer.Option(help="Seconds to wait for answers after the last request.", min=0.01, max=86_400)
    ] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Measure latency and capacity, from the time when each request was due.

    Exit 1: --slo missed, or no request was answered; 4: nothing listens, or the server died.
    """
    from ..bench import environment, session
    from ..bench.opening import Ask, open_target
    from ..bench.slo import DEFAULT, parse
    from ..bench.verdict import Load

    rates = parse_qps(qps)
    searching = qps == AUTO
    objectives = parse(slo or [DEFAULT]) if slo or searching else None
    _check(qps, concurrency, objectives)
    if rows is not None and inputs is not None:
        raise UsageError("--rows is for made-up requests", hint="--inputs holds its rows itself")
    load = Load(
        rate=rates[0] if rates else None,
        concurrency=concurrency or 16,
        duration_s=duration or (session.PROBE_S if searching else DURATION_S),
        warmup_s=warmup,
        timeout_s=timeout,
        arrivals=arrivals,
        seed=seed,
    )
    session.check(load, rates)
    stamp = environment.stamp(sys.argv[1:])
    opened = open_target(target, Ask(model, signature, rows or 1, inputs, device))
    work = session.Session(opened, load, objectives, _output.note)
    result = session.run(work.search() if searching else work.sweep(rates) if rates else work.closed())
    if as_json:
        _output.emit_json("bench", {"environment": stamp, **result.to_json()})
    else:
        show(result)
    raise typer.Exit(result.exit_code(asserted=bool(slo)))


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


def _check(qps: str | None, concurrency: int | None, slo: Slo | None) -> None:
    if qps is not None and concurrency is not None:
        raise UsageError(
            "--qps and --concurrency exclude each other",
            hint="--qps opens as many connections as its rate needs; --concurrency is the closed loop",
        )
    if qps is None and slo is not None and slo.objectives:
        raise UsageError(
            "a closed loop says nothing about a latency objective",
            found=str(slo),
            hint="offer a rate: --qps RATE; or search for the highest one: --qps",
        )


def show(result: Result) -> None:
    """The result for people."""
    if result.search is not None or len(result.reports) > 1:
        _output.table(
            ("rate", "achieved", "p50", "p99", "mean batch", "verdict"),
            [_probe_row(r) for r in result.reports],
        )
    report = result.headline()
    if report is not None:
        _show_report(report)
    if result.search is not None:
        found = result.search.rate
        _output.line(f"highest rate: {found:g}/s" if found else "highest rate: none")
        if result.search.limit:
            _output.line(f"limited by: {result.search.limit}")


def _show_report(report: Report) -> None:
    from ..bench.report import facts
    from ..bench.verdict import show as time

    _output.table(("fact", "value"), facts(report))
    rows = [
        (f"p{100 * c.p:g}", time(c.value_ns), f"{time(c.low_ns)} to {time(c.high_ns)}", time(u.value_ns))
        if c.value_ns is not None
        else (f"p{100 * c.p:g}", f"needs {c.needed} samples", "", "")
        for c, u in report.percentiles()
    ]
    if rows:
        _output.table(("percentile", "latency", "95 % interval", "uncorrected"), rows)
    for text in report.notes():
        _output.line(f"note: {text}")
    _output.line(f"verdict: {report.verdict}")


def _probe_row(report: Report) -> tuple[str, ...]:
    from ..bench.verdict import show as time

    shown = {c.p: time(c.value_ns) for c, _ in report.percentiles()}
    batch = report.seen.server["mean_batch_rows"] if report.seen.server else None
    return (
        f"{report.load.rate:g}/s" if report.load.rate else "closed",
        f"{report.rates.achieved:,.1f}/s",
        shown.get(0.5, "-"),
        shown.get(0.99, "-"),
        f"{batch:.1f}" if batch else "-",
        str(report.verdict),
    )
