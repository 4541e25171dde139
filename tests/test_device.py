"""Devices: what they are called, what is said where one cannot be used, and which one a run goes to.

CUDA itself is never needed: a server process here sees no GPU, and sessions on the CPU stand
for those on several devices.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import EPFail, InvalidGraph, RuntimeException
from server_tools import serving

import mserve
from mserve.batching.batcher import Entry, Limits
from mserve.batching.executor import Executor
from mserve.errors import EnvironmentProblem, InputError, ModelRefused, UsageError
from mserve.format import Bundle, open_bundle
from mserve.format.golden import Golden, unpack
from mserve.front import Front, Query
from mserve.loader.plan import ModelConfig
from mserve.loader.reconciler import Model
from mserve.loader.servable import Servable, load
from mserve.runtime import devices, providers
from mserve.runtime.engines import open_engines
from mserve.runtime.ort import sessions_for
from mserve.runtime.spread import Busy, Spread, apart, spread
from mserve.runtime.weights import open_weights
from mserve.server.app import model_configs
from mserve.server.config import Source, from_tables, parse, settings, to_tables
from mserve.server.run import device_line
from mserve.tensors import Array

ABSENT = "cuda:99"


@pytest.fixture
def version(tmp_path: Path) -> Path:
    return mserve.export(builders.mlp(), tmp_path / "m", name="m", golden=2).path


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes started from here see no GPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")


# names


@pytest.mark.parametrize("text", ["cpu", "auto", "cuda:0", "cuda:17", "cuda:0,cuda:1", "cuda:3,cuda:0"])
def test_these_name_devices(text: str) -> None:
    assert devices.checked(text) == text
    assert parse(Source(base_path=Path("m"), flags={"server.device": text}), "").server.device == text


BAD = [
    ("nothing", ""),
    ("another word", "gpu"),
    ("no number", "cuda"),
    ("a number that is none", "cuda:x"),
    ("digits of another script", "cuda:٣"),
    ("a number below 0", "cuda:-1"),
    ("two ways to write one number", "cuda:00"),
    ("more devices than any machine has", "cuda:100"),
    ("one device twice", "cuda:1,cuda:1"),
    ("the CPU among CUDA devices", "cuda:0,cpu"),
    ("a choice among CUDA devices", "auto,cuda:0"),
    ("a space", "cuda:0, cuda:1"),
    ("an end that is missing", "cuda:0,"),
    ("a line's end", "cuda:0\n"),
    ("capital letters", "CUDA:0"),
]


@pytest.mark.parametrize(("why", "text"), BAD, ids=[why for why, _ in BAD])
def test_these_name_none(why: str, text: str) -> None:
    with pytest.raises(UsageError, match="no such device"):
        devices.resolve(text)
    for table in ("server", "models.m"):
        base = 'base_path = "m"\n' if table == "models.m" else ""
        with pytest.raises(InputError, match="cuda:0,cuda:1"):
            parse(Source(Path("mserve.toml")), f"[{table}]\n{base}device = {json.dumps(text)}\n")
    with pytest.raises(UsageError, match="--device"):
        parse(Source(base_path=Path("m"), flags={"server.device": text}), "")


def test_a_model_has_the_device_of_the_server_or_its_own() -> None:
    text = '[server]\ndevice = "cuda:1"\n[models.a]\nbase_path = "a"\n[models.b]\nbase_path = "b"\n'
    config = parse(Source(Path("mserve.toml")), text + 'device = "cpu"\n')
    assert [m.device for m in model_configs(config)] == ["cuda:1", "cpu"]
    assert from_tables(to_tables(config, config)).server.device == "cuda:1", "children are told"
    shown = {s.key: (s.value, s.about.restart) for s in settings(config) if "device" in s.key}
    assert shown == {
        "server.device": ("cuda:1", True),
        "models.a.device": (None, False),
        "models.b.device": ("cpu", False),
    }


def test_print_config_shows_the_device_and_where_it_is_from(tmp_path: Path) -> None:
    (tmp_path / "mserve.toml").write_text('[server]\ndevice = "cpu"\n[models.a]\nbase_path = "a"\n')
    done = mserve_command("serve", "--config", tmp_path / "mserve.toml", "--device", "auto", "--print-config")
    assert (done.returncode, done.stderr) == (0, "")
    assert ["server.device", "auto", "--device"] in [line.split() for line in done.stdout.splitlines()]


# devices that cannot be used


def mserve_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mserve", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.usefixtures("blind")
@pytest.mark.parametrize(
    "arguments",
    [
        ("serve", "{base}", "--port", "0", "--grpc-port", "0"),
        ("serve", "{base}", "--port", "0", "--grpc-port", "0", "--processes", "2"),
        ("run", "{base}", "--inputs", "-"),
        ("bench", "{base}"),
    ],
    ids=["serve", "serve with processes", "run", "bench"],
)
def test_a_command_refuses_a_device_that_cannot_be_used(version: Path, arguments: Sequence[str]) -> None:
    done = mserve_command(*(a.format(base=version.parent) for a in arguments), "--device", "cuda:0")
    assert (done.returncode, done.stdout) == (4, "")
    error = " ".join(done.stderr.split())
    for words in ("models cannot run on this device", "device cuda:0", "expected", "found", "mserve doctor"):
        assert words in error
    assert error.count("models cannot run") == 1
    assert "Traceback" not in error
    assert "listening" not in error


@pytest.mark.usefixtures("blind")
def test_a_report_says_what_auto_was(version: Path) -> None:
    flags = ("--device", "auto", "--duration", "0.05", "--warmup", "0", "--concurrency", "1")
    done = mserve_command("bench", version, *flags)
    assert done.returncode == 0, done.stderr
    assert "on cpu" in done.stdout


def test_a_device_is_for_a_bundle_to_bench() -> None:
    done = mserve_command("bench", "http://127.0.0.1:1", "--device", "cpu")
    assert done.returncode == 2
    assert "--device is for a bundle" in done.stderr


@pytest.mark.usefixtures("blind")
@pytest.mark.parametrize("processes", [1, 2])
def test_a_version_fails_and_its_status_says_why(tmp_path: Path, version: Path, processes: int) -> None:
    """Its neighbours, on the CPU, answer."""
    other = mserve.export(builders.constant(3), tmp_path / "other").path
    config = tmp_path / "mserve.toml"
    config.write_text(
        f"[server]\nprocesses = {processes}\n"
        f'[models.m]\nbase_path = "{version.parent}"\ndevice = "{ABSENT}"\n'
        f'[models.other]\nbase_path = "{other.parent}"\n'
    )
    with serving(f"--config={config}", tmp_path / "log", ready=False) as server:
        server.wait_until(lambda: server.get("/v1/models/other/metadata").status == 200)
        server.wait_until(lambda: "failed" in server.get("/readyz").body.decode())
        (status,) = server.get("/v1/models/m").json()["model_version_status"]
        assert status["state"] == "END"
        for words in ("cannot run on this device", ABSENT, "mserve doctor"):
            assert words in status["status"]["error_message"]
        assert server.log().count("failed: models cannot run on this device") >= 1
        assert "Traceback" not in server.log()


@pytest.mark.usefixtures("blind")
@pytest.mark.parametrize("processes", [1, 2])
def test_auto_goes_to_the_cpu_and_says_so(tmp_path: Path, version: Path, processes: int) -> None:
    flags = ("--device", "auto", "--processes", str(processes))
    with serving(version.parent, tmp_path / "log", *flags) as server:
        assert server.get("/v1/models/m/metadata").status == 200
        assert "device auto: cpu, since CUDA cannot be used: " in server.log()


class TestTrial:
    """What is found out before a model is put on a device."""

    def test_no_provider(self, monkeypatch: pytest.MonkeyPatch) -> None:
        facts = providers.EngineFacts("1.0", ("CPUExecutionProvider",))
        monkeypatch.setattr(devices, "engine_facts", lambda: facts)
        assert devices.why_not(99) == "the installed ONNX Runtime has no CUDA provider"

    def test_a_tool_that_hangs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def hang(number: int) -> providers.CudaTrial:
            raise subprocess.TimeoutExpired("ldd", 5)

        facts = providers.EngineFacts("1.0", (providers.CUDA,))
        monkeypatch.setattr(devices, "engine_facts", lambda: facts)
        monkeypatch.setattr(devices, "try_cuda", hang)
        assert "timed out after 5 seconds" in devices.why_not(99)

    def test_the_last_device_is_tried_as_well(self, monkeypatch: pytest.MonkeyPatch) -> None:
        devices._check.cache_clear()
        monkeypatch.setattr(devices, "why_not", lambda number: "it is not there" if number == 98 else "")
        assert devices.resolve("cuda:97") == (97,)
        with pytest.raises(EnvironmentProblem, match=r"cuda:98.*it is not there"):
            devices.resolve("cuda:97,cuda:98")
        monkeypatch.setattr(devices, "why_not", lambda number: "")
        assert devices.resolve("cuda:97,cuda:98") == (97, 98), "it was put in meanwhile"

    def test_nothing_is_printed(self, capfd: pytest.CaptureFixture[str]) -> None:
        assert devices.why_not(99) != ""
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize(
        ("found", "device", "line"),
        [
            (("cuda:0", ""), "auto", "device auto: cuda:0"),
            (("cpu", "no driver"), "auto", "device auto: cpu, since CUDA cannot be used: no driver"),
            (("cuda:0", ""), "cuda:1", "models run on cuda:1"),
            (("cuda:0", ""), "cpu", ""),
        ],
    )
    def test_what_the_start_says(
        self, found: tuple[str, str], device: str, line: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(devices, "automatic", lambda: found)
        config = parse(Source(base_path=Path("m"), flags={"server.device": device}), "")
        assert device_line(config) == line


def test_the_engine_going_to_the_cpu_by_itself_is_refused(
    version: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime leaves a provider out that it cannot load, and says so on standard error only."""
    bundle = open_bundle(version)
    parts = (bundle.meta, bundle.graph, bundle.metagraph.signatures, open_weights(bundle))
    with pytest.raises(EnvironmentProblem, match=rf"cannot run on this device.*{ABSENT}"):
        sessions_for(*parts, cuda=99)
    capfd.readouterr()


