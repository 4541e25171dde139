"""Whether comparisons tell the truth: `python benchmarks/bench_against.py [RUNS] [RUNS]`.

Compares a model with itself (20 times), and with one that is 10 % slower end to end (20
times), as `mserve bench A --against B` does. The slower one has more layers; how many is
found by measuring, interleaved, what a layer costs behind everything that a request passes.
Expected: at least 19 of 20 are OK or INCONCLUSIVE, and at least 18 of 20 are REGRESSION.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from serving_tools import matmuls

import mserve
from mserve.bench.judgement.against import Comparison, Options, compare
from mserve.bench.targets.opening import Ask, open_target

LAYERS, WIDTH, SLOWER = 40, 192, 0.10


def export(layers: int, directory: Path) -> Path:
    """A bundle of so many layers."""
    file = directory / f"{layers}.onnx"
    onnx.save(matmuls(layers, WIDTH), file)
    return mserve.export(file, directory / f"bundle-{layers}", golden=1).path


def compared(a: Path, b: Path, seed: int, looks: tuple[int, ...] = (12, 24, 48)) -> Comparison:
    """One comparison of two bundles in process."""
    options = Options(seed=seed, looks=looks)
    return compare(lambda: open_target(str(a), Ask()), lambda: open_target(str(b), Ask()), options)


def slower_by(share: float, directory: Path, plain: Path) -> Path:
    """A bundle whose single requests take longer by a share, end to end."""
    extra = LAYERS // 2
    found = compared(plain, export(LAYERS + extra, directory), 1000, (16,))
    each = (next(m.ratio for m in found.metrics if m.name == "p10") - 1) / extra
    layers = LAYERS + max(1, round(share / each))
    path = export(layers, directory)
    ratios = [
        next(m.ratio for m in compared(plain, path, 2000 + i, (16,)).metrics if m.name == "p10")
        for i in range(3)
    ]
    print(
        f"{layers} layers instead of {LAYERS}: {statistics.median(ratios) - 1:+.1%} end to end "
        f"({', '.join(f'{r - 1:+.1%}' for r in ratios)})",
        flush=True,
    )
    return path


def main(same: int, slower: int) -> None:
    """Both experiments, a line for each comparison."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        plain = export(LAYERS, directory)
        worse = slower_by(SLOWER, directory, plain)
        for title, other, runs in (("with itself", plain, same), ("with the slower one", worse, slower)):
            codes: Counter[str] = Counter()
            for run in range(runs):
                began = time.perf_counter()
                found = compared(plain, other, int(np.random.default_rng((run, runs)).integers(1 << 30)))
                codes[found.code] += 1
                seconds = time.perf_counter() - began
                metrics = ", ".join(f"{m.name} {m.ratio - 1:+.1%}" for m in found.metrics)
                print(f"  {title} {run + 1}: {found.code}, {seconds:.0f} s: {metrics}", flush=True)
            print(f"{title}: {dict(codes)} of {runs}", flush=True)


if __name__ == "__main__":
    counts = [int(text) for text in sys.argv[1:3]]
    main(*(counts + [20, 20][len(counts) :]))
