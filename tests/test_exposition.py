"""The page of counters: Prometheus's own parser reads back what was written, and a page lets others in."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from mserve.server import metrics as module
from mserve.server.exposition import Family, labels
from mserve.server.metrics import LATENCY_BUCKETS, Counts, Metrics, Process, Series

# Prometheus's parser strips white space around values, and splits lines where Python does.
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Zl", "Zp", "Zs")))
NASTY = st.lists(st.sampled_from(["\\", '"', "\n", "\\n", ",", "{", "}", "=", "é", "a"])).map("".join)


def read(text: str) -> dict[str, Metric]:
    """The families of a page, by name."""
    return {family.name: family for family in text_string_to_metric_families(text)}


@given(st.lists(st.tuples(TEXTS | NASTY, st.floats(allow_nan=False)), min_size=1))
def test_samples_read_back(series: list[tuple[str, float]]) -> None:
    """Whatever a label's value is, and however large or small the number."""
    family = Family("m_total", "counter", "Help.")
    for text, value in series:
        family.add(labels((("z", "last"), ("a", text))), value)
    found = read(family.text())["m"]
    assert (found.type, found.documentation) == ("counter", "Help.")
    assert [(s.name, s.labels["a"], s.value) for s in found.samples] == [("m_total", *s) for s in series]


@given(st.lists(st.integers(0, 2**40), min_size=3, max_size=3), st.floats(0, 1e12))
def test_histograms_read_back(counts: list[int], total: float) -> None:
    """Buckets are cumulative, and the last one is the count."""
    family = Family("m", "histogram", "Help.", (0.5, 2))
    family.add_histogram(labels((("model", "x"),)), counts, total)
    samples = read(family.text())["m"].samples
    assert {s.labels["model"] for s in samples} == {"x"}
    assert [(s.name, s.labels.get("le"), s.value) for s in samples] == [
        ("m_bucket", "0.5", counts[0]),
        ("m_bucket", "2.0", counts[0] + counts[1]),
        ("m_bucket", "+Inf", sum(counts)),
        ("m_count", None, sum(counts)),
        ("m_sum", None, total),
    ]


def test_a_family_without_series_is_left_out() -> None:
    assert Family("m", "gauge", "Help.").text() == ""


def counted(number: int) -> Metrics:
    """Counters of so many series, each with three good answers and a bad one."""
    metrics = Metrics({}, lambda _: 0)
    for i in range(number):
        counts = metrics.series[Series("", str(i), "s", "tfs-rest")] = Counts()
        counts.codes = {"200": 3, "429": 1}
        for last in (50_000, 150_000, 10**12):
            counts.note((0, 10, 20, 30, last))
    return metrics


def test_a_page_says_what_was_counted() -> None:
    metrics = counted(2)
    metrics.processes = lambda: [Process(0, True, 2, 5, 7)]
    page = asyncio.run(metrics.render()).decode()
    found = read(page)
    assert len(found) == page.count("# TYPE") == page.count("# HELP")
    requests = [(s.labels["version"], s.labels["code"], s.value) for s in found["mserve_requests"].samples]
    assert requests == [("0", "200", 3), ("0", "429", 1), ("1", "200", 3), ("1", "429", 1)]
    seconds = {
        (s.name.rpartition("_")[2], s.labels.get("le")): s.value
        for s in found["mserve_request_seconds"].samples
        if s.labels["version"] == "1"
    }
    assert seconds["bucket", str(LATENCY_BUCKETS[-1])] == 2
    assert seconds["bucket", "+Inf"] == seconds["count", None] == 3
    assert seconds["sum", None] == pytest.approx(1000.0002)
    phases = {s.labels["phase"] for s in found["mserve_phase_seconds"].samples}
    assert phases == set(module.PHASES)
    assert [s.value for s in found["mserve_process_starts"].samples] == [2]


def test_others_have_their_turn_while_a_page_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two series the loop looks after whoever else has something to do."""
    monkeypatch.setattr(module, "SLICE_NS", -1)

    async def turns(number: int, pages: int) -> int:
        metrics, taken, made = counted(number), 0, asyncio.Event()

        async def make() -> None:
            await asyncio.gather(*(metrics.render() for _ in range(pages)))
            made.set()

        task = asyncio.create_task(make())
        while not made.is_set():
            await asyncio.sleep(0)
            taken += 1
        await task
        return taken

    assert asyncio.run(turns(40, 1)) >= 40
    assert asyncio.run(turns(40, 3)) >= 120, "pages that are asked for together are made one by one"
