"""Files that a run leaves behind, read back by others; and what it demands of itself."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from bench_tools import MS, phase_of
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader
from hypothesis import given, settings
from hypothesis import strategies as st

from mserve.bench.judgement import assertions
from mserve.bench.judgement.quantiles import NEVER_NS
from mserve.bench.judgement.search import Probe, Search
from mserve.bench.judgement.slo import parse as parse_slo
from mserve.bench.judgement.verdict import Load, Measurement
from mserve.bench.load.recorder import INTERRUPTED, OK, PENDING, UNFINISHED
from mserve.bench.load.reload import Side, Swaps, Window
from mserve.bench.results import exports, hdr, html
from mserve.bench.results.glance import glance
from mserve.bench.results.report import Report
from mserve.bench.results.result import Result
from mserve.bench.results.svg import linear, logarithmic, nines
from mserve.errors import EnvironmentProblem, UsageError
from mserve.outfiles import OutFiles

SIDE = Side(0, 0, ())
EVIL = '<script>alert("x")</script>&\x1b[31m'
SERVER = {
    "requests": 2000,
    "batches": 500,
    "mean_batch_rows": 4.0,
    "inline_share": 0.5,
    "mean_run_ms": 1.5,
    "mean_queue_ms": 0.7,
    "phases_ms": {"compute": 1.5},
    "batch_rows": [
        {"rows_max": 1, "batches": 300},
        {"rows_max": 8, "batches": 200},
        {"rows_max": None, "batches": 0},
    ],
}


def report(latencies: Any = None, rate: float = 1000.0, slo: str = "p99=50ms", **rest: Any) -> Report:
    rng = np.random.default_rng(1)
    latencies = rng.lognormal(1.0, 0.6, 4000) if latencies is None else latencies
    seen = Measurement(phase_of(latencies, gap_ms=1e3 / rate, **rest), server=SERVER)
    target = {"kind": "url", "url": f"http://h/{EVIL}", "model": EVIL, "rows": 1, "request_bytes": 9}
    return Report.of(target, Load(rate=rate), seen, parse_slo([slo]) if slo else None)


# HdrHistogram


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (np.random.default_rng(2).lognormal(14, 1, 20_000).astype(np.int64), "latencies of a millisecond"),
        (np.arange(1, 5000), "small values, each in a bucket of its own"),
        (np.array([1, 2047, 2048, 2049, 4095, 4096, 1 << 40]), "edges of buckets"),
        (np.full(100_000, 5 * MS), "a count of several bytes"),
        (np.array([3 * MS, NEVER_NS]), "what was never answered counts as an hour"),
    ],
)
def test_the_histogram_log_is_read_by_another_library(values: np.ndarray, why: str, tmp_path: Path) -> None:
    path = tmp_path / "log.hlog"
    path.write_text(hdr.log({"corrected": values, "uncorrected": values[:1]}, 2.5, 1_700_000_000.0))
    reference = HdrHistogram(1, hdr.HIGHEST_NS, 3)
    reader = HistogramLogReader(str(path), reference)
    found, second = reader.get_next_interval_histogram(), reader.get_next_interval_histogram()
    reader.close()
    assert reader.get_start_time_sec() == pytest.approx(1_700_000_000.0)
    assert found.get_total_count() == len(values)
    assert second.get_total_count() == 1
    assert (found.get_tag(), second.get_tag()) == ("corrected", "uncorrected")
    ascending = np.sort(np.minimum(values, hdr.HIGHEST_NS))
    for p in (1.0, 50.0, 90.0, 99.0, 100.0):
        exact = int(ascending[max(1, int(p / 100 * len(values) + 0.5)) - 1])  # as it rounds ranks
        assert found.get_value_at_percentile(p) == pytest.approx(exact, rel=2e-3)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, hdr.HIGHEST_NS), min_size=1, max_size=50))
def test_every_value_lies_in_the_bucket_that_another_library_gives_it(values: list[int]) -> None:
    ours, theirs = HdrHistogram.decode(hdr.encoded(np.array(values))), HdrHistogram(1, hdr.HIGHEST_NS, 3)
    for value in values:
        theirs.record_value(value)
    assert [i.count_added_in_this_iter_step for i in ours.get_recorded_iterator()] == [
        i.count_added_in_this_iter_step for i in theirs.get_recorded_iterator()
    ]
    assert ours.get_max_value() == theirs.get_max_value()


def test_an_empty_histogram_is_one() -> None:
    assert HdrHistogram.decode(hdr.encoded(np.zeros(0, np.int64))).get_total_count() == 0


# samples and JUnit


def test_the_samples_hold_every_request() -> None:
    outcomes = [OK] * 18 + [503, UNFINISHED]
    reports = [report(np.full(20, 5.0), outcomes=outcomes, lags_ms=0.5), report(np.full(10_500, 1.0))]
    rows = list(csv.DictReader(io.StringIO("".join(exports.csv(reports)))))
    assert tuple(rows[0]) == exports.CSV_COLUMNS
    assert [sum(r["run"] == run for r in rows) for run in "12"] == [20, 10_500]
    assert [r["outcome"] for r in rows[17:20]] == ["ok", "status 503", "unfinished"]
    last = rows[19]
    assert int(last["intended_ns"]) == 19 * MS
    assert int(last["sent_ns"]) == 19 * MS + MS // 2
    assert int(last["done_ns"]) == 24 * MS


def test_junit_tells_failures_from_runs_without_a_result() -> None:
    reports = [
        report(),
        report(np.full(4000, 60.0)),
        report(np.linspace(1, 3000, 4000)),
        report(np.full(100, 1.0)),
    ]
    outcomes = assertions.check(assertions.parse(["p99<1us", "qps>1"]), reports[0])
    suite = ET.fromstring(exports.junit(reports, outcomes))
    assert {k: suite.attrib[k] for k in ("tests", "failures", "errors", "skipped")} == {
        "tests": "6",
        "failures": "2",
        "errors": "1",
        "skipped": "1",
    }
    assert len(suite.findall("testcase")) == 6
    assert "took longer" in suite[1][0].attrib["message"]


# assertions


@pytest.mark.parametrize(
    ("text", "holds", "why"),
    [
        ("p50<10ms", True, "the median is about 2.7 ms"),
        ("p50 < 10 us", False, "and not microseconds"),
        ("p99=50ms", True, "an equals sign reads as at most"),
        ("p99.9<50ms", False, "4000 samples do not carry a p99.9"),
        ("mean<10ms", True, "the mean"),
        ("max<1us", False, "the longest"),
        ("qps>500", True, "1000 a second"),
        ("qps=500", True, "an equals sign reads as at least"),
        ("qps>=5000", False, "not 5000"),
        ("goodput>900", True, "nearly all are good"),
        ("errors<0.1%", True, "none failed"),
        ("batch>3", True, "the server tells 4"),
        ("queue<0.1ms", False, "the server tells 0.7 ms"),
    ],
)
def test_assertions(text: str, holds: bool, why: str) -> None:
    [outcome] = assertions.check(assertions.parse([text]), report())
    assert outcome.holds is holds
    assert text in str(outcome)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "p99",
        "p99<10",
        "p99!10ms",
        "p0<1ms",
        "qps>5ms",
        "qps>5%",
        "batch<2ms",
        "x<1",
        "errors<1s",
        "p99<-1ms",
    ],
)
def test_other_assertions_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        assertions.parse([text])


def test_what_a_report_cannot_say_does_not_hold() -> None:
    unstable = report(np.linspace(1, 3000, 4000))
    for text in ("p50<10s", "goodput>0", "max<9s"):
        [outcome] = assertions.check(assertions.parse([text]), unstable)
        assert not outcome.holds
        assert str(outcome).startswith(f"{text}: cannot be told: UNSTABLE")
    failed = report(outcomes=[OK] * 3900 + [503] * 100)
    [outcome] = assertions.check(assertions.parse(["errors<1%"]), failed)
    assert (outcome.holds, outcome.found) == (False, "2.500%")


# the page


class Page(HTMLParser):
    """What a browser would find in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "action")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_stands_alone_and_escapes_what_others_wrote() -> None:
    outcomes = assertions.check(assertions.parse(["p99<1us"]), report())
    text = html.page(Result([report()]), {"command": EVIL, "cpu": "x"}, [EVIL], outcomes)
    page = Page(text)
    assert page.open == []
    assert "script" not in page.tags
    assert page.links == []
    assert "url(" not in text
    assert "<script" not in text
    assert 'alert("x")' in page.text
    assert page.tags.count("svg") == 3
    assert "prefers-color-scheme: dark" in text
    for word in ("corrected", "uncorrected", "does not hold", "Environment", "pass: p99=50ms"):
        assert word in page.text


