"""What was found: for people, as JSON, and as lines of a configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...bench.judgement.slo import Slo
from ...bench.judgement.verdict import Verdict, show
from ...format import Bundle
from ...format.serving import Serving
from ...loader.servable import Batching
from ...server.tables import dotted
from .costs import SHARE_MIN
from .curve import Curve
from .grid import EQUAL, Candidate
from .simulate import System
from .verify import Check, disagreements

SCHEMA_QUANTILES = (0.5, 0.99)
LEFT_OUT = (
    "the simulation and the runs leave out the network and its codecs, and other models of a server; the "
    "simulation also what the event loop and the workers take from each other: mserve bench --spawn tells"
)
CURVE_COLUMNS = ("rows", "run p50", "run p99", "rows/s")
CANDIDATE_COLUMNS = ("max_batch", "delay", "sizes", "highest rate", "idle p99")
CHECK_COLUMNS = (
    "max_batch", "delay", "rate", "p50 predicted", "measured", "off", "p99 predicted", "measured", "off",
    "verdict",
)  # fmt: skip


@dataclass(frozen=True)
class Tuning:
    """The result. `candidates` are the best few and the default; `checks` the real runs."""

    bundle: Bundle
    slo: Slo
    arrivals: str
    curve: Curve
    threads: Mapping[int, Curve]
    system: System
    default: Batching
    candidates: Sequence[Candidate]
    checks: Sequence[Check]
    settings: int
    simulations: int
    notes: Sequence[str] = ()

    @property
    def name(self) -> str:
        """What the model is called in a configuration."""
        return self.bundle.metagraph.name or self.bundle.path.resolve().parent.name

    @property
    def stopped(self) -> str:
        """Why a real run ended early, or ""."""
        return next((c.stopped for c in self.checks if c.stopped), "")

    @property
    def reachable(self) -> bool:
        """Whether any setting meets the objectives at some rate, by simulation."""
        return any(c.rate for c in self.candidates)

    def best(self) -> Check | None:
        """The real run at the highest rate that met the objectives; the default's, where that is equal."""
        met = [c for c in self.checks if c.met]
        top = max((c.rate for c in met), default=0.0)
        equal = [c for c in met if c.rate >= top * (1 - EQUAL)]
        return next((c for c in equal if c.batching == self.default), equal[0] if equal else None)

    def fastest(self) -> Mapping[str, int]:
        """For each objective the lowest latency that any setting reaches when requests do not meet."""
        return {o.text: min(c.idle.quantile(o.p) for c in self.candidates) for o in self.slo.objectives}

    def all_notes(self) -> list[str]:
        """What a reader must know beside the numbers."""
        found = [*self.notes, *disagreements(self.checks)]
        best = self.best()
        if best is not None and best.batching == self.default:
            found.append("the settings that hold without any configuration do as well as any other")
        unstable = [c.report.seen.cpu_share for c in self.checks if c.report.verdict.code == Verdict.UNSTABLE]
        if unstable and min(unstable) < SHARE_MIN:
            share = f"{min(unstable):.0%} of a CPU"
            found.append(f"the machine is busy: a real run fell behind, and this process got {share}")
        if self.threads:
            found.append(
                "threads of a run and workers follow from the machine and the model's size: nothing to set"
            )
        return [*found, LEFT_OUT]

    def to_json(self) -> dict[str, Any]:
        """The result as `--json` prints it; times in milliseconds."""
        best, costs = self.best(), self.system.costs
        return {
            "bundle": str(self.bundle.path),
            "identity": self.bundle.metagraph.identity,
            "slo": str(self.slo),
            "arrivals": self.arrivals,
            "batched": self.system.signature.batch_axis is not None,
            "workers": self.system.workers,
            "crowding": self.system.crowding,
            "curve": _curve_json(self.curve),
            "threads": {str(n): _curve_json(c) for n, c in sorted(self.threads.items())},
            "costs": {
                "request_us": costs.request / 1e3,
                **{f"{k}_p50_us": _middle(getattr(costs, k)) / 1e3 for k in ("handover", "wake", "timer")},
            },
            "settings": self.settings,
            "simulations": self.simulations,
            "candidates": [_candidate_json(c) for c in self.candidates],
            "checks": [{**_batching_json(c.batching), **c.to_json()} for c in self.checks],
            "reachable": self.reachable,
            "fastest_ms": {text: ns / 1e6 for text, ns in self.fastest().items()},
            "best": None if best is None else {**_batching_json(best.batching), "rate": best.rate},
            "toml": None if best is None else toml(self.name, best.batching),
            "notes": self.all_notes(),
        }

    def curve_rows(self) -> list[tuple[object, ...]]:
        """Rows of CURVE_COLUMNS."""
        return [
            (
                n,
                show(int(self.curve.median(n))),
                show(int(self.curve(n)[-3])),
                f"{n / self.curve.median(n) * 1e9:,.0f}",
            )
            for n in self.curve.sizes
        ]

    def candidate_rows(self) -> list[tuple[object, ...]]:
        """Rows of CANDIDATE_COLUMNS."""
        return [
            (
                _limit(c.batching, self.default),
                _delay(c.batching),
                ", ".join(map(str, c.batching.allowed)) or "any",
                f"{c.rate:,.0f}/s" if c.rate else "none",
                show(c.idle.quantile(0.99)),
            )
            for c in self.candidates
        ]

    def check_rows(self) -> list[tuple[object, ...]]:
        """Rows of CHECK_COLUMNS."""
        found = []
        for one in self.checks:
            cells: list[object] = []
            for p, ns in one.predicted().items():
                error = one.error(p)
                cells += [show(ns), show(one.measured()[p]), "-" if error is None else f"{error:+.0%}"]
            verdict = "met" if one.met else one.report.verdict.code
            found.append(
                (
                    _limit(one.batching, self.default),
                    _delay(one.batching),
                    f"{one.rate:,.0f}/s",
                    *cells,
                    verdict,
                )
            )
        return found


def serving_of(batching: Batching) -> Serving:
    """Settings as a bundle or a configuration writes them."""
    return Serving(
        batching.max_batch_rows, batching.delay_ns / 1e6, batching.allowed or None, batching.preferred or None
    )


def toml(name: str, batching: Batching) -> str:
    """The settings as lines of mserve.toml."""
    said = serving_of(batching).to_json()
    return "\n".join(
        [f"[models.{dotted(name)}.batching]", *(f"{k} = {json.dumps(v)}" for k, v in said.items())]
    )


def _limit(batching: Batching, default: Batching) -> str:
    return f"{batching.max_batch_rows}{' (default)' if batching == default else ''}"


def _delay(batching: Batching) -> str:
    return f"{batching.delay_ns / 1e6:g} ms"


def _middle(values: Sequence[float]) -> float:
    return values[len(values) // 2]


def _curve_json(curve: Curve) -> list[dict[str, Any]]:
    return [
        {
            "rows": n,
            "p50_ms": curve.median(n) / 1e6,
            "p99_ms": curve(n)[-3] / 1e6,
            "max_ms": curve(n)[-1] / 1e6,
        }
        for n in curve.sizes
    ]


def _batching_json(batching: Batching) -> dict[str, Any]:
    return {"batching": serving_of(batching).to_json()}


def _candidate_json(candidate: Candidate) -> dict[str, Any]:
    idle = {f"p{p * 100:g}_ms": candidate.idle.quantile(p) / 1e6 for p in SCHEMA_QUANTILES}
    return {**_batching_json(candidate.batching), "rate": candidate.rate, "idle": idle}
