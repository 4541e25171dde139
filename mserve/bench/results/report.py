"""Report: the verdict on one measurement, and the numbers that the verdict allows. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..judgement.quantiles import NEVER_NS, Ints, Percentile, milliseconds, nearest_rank, percentile_of_series
from ..judgement.slo import Slo, Tally
from ..judgement.verdict import CLOSED_LABEL, Load, Measurement, Verdict, judge, late_client, show
from ..load.recorder import (
    INTERRUPTED,
    OK,
    WRONG,
    Rates,
    Recorder,
    closed_rates,
    lag_p99,
    open_rates,
    outcome_name,
)
from .swap_text import swap_facts
from .target_facts import target_rows

PERCENTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
CPU_SHARE_MAX = 0.9
LITTLE_MAX = 0.05
WINDOWS = 20
WINDOW_SAMPLES_MIN = 5


@dataclass(frozen=True, slots=True)
class Report:
    """One measurement and what may be said about it; times in nanoseconds, rates per second."""

    target: Mapping[str, Any]
    load: Load
    slo: Slo | None
    seen: Measurement
    verdict: Verdict
    rates: Rates
    latencies: Ints
    service_times: Ints
    shares_loop: bool = False
    distributions: tuple[list[Percentile], list[Percentile]] = field(default_factory=lambda: ([], []))

    @classmethod
    def of(
        cls,
        target: Mapping[str, Any],
        load: Load,
        seen: Measurement,
        slo: Slo | None = None,
        *,
        shares_loop: bool = False,
        earlier: Sequence[Tally] = (),
    ) -> Report:
        """Work out a measurement. `shares_loop`: client and server run on one event loop.

        `earlier` holds what earlier looks at the same rate counted.
        """
        recorder = seen.phase.recorder
        rates = closed_rates(recorder) if load.rate is None else open_rates(recorder, seen.phase.span_ns)
        verdict = judge(load, seen, rates, slo, shares_loop=shares_loop, earlier=earlier)
        series = recorder.latencies(), recorder.service_times()
        latencies, service = np.sort(series[0]), np.sort(series[1])
        quoted = _quoted(series[0], latencies), _quoted(series[1], service)
        return cls(target, load, slo, seen, verdict, rates, latencies, service, shares_loop, quoted)

    @property
    def total(self) -> int:
        """How many requests were measured."""
        return self.seen.phase.recorder.count

    @property
    def ok(self) -> int:
        """How many of them were answered with success."""
        return self.seen.phase.recorder.ok()

    def quotable(self) -> bool:
        """Whether percentiles mean anything here."""
        return self.verdict.code not in (Verdict.INVALID, Verdict.UNSTABLE) and len(self.latencies) > 0

    def percentiles(self) -> list[tuple[Percentile, Percentile]]:
        """Each percentile of the latency and of the service time; none when they mean nothing."""
        return list(zip(*self.distributions, strict=True)) if self.quotable() else []

    def busy(self) -> float | None:
        """How many runs of the model were under way on average; above 1 with several workers."""
        server = self.seen.server or {}
        if not server.get("batches") or "mean_run_ms" not in server:
            return None
        return float(server["batches"] * server["mean_run_ms"] * 1e6 / max(1, self.seen.phase.span_ns))

    def percentile(self, p: float) -> Percentile:
        """Any percentile of the latency, refused where the sample does not carry it."""
        return percentile_of_series(self.seen.phase.recorder.latencies(), self.latencies, p)

    def mean_ms(self) -> float | None:
        """The mean latency; None where a request was never answered."""
        return _mean_ms(self.latencies)

    def errors(self) -> list[dict[str, Any]]:
        """Failures by class, with the first message of each."""
        counts = self.seen.phase.recorder.errors()
        messages = self.seen.phase.messages
        return [
            {"class": outcome_name(o), "count": n, "message": messages.get(o, "")} for o, n in counts.items()
        ]

    def wrong(self) -> str:
        """How many answers `--verify` found wrong, in the warm-up too, with one's fault; "" if none."""
        phases = [phase for phase in (self.seen.phase, self.seen.warmup) if phase is not None]
        count = sum(phase.recorder.errors().get(WRONG, 0) for phase in phases)
        fault = next((phase.messages[WRONG] for phase in phases if WRONG in phase.messages), "")
        asked = sum(phase.recorder.count for phase in phases)
        return f"{count:,} of {asked:,} answers are wrong: {fault}" if count else ""

    def notes(self) -> list[str]:
        """What a reader must know beside the numbers."""
        return _notes(self)

    def to_json(self) -> dict[str, Any]:
        """The report as `--json` prints it; times in milliseconds, None where nothing can be said."""
        recorder = self.seen.phase.recorder
        lags = recorder.lags()
        return {
            "target": dict(self.target),
            "load": self.load.to_json(),
            "slo": str(self.slo) if self.slo else None,
            "verdict": {"code": self.verdict.code, "reason": self.verdict.reason},
            "requests": {"total": self.total, "ok": self.ok, "errors": self.errors()},
            "rates": {
                "offered": self.rates.offered if self.load.rate is not None else None,
                "achieved": self.rates.achieved,
                "ok": self.rates.ok,
                "goodput": self.goodput(),
                "rows": self.rates.ok * self.target["rows"] if self.target.get("rows") else None,
            },
            "latency": self._distribution(self.latencies, self.distributions[0]),
            "uncorrected": self._distribution(self.service_times, self.distributions[1]),
            "client": {
                "lag_p99_ms": lag_p99(recorder) / 1e6,
                "lag_max_ms": float(lags.max()) / 1e6 if len(lags) else 0.0,
                "wait_max_ms": float(recorder.waits().max()) / 1e6 if len(lags) else 0.0,
                "in_flight_max": self.seen.phase.busiest,
                "cpu_share": self.seen.cpu_share,
            },
            "little": {"in_flight": self._in_flight(), "rate_times_time": self._rate_times_time()},
            "server": dict(self.seen.server) if self.seen.server else None,
            "busy": self.busy(),
            "versions": dict(self.seen.versions),
            "warmup": _warmup_json(self.seen),
            "cold_start_ms": milliseconds(self.seen.cold_ns),
            "swaps": self.seen.swaps.to_json() if self.seen.swaps else None,
            "windows": self.windows(),
            "notes": self.notes(),
        }

    def goodput(self) -> float | None:
        """Answers per second with success and no slower than any objective allows; None without one."""
        limit = self.slo.limit_ns() if self.slo else None
        if limit is None or not self.total:
            return None
        good = int(np.searchsorted(self.latencies, limit, side="right"))
        return self.rates.ok * good / max(1, self.ok)

    def windows(self) -> list[dict[str, float]] | None:
        """Statistics of consecutive parts of the run, for a later comparison; None where nothing is quoted.

        `p50_ms` and `p99_ms` of each part, and `seconds` for each answer, which is the rate's inverse.
        """
        return _windows(self.seen.phase.recorder) if self.quotable() else None

    def _distribution(self, ascending: Ints, quoted: list[Percentile]) -> dict[str, Any] | None:
        if not self.quotable():
            return None
        return {
            "samples": len(ascending),
            "mean_ms": _mean_ms(ascending),
            "max_ms": milliseconds(int(ascending[-1])),
            "percentiles": [p.to_json() for p in quoted],
        }

    def _in_flight(self) -> float:
        return self.seen.phase.in_flight_ns / max(1, self.seen.phase.span_ns)

    def _rate_times_time(self) -> float:
        return self.seen.phase.recorder.in_flight_ns() / max(1, self.seen.phase.span_ns)


