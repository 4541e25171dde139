"""What is proved before a version answers: its weights are the exported ones, and its first run ends."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
from builders import FLOAT, model
from onnx import ModelProto, TensorProto, helper, numpy_helper
from server_tools import serving

import mserve
from mserve.checks import validate
from mserve.errors import BundleIncomplete, EnvironmentProblem, ModelRefused, RequestError
from mserve.format import open_bundle
from mserve.format.locks import acquire
from mserve.loader import servable as servables
from mserve.loader import warm_up
from mserve.loader.plan import ModelConfig
from mserve.loader.reconciler import Reconciler
from mserve.numerics import gross_difference
from mserve.runtime import weights

BODY = json.dumps({"instances": [[1.0] * 784]}).encode()


def shard(version: Path) -> Path:
    (found,) = version.glob("export-*")
    return found


def spoil(version: Path) -> bytes:
    """Overwrite a shard with zeros in place; its old bytes."""
    before = shard(version).read_bytes()
    builders.overwrite(shard(version), bytes(len(before)))
    return before


def test_weights_that_are_read_are_compared_with_their_digest(mlp: ModelProto, tmp_path: Path) -> None:
    for golden in (0, 2):
        version = mserve.export(mlp, tmp_path / "m", golden=golden).path
        builders.overwrite(shard(version), shard(version).read_bytes()[:-1] + b"!")
        with pytest.raises(BundleIncomplete, match="a shard is not the one that was exported"):
            mserve.load(version)


def test_mapped_weights_are_found_out_by_the_recorded_answers(
    mlp: ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "PRIVATE_BYTES", 0)
    version = mserve.export(mlp, tmp_path / "m", golden=4).path
    assert not mserve.load(version).private_memory
    spoil(version)
    with pytest.raises(ModelRefused, match="answers to its recorded requests are not the recorded ones"):
        mserve.load(version)


def test_a_spoilt_version_waits_while_the_older_one_serves(mlp: ModelProto, tmp_path: Path) -> None:
    base = tmp_path / "m"
    mserve.export(mlp, base, version=1, name="m")
    staged = mserve.export(builders.mlp(seed=9), tmp_path / "stage", version=2, name="m").path
    whole = spoil(staged)
    with serving(base, tmp_path / "log", "--name", "m") as server:
        staged.rename(base / "00000002")
        server.wait_until(lambda: "version 2: waiting: a shard is not the one" in server.log())
        assert server.ask("POST", "/v1/models/m:predict", BODY).status == 200
        assert server.version("m") == "1"
        builders.overwrite(shard(base / "00000002"), whole)
        server.wait_until(lambda: server.version("m") == "2")


A = np.linspace(-1, 1, 200, dtype=np.float32)
ROUNDED = [
    ("the same", A, A.copy(), ""),
    ("rounding", A, A * np.float32(1.001), ""),
    ("one element of 200 is off", A, np.where(np.arange(200) == 7, 9, A).astype(np.float32), ""),
    ("three are", A, np.where(np.arange(200) < 3, 9, A).astype(np.float32), "3 of 200 elements differ"),
    ("no numbers any more", A, np.full(200, np.nan, np.float32), "200 of 200"),
    ("no number before either", np.array([np.nan, np.inf]), np.array([np.nan, np.inf]), ""),
    ("another dtype", A, A.astype(np.float64), "float64 [200], not float32 [200]"),
    ("another shape", A, A[:9], "float32 [9]"),
    ("nothing", A[:0], A[:0], ""),
    ("a number alone", np.float32(1.0).reshape(()), np.float32(0.5).reshape(()), "1 of 1"),
    ("classes: a close call", np.array([3, 1, 2]), np.array([3, 1, 0]), ""),
    ("classes: most of them", np.array([3, 1, 2]), np.array([0, 0, 2]), "2 of 3"),
    ("bytes off by one", np.array([200, 90], np.uint8), np.array([201, 89], np.uint8), ""),
    ("truths", np.array([True, False]), np.array([False, True]), "2 of 2"),
    ("text", builders.words("a", "b"), builders.words("a", "c"), ""),
    ("other text", builders.words("a", "b"), builders.words("x", "c"), "2 of 2"),
]


@pytest.mark.parametrize(("why", "recorded", "found", "said"), ROUNDED, ids=[r[0] for r in ROUNDED])
def test_only_gross_differences_count(why: str, recorded: Any, found: Any, said: str) -> None:
    reason = gross_difference(recorded, found)
    assert (said in reason) if said else reason == "", why


def test_a_model_that_draws_random_numbers_is_loaded(tmp_path: Path) -> None:
    nodes = [helper.make_node("RandomNormalLike", ["x"], ["r"]), helper.make_node("Add", ["x", "r"], ["y"])]
    proto = model(nodes, [("x", FLOAT, ["N", 64])], [("y", FLOAT, ["N", 64])])
    version = mserve.export(proto, tmp_path / "m", golden=4).path
    mserve.load(version).close()


def endless(count: int | None) -> ModelProto:
    """y = x or -x, after so many turns of a loop, or as many as a request says."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["on"]), helper.make_node("Neg", ["v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", FLOAT, ["N", 1]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", FLOAT, ["N", 1]),
        ],
    )
    turns = [] if count is None else [numpy_helper.from_array(np.array(count), "turns")]
    asked = [] if turns else [("turns", TensorProto.INT64, [])]
    start = numpy_helper.from_array(np.array(True), "start")
    loop = helper.make_node("Loop", ["turns", "start", "x"], ["y"], body=body)
    inputs = [("x", FLOAT, ["N", 1]), *asked]
    return model([loop], inputs, [("y", FLOAT, ["N", 1])], [*turns, start])


