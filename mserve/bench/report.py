"""Report: the verdict on one measurement, and the numbers that the verdict allows. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .quantiles import NEVER_NS, Ints, Percentile, percentile_of_series
from .recorder import INTERRUPTED, Phase, Rates, closed_rates, lag_p99, open_rates, outcome_name
from .slo import Slo, Tally
from .verdict import CLOSED_LABEL, Load, Measurement, Verdict, judge, late_client, show

PERCENTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
CPU_SHARE_MAX = 0.9
LITTLE_MAX = 0.05


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

    def errors(self) -> list[dict[str, Any]]:
        """Failures by class, with the first message of each."""
        counts = self.seen.phase.recorder.errors()
        messages = self.seen.phase.messages
        return [
            {"class": outcome_name(o), "count": n, "message": messages.get(o, "")} for o, n in counts.items()
        ]

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
            "versions": dict(self.seen.versions),
            "warmup": _warmup_json(self.seen.warmup),
            "notes": self.notes(),
        }

    def goodput(self) -> float | None:
        """Answers per second with success and no slower than any objective allows; None without one."""
        limit = self.slo.limit_ns() if self.slo else None
        if limit is None or not self.total:
            return None
        good = int(np.searchsorted(self.latencies, limit, side="right"))
        return self.rates.ok * good / max(1, self.ok)

    def _distribution(self, ascending: Ints, quoted: list[Percentile]) -> dict[str, Any] | None:
        if not self.quotable():
            return None
        answered = ascending[ascending != NEVER_NS]
        return {
            "samples": len(ascending),
            "mean_ms": float(answered.mean()) / 1e6 if len(answered) == len(ascending) else None,
            "max_ms": milliseconds(int(ascending[-1])),
            "percentiles": [_percentile_json(p) for p in quoted],
        }

    def _in_flight(self) -> float:
        return self.seen.phase.in_flight_ns / max(1, self.seen.phase.span_ns)

    def _rate_times_time(self) -> float:
        return self.seen.phase.recorder.in_flight_ns() / max(1, self.seen.phase.span_ns)


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


def _warmup_json(warmup: Phase | None) -> dict[str, Any] | None:
    if warmup is None:
        return None
    recorder = warmup.recorder
    return {
        "seconds": warmup.span_ns / 1e9,
        "requests": recorder.count,
        "failed": recorder.count - recorder.ok(),
    }


def _percentile_json(found: Percentile) -> dict[str, Any]:
    refused = found.value_ns is None
    return {
        "p": found.p,
        "value_ms": milliseconds(found.value_ns),
        "low_ms": milliseconds(found.low_ns),
        "high_ms": milliseconds(found.high_ns),
        "effective_samples": found.effective,
        "refused": f"needs {found.needed} samples" if refused else None,
        "unanswered": found.value_ns == NEVER_NS,
    }


def milliseconds(ns: int | None) -> float | None:
    """Nanoseconds as milliseconds; None for nothing and for never."""
    return None if ns is None or ns == NEVER_NS else ns / 1e6


def facts(report: Report) -> list[tuple[str, str]]:
    """The report's facts for people, in reading order; percentiles come beside them."""
    target, seen = report.target, report.seen
    recorder = seen.phase.recorder
    where = str(target.get("url") or target.get("path") or "")
    answered = ", ".join(f"version {v}: {n:,}" for v, n in sorted(seen.versions.items()))
    what = [f"model {target['model']}", f"{target['rows']} row(s)" if target.get("rows") else ""]
    what.append(f"on {target['device']}" if target.get("device") else "")
    rows = [
        ("target", where),
        ("request", ", ".join(x for x in (*what, f"{target['request_bytes']:,} bytes") if x)),
        ("answered by", answered or "unknown"),
        ("load", f"{report.load}, seed {report.load.seed}" if report.load.rate else str(report.load)),
        ("warm-up", _warmup_text(seen.warmup)),
        ("requests", f"{report.total:,}: {report.ok:,} ok, {report.total - report.ok:,} failed"),
    ]
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
    return rows


def _warmup_text(warmup: Phase | None) -> str:
    if warmup is None:
        return "none"
    failed = warmup.recorder.count - warmup.recorder.ok()
    text = f"{warmup.span_ns / 1e9:.1f} s, {warmup.recorder.count:,} requests, not counted"
    return text + (f", {failed:,} failed" if failed else "")


def _server_text(server: Mapping[str, Any]) -> str:
    queue = server["mean_queue_ms"]
    return (
        f"{server['mean_batch_rows']:.2f} rows in a batch, {server['inline_share']:.0%} run inline, "
        f"mean run {server['mean_run_ms']:.3f} ms"
        + (f", mean queue {queue:.3f} ms" if queue is not None else "")
    )
