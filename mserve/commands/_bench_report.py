"""`mserve bench`: what becomes of a result: tables, files, assertions, the exit code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from . import _output
from ._bench_load import show_scenario

if TYPE_CHECKING:
    from ..bench.judgement.assertions import Assertion, Outcome
    from ..bench.results.report import Report
    from ..bench.results.result import Result
    from ..outfiles import OutFiles

LOAD = "How the load is made"
DEMANDS = "What the result must be"
OUTPUT = "What is left behind"

Qps = Annotated[
    str | None,
    typer.Option(
        metavar="[RATE|LO:HI:STEP]",
        help="Open loop: a rate, a sweep of rates, or, without a value, "
        "the search for the highest rate that meets the objectives (a minute or two).",
        rich_help_panel=LOAD,
    ),
]
Duration = Annotated[
    float | None,
    typer.Option(help="Seconds to measure (5; probes: 2).", min=0.01, max=86_400, rich_help_panel=LOAD),
]
Objectives = Annotated[
    list[str] | None,
    typer.Option(
        metavar="EXPR", help="p99=50ms, errors=0.1%: exit 1 if missed; repeatable.", rich_help_panel=DEMANDS
    ),
]
Timeout = Annotated[
    float,
    typer.Option(
        help="Seconds to wait for answers after the last request.", min=0.01, max=86_400, rich_help_panel=LOAD
    ),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict", help="INCONCLUSIVE, INVALID and UNSTABLE are exit 1 too.", rich_help_panel=DEMANDS
    ),
]
Asserts = Annotated[
    list[str] | None,
    typer.Option(
        "--assert",
        metavar="EXPR",
        help="p99<10ms, qps>500: exit 1 if it is not so; repeatable.",
        rich_help_panel=DEMANDS,
    ),
]
Html = Annotated[
    Path | None,
    typer.Option("--report", metavar="F.html", help="Write a page with charts.", rich_help_panel=OUTPUT),
]
Csv = Annotated[
    Path | None,
    typer.Option(metavar="F.csv", help="Write the times of every request.", rich_help_panel=OUTPUT),
]
Hdr = Annotated[
    Path | None, typer.Option(metavar="F.hlog", help="Write a HdrHistogram log.", rich_help_panel=OUTPUT)
]
Junit = Annotated[
    Path | None, typer.Option(metavar="F.xml", help="Write a JUnit file.", rich_help_panel=OUTPUT)
]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line wants of the result."""

    as_json: bool = False
    strict: bool = False
    assertions: Sequence[Assertion] = ()
    html: Path | None = None
    csv: Path | None = None
    hdr: Path | None = None
    junit: Path | None = None

    def demanding(self) -> bool:
        """Whether files or assertions are asked for."""
        return bool(self.assertions or self.html or self.csv or self.hdr or self.junit)

    def files(self) -> OutFiles:
        """The files to write, opened before anything is measured."""
        from ..outfiles import OutFiles

        return OutFiles([p for p in (self.html, self.csv, self.hdr, self.junit) if p is not None])


def finish(
    result: Result, stamp: Mapping[str, Any], wanted: Wanted, files: OutFiles, *, asserted: bool
) -> int:
    """Show a result, write its files, and say how the command ends."""
    from ..bench.judgement.assertions import check
    from ..bench.results.environment import disturbances

    judged = [result.headline()] if result.search is not None else list(result.reports)
    outcomes = [
        replace(o, text=f"{o.text} at {r.load.rate:g}/s") if len(judged) > 1 and r.load.rate else o
        for r in judged
        if r is not None
        for o in check(wanted.assertions, r)
    ]
    wrong = result.wrong()
    notes = [*([wrong] if wrong else []), *result.warnings()]
    notes += disturbances(stamp.get("interference") or {})
    if wanted.as_json:
        document = {"environment": dict(stamp), **result.to_json(), "notes": notes}
        _output.emit_json("bench", document | {"assertions": [_assertion_json(o) for o in outcomes]})
    else:
        show(result)
        for outcome in outcomes:
            _output.line(f"assertion: {outcome}")
    for text in notes:
        _output.note(f"warning: {text}")
    for path, parts in _contents(result, stamp, wanted, outcomes, notes):
        files.write(path, parts)
    code = result.exit_code(asserted=asserted, strict=wanted.strict)
    broken = [str(o) for o in outcomes if not o.holds]
    if wanted.assertions and not outcomes:
        broken = ["nothing was measured that an assertion could hold for"]
    for text in broken:
        _output.note(f"mserve: {text}")
    return code or int(bool(broken))


