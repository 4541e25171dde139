"""Whether gates tell the truth: `python benchmarks/gate.py [--same N] [--slower N] [--quickstart]`.

    same        N gates of a model against its re-export (other names, other order), without latency
                and with it: none may fail
    slower      N gates against a version that is 10 % slower end to end, with latency: each should fail
    quickstart  the sample's two versions, once with --latency off (bar: 20 s) and once with the default
                length (bar: 4 minutes)

Prints a line for each gate and the counts. The slower version has more layers, how many is measured.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from bench_against import LAYERS, SLOWER, WIDTH, slower_by
from serving_tools import matmuls

import mserve
from mserve.workflows.gate import Options, gate

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import mutations  # noqa: E402 - beside the tests that use it

CHANGES = (mutations.reexported, mutations.names_changed, mutations.order_changed)


def gates(title: str, old: Path, versions: Iterable[Path], latency: str) -> None:
    """Gate each version, and count the verdicts."""
    counts: Counter[str] = Counter()
    for number, new in enumerate(versions, 1):
        began = time.perf_counter()
        found = gate(old, new, Options(latency=latency))
        counts[found.verdict] += 1
        seconds = time.perf_counter() - began
        metrics = ", ".join(f"{m['name']} {m['ratio'] - 1:+.1%}" for m in found.comparison.get("metrics", ()))
        print(f"  {title} {number}: {found.sentence()}, {seconds:.1f} s {metrics}", flush=True)
    print(f"{title}, --latency {latency}: {dict(counts)}", flush=True)


def reexports(source: Path, golden: dict[str, np.ndarray], directory: Path, count: int) -> list[Path]:
    """The same model, written in other ways."""
    model = onnx.load(source)
    return [
        mserve.export(CHANGES[i % len(CHANGES)](model), directory / "again", golden=golden).path
        for i in range(count)
    ]


def same(directory: Path, count: int, latency: str) -> None:
    """A/A: digits against its re-exports."""
    source = ROOT / "samples" / "digits" / "digits.onnx"
    golden = {"pixels": np.random.default_rng(0).integers(0, 17, (64, 64)).astype(np.float32)}
    old = mserve.export(source, directory / "old", golden=golden).path
    gates("re-export", old, reexports(source, golden, directory, count), latency)


def slower(directory: Path, count: int, latency: str) -> None:
    """A version that costs 10 % more, again and again."""
    file = directory / "plain.onnx"
    onnx.save(matmuls(LAYERS, WIDTH), file)
    old = mserve.export(file, directory / "plain", golden=1).path
    gates(f"{SLOWER:.0%} slower", old, [slower_by(SLOWER, directory, old)] * count, latency)


def quickstart(directory: Path) -> None:
    """The sample's two versions, as commands."""
    train = [sys.executable, str(ROOT / "samples/digits/train.py"), str(directory / "digits")]
    for _ in range(2):
        subprocess.run(train, check=True, capture_output=True)
    versions = [str(path) for path in sorted((directory / "digits").iterdir())]
    for latency in ("off", "default"):
        command = [sys.executable, "-m", "mserve", "gate", *versions, "--latency", latency]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = done.stdout.splitlines()[-1:]
        print(f"quickstart, --latency {latency}: {time.perf_counter() - began:.1f} s, {said}", flush=True)


def main() -> None:
    """The experiments that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--same", type=int, default=20)
    parser.add_argument("--slower", type=int, default=10)
    parser.add_argument("--quickstart", action="store_true")
    parser.add_argument("--latency", default="default", help="of the gates that measure; off: none does")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        same(directory / "off", options.same, "off")
        if options.latency != "off":
            same(directory / "on", options.same, options.latency)
            if options.slower:
                slower(directory, options.slower, options.latency)
        if options.quickstart:
            quickstart(directory)


if __name__ == "__main__":
    main()
