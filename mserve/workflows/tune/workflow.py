"""From a bundle and its objectives to the settings that carry most: measure, simulate, verify."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ...batching.form import Form
from ...bench.judgement.slo import Slo
from ...bench.judgement.verdict import show
from ...bench.load.jitter import measure_jitter
from ...bench.load.schedule import Times
from ...bench.requests.bundle_inputs import bundle_samples
from ...bench.results import environment
from ...bench.targets.target import Ask
from ...errors import UsageError
from ...format import Bundle
from ...loader.batching_defaults import resolved
from ...loader.servable import Batching, Servable, load
from ...readers.requests import Sample, Samples
from ...runtime.devices import CPU, checked, settled
from ...runtime.engines import open_engines
from ...runtime.ort import cpu_budget, threads_max
from ...tensors import Array
from . import costs, curve
from .curve import NOISE_MAX, Curve, rows_of
from .grid import Candidate, Goal, Search
from .report import Tuning
from .simulate import System
from .verify import Check, Trial, check

MAX_BATCH = 256
VERIFIED = 3
# The highest rate lies where latency is steepest; real runs are made a little below it, then lower.
HEADROOM, LOWER, TRIES = 0.9, 0.7, 5
# What a machine may take of the limit to wake a process up before somebody must know.
LATE_MAX = 0.2
# Rows at which runs with other numbers of threads are looked at.
THREAD_SIZES = (1, 8, 64)
Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Asked:
    """What to tune, for what: times in seconds, `max_batch` the largest size to look at, in rows."""

    path: Path
    ask: Ask
    slo: Slo
    arrivals: str = "poisson"
    recording: Times | None = None
    seconds: float = 5.0
    max_batch: int = MAX_BATCH
    verified: int = VERIFIED


def tune(asked: Asked, note: Note = lambda text: None) -> Tuning:
    """Find settings, and try the best of them. `note` is told what is going on.

    Raises UsageError without a latency objective, BundleError, InputError, RequestError.
    """
    if not asked.slo.objectives:
        raise UsageError("tuning needs an objective for the latency", expected="--slo 'p99<10ms'")
    jitter, before = measure_jitter(), environment.Ticks.now()
    measured = measure(asked, note)
    goal = Goal(asked.slo, asked.arrivals, asked.ask.seed, asked.recording)
    note(f"simulating for {asked.slo}, {asked.arrivals} arrivals, {measured.system.workers} worker(s)")
    search = Search(measured.system, measured.curve, goal)
    found = search.run(measured.default)
    checks = _verify(measured, goal, found, asked.verified, note)
    notes = [*measured.notes, *environment.disturbances(environment.interference(before, jitter))]
    return Tuning(
        bundle=measured.bundle,
        slo=asked.slo,
        arrivals=asked.arrivals,
        curve=measured.curve,
        threads=measured.threads,
        system=measured.system,
        default=measured.default,
        candidates=found,
        checks=checks,
        settings=len(search.screened) or 1,
        simulations=search.simulations,
        notes=tuple(notes),
    )


@dataclass(frozen=True, slots=True)
class Measured:
    """What the simulation needs to know of a bundle, and how real runs of it are made.

    `default` is how its batches close where nobody says otherwise.
    """

    bundle: Bundle
    default: Batching
    trial: Trial
    curve: Curve
    threads: Mapping[int, Curve]
    system: System
    notes: Sequence[str]


def measure(asked: Asked, note: Note = lambda text: None) -> Measured:
    """Load a bundle, and measure its runs and the way to them. Raises as `tune`."""
    samples = bundle_samples(asked.path, asked.ask).mixed(asked.ask.seed)
    device = settled(checked(asked.ask.device or CPU))
    servable = load(asked.path, device)
    try:
        return _measured(servable, device, asked, samples, note)
    finally:
        servable.close()


def _measured(servable: Servable, device: str, asked: Asked, samples: Samples, note: Note) -> Measured:
    name = servable.signature(samples.requests[0].signature or asked.ask.signature)[0]
    spec = servable.signatures[name]
    samples, notes = _alike(servable, name, samples)
    feeds = [dict(s.arrays) for s in samples.requests]
    batched = spec.batch_axis is not None
    rows = max(rows_of(x, batched=batched) for x in feeds)
    limit = asked.slo.limit_ns() or 1
    sizes = curve.sizes_to(max(1, asked.max_batch // rows), rows) if batched else [1]
    note(f"measuring runs of {sizes[0]} to {sizes[-1]} rows")
    seconds = max(0.2, asked.seconds / 2)
    found = curve.measure(servable, name, feeds, sizes, seconds, worth=lambda n, ns: ns <= limit)
    wide = None
    if servable.can_be_wide:
        wide = curve.measure(servable, name, feeds, sizes[:1], seconds / 4, wide=True)
    threads = _threads(servable, name, feeds, found, seconds / 4)
    note("measuring the way to the model and back")
    way = costs.measure(servable, name, samples, max(0.4, asked.seconds / 2))
    requests = [(x, rows_of(x, batched=batched)) for x in feeds]
    workers = cpu_budget()
    middle = found.sizes[len(found.sizes) // 2]
    crowd = 1.0
    if workers > 1:
        crowd = curve.crowding(servable, name, feeds, middle, workers=workers, budget_s=seconds / 2)
    system = System(
        spec, requests, found, workers, wide, servable.predictable, crowd, servable.in_thread, way
    )
    if not batched:
        notes.append("requests of this signature run alone (batch_axis null): there are no batches to tune")
    if (noise := max(c.noise for c in (found, *threads.values()))) > NOISE_MAX:
        notes.append(f"the machine is busy: the same run's median has changed by {noise:.0%} meanwhile")
    if way.share < costs.SHARE_MIN:
        notes.append(
            f"the machine is busy: this process got {way.share:.0%} of a CPU while it had nothing but work; "
            "what follows is about such a machine: tune on a quiet one"
        )
    if (late := way.wake[-3]) > LATE_MAX * limit:
        notes.append(
            f"the machine is late by itself: a sleeping process wakes up {show(int(late))} late in one of "
            f"a hundred cases, of {show(limit)} that an answer may take"
        )
    trial = Trial(partial(load, asked.path, device), device, name, samples, asked.seconds)
    default = resolved(servable.serving)
    return Measured(servable.bundle, default, trial, found, threads, system, notes)


def _alike(servable: Servable, name: str, samples: Samples) -> tuple[Samples, list[str]]:
    """The requests of one signature that may share a batch: the largest group of them."""
    form = Form(name, servable.signatures[name])
    groups: dict[object, list[Sample]] = {}
    for sample in samples.requests:
        if (sample.signature or name) == name:
            key = form.key(_Shape(name, sample.arrays))  # type: ignore[arg-type]
            groups.setdefault(key, []).append(sample)
    largest = max(groups.values(), key=len)
    left = len(samples.requests) - len(largest)
    text = f"{left} of {len(samples.requests)} requests have other sizes than the rest, and were left out"
    return replace(samples, requests=largest), [text] if left else []


@dataclass(frozen=True, slots=True)
class _Shape:
    """As much of an entry as its form asks for."""

    signature: str
    inputs: Mapping[str, Array]
    alone: bool = False


def _threads(
    servable: Servable, name: str, feeds: Sequence[dict[str, Array]], known: Curve, budget_s: float
) -> dict[int, Curve]:
    """Curves by the number of threads of a run, where that can be chosen: one, and all."""
    if not servable.threads or not servable.on_cpu or threads_max() == 1:
        return {}
    found = {servable.threads: known}
    sizes = [n for n in known.sizes if n in THREAD_SIZES]
    for count in {1, threads_max()} - {servable.threads}:
        engines = open_engines(servable.bundle, threads=count)
        other = Servable(servable.bundle, engines, {})
        try:
            found[count] = curve.measure(other, name, feeds, sizes or [1], budget_s)
        finally:
            other.close()
    return found


def _verify(measured: Measured, goal: Goal, found: Sequence[Candidate], most: int, note: Note) -> list[Check]:
    """Real runs of the best few, and of the default settings as they are compared with.

    Where a forecast was too bright, a lower rate is tried, as long as none that has met the goal
    carries as much: forecasts that err alike must not decide for whoever came first.
    """
    tried = [c for c in found if c.rate][:most]
    tried += [c for c in found if c.batching == measured.default and c.rate and c not in tried]
    checks: list[Check] = []
    most_met = 0.0
    for candidate in tried:
        rate = (candidate.rate or 0.0) * HEADROOM
        for attempt in range(TRIES):
            size, delay_ms = candidate.batching.max_batch_rows, candidate.batching.delay_ns / 1e6
            rate = _rounded(rate)
            if attempt and rate <= most_met:
                break
            note(f"measuring max_batch {size}, delay {delay_ms:g} ms at {rate:g}/s")
            checks.append(check(measured.trial, measured.system, candidate.batching, rate, goal))
            if checks[-1].stopped:
                return checks
            if checks[-1].met:
                most_met = max(most_met, rate)
                break
            rate = min(rate * LOWER, checks[-1].report.rates.achieved * HEADROOM)
    return checks


def _rounded(rate: float) -> float:
    """A rate of three digits."""
    return float(f"{rate:.3g}")
