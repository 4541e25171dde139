"""What clients of one model feel while another one of 1 GB is loaded and unloaded beside it.

    python benchmarks/swap.py [ROUNDS] [RATE]

Model `a` is small and asked in an open loop at RATE a second. Model `b` has 1 GB of dense
weights, which ONNX Runtime packs anew at each load. Each round has a quiet window and one in
which `b` changes its version over and over: the next one is loaded while the old one
serves, then the old one is unloaded. Printed: the p50 and p99 of `a` in both.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import uvloop
from serving_tools import Sample, Server, matmuls, open_loop, percentile, predict_request, serving

import mserve

WINDOW_S = 8.0
LAYERS, WIDTH = 16, 4096  # 16 * 64 MiB


def main() -> None:
    """Measure and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    rate = float(sys.argv[2]) if len(sys.argv) > 2 else 200.0
    with tempfile.TemporaryDirectory(prefix="mserve-swap-") as folder:
        models = Path(folder) / "models"
        mserve.export(matmuls(2, 256), models / "a")
        mserve.export(matmuls(LAYERS, WIDTH), models / "b", golden=1)
        mserve.export(matmuls(LAYERS, WIDTH), Path(folder) / "more", golden=1, version=2)
        with serving(str(models), "--poll", "0.1") as server:
            request = predict_request("a", instances=[[0.5] * 256])
            uvloop.run(open_loop(server.port, request, rate, 3.0))
            print_rounds(server, request, rate, [Path(folder) / "more", models / "b"], rounds)


def print_rounds(server: Server, request: bytes, rate: float, homes: list[Path], rounds: int) -> None:
    """Each round: quiet, then with swaps; medians at the end."""
    ratios = []
    for number in range(1, rounds + 1):
        quiet = uvloop.run(open_loop(server.port, request, rate, WINDOW_S, seed=number))
        busy, swaps = uvloop.run(while_swapping(server, request, rate, homes))
        failed = sum(s.status != 200 for s in quiet + busy)
        print(
            f"round {number}: quiet p50 {percentile(quiet, 50):.2f} p99 {percentile(quiet, 99):.2f} ms; "
            f"{swaps} swaps of 1 GB: p50 {percentile(busy, 50):.2f} p99 {percentile(busy, 99):.2f} ms, "
            f"at most {percentile(busy, 100):.1f} ms; {failed} of {len(quiet) + len(busy)} failed"
        )
        ratios.append(percentile(busy, 99) / percentile(quiet, 99))
    print(f"median of p99 while swapping / quiet: {statistics.median(ratios):.2f}")


async def while_swapping(
    server: Server, request: bytes, rate: float, homes: list[Path]
) -> tuple[list[Sample], int]:
    """The answers of `a` while `b` changes its version, and how many times it did."""
    traffic = asyncio.create_task(open_loop(server.port, request, rate, WINDOW_S))
    swaps = 0
    while not traffic.done():
        newest = homes[1] / "00000002"
        if newest.exists():
            os.rename(newest, homes[0] / "00000002")
        else:
            os.rename(homes[0] / "00000002", newest)
        wanted = 2 if newest.exists() else 1
        deadline = time.monotonic() + 60
        while not traffic.done() and time.monotonic() < deadline:
            if await asyncio.to_thread(serving_versions, server) == [wanted]:
                swaps += 1
                break
            await asyncio.sleep(0.05)
    return await traffic, swaps


def serving_versions(server: Server) -> list[int]:
    """The versions of `b` that are loaded."""
    versions = json.loads(server.ask("GET", "/v1/models/b")[1])["model_version_status"]
    return [int(v["version"]) for v in versions if v["state"] in ("AVAILABLE", "UNLOADING", "LOADING")]


if __name__ == "__main__":
    main()
