"""How fast a table answers: `python benchmarks/table.py [ROWS]`.

Exports a table of a million keys, as text and as integers, with a vector of 16 floats and
a score each; loads it, and looks random keys up, one at a time and 128 at a time. Without
a server: what one thread can look up in a second.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import mserve
from mserve.loader.servable import Servable
from mserve.tensors import Array

SECONDS = 2.0


def main(rows: int) -> None:
    rng = np.random.default_rng(0)
    ids = np.arange(rows) * 7919
    text = np.empty(rows, dtype=object)
    text[:] = [f"user-{i}" for i in ids.tolist()]
    columns = {"emb": rng.random((rows, 16), np.float32), "score": rng.random(rows, np.float32)}
    with tempfile.TemporaryDirectory() as directory:
        for name, keys in (("text", text), ("integers", ids)):
            began = time.perf_counter()
            path = mserve.export({"key": keys, **columns}, Path(directory) / name).path
            print(f"{rows:,} keys, {name}: exported in {time.perf_counter() - began:.2f} s", end="")
            began = time.perf_counter()
            servable = mserve.load(path)
            print(f", loaded in {(time.perf_counter() - began) * 1e3:.1f} ms", end="")
            print(f", {servable.bundle.byte_size / 1e6:.1f} MB")
            for batch in (1, 128):
                runs, seconds = measure(servable, keys, batch)
                each = seconds / runs * 1e6
                print(f"  batch {batch}: {runs * batch / seconds:,.0f} lookups/s, {each:.1f} us a run")
            servable.close()


def measure(servable: Servable, keys: Array, batch: int) -> tuple[int, float]:
    """Runs, and the seconds they took; every run asks for other keys."""
    rng = np.random.default_rng(1)
    asked = [{"key": keys[rng.integers(0, len(keys), batch)]} for _ in range(1000)]
    for inputs in asked:
        servable.compute("serving_default", inputs)
    began, runs = time.perf_counter(), 0
    while (seconds := time.perf_counter() - began) < SECONDS:
        servable.compute("serving_default", asked[runs % len(asked)])
        runs += 1
    return runs, seconds


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
