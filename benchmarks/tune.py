"""Whether forecasts come true: `python benchmarks/tune.py [SECONDS]`.

First a model that sleeps, so that a busy machine takes little away: that is about the simulator.
Then it measures a network of 784-1024-10 once, with requests of 8 rows, and then forecasts and really runs
settings that no search has chosen, each at parts of the rate that the forecasts say it carries.
Expected on a quiet machine: p99 is predicted within 15 %, and a search takes a tenth of the real
runs that it would take without a simulator. On a busy one, the notes say so, and p99 tells nothing.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import mserve
from mserve.bench.judgement.slo import parse
from mserve.bench.requests.bundle_inputs import bundle_samples
from mserve.bench.targets.target import Ask
from mserve.loader.servable import Batching, Servable, load
from mserve.runtime.ort import cpu_budget
from mserve.workflows.tune import costs, curve
from mserve.workflows.tune.curve import sizes_to
from mserve.workflows.tune.grid import Goal, Search
from mserve.workflows.tune.simulate import System
from mserve.workflows.tune.verify import AGREED, Check, Trial, check
from mserve.workflows.tune.workflow import Asked, measure, tune

HELD_OUT = (Batching(8), Batching(24, 3_000_000), Batching(48, 500_000), Batching(96))
SLEPT = (Batching(4), Batching(16, 10_000_000))
LOADS = (0.3, 0.6, 0.8)
SLO = "p99<50ms"
HIDDEN = 1024


def network() -> onnx.ModelProto:
    """A classifier for which batches pay."""
    draw = np.random.default_rng(1)
    shapes = {"w0": (784, HIDDEN), "w1": (HIDDEN, HIDDEN), "w2": (HIDDEN, 10)}
    weights = [
        numpy_helper.from_array((draw.standard_normal(s) * 0.03).astype(np.float32), n)
        for n, s in shapes.items()
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w1"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("MatMul", ["d", "w2"], ["y"]),
    ]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])
        for name, size in (("x", 784), ("y", 10))
    ]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@dataclass(eq=False)
class Sleeper(costs.Echo):
    """Answers as an echo does, after a while; timed by the clock, since its thread does no work."""

    threads: int = 2

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Any], options: Any = None) -> list[Any]:
        """Sleep and answer."""
        time.sleep(slept_ns(len(next(iter(feeds.values())))) / 1e9)
        return super().run(outputs, feeds, options)


def slept_ns(rows: int) -> float:
    """What a run of the sleeping model takes."""
    return 20e6 + 1e6 * rows


def sleeping(base: Path, seconds: float) -> list[float | None]:
    """Forecast and measure the model that sleeps; the errors of the p99."""
    servable = load(base)
    samples = bundle_samples(base, Ask())
    name, spec = servable.signature()
    answers = {spec.outputs[a].name: x for a, x in servable.run(samples.requests[0].arrays).items()}
    requests = [(s.arrays, 1) for s in samples.requests]
    way = costs.measure(servable, name, samples, 2.0)

    def opened() -> Servable:
        return Servable(servable.bundle, {name: Sleeper(answers, batched=True)}, {})

    found = curve.measure(opened(), name, [dict(s.arrays) for s in samples.requests], sizes_to(16), 3.0)
    system = System(spec, requests, found, cpu_budget(), costs=way)

    trial, goal = Trial(opened, "cpu", name, samples, seconds), Goal(parse(["p99<500ms"]))
    search = Search(system, found, goal)
    return [e for batching in SLEPT for e in tried(trial, search, batching)]


def tried(trial: Trial, search: Search, batching: Batching) -> list[float | None]:
    """One setting at parts of what it carries."""
    errors = []
    carried = search.rated(batching).rate or 0.0
    for part in LOADS if carried else ():
        one = check(trial, search.system, batching, carried * part, search.goal)
        print(line(one), flush=True)
        errors.append(one.error(0.99))
    return errors


def judge(errors: Sequence[float | None]) -> None:
    """How many forecasts were good."""
    known = [e for e in errors if e is not None]
    good = sum(abs(e) <= AGREED for e in known)
    print(f"p99 within {AGREED:.0%}: {good} of {len(known)} runs ({len(errors) - len(known)} had none)")


def line(one: Check) -> str:
    """A check, for people."""
    cells = [f"max_batch {one.batching.max_batch_rows:4} delay {one.batching.delay_ns / 1e6:4g} ms"]
    cells.append(f"{one.rate:7,.0f}/s")
    for p, ns in one.predicted().items():
        measured, error = one.measured()[p], one.error(p)
        found = "-" if measured is None or error is None else f"{measured / 1e6:7.3f} ms {error:+5.0%}"
        cells.append(f"p{p * 100:g} {ns / 1e6:7.3f} {found}")
    return "  ".join([*cells, one.report.verdict.code])


def main(seconds: float) -> None:
    """Forecast and measure held-out settings; then let a whole tuning say how many runs it took."""
    with tempfile.TemporaryDirectory() as name:
        base = Path(name) / "network"
        mserve.export(network(), base)
        judge(sleeping(base, seconds))
        slo = parse([SLO])
        asked = Asked(base, Ask(rows=8), slo, seconds=seconds)
        measured, goal = measure(asked), Goal(slo)
        for note in measured.notes:
            print(f"note: {note}")
        search = Search(measured.system, measured.curve, goal)
        judge([e for batching in HELD_OUT for e in tried(measured.trial, search, batching)])
        found = tune(asked)
        runs, real = found.simulations, len(found.checks)
        print(f"a tuning: {runs} simulated runs, {real} real ones: {runs / real:.0f} to 1")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 5.0)
