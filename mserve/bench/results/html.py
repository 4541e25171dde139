"""HTML: one self-contained page of a result: no script, no network, light and dark. Pure.

Every text is escaped: names of models and messages of servers were written by others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..judgement.assertions import Outcome
from ..judgement.verdict import Verdict, interval, show
from .charts import batches, course, curve, distribution
from .report import Report, facts
from .result import Result

_TONES = {
    Verdict.PASS: "good",
    Verdict.MEASURED: "good",
    Verdict.INCONCLUSIVE: "unsure",
    Verdict.FAIL: "bad",
    Verdict.ERRORS: "bad",
}
_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1c2430; --soft: #5c6878;
  --rule: #e3e7ec; --first: #2563eb; --second: #94a3b8; --third: #d97706; --fourth: #dc2626;
  --good: #15803d; --unsure: #b45309; --bad: #b91c1c; --band: #7c3aed; }
@media (prefers-color-scheme: dark) { :root { --page: #0e1116; --card: #171c24; --ink: #e6eaf0;
  --soft: #97a3b4; --rule: #2a313c; --first: #60a5fa; --second: #64748b; --third: #fbbf24;
  --fourth: #f87171; --good: #4ade80; --unsure: #fbbf24; --bad: #f87171; --band: #a78bfa; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 880px; padding: 32px 20px 64px; background: var(--page);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 22px; margin: 0 0 4px; } h2 { font-size: 16px; margin: 0 0 8px; }
p { margin: 0 0 8px; } .soft { color: var(--soft); } .wide { overflow-x: auto; }
section, header { background: var(--card); border: 1px solid var(--rule); border-radius: 12px;
  padding: 20px 24px; margin: 0 0 18px; }
header { border-left: 6px solid var(--tone); }
.verdict { font-size: 18px; font-weight: 650; color: var(--tone); margin: 10px 0 0; overflow-wrap: anywhere; }
.good { --tone: var(--good); } .unsure { --tone: var(--unsure); } .bad { --tone: var(--bad); }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 14px;
  margin-top: 16px; }
.numbers div { border-top: 2px solid var(--rule); padding-top: 8px; }
.numbers b { display: block; font-size: 21px; font-variant-numeric: tabular-nums; }
.numbers span { color: var(--soft); font-size: 13px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 12px 5px 0; border-bottom: 1px solid var(--rule);
  vertical-align: top; overflow-wrap: anywhere; }
td:first-child { white-space: nowrap; overflow-wrap: normal; }
th { color: var(--soft); font-weight: 500; font-size: 13px; } td.word { color: var(--tone); }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--soft); font-size: 11.5px; }
.grid { stroke: var(--rule); fill: none; } .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.line.first { stroke: var(--first); } .line.second { stroke: var(--second); stroke-dasharray: 5 3; }
.line.third { stroke: var(--third); } .line.fourth { stroke: var(--fourth); stroke-width: 1; opacity: .55; }
.curve .line.second { stroke-dasharray: none; }
.dot.first, .bar.first { fill: var(--first); } .dot.second { fill: var(--second); }
.dot.third { fill: var(--third); } .band { fill: var(--band); opacity: .18; }
.level { stroke: var(--bad); stroke-dasharray: 3 4; fill: none; } svg .mark { font-size: 10.5px; }
.key { display: flex; flex-wrap: wrap; gap: 16px; color: var(--soft); font-size: 13px; margin: 8px 0 0; }
.key i { display: inline-block; width: 18px; height: 3px; border-radius: 2px; margin-right: 6px;
  vertical-align: middle; background: var(--c); }
ul { margin: 0; padding-left: 20px; } code { font-size: 13px; overflow-wrap: anywhere; }
@media print { body { background: none; } section, header { break-inside: avoid; } }
"""
_DISTRIBUTION_KEY = (
    ("first", "corrected: from when each was due"),
    ("second", "uncorrected: from the sending"),
)
_COURSE_KEY = (("first", "median"), ("third", "p99"), ("fourth", "longest"), ("band", "swap"))
_CURVE_KEY = (("first", "p50"), ("second", "p95"), ("third", "p99"))


