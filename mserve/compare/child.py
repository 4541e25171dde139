"""A model run in a process of its own: one that crashes or never ends is a finding, and no more.

The parent writes a request (`request.json`, and inputs as npz) into a directory; the child writes
outputs beside it and says on standard output, line by line, which signature it begins and how it went.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError, MserveError
from ..format.golden import Golden, pack, read_npz, restored
from ..tensors import Array, Signature
from .model import Model, open_model

ROWS_AT_ONCE = 1024
OUTPUT_BYTES = 4 << 30
_PROGRAM = "import pathlib, sys; from mserve.compare.child import main; main(pathlib.Path(sys.argv[1]))"
Run = Callable[[str, Mapping[str, Array]], dict[str, Array]]


@dataclass(slots=True)
class Answers:
    """Outputs by signature and alias, and why there are none, by signature."""

    outputs: dict[str, dict[str, Array]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


def ask(
    model: Model, requests: Mapping[str, Mapping[str, Array]], directory: Path, seconds: float
) -> Answers:
    """Run a model on inputs by signature, for at most so many seconds in all."""
    names = list(requests)
    answers = Answers()
    for i, name in enumerate(names):
        try:
            (directory / f"in-{i}.npz").write_bytes(pack({name: Golden(requests[name], {})}))
        except InputError as error:
            answers.errors[name] = str(error)
    (directory / "request.json").write_text(json.dumps({"model": str(model.path), "signatures": names}))
    command = [sys.executable, "-c", _PROGRAM, str(directory)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    ending = ""
    try:
        with (directory / "said").open("wb") as said, (directory / "complained").open("wb") as complained:
            done = subprocess.run(
                command, stdout=said, stderr=complained, env=env, timeout=seconds, check=False
            )
        if done.returncode:
            ending = _ending(done.returncode, directory / "complained")
    except subprocess.TimeoutExpired:
        ending = f"no answer after {seconds:g} s: the process was ended"
    _collect(model, names, directory, answers, ending)
    return answers


def _ending(code: int, complained: Path) -> str:
    last = (complained.read_bytes()[-2000:].decode(errors="replace").strip().splitlines() or [""])[-1]
    how = (
        f"the process ended with {signal.Signals(-code).name}"
        if code < 0
        else f"the process ended with {code}"
    )
    return f"{how}: {last}" if last else how


def _collect(model: Model, names: list[str], directory: Path, answers: Answers, ending: str) -> None:
    """What the child said and wrote; what it did not come to has the reason of its ending."""
    lines = (directory / "said").read_text(errors="replace").splitlines()
    said = {line["name"]: line["error"] for line in map(json.loads, lines[: len(names)])}
    for i, name in enumerate(names):
        if name in answers.errors:
            continue
        if said.get(name) == "":
            ports = model.signatures[name].outputs
            arrays = read_npz(directory / f"out-{i}.npz", OUTPUT_BYTES)
            found = {alias: arrays[f"{name}/outputs/{alias}"] for alias in ports}
            answers.outputs[name] = {a: restored(x, ports[a].dtype) for a, x in found.items()}
        else:
            answers.errors[name] = said.get(name) or ending or "no answer"


# --- in the child


def main(directory: Path) -> None:
    """Answer the request that lies in a directory. What libraries print goes to standard error."""
    request: dict[str, Any] = json.loads((directory / "request.json").read_text())
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        model = open_model(Path(request["model"]))
        run: Run | None = None
        for i, name in enumerate(request["signatures"]):
            source, error = directory / f"in-{i}.npz", ""
            try:
                if run is None:
                    run = runner(model)
                if source.exists():
                    outputs = run(name, _inputs(source, name, model.signatures[name]))
                    (directory / f"out-{i}.npz").write_bytes(pack({name: Golden({}, outputs)}))
            except MserveError as problem:
                error = str(problem)
            out.write(json.dumps({"name": name, "error": error}) + "\n")
            out.flush()


def _inputs(path: Path, name: str, signature: Signature) -> dict[str, Array]:
    found = {key.removeprefix(f"{name}/inputs/"): x for key, x in read_npz(path, OUTPUT_BYTES).items()}
    ports = signature.inputs
    return {a: restored(x, ports[a].dtype) if a in ports else x for a, x in found.items()}


def runner(model: Model) -> Run:
    """Load a bundle or an ONNX file, to be run. Raises ModelRefused and its kind."""
    from ..defaults import fill_defaults
    from ..format.graph import read_graph
    from ..rows import Cuts, feeds
    from ..runtime.engines import engines_for, open_engines
    from ..runtime.weights import Weights
    from ..tensors import check_inputs, plain_text

    if model.bundle is not None:
        engines = open_engines(model.bundle)
    else:
        assert model.data is not None
        nothing = Weights(model.path, {}, True)
        engines = engines_for(model.data, read_graph(model.data, model.path), model.signatures, nothing)

    def run(name: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        spec = model.signatures[name]
        arrays = fill_defaults(spec, {a: plain_text(x) for a, x in inputs.items()})
        rows = check_inputs(spec, arrays)
        wanted = [port.name for port in spec.outputs.values()]

        def part(given: Mapping[str, Array]) -> list[Array]:
            return engines[name].run(wanted, feeds(spec, given))

        if spec.batch_axis is None or rows <= ROWS_AT_ONCE:
            return dict(zip(spec.outputs, part(arrays), strict=True))
        import numpy as np

        starts = range(0, rows, ROWS_AT_ONCE)
        cuts = Cuts(spec, arrays)
        parts = [part(cuts.rows(at, min(rows, at + ROWS_AT_ONCE))) for at in starts]
        return {a: np.concatenate([p[i] for p in parts]) for i, a in enumerate(spec.outputs)}

    return run
