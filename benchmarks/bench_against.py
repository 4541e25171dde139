"""Whether comparisons tell the truth: `python benchmarks/bench_against.py [RUNS] [RUNS]`.

Compares a model with itself (20 times), and with one that is 10 % slower end to end (20
times), as `mserve bench A --against B` does. The slower one has more layers; how many is
found by measuring, interleaved, until single requests take 9 to 11 % longer end to end.
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
# How near the slower one has to come, and how often that is tried.
NEAR, TRIALS = 0.01, 4


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
    """A bundle whose single requests take longer by a share, end to end: tried until they do."""
    extra = LAYERS // 2
    for trial in range(TRIALS):
        layers = LAYERS + extra
        path = export(layers, directory)
        ratios = [p10(compared(plain, path, 1000 + 10 * trial + i, (16,))) - 1 for i in range(3)]
        found = statistics.median(ratios)
        print(
            f"{layers} layers instead of {LAYERS}: {found:+.1%} end to end "
            f"({', '.join(f'{r:+.1%}' for r in ratios)})",
            flush=True,
        )
        if abs(found - share) <= NEAR:
            break
        extra = max(1, round(extra * min(3.0, share / max(found, 0.01))))
    return path


def p10(found: Comparison) -> float:
    """The ratio of the fastest tenth of single requests, B over A."""
    return next(metric.ratio for metric in found.metrics if metric.name == "p10")


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