def _windows(recorder: Recorder) -> list[dict[str, float]]:
    order = np.argsort(recorder.done[: recorder.count], kind="stable")
    good = order[recorder.outcome[: recorder.count][order] == OK]
    if len(good) < WINDOWS * WINDOW_SAMPLES_MIN:
        return []
    found = []
    for part in np.array_split(good, WINDOWS):
        latencies = np.sort(recorder.done[part] - recorder.intended[part])
        span_ns = int(recorder.done[part[-1]] - recorder.done[part[0]])
        found.append(
            {
                "p50_ms": nearest_rank(latencies, 0.5) / 1e6,
                "p99_ms": nearest_rank(latencies, 0.99) / 1e6,
                "seconds": max(1, span_ns) / 1e9 / max(1, len(part) - 1),
            }
        )
    return found


def _mean_ms(ascending: Ints) -> float | None:
    if not len(ascending) or ascending[-1] == NEVER_NS:
        return None
    return float(ascending.mean()) / 1e6


def _quoted(series: Ints, ascending: Ints) -> list[Percentile]:
    return [percentile_of_series(series, ascending, p) for p in PERCENTILES] if len(series) else []


def _notes(report: Report) -> list[str]:
    seen, load = report.seen, report.load
    notes = []
    if load.rate is None and report.verdict.reason != CLOSED_LABEL:
        notes.append(CLOSED_LABEL)
    if report.target.get("same_machine"):
        notes.append("client and server share this machine and compete for its CPUs")
    if report.target.get("kind") == "in process":
        notes.append("client and model share this process: no sockets, no JSON")
    if report.target.get("kind") == "url" and seen.cpu_share > CPU_SHARE_MAX:
        share = f"{seen.cpu_share:.0%} of a CPU"
        notes.append(f"the client used {share}: it may be the bottleneck, not the server")
    if report.verdict.code == Verdict.INVALID and report.total:
        notes.append(
            "measure with a less busy client, from another machine, or at a lower rate; "
            "lateness never makes an SLO look met, so a pass with --slo still counts"
        )
    if load.rate is not None and report.verdict.code == Verdict.PASS and not report.shares_loop:
        late = late_client(seen.phase.recorder)
        notes += [f"{late}: the latencies are upper bounds"] if late else []
    if len(seen.versions) > 1:
        notes.append("several model versions answered: " + ", ".join(sorted(seen.versions)))
    elsewhere = (seen.server or {}).get("requests", 0)
    if elsewhere > 1.01 * report.total + 1:
        notes.append(f"the server answered {elsewhere} requests meanwhile: it has other clients")
    notes += _little_note(report)
    return notes