def test_swaps_are_marked_where_they_were() -> None:
    """Two windows of a run of 2 s: at 0.5 s and at 1 s, a tenth of a second each."""
    found = report(np.full(2000, 5.0))
    windows = tuple(Window(at * MS, (at + 100) * MS, True) for at in (500, 1000))
    swapped = replace(found, seen=replace(found.seen, swaps=Swaps(windows, SIDE, SIDE)))
    text = html.page(Result([swapped]), {})
    bands = re.findall(r'<rect class="band" x="([\d.]+)" y="\d+" width="([\d.]+)"', text)
    assert [float(width) for _, width in bands] == pytest.approx([672 / 20] * 2, rel=0.01)
    assert float(bands[1][0]) - float(bands[0][0]) == pytest.approx(672 / 4, rel=0.01)
    assert "swap</span>" in text
    assert "band" not in re.findall(r'class="(\w+)"', html.page(Result([found]), {}))


def test_the_page_of_a_search_shows_the_curve() -> None:
    rates = (250.0, 500.0, 1000.0)
    search = Search(1000.0, "2000/s: missed", [Probe(r, "pass") for r in rates], ["sweep"] * 3)
    page = Page(html.page(Result([report(rate=r) for r in rates], search), {}))
    assert page.tags.count("svg") == 4
    assert "highest rate: 1000/s" in page.text
    assert page.tags.count("circle") == 9


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (Result(), "nothing was measured"),
        (Result([report(np.linspace(1, 3000, 4000))]), "UNSTABLE"),
        (Result([report([])]), "INVALID"),
        (Result([report(np.full(50, 5.0), stopped=INTERRUPTED)], stopped=INTERRUPTED), "interrupted"),
        (Result([report(np.full(50, 5.0), outcomes=400)]), "every request failed"),
        (Result([report(np.full(50, 5.0), outcomes=UNFINISHED)]), "every request failed"),
        (Result(search=Search()), "no rate meets the objectives"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_page_is_made_of_any_result(result: Result, text: str) -> None:
    page = Page(html.page(result, {}))
    assert text in page.text
    assert "nan" not in re.findall(r"[\w.]+", page.text)


@given(st.floats(1e-3, 1e6), st.floats(1e-3, 1e6))
def test_axes_put_values_in_order_and_ticks_inside(a: float, b: float) -> None:
    low, high = sorted((a, b))
    for axis in (linear("x", low, high), logarithmic("x", low, high, str), nines("x", int(high) + 2)):
        places = [axis.at(tick) for tick in axis.ticks]
        assert places == sorted(places)
        assert all(0 <= place <= 1 for place in places)
        assert len(places) <= 40
        assert axis.at(axis.low) == 0.0
        assert axis.at(axis.high) == pytest.approx(1.0)


# files


def test_files_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    kept, new = tmp_path / "kept.html", tmp_path / "new.csv"
    kept.write_text("old")
    with OutFiles([kept, new]) as files:
        assert kept.read_text() == "old"
        files.write(new, ["a", "b\r\n"])
    assert new.read_bytes() == b"ab\r\n"
    assert kept.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept.html", "new.csv"]


def test_a_file_that_breaks_in_the_middle_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_text("old")

    def breaks() -> Any:
        yield "a"
        raise OSError(28, "No space left on device")

    with OutFiles([path]) as files, pytest.raises(EnvironmentProblem, match="No space"):
        files.write(path, breaks())
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("place", ["missing/f", "file/f", "."])
def test_a_place_that_cannot_be_written_is_refused_at_once(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem), OutFiles([tmp_path / "good", tmp_path / place]):
        raise AssertionError("the run began")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_one_place_for_two_outputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError), OutFiles([tmp_path / "f", tmp_path / "." / "f"]):
        raise AssertionError("the run began")


