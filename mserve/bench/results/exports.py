"""Exports: raw samples as CSV, verdicts as JUnit XML. Pure: parts of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.sax.saxutils import quoteattr

from ...errors import printable
from ..judgement.assertions import Outcome
from ..judgement.verdict import Verdict
from ..load.recorder import outcome_name
from .report import Report

CSV_COLUMNS = ("run", "intended_ns", "taken_ns", "sent_ns", "first_byte_ns", "done_ns", "outcome")
_ROWS_A_PART = 10_000
_BAD = {Verdict.FAIL, Verdict.ERRORS}
_NO_RESULT = {Verdict.INVALID, Verdict.UNSTABLE, Verdict.STOPPED}


def csv(reports: Sequence[Report]) -> Iterator[str]:
    """Every request of every measurement, in nanoseconds after the first one was due.

    `run` counts measurements from 1; a time is empty where the thing did not happen.
    """
    yield ",".join(CSV_COLUMNS) + "\r\n"
    for number, report in enumerate(reports, 1):
        recorder = report.seen.phase.recorder
        n = recorder.count
        start = int(recorder.intended[:n].min()) if n else 0
        names = {int(code): outcome_name(int(code)) for code in set(recorder.outcome[:n].tolist())}
        first = getattr(recorder, "first", None)
        columns = [recorder.intended, recorder.taken, recorder.sent, first, recorder.done]
        for at in range(0, n, _ROWS_A_PART):
            part = slice(at, min(n, at + _ROWS_A_PART))
            outcomes = recorder.outcome[part].tolist()
            times = [[0] * len(outcomes) if c is None else c[part].tolist() for c in columns]
            yield "".join(
                ",".join([str(number), *(str(t - start) if t else "" for t in row), names[code]]) + "\r\n"
                for *row, code in zip(*times, outcomes, strict=True)
            )


def junit(reports: Sequence[Report], outcomes: Sequence[Outcome]) -> str:
    """A test case for each measurement and for each assertion.

    A missed objective or assertion and a wrong answer are failures, a run without a result is
    an error, and one that proved nothing counts as skipped.
    """
    cases = [case for report in reports for case in (_case(report), *_verified(report))]
    for outcome in outcomes:
        body = "" if outcome.holds else _element("failure", str(outcome))
        cases.append(f"  <testcase classname={_text('assert')} name={_text(outcome.text)}>{body}</testcase>")
    counts = {tag: sum(f"<{tag} " in case for case in cases) for tag in ("failure", "error", "skipped")}
    head = (
        f'<testsuite name="mserve bench" tests="{len(cases)}" failures="{counts["failure"]}" '
        f'errors="{counts["error"]}" skipped="{counts["skipped"]}">'
    )
    return "\n".join(['<?xml version="1.0" encoding="UTF-8"?>', head, *cases, "</testsuite>\n"])


def _case(report: Report) -> str:
    code, text = report.verdict.code, str(report.verdict)
    tag = "failure" if code in _BAD else "error" if code in _NO_RESULT else ""
    tag = "skipped" if code == Verdict.INCONCLUSIVE else tag
    seconds = report.seen.phase.span_ns / 1e9
    return (
        f"  <testcase classname={_text('measurement')} name={_text(str(report.load))} "
        f'time="{seconds:.3f}">{_element(tag, text) if tag else ""}</testcase>'
    )


def _verified(report: Report) -> Iterator[str]:
    """A case of its own where answers were compared with what is expected."""
    if report.target.get("verified"):
        body = _element("failure", wrong) if (wrong := report.wrong()) else ""
        yield f"  <testcase classname={_text('verify')} name={_text(str(report.load))}>{body}</testcase>"


def _element(tag: str, message: str) -> str:
    return f"<{tag} message={_text(message)}/>"


def _text(text: str) -> str:
    return quoteattr(printable(text))
