"""Minutes of everything at once; every answer is checked.

    python benchmarks/soak.py [MINUTES]

Traffic: TensorFlow Serving REST and gRPC, Open Inference Protocol REST (JSON and binary)
and gRPC, by version, by label and without, and a lookup table. Meanwhile, every 5 s: a
version appears and an old one disappears, the label `stable` moves, the model `broken`
gets another version that cannot be loaded, the configuration is written anew; and clients
disconnect in the middle of requests.

Each version v of the model `k` answers y = x * v, so an answer of the wrong version, or of
another client's row, is seen. Requests that name a version that is being removed may be
answered 404, and nothing else may fail. Resident memory is sampled each second; its slope
after the first minute is printed.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import shutil
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import tritonclient.grpc.aio as triton
import uvloop
from onnx import TensorProto, helper, numpy_helper
from serving_tools import Server, serving

import mserve
from mserve.wire.messages import message

STEP_S, CALLERS, KEPT = 5.0, 3, 4


def times(version: int) -> onnx.ModelProto:
    """y = x * version."""
    factor = numpy_helper.from_array(np.full(1, version, np.float32), "factor")
    node = helper.make_node("Mul", ["x", "factor"], ["y"])
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 2]) for n in ("x", "y")]
    graph = helper.make_graph([node], "times", ports[:1], ports[1:], [factor])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


class Soak:
    """The state of a run: what is published, and what came back."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder, self.server = folder, server
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.stable = 1
        self.newest = 2
        self.gone: dict[int, float] = {}
        self.over = False

    def check(self, kind: str, x: np.ndarray, y: Any, version: Any) -> None:
        """Count a good answer, or note a wrong one."""
        if np.allclose(np.asarray(y, np.float32), x * float(version)):
            self.seen[f"{kind} ok"] += 1
        else:
            self.wrong.append(f"{kind}: {x.tolist()} answered {y} by version {version}")

    def failed(self, kind: str, why: str, version: int | None) -> None:
        """Count a failure that may be, or note one that may not."""
        if version is not None and ("404" in why or "NOT_FOUND" in why) and version in self.gone:
            self.seen[f"{kind} for a version that went"] += 1
        else:
            self.wrong.append(f"{kind} (version {version}): {why}")


def row() -> np.ndarray:
    """One to four rows of whole numbers, which a float32 holds after the multiplication."""
    return np.random.randint(1, 1000, (random.randint(1, 4), 2)).astype(np.float32)


def where(soak: Soak) -> tuple[str, int | None]:
    """A way to name the model's version: not at all, by label, by number."""
    choice = random.random()
    if choice < 0.4:
        return "", None
    if choice < 0.7:
        return "/labels/stable", None
    version = random.choice([soak.newest, soak.stable])
    return f"/versions/{version}", version


