"""ModelInfer over gRPC: against a constant answer of grpcio's asyncio server, and with unique ids."""

from __future__ import annotations

import statistics
import sys
from functools import partial
from pathlib import Path

import grpc as grpcio
from serving_blast import blast
from serving_load import Load, front, h2load, printed_port
from serving_report import interleaved, ratios
from serving_requests import image, infer_message
from serving_small import HERE, Setting, serving_mlp

METHOD = "/inference.GRPCInferenceService/ModelInfer"
HEADERS = ("content-type: application/grpc", "te: trailers")
# Connections and streams of each, and how many times grpcio's rate is to be reached.
SHAPES = {(16, 1): 8.0, (4, 16): 15.0}
WITH_IDS = 0.4


def infer(port: int, request: bytes) -> bytes:
    """One ModelInfer by grpcio itself, which raises unless it succeeds; the answer's bytes."""
    with grpcio.insecure_channel(f"127.0.0.1:{port}") as channel:
        answer: bytes = channel.unary_unary(METHOD)(request, timeout=30)
    return answer


def framed(message: bytes) -> bytes:
    """A message as gRPC puts it into DATA frames: not compressed, its length, itself."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def _named(shape: tuple[int, int]) -> str:
    return f"c{shape[0]} m{shape[1]}"


def grpc(setting: Setting) -> None:
    """h2load on both servers. It counts by HTTP status alone, so the answers' sizes are compared."""
    report, work = setting.report, setting.work
    report.begin("grpc", "ModelInfer on the network, in multiples of grpcio's asyncio server with a constant")
    request = infer_message("mlp", {"images": image()})
    (body := work / "infer.message").write_bytes(framed(request))
    with serving_mlp(work) as ours:
        answer = infer(ours.grpc_port, request)
        (constant := work / "infer.answer").write_bytes(answer)
        command = [sys.executable, HERE / "front_grpcio.py", constant]
        with front(command, work / "grpcio.log", printed_port) as limit:
            if infer(limit.port, request) != answer:
                raise RuntimeError("the constant server gives another answer")
            report.say(f"request of {len(request)} bytes, answer of {len(answer)} bytes")
            sides = {"mserve": (ours.process.pid, ours.grpc_port), "grpcio": (limit.pid, limit.port)}
            for shape, times in SHAPES.items():
                arms = {
                    name: partial(_h2load, pid, f"http://127.0.0.1:{port}{METHOD}", body, shape)
                    for name, (pid, port) in sides.items()
                }
                loads = interleaved(arms, setting.rounds, setting.seconds)
                for name, found in loads.items():
                    report.loads(f"{_named(shape)} {name}", found)
                    _same_size(setting, f"{_named(shape)} {name}", found, len(answer) + 5)
                got = ratios(loads["mserve"], loads["grpcio"])
                report.bar(f"{_named(shape)}: mserve / grpcio asyncio", got, ">=", times)


def _h2load(pid: int, url: str, body: Path, shape: tuple[int, int], seconds: float) -> Load:
    return h2load(pid, url, (body, HEADERS), shape, seconds)


def _same_size(setting: Setting, what: str, loads: list[Load], size: int) -> None:
    """An answer without a message is an error, whatever its HTTP status."""
    each = statistics.median(load.bytes_each for load in loads)
    if abs(each / size - 1) > 0.01:
        setting.report.say(f"{what}: ERRORS: {each:.1f} bytes an answer, {size} were expected")


def grpc_ids(setting: Setting) -> None:
    """Unique ids against always the same ones, both by our own generator."""
    report, work = setting.report, setting.work
    report.begin("ids", "gRPC: the same, frames from a Python process that is shown not to be the limit")
    request = infer_message("mlp", {"images": image()})
    (body := work / "blast.message").write_bytes(framed(request))
    with serving_mlp(work) as ours:
        size = len(infer(ours.grpc_port, request)) + 5
        for shape in SHAPES:
            arms = {
                name: partial(_blast, ours.process.pid, ours.grpc_port, body, (shape, name == "unique", size))
                for name in ("same", "unique")
            }
            loads = interleaved(arms, setting.rounds, setting.seconds)
            for name, found in loads.items():
                report.loads(f"gRPC {_named(shape)} {name}", found)
                ceiling = [load.rate / load.client_cpu for load in found]
                report.figure(f"gRPC {_named(shape)} {name}: the generator on a whole core", ceiling, "/s")
            got = ratios(loads["unique"], loads["same"])
            report.bar(f"gRPC {_named(shape)}: unique ids / same ids", got, ">=", WITH_IDS)


def _blast(pid: int, port: int, body: Path, how: tuple[tuple[int, int], bool, int], seconds: float) -> Load:
    shape, unique, size = how
    return blast(pid, port, body, shape, seconds, unique=unique, size=size)
