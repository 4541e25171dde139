"""Memory of a server that loads and unloads one model over and over.

    python benchmarks/reload.py [CYCLES] [MB]

The model has dense weights of about MB megabytes, which ONNX Runtime packs into private
memory at each load. Each cycle loads it, asks it once, and unloads it. The baseline is
the memory after the first cycle (libraries and thread pools are there by then).
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from serving_tools import Server, matmuls, serving

import mserve

LAYER_MB, WIDTH = 16, 2048


def main() -> None:
    """Measure and print."""
    cycles = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    layers = max(1, (int(sys.argv[2]) if len(sys.argv) > 2 else 200) // LAYER_MB)
    with tempfile.TemporaryDirectory(prefix="mserve-reload-") as folder:
        base = Path(folder) / "m"
        mserve.export(matmuls(layers, WIDTH), base, golden=1)
        with serving(str(base), "--admin") as server:
            print(f"{layers * LAYER_MB} MB of weights; resident memory in MB: all (not backed by files)")
            print(f"loaded       {show(server)}")
            after = [cycle(server)]
            print(f"cycle 1      {show(server)}   the baseline")
            for number in range(2, cycles + 1):
                after.append(cycle(server))
                if number % max(1, cycles // 10) == 0:
                    print(f"cycle {number:<6} {show(server)}", flush=True)
    half = after[len(after) // 2 :]
    slope = np.polyfit(range(len(half)), half, 1)[0]
    print(
        f"end / baseline: {after[-1] / after[0]:.3f}; highest / baseline: {max(after) / after[0]:.3f}; "
        f"slope of the second half {slope * 1024:+.1f} kB a cycle"
    )


def cycle(server: Server) -> float:
    """Load, ask, unload; the resident memory afterwards in MB."""
    repository = "/v2/repository/models/m/"
    assert server.ask("POST", repository + "load")[0] == 200
    example = server.ask("GET", "/v1/models/m/example")[1]
    assert server.ask("POST", "/v1/models/m:predict", example)[0] == 200
    assert server.ask("POST", repository + "unload")[0] == 200
    while b"UNLOADING" in server.ask("GET", "/v1/models/m")[1]:
        time.sleep(0.01)
    return server.memory_mb()["VmRSS"]


def show(server: Server) -> str:
    """Memory as text."""
    found = server.memory_mb()
    return f"{found['VmRSS']:7.1f} ({found['RssAnon']:.1f})"


if __name__ == "__main__":
    main()
