"""Whether searches agree and tell the truth: `python benchmarks/bench_search.py [SEARCHES] [SECONDS]`.

Serves the quickstart's model, searches five times for the highest rate that meets the
objectives, each time with other arrivals, and then offers the lowest and the median of the
rates for 60 s. Expected: the rates agree within 10 %, and what was found holds.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from serving_tools import serving

import mserve

MODEL = Path(__file__).resolve().parent.parent / "samples" / "digits" / "digits.onnx"
SLO = "p99=20ms"


def bench(*arguments: object) -> tuple[int, dict[str, Any]]:
    """`mserve bench ARGUMENTS --json`: its exit code and document."""
    command = [sys.executable, "-m", "mserve", "bench", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout:
        raise RuntimeError(done.stderr)
    return done.returncode, json.loads(done.stdout)


def main(searches: int, seconds: float) -> None:
    """Search, compare, hold."""
    with tempfile.TemporaryDirectory() as name:
        mserve.export(MODEL, Path(name) / "digits")
        with serving(str(Path(name) / "digits")) as server:
            url = f"http://127.0.0.1:{server.port}"
            rates = [search(url, seed) for seed in range(1, searches + 1)]
            middle, spread = statistics.median(rates), max(rates) / min(rates) - 1
            print(f"{searches} searches: {min(rates):g} to {max(rates):g}/s, spread {spread:.1%}", flush=True)
            for rate in sorted({min(rates), middle}):
                hold(url, rate, seconds)


def search(url: str, seed: int) -> float:
    """One search; returns its rate, or ends the program where it found none."""
    began = time.perf_counter()
    _, document = bench(url, "--qps", "--slo", SLO, "--seed", seed)
    found = document["search"]
    took = time.perf_counter() - began
    print(f"seed {seed}: {found['rate']}/s, {len(found['probes'])} probes, {took:.0f} s; {found['limit']}")
    for warning in found["warnings"]:
        print(f"  {warning}", flush=True)
    if found["rate"] is None:
        raise SystemExit("no rate meets the objectives here")
    return float(found["rate"])


def hold(url: str, rate: float, seconds: float) -> None:
    """Offer a found rate for long."""
    code, document = bench(url, "--qps", rate, "--slo", SLO, "--duration", seconds, "--seed", 99)
    [report] = document["reports"]
    by_p = {p["p"]: p["value_ms"] for p in (report["latency"] or {"percentiles": []})["percentiles"]}
    tail = f", p99 {by_p[0.99]:.2f} ms" if by_p.get(0.99) else ""
    print(f"{rate:g}/s for {seconds:g} s: {report['verdict']['code']} (exit {code}){tail}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5, float(sys.argv[2]) if len(sys.argv) > 2 else 60.0)