def page(
    result: Result,
    environment: Mapping[str, Any],
    notes: Sequence[str] = (),
    outcomes: Sequence[Outcome] = (),
) -> str:
    """The whole page."""
    shown = result.headline() or (result.reports[-1] if result.reports else None)
    parts = [_header(result, shown, environment)]
    if outcomes:
        rows = [_outcome(outcome) for outcome in outcomes]
        parts.append(_section("Assertions", _table(("assertion", "", "found"), rows)))
    if len(result.reports) > 1:
        parts.append(_rates(result))
    if shown is not None:
        parts += _charts(shown)
        parts.append(_section("Percentiles", _percentiles(shown)) if shown.percentiles() else "")
        parts.append(_section("Measurement", _table(("fact", "value"), map(_cells, facts(shown)))))
        notes = [*notes, *shown.notes()]
    if notes:
        items = "".join(f"<li>{escape(note)}</li>" for note in notes)
        parts.append(_section("What to know", f"<ul>{items}</ul>"))
    parts.append(_section("Environment", _table(("fact", "value"), map(_cells, _stamp(environment)))))
    title = escape(f"mserve bench: {_name(shown)}")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _header(result: Result, shown: Report | None, environment: Mapping[str, Any]) -> str:
    tone, text, numbers = "bad", "nothing was measured", ""
    if result.search is not None:
        found = result.search.rate
        tone = "good" if found else "bad"
        text = f"highest rate: {found:g}/s" if found else "no rate meets the objectives"
        text += f"; limited by {result.search.limit}" if result.search.limit else ""
    elif shown is not None:
        tone, text = _TONES.get(shown.verdict.code, "bad"), str(shown.verdict)
        if len(result.reports) > 1:
            tone, text = "good", f"{len(result.reports)} measurements"
    if shown is not None:
        numbers = _numbers(shown)
    load = escape(str(shown.load)) if shown else ""
    command = escape(str(environment.get("command", "")))
    return (
        f'<header class="{tone}"><h1>{escape(_name(shown))}</h1><p class="soft">{load}</p>'
        f'<p class="soft"><code>{command}</code></p><p class="verdict">{escape(text)}</p>{numbers}</header>'
    )


def _name(shown: Report | None) -> str:
    return str(shown.target.get("model", "model")) if shown else "no measurement"


def _numbers(report: Report) -> str:
    """The few numbers that a reader looks for first."""
    cells = [(f"{report.rates.ok:,.1f}", "answers per second")]
    for found, _ in report.percentiles():
        if found.p in (0.5, 0.99) and found.value_ns is not None:
            cells.append((show(found.value_ns), f"p{100 * found.p:g}"))
    failed = report.total - report.ok
    cells.append((f"{failed:,}", f"of {report.total:,} requests failed"))
    if (good := report.goodput()) is not None and report.quotable():
        cells.append((f"{good:,.1f}", "good answers per second"))
    body = "".join(f"<div><b>{escape(a)}</b><span>{escape(b)}</span></div>" for a, b in cells)
    return f'<div class="numbers">{body}</div>'


def _charts(report: Report) -> list[str]:
    swaps = report.seen.swaps.spans() if report.seen.swaps else []
    course_key = _COURSE_KEY if swaps else _COURSE_KEY[:3]
    found = (
        ("Latency distribution", distribution(report), _DISTRIBUTION_KEY),
        ("Latency over time", course(report, swaps), course_key),
        ("Batch sizes", batches(report.seen.server), ()),
    )
    return [_section(title, chart + _key(key)) for title, chart, key in found if chart]


def _rates(result: Result) -> str:
    rows = []
    for report in result.reports:
        by_p = {found.p: show(found.value_ns) for found, _ in report.percentiles()}
        busy, batch = report.busy(), (report.seen.server or {}).get("mean_batch_rows")
        cells = [
            f"{report.load.rate:,g}/s" if report.load.rate else f"closed, {report.load.concurrency}",
            f"{report.rates.achieved:,.1f}/s",
            *(by_p.get(p, "-") for p in (0.5, 0.95, 0.99)),
            f"{busy:.0%}" if busy is not None else "-",
            f"{batch:.1f}" if batch else "-",
        ]
        tone = _TONES.get(report.verdict.code, "bad")
        rows.append([*map(_cell, cells), f'<td class="word {tone}">{escape(str(report.verdict))}</td>'])
    columns = ("offered", "answered", "p50", "p95", "p99", "model busy", "batch", "verdict")
    chart = curve(result.reports)
    drawn = f'<div class="curve">{chart}{_key(_CURVE_KEY)}</div>' if chart else ""
    return _section("Rates", drawn + _table(columns, rows))


def _percentiles(report: Report) -> str:
    rows = []
    for found, uncorrected in report.percentiles():
        name = f"p{100 * found.p:g}"
        if found.value_ns is None:
            rows.append(_cells((name, f"needs {found.needed:,} samples", "", "", "")))
            continue
        worth = "-" if found.effective is None else f"{found.effective:,}"
        rows.append(_cells((name, show(found.value_ns), interval(found), show(uncorrected.value_ns), worth)))
    return _table(("", "latency", "95 % interval", "uncorrected", "independent samples"), rows)


def _outcome(outcome: Outcome) -> list[str]:
    tone = "good" if outcome.holds else "bad"
    return [_cell(outcome.text), f'<td class="word {tone}">{outcome.word}</td>', _cell(outcome.found)]


def _stamp(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for key, value in environment.items():
        if value in (None, [], ""):
            continue
        rows.append((key.replace("_", " "), _fact(value)))
    return rows


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name.replace('_', ' ')} {_fact(one)}" for name, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_fact, value))
    return f"{value:.4g}" if isinstance(value, float) and value < 1e4 else str(value)


def _key(entries: Sequence[tuple[str, str]]) -> str:
    spans = "".join(
        f'<span><i style="--c: var(--{kind})"></i>{escape(text)}</span>' for kind, text in entries
    )
    return f'<div class="key">{spans}</div>' if spans else ""


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _table(columns: Sequence[str], rows: Any) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _cells(values: Sequence[str]) -> list[str]:
    return [_cell(value) for value in values]


def _cell(value: str) -> str:
    return f"<td>{escape(value)}</td>"
