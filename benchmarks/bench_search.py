"""Whether searches agree and tell the truth: `python benchmarks/bench_search.py [SEARCHES] [SECONDS] [SLO]`.

Serves the quickstart's model, searches five times for the highest rate that meets the
objectives, each time with other arrivals, and then offers the lowest and the median of the
rates for 60 s. Expected: the rates agree within 10 %, and what was found holds. A machine may
itself be a quarter slower a minute later, so each rate is also given as a share of what wrk
found with a closed loop before and after the search; by that share the searches are judged.
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

import numpy as np
from serving_load import Request, constant_script, wrk
from serving_tools import Server, serving

import mserve

MODEL = Path(__file__).resolve().parent.parent / "samples" / "digits" / "digits.onnx"
SLO = "p99=20ms"
AGREE = 0.10
CONNECTIONS, WRK_S = 16, 3.0


def bench(*arguments: object) -> tuple[int, dict[str, Any]]:
    """`mserve bench ARGUMENTS --json`: its exit code and document."""
    command = [sys.executable, "-m", "mserve", "bench", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout:
        raise RuntimeError(done.stderr)
    document = json.loads(done.stdout)
    if "error" in document:
        raise SystemExit(done.stderr or done.stdout)
    return done.returncode, document


def main(searches: int, seconds: float, slo: str) -> None:
    """Search, compare, hold."""
    with tempfile.TemporaryDirectory() as name:
        mserve.export(MODEL, Path(name) / "digits")
        with serving(str(Path(name) / "digits")) as server:
            url = f"http://127.0.0.1:{server.port}"
            script = asking(Path(name))
            rates, speeds, shares = [], [speed(server, script)], []
            for seed in range(1, searches + 1):
                rates.append(search(url, seed, slo))
                speeds.append(speed(server, script))
                shares.append(rates[-1] / statistics.mean(speeds[-2:]))
                print(f"  {shares[-1]:.3f} of wrk's {speeds[-2]:,.0f} and {speeds[-1]:,.0f}/s", flush=True)
            middle, spread = statistics.median(rates), max(rates) / min(rates) - 1
            print(f"{searches} searches: {min(rates):g} to {max(rates):g}/s, spread {spread:.1%}")
            spread = max(shares) / min(shares) - 1
            word = "within 10 %" if spread <= AGREE else "NOT within 10 %"
            print(
                f"{min(shares):.3f} to {max(shares):.3f} of wrk's rate, spread {spread:.1%}: {word}",
                flush=True,
            )
            for rate in sorted({min(rates), middle}):
                hold(url, rate, seconds, slo)


def asking(folder: Path) -> Path:
    """A script of wrk's with a request of one row."""
    pixels = np.random.default_rng(1).integers(0, 17, 64).tolist()
    body = json.dumps({"instances": [{"pixels": pixels}]}).encode()
    headers = {"Content-Type": "application/json"}
    return constant_script(folder, "digits", Request("/v1/models/digits:predict", headers, body))


def speed(server: Server, script: Path) -> float:
    """Requests a second that wrk sees now."""
    return wrk(server.process.pid, server.port, script, CONNECTIONS, WRK_S).rate


def search(url: str, seed: int, slo: str) -> float:
    """One search; returns its rate, or ends the program where it found none."""
    began = time.perf_counter()
    _, document = bench(url, "--qps", "--slo", slo, "--seed", seed)
    found = document["search"]
    took = time.perf_counter() - began
    print(f"seed {seed}: {found['rate']}/s, {len(found['probes'])} probes, {took:.0f} s; {found['limit']}")
    for warning in found["warnings"]:
        print(f"  {warning}", flush=True)
    if found["rate"] is None:
        raise SystemExit("no rate meets the objectives here")
    return float(found["rate"])


def hold(url: str, rate: float, seconds: float, slo: str) -> None:
    """Offer a found rate for long."""
    code, document = bench(url, "--qps", rate, "--slo", slo, "--duration", seconds, "--seed", 99)
    [report] = document["reports"]
    by_p = {p["p"]: p["value_ms"] for p in (report["latency"] or {"percentiles": []})["percentiles"]}
    tail = f", p99 {by_p[0.99]:.2f} ms" if by_p.get(0.99) else ""
    print(f"{rate:g}/s for {seconds:g} s: {report['verdict']['code']} (exit {code}){tail}", flush=True)


if __name__ == "__main__":
    given = dict(enumerate(sys.argv))
    main(int(given.get(1, 5)), float(given.get(2, 60)), given.get(3, SLO))