# the document and the live line


@pytest.fixture(scope="module")
def schema(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "tests" / "golden" / "bench.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(found)
    return found


@pytest.mark.parametrize(
    "result",
    [
        Result(),
        Result([report(), report(slo="")]),
        Result([report(np.linspace(1, 3000, 4000))]),
        Result([report(np.full(2000, 5.0), outcomes=[OK] * 1900 + [UNFINISHED] * 100)], stopped=INTERRUPTED),
        Result([report()], Search(1000.0, "x", [Probe(1000.0, "pass", "r")], ["sweep"], ["w"])),
    ],
    ids=["nothing", "two", "unstable", "stopped", "search"],
)
def test_the_document_follows_its_schema(result: Result, schema: dict[str, Any]) -> None:
    document = {
        "schema": 1,
        "kind": "bench",
        "environment": {},
        "notes": [],
        "assertions": [],
        **result.to_json(),
    }
    jsonschema.validate(json.loads(json.dumps(document, allow_nan=False)), schema)


def test_a_glance_counts_the_last_seconds() -> None:
    recorder = phase_of(np.r_[np.full(900, 50.0), np.full(100, 2.0)]).recorder
    recorder.outcome[-10:] = PENDING
    recorder.outcome[5] = 503
    seen = glance([recorder], now_ns=1_000 * MS, seconds=0.095)
    assert (seen.answered, seen.failed) == (990, 1)
    assert seen.p50_ns in (2 * MS, 50 * MS)
    assert "990 answered, 1 failed" in str(seen)
    assert glance([], 0).rate == 0.0


def test_outputs_are_readable_by_others_who_may(tmp_path: Path) -> None:
    path = tmp_path / "f"
    before = os.umask(0o022)
    try:
        with OutFiles([path]) as files:
            files.write(path, ["x"])
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


def test_what_is_no_regular_file_is_written_to_as_it_is(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with OutFiles([pipe]) as files:
        files.write(pipe, ["whole"])
    assert os.read(reader, 100) == b"whole"
    assert pipe.is_fifo()
    os.close(reader)
