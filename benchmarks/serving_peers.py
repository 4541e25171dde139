"""Other servers of Python's package index with the same network, each in an environment of its own.

The environments are made at the first run, below `--peers-dir`, and used again where that is kept
(together about 2 GB). Each server runs a script of ours in peers/, with its dynamic batching (64 rows, 1 ms)
and the settings that its documentation gives for production; each is measured beside mserve in
turn, one after another, so that one that is idle takes nothing from the next. mserve is as it is
by default.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from serving_grpc import HEADERS, METHOD, framed, infer
from serving_load import Front, Load, Request, checked, constant_script, free_port, front, h2load, wrk
from serving_report import Run, interleaved, ratios
from serving_requests import image, infer_message
from serving_small import HERE, Setting, mlp_file, serving_mlp, small_requests
from serving_tools import Server

TIMES, CONNECTIONS, STREAMS = 4.0, 64, (4, 16)
JSON_TYPE = {"Content-Type": "application/json"}
INSTANCES = small_requests()["JSON"].body
V2 = json.dumps(
    {"inputs": [{"name": "images", "shape": [1, 784], "datatype": "FP32", "data": image()[0].tolist()}]}
).encode()


@dataclass(frozen=True)
class Peer:
    """A server: packages, how it is started (python, port), requests, what is special about it."""

    packages: tuple[str, ...]
    command: Callable[[Path, int], list[object]]
    as_json: Request
    variants: Mapping[str, Mapping[str, str]]
    settings: str
    as_binary: Request | None = None
    no_binary: str = ""
    over_grpc: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


def _script(name: str, *flags: str) -> Callable[[Path, int], list[object]]:
    return lambda python, port: [python, HERE / "peers" / name, *(f.format(port=port) for f in flags)]


def _raw(path: str) -> Request:
    return Request(path, {"Content-Type": "application/octet-stream"}, image().tobytes())


PEERS = {
    "mosec": Peer(
        ("mosec",),
        _script("serve_mosec.py", "--address", "127.0.0.1", "--port", "{port}"),
        Request("/json", JSON_TYPE, INSTANCES),
        {"1 worker, its default": {}},
        "max_batch_size=64, max_wait_time=1",
        as_binary=_raw("/binary"),
    ),
    "MLServer": Peer(
        ("mlserver", "uvloop<0.22"),  # its worker processes do not start with later ones
        lambda python, port: [python.parent / "mlserver", "start", "."],
        Request("/v2/models/mlp/infer", JSON_TYPE, V2),
        {
            "1 worker process, its default": {"MLSERVER_PARALLEL_WORKERS": "1"},
            "no worker process": {"MLSERVER_PARALLEL_WORKERS": "0"},
        },
        "debug off, max_batch_size 64, max_batch_time 0.001",
        over_grpc=True,
        environment={"MLSERVER_DEBUG": "false", "MLSERVER_HOST": "127.0.0.1"},
    ),
    "LitServe": Peer(
        ("litserve",),
        _script("serve_litserve.py"),
        Request("/predict", JSON_TYPE, INSTANCES),
        {"1 worker, its default": {}, "1 worker, fast_queue": {"PEER_FAST": "1"}},
        "max_batch_size=64, batch_timeout=0.001, also its queue for high loads",
        no_binary="it reads no raw bodies",
    ),
    "BentoML": Peer(
        ("bentoml",),
        lambda python, port: [python.parent / "bentoml", "serve", "serve_bentoml:Mlp", "--port", str(port)],
        Request("/predict", JSON_TYPE, INSTANCES),
        {"1 worker, its default": {}},
        "bentoml serve (production), batchable, max_batch_size=64, its adaptive delay",
        no_binary="only pickles of its own client",
        environment={"BENTOML_DO_NOT_TRACK": "true", "BENTOML_HOST": "127.0.0.1"},
    ),
    "Ray Serve": Peer(
        ("ray[serve]",),
        _script("serve_ray.py"),
        Request("/json", JSON_TYPE, INSTANCES),
        {
            "1 replica, its default": {},
            "1 replica, RAY_SERVE_THROUGHPUT_OPTIMIZED": {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
        },
        "serve.batch of 64 and 1 ms, max_ongoing_requests=256, also its throughput settings",
        as_binary=_raw("/binary"),
        environment={"RAY_USAGE_STATS_ENABLED": "0"},
    ),
}


def peers(setting: Setting) -> None:
    """mserve in multiples of each, then of the best."""
    report = setting.report
    report.begin("peers", f"other servers with the same network, {CONNECTIONS} connections")
    report.skip("Triton", "it is not on the package index as a server")
    best: dict[str, list[list[float]]] = {"JSON": [], "binary": []}
    with serving_mlp(setting.work) as ours:
        for name, peer in PEERS.items():
            if name not in setting.peers:
                continue
            try:
                python = _environment(setting.peers_dir / name.replace(" ", "-"), peer.packages)
            except RuntimeError as error:
                report.skip(name, f"does not install: {error}")
                continue
            report.say(f"{name}: {_versions(python, peer.packages)}; {peer.settings}")
            for variant, extra in peer.variants.items():
                try:
                    found = _beside(setting, ours, (name, peer), python, (variant, extra))
                except RuntimeError as error:
                    report.skip(f"{name}, {variant}", str(error)[-300:])
                    continue
                for kind, times in found.items():
                    best[kind].append(times)
    for kind, all_times in best.items():
        if all_times:
            least = min(all_times, key=lambda times: sorted(times)[len(times) // 2])
            report.bar(f"{kind}: mserve / the best of the others", least, ">=", TIMES)


def _environment(folder: Path, packages: tuple[str, ...]) -> Path:
    """Python of a virtual environment with these packages, made if need be."""
    python = folder / "bin" / "python"
    if (folder / "complete").exists():
        return python
    install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    for command in (
        [sys.executable, "-m", "venv", "--clear", folder],
        [*install, *packages, "numpy", "onnxruntime"],
    ):
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.strip()[-300:])
    (folder / "complete").touch()
    return python


def _versions(python: Path, packages: tuple[str, ...]) -> str:
    names = [re.match(r"[\w-]+", package)[0] for package in (*packages, "onnxruntime")]  # type: ignore[index]
    code = (
        "import sys, importlib.metadata as m; print(', '.join(n + ' ' + m.version(n) for n in sys.argv[1:]))"
    )
    return subprocess.run(
        [python, "-c", code, *names], capture_output=True, text=True, check=False
    ).stdout.strip()


def _beside(
    setting: Setting,
    ours: Server,
    peer: tuple[str, Peer],
    python: Path,
    variant: tuple[str, Mapping[str, str]],
) -> dict[str, list[float]]:
    """mserve's rate over the peer's, by kind, round by round."""
    (name, server), (label, extra), work = peer, variant, setting.work
    port, grpc_port = free_port(), free_port()
    folder = work / "peer"
    folder.mkdir(exist_ok=True)
    if server.over_grpc:
        _mlserver_files(folder, port, grpc_port)
    environment = {"PEER_MODEL": str(mlp_file(work)), "PEER_PORT": str(port), **server.environment, **extra}
    environment["PYTHONPATH"] = str(HERE / "peers")

    def ready(_: str) -> int | None:
        try:
            checked(port, server.as_json)
        except (OSError, RuntimeError):
            return None
        return port

    found: dict[str, list[float]] = {}
    with front(
        server.command(python, port), work / "peer.log", ready, cwd=folder, environment=environment
    ) as running:
        _agrees(setting, _floats(json.loads(_body(checked(port, server.as_json)))))
        for kind, theirs in _their_runs(setting, server, running, grpc_port).items():
            request = small_requests()[kind]
            script = constant_script(work, kind, request)
            arms: dict[str, Run] = {
                "mserve": partial(wrk, ours.process.pid, ours.port, script, CONNECTIONS),
                name: theirs,
            }
            loads = interleaved(arms, setting.rounds, setting.seconds)
            for arm, got in loads.items():
                setting.report.loads(f"{kind} {arm}" + (f", {label}" if arm == name else ""), got)
            if not sum(load.errors for load in loads[name]):
                found[kind] = ratios(loads["mserve"], loads[name])
                setting.report.figure(f"{kind}: mserve / {name}, {label}", found[kind], "")
    if server.no_binary:
        setting.report.say(f"{name} has no binary: {server.no_binary}")
    return found


def _agrees(setting: Setting, got: Sequence[float] | np.ndarray) -> None:
    """The network's answer, whatever form it came in."""
    want = ort.InferenceSession(mlp_file(setting.work)).run(None, {"images": image()})[0][0]
    if len(got) != len(want) or not np.allclose(got, want, rtol=1e-4, atol=1e-6):
        raise RuntimeError(f"another answer than the network's: {got}")