FAULTS = [
    ("a full GPU", RuntimeException("Failed to allocate memory"), 99, EnvironmentProblem),
    ("a provider that fails", EPFail("CUDA failure 700"), 99, EnvironmentProblem),
    ("a device that is gone", RuntimeError("CUDA failure 100"), 99, EnvironmentProblem),
    ("a bad graph, on a GPU", InvalidGraph("no such operator"), 99, ModelRefused),
    ("what the CPU provider says", RuntimeException("a bad shape"), None, ModelRefused),
]


@pytest.mark.parametrize(("why", "error", "cuda", "expected"), FAULTS, ids=[why for why, *_ in FAULTS])
def test_a_fault_of_the_gpu_is_not_the_model_s(
    why: str,
    error: Exception,
    cuda: int | None,
    expected: type[Exception],
    version: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The reconciler tries again what the machine refused, and leaves alone what is wrong with a bundle."""
    bundle = open_bundle(version)

    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr("onnxruntime.InferenceSession", fail)
    parts = (bundle.meta, bundle.graph, bundle.metagraph.signatures, open_weights(bundle))
    with pytest.raises(expected, match=str(error)):
        sessions_for(*parts, cuda=cuda)


def test_a_table_is_on_the_cpu_whatever_the_device(tmp_path: Path) -> None:
    source = {"key": np.arange(3), "price": np.arange(3.0)}
    bundle = open_bundle(mserve.export(source, tmp_path / "prices").path)
    assert all(engine.on_cpu for engine in open_engines(bundle, cuda=(99,)).values())


# several devices


class Fake:
    """An engine that notes its runs, and does something in them."""

    on_cpu = True
    private = True
    threads = 1

    def __init__(self) -> None:
        self.runs = self.releases = 0
        self.work: Any = lambda: None

    def release(self) -> None:
        self.releases += 1

    def run_options(self) -> Any:
        return None

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array], options: Any = None) -> list[Array]:
        self.runs += 1
        self.work()
        return []


BUSY = [
    ("the first of idle ones", [], [], (0, 1), 0),
    ("the order is the one that was asked for", [], [], (1, 0), 1),
    ("the idle one", [0], [], (0, 1), 1),
    ("the one with less", [0, 0, 1], [], (0, 1), 1),
    ("equals: the one whose last run began before", [1, 0], [], (0, 1), 1),
    ("what has ended does not count but in the turns", [0], [1, 1], (0, 1), 1),
    ("only devices of the model", [0, 0], [], (0,), 0),
    ("a third one that others keep busy", [2, 2, 0, 1], [], (2, 1, 0), 0),
]


@pytest.mark.parametrize(("why", "under_way", "ended", "asked", "chosen"), BUSY, ids=[b[0] for b in BUSY])
def test_a_run_goes_to_the_device_with_the_least_under_way(
    why: str, under_way: list[int], ended: list[int], asked: tuple[int, ...], chosen: int
) -> None:
    busy = Busy()
    for device in ended:
        with busy.least([device]):
            pass
    with ExitStack() as runs:
        for device in under_way:
            runs.enter_context(busy.least([device]))
        with busy.least(asked) as device:
            assert device == chosen


def test_models_share_what_is_under_way() -> None:
    busy = Busy()
    alone, shared = Fake(), (Fake(), Fake())
    one, other = Spread({0: alone}, busy), Spread(dict(enumerate(shared)), busy)
    alone.work = lambda: [other.run([], {}) for _ in range(3)]
    one.run([], {})
    assert [f.runs for f in shared] == [0, 3]


def test_idle_devices_take_turns() -> None:
    fakes = (Fake(), Fake(), Fake())
    engine = Spread(dict(zip((4, 0, 2), fakes, strict=True)), Busy())
    for _ in range(7):
        engine.run([], {})
    assert [f.runs for f in fakes] == [3, 2, 2]
    engine.release()
    assert [f.releases for f in fakes] == [1, 1, 1]


def test_a_run_that_fails_is_not_under_way_any_more() -> None:
    def fail() -> None:
        raise ModelRefused("no")

    fakes = (Fake(), Fake())
    fakes[0].work = fail
    engine = Spread(dict(enumerate(fakes)), Busy())
    for _ in range(2):
        with pytest.raises(ModelRefused):
            engine.run([], {})
        engine.run([], {})
    assert [f.runs for f in fakes] == [2, 2]


def on_two(bundle: Bundle) -> Servable:
    """A version on two devices, for which sessions on the CPU stand."""
    golden = unpack(bundle.file(bundle.metagraph.golden), bundle.metagraph.signatures)  # type: ignore[arg-type]
    return Servable(bundle, spread({d: open_engines(bundle) for d in (0, 1)}), golden)


def test_a_version_on_two_devices_is_warmed_up_and_proved_on_each(
    version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servable = on_two(open_bundle(version))
    parts = apart(servable._sessions)
    assert len(parts) == 2
    runs: list[Any] = []
    kind = type(next(iter(parts[0].values())))
    run = kind.run
    monkeypatch.setattr(kind, "run", lambda self, *a: runs.append(self) or run(self, *a))
    servable.warm_up()
    assert runs == [next(iter(part.values())) for part in parts]
    golden: Golden = next(iter(servable.golden.values()))
    for outputs in golden.outputs.values():
        outputs[...] += 1000
    with pytest.raises(ModelRefused, match="not the recorded ones"):
        servable.warm_up()
    servable.close()


def test_a_model_on_a_gpu_never_runs_on_the_loop(version: Path) -> None:
    """However short its runs are: a run waits for the GPU, which the loop must not."""
    on_cpu, on_gpu = load(version), on_two(open_bundle(version))
    assert (on_cpu.predictable, on_gpu.predictable) == (True, False)
    assert (on_cpu.in_thread, on_gpu.in_thread) == (True, False), "timed by the wall clock"
    assert (on_gpu.threads, on_gpu.private_memory) == (0, True)

    async def inline(servable: Servable) -> int:
        model = Model(ModelConfig("m", version.parent))
        model.available, model.default = {1: servable}, servable
        front = Front({"m": model}, Executor(Limits(), workers=1))
        for _ in range(50):
            answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            entry = front.predict(servable, Query("serving_default", servable.example()), answered.set_result)
            assert isinstance(entry, Entry)
            (answer,) = await answered
            assert isinstance(answer, np.ndarray)
        front.executor.close()
        return servable.stats.inline

    assert asyncio.run(inline(on_gpu)) == 0
    assert asyncio.run(inline(on_cpu)) > 0
    before = on_gpu._sessions
    on_gpu.settle_threads()
    assert on_gpu._sessions is before, "threads are the CPU's affair"