def _assertion_json(outcome: Outcome) -> dict[str, Any]:
    return {"text": outcome.text, "holds": outcome.holds, "found": outcome.found}


def _contents(
    result: Result,
    stamp: Mapping[str, Any],
    wanted: Wanted,
    outcomes: Sequence[Outcome],
    notes: Sequence[str],
) -> Iterator[tuple[Path, Iterable[str]]]:
    """What goes into each file that is wanted."""
    from ..bench.results import exports, hdr, html

    shown = result.headline() or (result.reports[-1] if result.reports else None)
    if wanted.html is not None:
        yield wanted.html, [html.page(result, stamp, notes, outcomes)]
    if wanted.csv is not None:
        yield wanted.csv, exports.csv(result.reports)
    if wanted.hdr is not None:
        histograms, seconds = {}, 0.0
        if shown is not None:
            histograms = {"corrected": shown.latencies, "uncorrected": shown.service_times}
            seconds = shown.seen.phase.span_ns / 1e9
        yield wanted.hdr, [hdr.log(histograms, seconds, float(stamp.get("started", 0.0)))]
    if wanted.junit is not None:
        yield wanted.junit, [exports.junit(result.reports, outcomes)]


def show(result: Result) -> None:
    """The result for people."""
    if result.search is not None or len(result.reports) > 1:
        columns = ("rate", "achieved", "p50", "p95", "p99", "model busy", "mean batch", "verdict")
        _output.table(columns, [_probe_row(r) for r in result.reports])
    report = result.headline()
    if report is not None:
        _show_report(report)
    if result.scenario is not None:
        show_scenario(result.scenario, result.loadgen)
    if result.search is not None:
        found = result.search.rate
        _output.line(f"highest rate: {found:g}/s" if found else "highest rate: none")
        if result.search.limit:
            _output.line(f"limited by: {result.search.limit}")


def _show_report(report: Report) -> None:
    from ..bench.judgement.verdict import interval
    from ..bench.judgement.verdict import show as time
    from ..bench.results.report import facts

    _output.table(("fact", "value"), facts(report))
    rows = [
        (f"p{100 * c.p:g}", time(c.value_ns), interval(c), time(u.value_ns))
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
    from ..bench.judgement.verdict import show as time

    shown = {c.p: time(c.value_ns) for c, _ in report.percentiles()}
    batch, busy = (report.seen.server or {}).get("mean_batch_rows"), report.busy()
    return (
        f"{report.load.rate:g}/s" if report.load.rate else f"closed, {report.load.concurrency}",
        f"{report.rates.achieved:,.1f}/s",
        *(shown.get(p, "-") for p in (0.5, 0.95, 0.99)),
        f"{busy:.0%}" if busy is not None else "-",
        f"{batch:.1f}" if batch else "-",
        str(report.verdict),
    )


def share(text: str, option: str) -> float:
    """A share such as 5% or 0.05. Raises UsageError."""
    number, scale = (text[:-1], 0.01) if text.endswith("%") else (text, 1.0)
    try:
        value = float(number) * scale
    except ValueError:
        value = -1.0
    if not 0 <= value < 10:
        raise UsageError(f"bad {option}", expected="a share such as 5% or 0.05", found=repr(text))
    return value