def _body(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


def _floats(value: Any) -> list[float]:
    if isinstance(value, dict | list):
        return [x for part in (value.values() if isinstance(value, dict) else value) for x in _floats(part)]
    return [value] if isinstance(value, float) else []


def _their_runs(setting: Setting, peer: Peer, running: Front, grpc_port: int) -> dict[str, Run]:
    work = setting.work
    script = constant_script(work, "peer-json", peer.as_json)
    runs: dict[str, Run] = {"JSON": partial(wrk, running.pid, running.port, script, CONNECTIONS)}
    if peer.as_binary is not None:
        _agrees(setting, np.frombuffer(_body(checked(running.port, peer.as_binary)), np.float32))
        script = constant_script(work, "peer-binary", peer.as_binary)
        runs["binary"] = partial(wrk, running.pid, running.port, script, CONNECTIONS)
    if peer.over_grpc:
        setting.report.say(f"its binary tensors go over gRPC: h2load, c{STREAMS[0]} m{STREAMS[1]}")
        message = infer_message("mlp", {"images": image()})
        infer(grpc_port, message)
        (work / "peer.message").write_bytes(framed(message))
        runs["binary"] = partial(_over_grpc, running.pid, grpc_port, work / "peer.message")
    return runs


def _over_grpc(pid: int, port: int, body: Path, seconds: float) -> Load:
    return h2load(pid, f"http://127.0.0.1:{port}{METHOD}", (body, HEADERS), STREAMS, seconds)


def _mlserver_files(folder: Path, port: int, grpc_port: int) -> None:
    settings = {"http_port": port, "grpc_port": grpc_port, "metrics_port": free_port()}
    (folder / "settings.json").write_text(json.dumps(settings))
    model = {
        "name": "mlp",
        "implementation": "serve_mlserver.Mlp",
        "max_batch_size": 64,
        "max_batch_time": 0.001,
    }
    (folder / "model-settings.json").write_text(json.dumps(model))
