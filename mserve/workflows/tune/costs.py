"""Costs: what a request costs beside the model's runs, measured in this process.

The same Front, Executor and load generator as in a real run, around a model that answers at once
with what it has answered before: what is left is the way there and back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...bench.judgement.verdict import Load
from ...bench.load import session
from ...bench.load.recorder import INTERRUPTED
from ...bench.results.report import Report
from ...bench.targets.in_process import InProcess
from ...loader.servable import Batching, Servable
from ...readers.requests import Samples
from ...tensors import Array
from .curve import QUANTILES
from .simulate import Costs

CALLERS = 64
# An open loop this slow, as a share of what the way carries, finds it idle.
IDLE_SHARE = 0.2
IDLE_RATE_MAX = 2000.0
TIMER_DELAYS_S = (0.0003, 0.0007, 0.0011, 0.0017, 0.0023)
TIMER_TRIES = 20
# A process that has nothing but work to do gets more of a CPU than this on a quiet machine.
SHARE_MIN = 0.8


@dataclass(eq=False)
class Echo:
    """An engine that has computed already: the rows of one answer, as often as there are rows."""

    answers: Mapping[str, Array]
    batched: bool
    threads: int = 1
    private: bool = True
    on_cpu: bool = True
    _known: dict[int, list[Array]] = field(default_factory=dict)

    def release(self) -> None:
        """Nothing is held."""

    def run_options(self) -> Any:
        """Its runs are short."""
        return None

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array], options: Any = None) -> list[Array]:
        """The known answer, cut or repeated to the feeds' rows."""
        rows = len(next(iter(feeds.values()))) if self.batched and feeds else 0
        found = self._known.get(rows)
        if found is None:
            found = [self._answer(self.answers[name], rows) for name in outputs]
            self._known[rows] = found
        return found

    def _answer(self, answer: Array, rows: int) -> Array:
        return np.repeat(answer[:1], rows, axis=0) if self.batched else answer


def measure(servable: Servable, signature: str, samples: Samples, seconds: float) -> Costs:
    """Measure the costs of requests like these in about so many seconds.

    Raises what a run of the model raises.
    """
    part_s = seconds / 4
    closed, run_ns = _echoed(servable, signature, samples, Load(concurrency=CALLERS, duration_s=part_s))
    request = max(1.0, 1e9 / max(1.0, closed.rates.ok) - run_ns)
    single = Load(concurrency=1, duration_s=part_s)
    far, run_ns = _echoed(servable, signature, samples, single, inline=False)
    handover = _quantiles(far.latencies, request + run_ns)
    rate = max(10.0, min(IDLE_RATE_MAX, IDLE_SHARE * 1e9 / request))
    idle, run_ns = _echoed(servable, signature, samples, Load(rate=rate, duration_s=part_s))
    wake = _quantiles(idle.latencies, request + run_ns)
    return Costs(request, handover, wake, _timers(), closed.seen.cpu_share)


def _echoed(
    servable: Servable, signature: str, samples: Samples, load: Load, *, inline: bool = True
) -> tuple[Report, float]:
    """A run against a model that answers at once, and what it took of the loop for a request even so."""
    names = {servable.signature(s.signature or signature)[0] for s in samples.requests}
    engines = {}
    for name in names:
        spec = servable.signatures[name]
        answers = servable.run(
            next(s for s in samples.requests if (s.signature or name) == name).arrays, name
        )
        ports = {spec.outputs[alias].name: x for alias, x in answers.items()}
        engines[name] = Echo(ports, spec.batch_axis is not None)
    echo = Servable(servable.bundle, engines, {})
    echo.predictable = inline
    target = InProcess(echo, signature, samples, verify=False, settings=Batching(CALLERS))
    load = Load(load.rate, load.concurrency, load.duration_s, warmup_s=load.duration_s / 4)
    work = session.Session(target, load, None, _quiet)
    result = session.run(work.sweep([load.rate]) if load.rate else work.closed())
    if result.stopped == INTERRUPTED:  # a session ends its own run only
        raise KeyboardInterrupt
    report = result.reports[0]
    stats = echo.stats
    return report, stats.run_ns / max(1, stats.rows)


def _quiet(text: str) -> None:
    """Nobody watches."""


def _quantiles(latencies: Any, known_ns: float) -> tuple[float, ...]:
    """What latencies are beyond a known part, as rising values."""
    if len(latencies) == 0:
        return (0.0,)
    points = (np.arange(QUANTILES) + 0.5) / QUANTILES
    found = np.quantile(latencies, points, method="inverted_cdf").astype(np.float64) - known_ns
    return tuple(np.maximum(found, 0.0).tolist())


def _timers() -> tuple[float, ...]:
    """How late the event loop's timers go off, as the Executor sets them: again where they were early."""
    return _quantiles(np.array(session.run(_late()), np.int64), 0.0)


async def _late() -> list[int]:
    found = []
    for delay in TIMER_DELAYS_S * TIMER_TRIES:
        due = time.monotonic_ns() + int(delay * 1e9)
        while (left := due - time.monotonic_ns()) > 0:
            await asyncio.sleep(left / 1e9)
        found.append(time.monotonic_ns() - due)
    return found