def forever(base: Path) -> Path:
    """The directory of a version whose model was changed, after the export, to run for ever."""
    version = mserve.export(endless(1), base, golden=1).path

    def prolong(proto: ModelProto) -> None:
        for tensor in proto.graph.initializer:
            if tensor.name == "turns":
                tensor.CopyFrom(numpy_helper.from_array(np.array(2**62), "turns"))

    return builders.reseal(version, prolong).parent


def test_a_first_run_that_does_not_end_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_up, "WARM_UP_S", 0.3)
    with pytest.raises(ModelRefused, match="first run takes too long"):
        mserve.load(forever(tmp_path / "m"))


def test_loads_that_do_not_end_keep_no_other_model_waiting(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        forever(tmp_path / name)
    mserve.export(builders.constant(1), tmp_path / "z")
    with serving(tmp_path, tmp_path / "log", ready=False) as server:
        server.wait_until(lambda: server.get("/v1/models/z/metadata").status == 200)
        assert server.get("/v1/models/a").json()["model_version_status"][0]["state"] == "LOADING"


def test_made_up_inputs_are_bounded(tmp_path: Path) -> None:
    proto = model(
        [helper.make_node("ReduceMax", ["x"], ["y"], keepdims=0)], [("x", FLOAT, [8, 4])], [("y", FLOAT, [])]
    )
    version = mserve.export(proto, tmp_path / "m", golden=0).path

    def grow(signatures: Any) -> Any:
        signatures["serving_default"]["inputs"]["x"]["shape"] = [1 << 20, 1 << 20]
        return signatures

    def edit(found: ModelProto) -> None:
        builders.set_json(found, "mserve.signatures", grow)
        for dim in found.graph.input[0].type.tensor_type.shape.dim:
            dim.dim_value = 1 << 20

    builders.reseal(version, edit)
    servable = mserve.load(version)
    with pytest.raises(RequestError, match="too large to make some up"):
        servable.example()
    servable.close()
    with serving(tmp_path / "m", tmp_path / "log", "--name", "m") as server:
        answer = server.get("/v1/models/m/example")
        assert (answer.status, "too large to make some up" in answer.error) == (400, True)
        server.wait_until(lambda: "Ask it" in server.log() or "/metadata" in server.log())


def test_memory_that_is_short_is_waited_for(tmp_path: Path) -> None:
    """Another attempt follows, and no traceback is written."""
    version = mserve.export(builders.constant(1), tmp_path / "m").path
    tries: list[Path] = []

    def opener(path: Path, device: str) -> servables.Servable:
        tries.append(path)
        if len(tries) == 1:
            raise MemoryError
        return servables.load(path)

    async def work() -> None:
        keeper = Reconciler([ModelConfig("m", version.parent)], opener=opener, poll_s=0.02)
        keeper.start()
        async with asyncio.timeout(30):
            while not keeper.models["m"].available:
                slot = keeper.models["m"].slots.get(1)
                if slot is not None and slot.error is not None:
                    assert isinstance(slot.error, EnvironmentProblem)
                await asyncio.sleep(0.01)
        assert len(tries) == 2
        await keeper.close()

    asyncio.run(work())


def test_a_command_ends_a_run_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mserve.exporters.pipeline.RUN_S", 0.3)
    monkeypatch.setattr(sys.modules["mserve.checks.answers"], "RUN_S", 0.3)
    with pytest.raises(ModelRefused, match=r"takes too long.*at most 0 s.*never ends"):
        mserve.export(endless(2**62), tmp_path / "new")
    assert not list((tmp_path / "new").glob("*"))
    version = forever(tmp_path / "m")
    findings = validate(open_bundle(version))
    assert [(f.code, "takes too long" in f.text) for f in findings if f.code.startswith("golden")] == [
        ("golden-run", True)
    ]
    given = {"x": np.ones((1, 1), np.float32), "turns": np.array(1)}
    servable = mserve.load(mserve.export(endless(None), tmp_path / "asked", golden=given).path)
    assert servable.run(given, limit_s=60)["y"] == -1
    with pytest.raises(ModelRefused, match="takes too long"):
        servable.run(given | {"turns": np.array(2**62)}, limit_s=0.3)


def test_a_version_that_is_refused_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its weights nor the lock that would keep others from removing it."""
    monkeypatch.setattr(warm_up, "WARM_UP_S", 0.1)
    base = forever(tmp_path / "m").parent

    async def work() -> None:
        keeper = Reconciler([ModelConfig("m", base)], poll_s=0.02)
        keeper.start()
        model = keeper.models["m"]
        async with asyncio.timeout(30):
            while not (1 in model.slots and model.slots[1].error):
                await asyncio.sleep(0.01)
            while True:
                try:
                    acquire(base / "00000001").release()
                except BlockingIOError:
                    await asyncio.sleep(0.01)
                else:
                    break
        assert "takes too long" in model.why(1)
        await keeper.close()

    asyncio.run(work())


def test_a_grpc_port_that_is_taken_gives_one_error_in_our_words(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = ["--port", "0", "--grpc-port", str(taken.getsockname()[1])]
        command = [sys.executable, "-m", "mserve", "serve", str(tmp_path), *ports]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 4
    assert done.stderr.startswith("mserve: cannot listen for gRPC\n")


FORGED = [
    ("a new line", "a\n2026 ERROR all is lost", "a\\n2026 ERROR all is lost"),
    ("colours", "\x1b[31mred", "\\x1b[31mred"),
    ("a C1 control", "a\x9bb", "a\\x9bb"),
    ("a line separator", "a\u2028b", "a\\u2028b"),
    ("writing that turns around", "a\u202eb", "a\\u202eb"),
    ("letters of all kinds stay", "é 日本 \u00a0", "é 日本 \u00a0"),
]


@pytest.mark.parametrize(("what", "text", "shown"), FORGED, ids=[f[0] for f in FORGED])
def test_errors_are_one_line_of_a_log(what: str, text: str, shown: str) -> None:
    error = ModelRefused("no", where=text, found=text, hint=text)
    assert str(error) == f"no (where: {shown}; found: {shown}). {shown}", what