def _little_note(report: Report) -> list[str]:
    """Both sides of Little's law, where they differ; in a closed loop, also idle connections."""
    if report.seen.phase.stopped == INTERRUPTED:
        return []
    left, right = report._in_flight(), report._rate_times_time()
    if abs(left - right) > LITTLE_MAX * max(left, right):
        return [
            f"Little's law does not hold: {left:.2f} in flight, rate times time {right:.2f}: a bug of ours"
        ]
    n = report.load.concurrency
    if report.load.rate is None and right < (1 - LITTLE_MAX) * n:
        return [
            f"on average {right:.1f} of {n} connections were waiting for answers: the client was the rest"
        ]
    return []


def _warmup_json(seen: Measurement) -> dict[str, Any] | None:
    if seen.warmup is None:
        return None
    recorder = seen.warmup.recorder
    return {
        "seconds": seen.warmup.span_ns / 1e9,
        "requests": recorder.count,
        "failed": recorder.count - recorder.ok(),
        "end": seen.warmup_end or None,
    }


def facts(report: Report) -> list[tuple[str, str]]:
    """The report's facts for people, in reading order; percentiles come beside them."""
    target, seen = report.target, report.seen
    recorder = seen.phase.recorder
    where = str(target.get("url") or target.get("path") or "")
    answered = ", ".join(f"version {v}: {n:,}" for v, n in sorted(seen.versions.items()))
    right = " and as they should be" if target.get("verified") else ""
    what = [f"model {target['model']}", f"{target['rows']} row(s)" if target.get("rows") else ""]
    what.append(f"on {target['device']}" if target.get("device") else "")
    rows = [
        ("target", where),
        ("request", ", ".join(x for x in (*what, f"{target['request_bytes']:,} bytes") if x)),
        ("answered by", answered or "unknown"),
        ("load", f"{report.load}, seed {report.load.seed}" if report.load.rate else str(report.load)),
        ("cold start", show(seen.cold_ns)),
        ("warm-up", _warmup_text(seen)),
        ("requests", f"{report.total:,}: {report.ok:,} ok{right}, {report.total - report.ok:,} failed"),
    ]
    rows[2:2] = target_rows(target)
    rows += [(f"failed: {e['class']}", f"{e['count']:,}: {e['message'][:200]}") for e in report.errors()]
    if report.load.rate is not None:
        rows.append(("offered", f"{report.rates.offered:,.1f}/s"))
        lag = f"lag p99 {show(lag_p99(recorder))}" if report.total else "nothing sent"
        rows.append(("client", f"{lag}, at most {seen.phase.busiest} at once, {seen.cpu_share:.0%} of a CPU"))
    rows.append(("achieved", f"{report.rates.achieved:,.1f}/s"))
    if (good := report.goodput()) is not None and report.quotable():
        rows.append(("goodput", f"{good:,.1f}/s within every objective"))
    if seen.server is not None:
        rows.append(("server", _server_text(seen.server)))
    if seen.swaps is not None:
        rows += swap_facts(seen.swaps, quotable=report.quotable())
    return rows


def _warmup_text(seen: Measurement) -> str:
    if seen.warmup is None:
        return "none"
    recorder = seen.warmup.recorder
    failed = recorder.count - recorder.ok()
    text = f"{seen.warmup.span_ns / 1e9:.1f} s, {recorder.count:,} requests, not counted"
    text += f"; ended: {seen.warmup_end}" if seen.warmup_end else ""
    return text + (f", {failed:,} failed" if failed else "")


def _server_text(server: Mapping[str, Any]) -> str:
    queue = server["mean_queue_ms"]
    inline = "" if server["inline_share"] is None else f"{server['inline_share']:.0%} run inline, "
    return (
        f"{server['mean_batch_rows']:.2f} rows in a batch, {inline}"
        f"mean run {server['mean_run_ms']:.3f} ms"
        + (f", mean queue {queue:.3f} ms" if queue is not None else "")
    )
