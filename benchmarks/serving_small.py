"""Small requests over HTTP: shares of a bare front, unique ids, an open loop, and what batching is worth."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from serving_load import (
    Front,
    Request,
    checked,
    constant_script,
    cycling_script,
    front,
    printed_port,
    script_with_ids,
    wrk,
)
from serving_report import Report, interleaved, ratios
from serving_requests import binary, image, json_rows, mlp
from serving_tools import Server, matmuls, serving

import mserve

HERE = Path(__file__).resolve().parent
# What mserve is to reach of the bare front's rate, by request and connections.
SHARES = {("binary", 16): 0.35, ("binary", 64): 0.45, ("JSON", 64): 0.25}
P99_OF_MEDIAN, WITH_IDS, OPEN_P99_MS, OPEN_SHARE, BATCHING = 2.5, 0.7, 3.0, 0.6, 2.5
LENGTHS = 32


@dataclass
class Setting:
    """How long, how often, where files may lie, and where results go."""

    seconds: float
    rounds: int
    work: Path
    report: Report
    peers_dir: Path
    peers: frozenset[str]


def small_requests() -> dict[str, Request]:
    """One image, both ways."""
    return {"binary": binary("mlp", {"images": image()}), "JSON": json_rows("mlp", image())}


def mlp_file(work: Path) -> Path:
    """The network as an ONNX file."""
    if not (file := work / "mlp.onnx").exists():
        onnx.save(mlp(), file)
    return file


@contextmanager
def serving_mlp(work: Path) -> Iterator[Server]:
    """mserve with the network, everything on that is on by default; its answer is checked."""
    base = work / "models" / "mlp"
    if not base.exists():
        mserve.export(mlp_file(work), base, name="mlp")
    with serving(str(base)) as server:
        answer = checked(server.port, small_requests()["JSON"]).partition(b"\r\n\r\n")[2]
        want = ort.InferenceSession(mlp_file(work)).run(None, {"images": image()})[0]
        np.testing.assert_allclose(json.loads(answer)["predictions"], want, rtol=1e-4, atol=1e-6)
        yield server


def bare_front(work: Path, name: str, answer: bytes) -> AbstractContextManager[Front]:
    """A bare server that gives this answer."""
    file = work / f"{name}.answer"
    file.write_bytes(answer)
    command = [sys.executable, HERE / "front_bare.py", file]
    return front(command, work / f"bare-{name}.log", printed_port)


def small(setting: Setting) -> None:
    """mserve, the bare front and the tick server, side by side."""
    report, work = setting.report, setting.work
    report.begin("small", "784-128-10, one row a request; shares of a bare uvloop and httptools server")
    with ExitStack() as stack:
        ours = stack.enter_context(serving_mlp(work))
        tick = stack.enter_context(
            front([sys.executable, HERE / "front_tick.py", mlp_file(work)], work / "tick.log", printed_port)
        )
        for kind, request in small_requests().items():
            answer = checked(ours.port, request)
            checked(tick.port, request)
            report.say(f"{kind}: body of {len(request.body)} bytes, answer of {len(answer)} bytes with head")
            bare = stack.enter_context(bare_front(work, kind, answer))
            script = constant_script(work, kind, request)
            servers = {"mserve": (ours.process.pid, ours.port)}
            servers |= {name: (x.pid, x.port) for name, x in (("bare", bare), ("tick", tick))}
            for connections in (16, 64):
                _side_by_side(setting, kind, script, connections, servers)


def _side_by_side(
    setting: Setting, kind: str, script: Path, connections: int, servers: dict[str, tuple[int, int]]
) -> None:
    report = setting.report
    arms = {name: partial(wrk, pid, port, script, connections) for name, (pid, port) in servers.items()}
    loads = interleaved(arms, setting.rounds, setting.seconds)
    for name in arms:
        report.loads(f"{kind} c{connections} {name}", loads[name])
    share, what = ratios(loads["mserve"], loads["bare"]), f"{kind} c{connections}"
    if limit := SHARES.get((kind, connections)):
        report.bar(f"{what}: mserve / bare front", share, ">=", limit)
    else:
        report.figure(f"{what}: mserve / bare front", share, "")
    report.bar(f"{what}: mserve / tick server", ratios(loads["mserve"], loads["tick"]), ">=", 1.0)
    if connections == 64:
        tails = [load.p99_ms / load.p50_ms for load in loads["mserve"]]
        report.bar(f"{what}: p99 / median", tails, "<=", P99_OF_MEDIAN)


def ids(setting: Setting) -> None:
    """The same with an x-request-id and a traceparent of its own in every request."""
    report, work = setting.report, setting.work
    report.begin("ids", "an id and a trace of its own in each request, against always the same ones")
    report.say(
        "both are built by the same Lua in wrk, so that its cost is in both; the ratio is the server's"
    )
    with serving_mlp(work) as ours:
        for kind, request in small_requests().items():
            scripts = {
                name: script_with_ids(work, f"ids-{kind}", request, unique=name == "unique")
                for name in ("same", "unique")
            }
            for connections in (16, 64):
                arms = {
                    name: partial(wrk, ours.process.pid, ours.port, script, connections)
                    for name, script in scripts.items()
                }
                loads = interleaved(arms, setting.rounds, setting.seconds)
                what = f"{kind} c{connections}"
                for name in arms:
                    report.loads(f"{what} {name}", loads[name])
                report.bar(
                    f"{what}: unique ids / same ids", ratios(loads["unique"], loads["same"]), ">=", WITH_IDS
                )
                work_ratio = [
                    a.per_server_cpu / b.per_server_cpu
                    for a, b in zip(loads["unique"], loads["same"], strict=True)
                ]
                report.figure(f"{what}: the same, per server CPU second", work_ratio, "")


def lengths(setting: Setting) -> None:
    """JSON whose bodies differ in length, as numbers written as text do, against bodies of one length."""
    report, work = setting.report, setting.work
    report.begin("lengths", f"{LENGTHS} lengths of body, in turn, against always the same length")
    request = small_requests()["JSON"]
    bodies = {
        "one length": [b" " * i + request.body + b" " * (LENGTHS - 1 - i) for i in range(LENGTHS)],
        "all lengths": [request.body + b" " * i for i in range(LENGTHS)],
    }
    scripts = {
        name: cycling_script(work, name, [replace(request, body=body) for body in same])
        for name, same in bodies.items()
    }
    with serving_mlp(work) as ours:
        for connections in (16, 64):
            arms = {
                name: partial(wrk, ours.process.pid, ours.port, script, connections)
                for name, script in scripts.items()
            }
            loads = interleaved(arms, setting.rounds, setting.seconds)
            for name in arms:
                report.loads(f"JSON c{connections} {name}", loads[name])
            share = ratios(loads["all lengths"], loads["one length"])
            report.bar(f"JSON c{connections}: all lengths / one length", share, ">=", WITH_IDS)


def openloop(setting: Setting) -> None:
    """p99 from the time when a request was due, at 60 % of the most that it answers to the same client."""
    report, work = setting.report, setting.work
    report.begin("openloop", f"p99 at {OPEN_SHARE:.0%} of the highest rate, Poisson arrivals, mserve bench")
    inputs = work / "open.npz"
    np.savez(inputs, images=image())
    with serving_mlp(work) as ours:
        for name, protocol in (("JSON", "tfs"), ("binary", "oip-binary")):
            asked = partial(_bench, setting, ours, "--protocol", protocol, "--inputs", str(inputs))
            most = [asked("--concurrency", "64")["rates"]["ok"] for _ in range(setting.rounds)]
            report.figure(f"{name} c64, closed loop", most, "/s")
            rate = OPEN_SHARE * statistics.median(most)
            late = [_open_p99(report, asked("--qps", f"{rate:.0f}")) for _ in range(setting.rounds)]
            report.bar(f"{name}: p99 in ms at {rate:,.0f}/s", late, "<=", OPEN_P99_MS)


def _bench(setting: Setting, ours: Server, *options: str) -> dict[str, Any]:
    """What `mserve bench` reports of one load."""
    command = [sys.executable, "-m", "mserve", "bench", f"http://127.0.0.1:{ours.port}", "--json"]
    command += ["--duration", str(max(2.0, setting.seconds)), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout:
        raise RuntimeError(done.stderr)
    told: dict[str, Any] = json.loads(done.stdout)["reports"][0]
    return told


def _open_p99(report: Report, point: dict[str, Any]) -> float:
    """The p99 of a run in milliseconds; infinite where it could not take the rate."""
    verdict, client = point["verdict"], point["client"]
    report.say(
        f"bench: verdict {verdict['code']} {verdict['reason'] or ''}; {point['rates']['ok']:,.0f}/s, "
        f"requests {client['lag_p99_ms']:.2f} ms late (p99), client CPU {client['cpu_share']:.0%}"
    )
    if verdict["code"] == "unstable":  # latency grew until the end
        return float("inf")
    return _p99(point["latency"])


def batching(setting: Setting) -> None:
    """A model that is cheaper by the row in batches: what the batcher makes of it."""
    report, work = setting.report, setting.work
    report.begin("batching", "a model that batches well, 64 connections, against the same with --max-batch 1")
    model, base = matmuls(4, 1024), work / "models" / "wide"
    if not base.exists():
        mserve.export(model, base, name="wide")
    gain = _row_gain(model)
    report.say(f"in process, a row in a batch of 16 costs 1/{gain:.1f} of a row alone (to be at least 3)")
    x = np.random.default_rng(3).standard_normal((1, 1024), dtype=np.float32)
    script = constant_script(work, "wide", binary("wide", {"x": x}))
    with serving(str(base)) as on, serving(str(base), "--max-batch", "1") as off:
        for server in (on, off):
            checked(server.port, binary("wide", {"x": x}))
        arms = {
            name: partial(wrk, server.process.pid, server.port, script, 64)
            for name, server in (("batching", on), ("max_batch=1", off))
        }
        loads = interleaved(arms, setting.rounds, setting.seconds)
    for name in arms:
        report.loads(f"binary c64 {name}", loads[name])
    report.bar("batching / max_batch=1", ratios(loads["batching"], loads["max_batch=1"]), ">=", BATCHING)


def _row_gain(model: onnx.ModelProto) -> float:
    """Time of sixteen rows one by one, over that of sixteen at once; the better of many runs."""
    session = ort.InferenceSession(model.SerializeToString())
    best: dict[int, float] = {}
    for rows in (1, 16) * 15:
        x = np.zeros((rows, 1024), np.float32)
        began = time.perf_counter()
        session.run(None, {"x": x})
        best[rows] = min(best.get(rows, np.inf), time.perf_counter() - began)
    return float(16 * best[1] / best[16])


def _p99(latency: dict[str, Any] | None) -> float:
    """The value of a distribution as bench prints it; nan where it says that it means nothing."""
    found = [p["value_ms"] for p in latency["percentiles"] if p["p"] == 0.99] if latency else []
    return float(found[0]) if found and found[0] is not None else float("nan")
