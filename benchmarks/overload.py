"""Three times more than a server can do: what is answered, how late, and how fast the rest is refused.

    python benchmarks/overload.py [SECONDS]

A model of about 5 ms whose requests are small and cannot share a batch, so that the client,
which runs on the same machine, can offer more than the server does. First the capacity, by
32 callers who ask again at once;
then three times that rate in an open loop; three rounds of both, interleaved.

goodput   answers with 200 a second, as a share of the capacity measured beside it
promise   the time that a full queue takes at that capacity: max_queue / capacity, plus a run
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import uvloop
from serving_tools import closed_loop, matmuls, open_loop, percentile, predict_request, serving

import mserve

WIDTH, LAYERS, MAX_QUEUE, ROUNDS, TIMES = 1024, 24, 64, 3, 3


def main() -> None:
    """Measure and print."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 8.0
    base = Path(tempfile.mkdtemp(prefix="mserve-overload-")) / "slow"
    mserve.export(matmuls(LAYERS, WIDTH, alone=True), base, golden=1)
    request = predict_request("slow", inputs=[[0.5]])
    shares, late, refused, promises = [], [], [], []
    with serving(str(base), "--max-queue", str(MAX_QUEUE)) as server:
        uvloop.run(closed_loop(server.port, request, 8, 2.0))
        for round_ in range(1, ROUNDS + 1):
            samples = uvloop.run(closed_loop(server.port, request, 32, seconds / 2))
            good = [s for s in samples if s.status == 200]
            capacity = len(good) / (seconds / 2)
            alone = percentile(good, 50) / 32 * 2
            cpu = time.process_time()
            samples = uvloop.run(open_loop(server.port, request, TIMES * capacity, seconds))
            cpu = (time.process_time() - cpu) / seconds / (os.cpu_count() or 1)
            good = [s for s in samples if s.status == 200]
            busy = [s for s in samples if s.status == 429]
            other = len(samples) - len(good) - len(busy)
            promise = 1e3 * MAX_QUEUE / capacity + alone
            told = sum(b"retry-after" in s.head for s in busy)
            print(
                f"round {round_}: capacity {capacity:.0f}/s; offered {len(samples) / seconds:.0f}/s: "
                f"{len(good) / seconds:.0f}/s answered, p99 {percentile(good, 99):.0f} ms "
                f"(promise {promise:.0f} ms); {len(busy) / seconds:.0f}/s refused, median "
                f"{percentile(busy, 50):.2f} ms, p99 {percentile(busy, 99):.2f} ms, "
                f"{told} of {len(busy)} told when to try again; {other} others; "
                f"the client took {cpu:.0%} of the CPUs"
            )
            shares.append(len(good) / seconds / capacity)
            late.append(percentile(good, 99))
            promises.append(promise)
            refused.append(sum(s.ms < 5 for s in busy) / len(busy))
    print(
        f"medians: goodput {statistics.median(shares):.0%} of capacity, p99 of answers "
        f"{statistics.median(a / b for a, b in zip(late, promises, strict=True)):.2f} of the promise, "
        f"{statistics.median(refused):.1%} of refusals within 5 ms"
    )


if __name__ == "__main__":
    main()
