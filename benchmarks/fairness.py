"""What a quiet client feels of bad ones: the median and p99 of its latency, alone and beside each.

    python benchmarks/fairness.py [ROUNDS] [SECONDS] [CLIENT...]

The clients are those of fairness_clients.py; the model is a 784-128-10 network. Two servers
run. In each round the quiet client is measured alone, beside the bad client, and while that
is at the other server: what it feels then is the machine's doing (shared processors,
caches, loopback), not the server's. Windows are interleaved, and the medians over
all rounds are printed, for each kind of request of the quiet client:

beside     its median beside the bad client / alone: the bar is 2.0
elsewhere  the same while the bad client is at the other server
server     what the server adds: beside / elsewhere
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from serving_requests import binary, image, infer_message, json_rows, mlp
from serving_tools import Server, serving

import mserve
from mserve.wire.grpc_wire import framed

BAR = 2.0
LEAD_S = 0.4
BODY_BYTES = 64 << 20
CLIENTS = "idle deaf pipeliner uploads refused-uploads crowd grpc-deaf grpc-streams scraper".split()
Latencies = dict[str, list[float]]


def largest() -> onnx.ModelProto:
    """The largest of 1,024 numbers, a row each: `x` [N, 1024] to `y` [N, 1]."""
    node = helper.make_node("ReduceMax", ["x"], ["y"], axes=[1])
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width])
        for name, width in (("x", 1024), ("y", 1))
    ]
    graph = helper.make_graph([node], "largest", ports[:1], ports[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def write_requests(files: Path) -> None:
    """The requests of all clients, as they go over the wire."""
    row = {"images": image()}
    rows = BODY_BYTES // 4096
    (files / "binary").write_bytes(binary("mlp", row).wire())
    (files / "json").write_bytes(json_rows("mlp", image()).wire())
    (files / "grpc").write_bytes(framed(infer_message("mlp", row)))
    (files / "large").write_bytes(binary("largest", {"x": np.ones((rows - 1, 1024), np.float32)}).wire())
    (files / "too-large").write_bytes(binary("largest", {"x": np.ones((rows + 1, 1024), np.float32)}).wire())


def start(name: str, server: Server, seconds: float, files: Path) -> subprocess.Popen[bytes]:
    """A client in a process of its own."""
    script = Path(__file__).with_name("fairness_clients.py")
    command = [sys.executable, script, name, server.port, server.grpc_port, seconds, files]
    return subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE)


def window(quiet: Server, bad: tuple[str, Server], seconds: float, files: Path) -> Latencies:
    """The quiet client's latencies, while the bad one is at a server."""
    name, server = bad
    behind = start(name, server, seconds + 2 * LEAD_S, files)
    try:
        behind.wait(LEAD_S)
        raise RuntimeError(f"{name} ended at once")
    except subprocess.TimeoutExpired:
        pass
    try:
        out, _ = start("quiet", quiet, seconds, files).communicate(timeout=seconds + 120)
        if behind.wait(60):
            raise RuntimeError(f"{name} failed")
    finally:
        if behind.poll() is None:
            behind.kill()
            behind.wait()
    found: Latencies = json.loads(out)
    return found


def measure(name: str, servers: tuple[Server, Server], rounds: int, seconds: float, files: Path) -> bool:
    """Print a line for each kind of request; whether the bar was kept."""
    own, other = servers
    places = {"alone": ("idle", own), "beside": (name, own), "elsewhere": (name, other)}
    medians: dict[tuple[str, str], list[float]] = {}
    tails: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for place, bad in places.items():
            for kind, latencies in window(own, bad, seconds, files).items():
                medians.setdefault((place, kind), []).append(statistics.median(latencies))
                tails.setdefault((place, kind), []).append(float(np.percentile(latencies, 99)))
    kept = True
    for kind in ("binary", "json", "grpc"):
        p50 = {place: statistics.median(medians[place, kind]) for place in places}
        p99 = {place: statistics.median(tails[place, kind]) for place in places}
        each = ", ".join(f"{place} {p50[place]:.2f} / {p99[place]:.1f}" for place in places)
        beside, elsewhere = p50["beside"] / p50["alone"], p50["elsewhere"] / p50["alone"]
        print(
            f"{name:16} {kind:6} p50 / p99 ms: {each}; beside {beside:.2f}, elsewhere {elsewhere:.2f}, "
            f"server {beside / elsewhere:.2f}",
            flush=True,
        )
        kept = kept and beside <= BAR
    return kept


def main() -> None:
    """Measure and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 2.0
    names = sys.argv[3:] or CLIENTS
    with tempfile.TemporaryDirectory(prefix="mserve-fairness-") as folder:
        models, files = Path(folder) / "models", Path(folder) / "requests"
        files.mkdir()
        write_requests(files)
        mserve.export(mlp(), models / "mlp")
        mserve.export(largest(), models / "largest")
        with serving(str(models)) as own, serving(str(models)) as other:
            for server in (own, other):
                window(server, ("idle", server), 1.0, files)
            kept = [measure(name, (own, other), rounds, seconds, files) for name in names]
    print(f"{sum(kept)} of {len(kept)} within {BAR} times")


if __name__ == "__main__":
    main()