async def rest(soak: Soak, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One TensorFlow Serving or Open Inference Protocol request over REST."""
    x, (path, version) = row(), where(soak)
    kind = random.choice(["v1", "v2", "v2 binary"])
    headers = ""
    if kind == "v1":
        body, path = json.dumps({"instances": x.tolist()}).encode(), f"/v1/models/k{path}:predict"
    else:
        tensor: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": list(x.shape)}
        raw = x.tobytes() if kind == "v2 binary" else b""
        tensor |= {"parameters": {"binary_data_size": len(raw)}} if raw else {"data": x.ravel().tolist()}
        text = json.dumps({"inputs": [tensor]}).encode()
        body, path = text + raw, f"/v2/models/k{path}/infer"
        headers = f"Inference-Header-Content-Length: {len(text)}\r\n" if raw else ""
    writer.write(
        f"POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body
    )
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    fields = dict(line.lower().split(": ", 1) for line in head.splitlines()[1:] if ": " in line)
    answer = json.loads(await reader.readexactly(int(fields["content-length"])))
    status = head.split(" ", 2)[1]
    if status != "200":
        soak.failed(kind, f"{status} {answer}", version)
    elif kind == "v1":
        soak.check(kind, x, answer["predictions"], fields["mserve-model-version"])
    else:
        values = np.array(answer["outputs"][0]["data"]).reshape(x.shape)
        soak.check(kind, x, values, answer["model_version"])


async def table(soak: Soak, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One lookup."""
    keys = [random.randint(0, 1999) for _ in range(3)]
    body = json.dumps({"instances": keys}).encode()
    head = f"POST /v1/models/t:predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    length = (
        (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("content-length: ")[1].split("\r")[0]
    )
    rows = json.loads(await reader.readexactly(int(length))).get("predictions", [])
    wanted = [{"value": 3 * k if k < 1000 else 0, "found": k < 1000} for k in keys]
    if rows == wanted:
        soak.seen["table ok"] += 1
    else:
        soak.wrong.append(f"table: {keys} answered {rows}")


async def http_caller(soak: Soak, ask: Any) -> None:
    """Requests on one connection after the other; now and then one is left in the middle."""
    while not soak.over:
        reader, writer = await asyncio.open_connection("127.0.0.1", soak.server.port)
        for _ in range(random.randint(1, 200)):
            await ask(soak, reader, writer)
            if soak.over:
                break
        if random.random() < 0.5:
            writer.write(b"POST /v1/models/k:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 40\r\n\r\n{")
            link = writer.get_extra_info("socket")
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            soak.seen["left in the middle"] += 1
        writer.close()


async def grpc_caller(soak: Soak) -> None:
    """Open Inference Protocol by tritonclient, TensorFlow Serving by plain messages."""
    address = f"127.0.0.1:{soak.server.grpc_port}"
    client = triton.InferenceServerClient(address)
    async with grpc.aio.insecure_channel(address) as channel:
        predict = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        while not soak.over:
            x, (path, version) = row(), where(soak)
            name = path.rpartition("/")[2]
            try:
                if random.random() < 0.5:
                    tensor = triton.InferInput("x", list(x.shape), "FP32").set_data_from_numpy(x)
                    result = await client.infer("k", [tensor], model_version=name)
                    soak.check("v2 grpc", x, result.as_numpy("y"), result.get_response().model_version)
                    continue
                asked = message("tensorflow.serving.PredictRequest")()
                asked.model_spec.name = "k"
                if version is not None:
                    asked.model_spec.version.value = version
                elif name:
                    asked.model_spec.version_label = name
                asked.inputs["x"].dtype = 1
                for size in x.shape:
                    asked.inputs["x"].tensor_shape.dim.add(size=size)
                asked.inputs["x"].tensor_content = x.tobytes()
                call = predict(asked.SerializeToString())
                if random.random() < 0.02:
                    call.cancel()
                    soak.seen["cancelled"] += 1
                    continue
                answer = message("tensorflow.serving.PredictResponse").FromString(await call)
                y = answer.outputs["y"]
                values = np.frombuffer(y.tensor_content, np.float32) if y.tensor_content else y.float_val
                values = np.array(values).reshape(x.shape)
                soak.check("v1 grpc", x, values, answer.model_spec.version.value)
            except (grpc.RpcError, triton.InferenceServerException) as error:
                soak.failed("grpc", str(error), version)
    await client.close()


def write_config(folder: Path, stable: int) -> None:
    """The configuration, in place at once."""
    text = f"""
[server]
poll = 0.2
[models.k]
base_path = "k"
versions = {{ latest = 2 }}
labels = {{ stable = {stable} }}
[models.t]
base_path = "t"
[models.broken]
base_path = "broken"
"""
    (folder / "new.toml").write_text(text)
    (folder / "new.toml").replace(folder / "mserve.toml")


async def change(soak: Soak) -> None:
    """Every few seconds a version comes, one goes, the label moves, something breaks."""
    for version in itertools.count(soak.newest + 1):
        await asyncio.sleep(STEP_S)
        if soak.over:
            return
        await asyncio.to_thread(mserve.export, times(version), soak.folder / "k", version=version)
        broken = soak.folder / "broken" / f"{version:08d}"
        broken.mkdir(parents=True)
        (broken / "export.meta").write_bytes(random.randbytes(1000))
        await wait_for(soak, version)
        soak.newest, old = version, soak.stable
        soak.gone[old] = time.monotonic()
        soak.stable = version - 1
        write_config(soak.folder, soak.stable)
        await asyncio.sleep(1.0)
        for path in (soak.folder / "k").iterdir():
            if int(path.name) < version - KEPT:
                soak.gone[int(path.name)] = time.monotonic()
                shutil.rmtree(path)
        for path in sorted((soak.folder / "broken").iterdir())[:-2]:
            shutil.rmtree(path)
        soak.seen["versions published"] += 1


async def wait_for(soak: Soak, version: int) -> None:
    """Wait until a version is available."""
    while soak.server.process.poll() is None:
        status, body = await asyncio.to_thread(soak.server.ask, "GET", f"/v1/models/k/versions/{version}")
        if status == 200 and b"AVAILABLE" in body:
            return
        await asyncio.sleep(0.05)


async def run(soak: Soak, seconds: float) -> list[tuple[float, float]]:
    """All of it, and the server's memory in MB by time."""
    tasks = [asyncio.create_task(http_caller(soak, rest)) for _ in range(CALLERS)]
    tasks += [asyncio.create_task(http_caller(soak, table)), asyncio.create_task(change(soak))]
    tasks += [asyncio.create_task(grpc_caller(soak)) for _ in range(2)]
    start, memory = time.monotonic(), []
    while (now := time.monotonic() - start) < seconds and not any(t.done() for t in tasks):
        memory.append((now, soak.server.memory_mb()["VmRSS"]))
        await asyncio.sleep(1.0)
    soak.over = True
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, BaseException):
            soak.wrong.append(f"a client ended: {result!r}")
    return memory


def main() -> None:
    """Run, print, and exit 1 if anything was wrong."""
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    with tempfile.TemporaryDirectory(prefix="mserve-soak-") as name:
        folder = Path(name)
        for version in (1, 2):
            mserve.export(times(version), folder / "k", version=version)
        keys = np.arange(1000)
        mserve.export({"key": keys, "value": 3 * keys}, folder / "t")
        (folder / "broken").mkdir()
        write_config(folder, 1)
        with serving("--config", str(folder / "mserve.toml"), wait=False) as server:
            while (
                server.ask("GET", "/v1/models/k:x")[0]
                and b"AVAILABLE" not in server.ask("GET", "/v1/models/k")[1]
            ):
                time.sleep(0.05)
            soak = Soak(folder, server)
            memory = uvloop.run(run(soak, minutes * 60))
    report(soak, memory)


def report(soak: Soak, memory: list[tuple[float, float]]) -> None:
    """What came back, what was wrong, how memory went."""
    for kind, count in sorted(soak.seen.items()):
        print(f"{kind:40} {count}")
    settled = np.array([m for m in memory if m[0] >= 60] or memory)
    slope = np.polyfit(settled[:, 0] / 60, settled[:, 1], 1)[0]
    print(
        f"memory: {settled[0, 1]:.1f} MB after a minute, {settled[-1, 1]:.1f} MB at the end, "
        f"slope {slope:+.3f} MB a minute"
    )
    print(f"wrong: {len(soak.wrong)}")
    for line in soak.wrong[:20]:
        print(" ", line[:300])
    raise SystemExit(bool(soak.wrong))


if __name__ == "__main__":
    main()
