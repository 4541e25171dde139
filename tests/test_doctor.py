"""`mserve doctor`: what it concludes from facts, how it finds them, and that no check can stop it."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from test_commands import run

import mserve
from mserve.checks import doctor, machine, machine_facts
from mserve.checks.machine import (
    OK,
    PROBLEM,
    WARNING,
    Clock,
    Cpu,
    Engine,
    Gpu,
    Line,
    Memory,
    Need,
    Place,
)
from mserve.runtime.providers import missing_libraries, try_cuda
from mserve.server.run import BACKLOG

GB = 10**9
GPU, CPU = "onnxruntime-gpu", "onnxruntime"
WANTS = [Need(GPU, "<2,>=1.31", "1.31.1", True)]
NUMPY = Need("numpy", "<3,>=2.0", "2.4", True)
PLACE = Place("x", "x", "ext4", free=9 * GB, tried={"hard links": "", "locks": "", "rename": ""})
LACKS = {"hard links": "Operation not permitted", "locks": "", "rename": ""}
NO_LOCKS = {"hard links": "", "locks": "Function not implemented", "rename": "Invalid argument"}


def need(**other: object) -> Need:
    return Need(**{"name": "numpy", "range": ">=2.0", "found": "2.4", "fits": True, **other})  # type: ignore[arg-type]


Lines = Line | Iterable[Line]
# Why, the lines, the worst status, and parts of what is said.
FINDINGS: list[tuple[str, Lines, str, list[str]]] = [
    ("python fits", machine.python("3.12.1", ">=3.11", True), OK, ["3.12.1"]),
    ("python too old", machine.python("3.9.0", ">=3.11", False), PROBLEM, ["3.9.0", "install Python >=3.11"]),
    ("a dependency", machine.dependencies([NUMPY]), OK, ["numpy", "2.4"]),
    (
        "a dependency out of range",
        machine.dependencies([need(found="1.26", fits=False)]),
        PROBLEM,
        ["1.26; mserve needs >=2.0", "pip install 'numpy>=2.0'"],
    ),
    (
        "a dependency is missing",
        machine.dependencies([need(found=None, fits=False)]),
        PROBLEM,
        ["not installed", "pip install 'numpy>=2.0'"],
    ),
    ("an extra", machine.extras([need(extra="sklearn")]), OK, ["extra sklearn", "numpy 2.4"]),
    (
        "an extra is absent",
        machine.extras([need(extra="torch", found=None, fits=False)]),
        OK,
        ["not installed", "pip install 'mserve[torch]'"],
    ),
    (
        "an extra is half there",
        machine.extras([need(extra="t"), need(extra="t", name="b", found=None, fits=False)]),
        OK,
        ["numpy 2.4; not installed: b", "mserve[t]"],
    ),
    (
        "an extra out of range",
        machine.extras([need(extra="t", fits=False)]),
        WARNING,
        ["numpy 2.4; needs numpy >=2.0"],
    ),
    ("no engine", machine.engine(Engine({}), WANTS), PROBLEM, ["pip install 'onnxruntime-gpu<2,>=1.31'"]),
    (
        "two engines",
        machine.engine(Engine({CPU: "1.30", GPU: "1.31.1"}, "1.31.1", ("CPUExecutionProvider",)), WANTS),
        PROBLEM,
        ["overwrite each other", "pip uninstall -y onnxruntime onnxruntime-gpu; then pip install"],
    ),
    (
        "an engine that does not start",
        machine.engine(Engine({GPU: "1.31.1"}, error="ImportError: libx.so"), WANTS),
        PROBLEM,
        ["cannot be imported: ImportError: libx.so"],
    ),
    (
        "an engine whose files are another's",
        machine.engine(Engine({GPU: "1.31.1"}, "1.30.0"), WANTS),
        PROBLEM,
        ["those of 1.30.0", "--force-reinstall --no-deps 'onnxruntime-gpu==1.31.1'"],
    ),
    (
        "an engine out of range",
        machine.engine(Engine({GPU: "1.20"}, "1.20"), [Need(GPU, ">=1.31", "1.20", False)]),
        PROBLEM,
        ["mserve needs >=1.31"],
    ),
    (
        "the other engine alone is one, too",
        machine.engine(Engine({CPU: "1.31"}, "1.31", ("CPUExecutionProvider",)), WANTS),
        OK,
        ["onnxruntime 1.31, providers CPU"],
    ),
    ("no GPU", machine.gpu(Gpu()), OK, ["no NVIDIA GPU"]),
    ("a GPU that works", machine.gpu(Gpu(("H100, 80 GB",), True, "")), OK, ["H100", "a model ran on it"]),
    (
        "a GPU without a provider",
        machine.gpu(Gpu(("H100",))),
        WARNING,
        ["no CUDA provider", "pip install onnxruntime-gpu"],
    ),
    (
        "a GPU without libraries",
        machine.gpu(Gpu(("H100",), True, "libraries do not load", ("libcublas.so.13", "libcurand.so.10"))),
        WARNING,
        ["libcublas.so.13, libcurand.so.10", "onnxruntime-gpu[cuda,cudnn]"],
    ),
    ("a GPU that hangs", machine.gpu(Gpu(error="nvidia-smi hangs")), WARNING, ["nvidia-smi hangs", "nvrm"]),
    (
        "a GPU that fails",
        machine.gpu(Gpu(("H100",), True, "CUDA driver version is insufficient")),
        WARNING,
        ["driver version is insufficient", "nvidia-smi"],
    ),
    ("CPUs", machine.cpu(Cpu(8, 4, None, 4)), OK, ["8 present, 4 usable; mserve computes with 4 threads"]),
    ("a quota that mserve keeps", machine.cpu(Cpu(8, 8, 2.5, 2)), OK, ["limited to 2.5"]),
    (
        "a quota that mserve does not see",
        machine.cpu(Cpu(64, 64, 2.0, 64)),
        WARNING,
        ["more than it may", "taskset -c 0-1"],
    ),
    ("memory", machine.memory(Memory(64 * GB, 60 * GB)), OK, ["64.0 GB, 60.0 GB available"]),
    ("a wide limit is none", machine.memory(Memory(8 * GB, 7 * GB, 9 * GB, 0)), OK, ["7.0 GB available"]),
    (
        "a tight limit",
        machine.memory(Memory(64 * GB, 60 * GB, 2 * GB, GB + GB // 2)),
        WARNING,
        ["limited to 2.0 GB, 1.5 GB of it used", "raise the limit"],
    ),
    ("little memory", machine.memory(Memory(GB, GB // 2)), WARNING, ["500.0 MB available"]),
    (
        "strict accounting of memory",
        machine.memory(Memory(64 * GB, 60 * GB, overcommit="2")),
        WARNING,
        ["overcommit_memory is 2"],
    ),
    ("open files", machine.open_files(20_000, 20_000, 10_000), OK, ["20,000"]),
    ("open files without limit", machine.open_files(-1, -1, 10_000), OK, ["no limit"]),
    (
        "few open files",
        machine.open_files(1024, 524_288, 10_000),
        WARNING,
        ["1,024; [limits] connections lets in 10,000", "ulimit -n 10064 before mserve serve, or"],
    ),
    ("few, and a low hard limit", machine.open_files(1024, 4096, 10_000), WARNING, ["as root"]),
    ("backlog", machine.backlog(4096), OK, ["4096"]),
    ("a system without that limit", machine.backlog(None), OK, ["not limited"]),
    ("a short backlog", machine.backlog(128), WARNING, ["is 128", "sysctl net.core.somaxconn=4096"]),
    ("a free port", machine.port(8501, ""), OK, ["port 8501", "free"]),
    ("a port in use", machine.port(8501, "in use"), WARNING, ["in use", "--port"]),
    ("a clock", machine.clock(Clock(40, "tsc")), OK, ["steps of 40 ns, source tsc"]),
    ("a coarse clock", machine.clock(Clock(15_600_000)), WARNING, ["15,600,000 ns"]),
    ("a slow clock", machine.clock(Clock(400, "hpet")), WARNING, ["hpet", "tsc"]),
    ("a place", machine.place("x", PLACE), OK, ["ext4, 9.0 GB free"]),
    ("a place of unknown size", machine.place("x", Place("x", "x", "fuse")), OK, ["? free"]),
    ("no such place", machine.place("x", Place("x/y", "x", "ext4", free=9 * GB)), PROBLEM, ["mkdir -p x/y"]),
    (
        "the cache is made when it is needed",
        machine.place("cache", Place("x/y", "x", "ext4", free=9 * GB), must_exist=False),
        OK,
        ["does not exist yet"],
    ),
    ("a file", machine.place("x", Place("x", ".", is_file=True)), PROBLEM, ["a file, not a directory"]),
    ("little space", machine.place("x", Place("x", "x", free=GB // 2)), WARNING, ["500.0 MB free"]),
    ("no space", machine.place("x", Place("x", "x", free=1000)), PROBLEM, ["1.0 kB free"]),
    (
        "a network mount",
        machine.place("x", Place("x", "x", "nfs4", True, free=9 * GB)),
        WARNING,
        ["nfs4 is a network mount", "copied to this machine"],
    ),
    (
        "a base path that cannot be written",
        machine.place("x", Place("x", "x", free=9 * GB, writable="Read-only file system")),
        WARNING,
        ["Read-only file system", "fine for serve"],
    ),
    (
        "a cache that cannot be written",
        machine.place("cache", Place("x", "x", free=9 * GB, writable="denied"), must_exist=False),
        PROBLEM,
        ["XDG_CACHE_HOME"],
    ),
    (
        "no hard links",
        machine.place("x", Place("x", "x", "exfat", free=9 * GB, tried=LACKS)),
        WARNING,
        ["no hard links here (Operation not permitted)", "--dedup"],
    ),
    (
        "neither locks nor rename",
        machine.place("x", Place("x", "x", free=9 * GB, tried=NO_LOCKS)),
        PROBLEM,
        ["no locks here (Function not implemented)", "no rename here (Invalid argument)"],
    ),
]


@pytest.mark.parametrize(("why", "lines", "worst", "parts"), FINDINGS, ids=[f[0] for f in FINDINGS])
def test_findings(why: str, lines: Lines, worst: str, parts: list[str]) -> None:
    found = [lines] if isinstance(lines, Line) else list(lines)
    rank = (OK, WARNING, PROBLEM).index
    assert max((line.status for line in found), key=rank) == worst
    text = "\n".join(f"{line.check}: {line.text} => {line.next}" for line in found)
    for part in parts:
        assert part in text
    assert all(line.next for line in found if line.status != OK), text


V2 = "22 1 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
V1 = (
    "31 1 0:2 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "32 1 0:3 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)
CGROUPS = [
    ("version 2, in the group itself", V2, "0::/a/b", {"a/b/cpu.max": "150000 100000"}, 1.5),
    (
        "version 2, in a group above",
        V2,
        "0::/a/b",
        {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"},
        0.5,
    ),
    ("version 2, the tightest", V2, "0::/a", {"a/cpu.max": "400000 100000", "cpu.max": "200000 100000"}, 2.0),
    ("version 2, no limit", V2, "0::/", {"cpu.max": "max 100000"}, None),
    (
        "version 1",
        V1,
        "4:cpu,cpuacct:/a\n0::/",
        {"cpu,cpuacct/a/cpu.cfs_quota_us": "250000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
        2.5,
    ),
    ("version 1, no limit", V1, "4:cpu,cpuacct:/", {"cpu,cpuacct/cpu.cfs_quota_us": "-1"}, None),
    (
        "a container sees its own group as the root of the mount",
        "22 1 0:1 /box/7 /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        "0::/box/7",
        {"cpu.max": "100000 100000"},
        1.0,
    ),
    ("nonsense", V2, "0::/", {"cpu.max": "what"}, None),
    ("no control groups", "", "", {}, None),
]


def machine_tree(root: Path, mounts: str, own: str, files: dict[str, str]) -> Path:
    """The files of /proc and /sys that tell the control groups of a process."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").write_text(mounts)
    (root / "proc/self/cgroup").write_text(own)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize(("why", "mounts", "own", "files", "quota"), CGROUPS, ids=[c[0] for c in CGROUPS])
def test_cpu_quota(
    why: str, mounts: str, own: str, files: dict[str, str], quota: float | None, tmp_path: Path
) -> None:
    assert machine_facts.cpu_quota(machine_tree(tmp_path, mounts, own, files)) == quota


@pytest.mark.parametrize(
    ("mounts", "own", "files"),
    [
        (V2, "0::/a", {"a/memory.max": "2000", "a/memory.current": "500", "memory.max": "max"}),
        (
            V1,
            "5:memory:/a",
            {
                "memory/a/memory.limit_in_bytes": "2000",
                "memory/a/memory.usage_in_bytes": "500",
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "memory/memory.usage_in_bytes": "9000",
            },
        ),
    ],
    ids=["version 2", "version 1"],
)
def test_memory_limits(mounts: str, own: str, files: dict[str, str], tmp_path: Path) -> None:
    machine_tree(tmp_path, mounts, own, files)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 8 kB\nMemFree: 1 kB\nMemAvailable: 6 kB\n")
    (tmp_path / "proc/sys/vm").mkdir(parents=True)
    (tmp_path / "proc/sys/vm/overcommit_memory").write_text("2\n")
    huge = tmp_path / "sys/kernel/mm/transparent_hugepage"
    huge.mkdir(parents=True)
    (huge / "enabled").write_text("always [madvise] never\n")
    assert machine_facts.memory(tmp_path) == Memory(8192, 6144, 2000, 500, "2", "madvise")


def test_the_backlog_is_the_one_that_serve_asks_for() -> None:
    assert machine.BACKLOG == BACKLOG


def test_requirements_are_those_of_the_installed_package() -> None:
    needs = machine_facts.needs()
    assert {"numpy", "onnx", "typer"} <= {n.name for n in needs if not n.extra}
    assert {n.extra for n in needs if n.name == "skl2onnx"} == {"sklearn"}
    assert "pytest" not in {n.name for n in needs}
    assert all(n.fits for n in needs if not n.extra)


def test_two_engines_are_found_on_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Distributions whose files are the same package, as `pip install` of both leaves them."""
    for name in (CPU, "onnxruntime-other"):
        about = tmp_path / f"{name.replace('-', '_')}-1.2.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (about / "top_level.txt").write_text("onnxruntime\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    facts = machine_facts.engine()
    assert {CPU, "onnxruntime-other"} < facts.installed.keys()
    assert machine.engine(facts, machine_facts.needs()).status == PROBLEM


def test_ports() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        assert machine_facts.port(number) == "in use"
    assert machine_facts.port(number) == ""
    assert machine_facts.port(number, "203.0.113.1") == os.strerror(errno.EADDRNOTAVAIL)


def test_a_place_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    found = machine_facts.place(tmp_path)
    assert (found.path, found.looked_at, found.writable) == (str(tmp_path), str(tmp_path), "")
    assert found.tried == {"hard links": "", "locks": "", "rename": ""}
    assert found.free
    assert list(tmp_path.iterdir()) == []
    absent = machine_facts.place(tmp_path / "a" / "b")
    assert (absent.looked_at, absent.is_file) == (str(tmp_path), False)
    (tmp_path / "file").touch()
    assert machine_facts.place(tmp_path / "file").is_file


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_place_that_cannot_be_written() -> None:
    found = machine_facts.place(Path("/proc"))
    assert found.writable
    assert (found.kind, found.free) == ("proc", None)


def test_the_clock_of_this_machine_moves() -> None:
    assert 0 < machine_facts.clock().step_ns < 100_000_000


def test_a_library_that_needs_nothing_special_has_nothing_missing(tmp_path: Path) -> None:
    import onnxruntime

    folder = Path(onnxruntime.__file__).parent / "capi"
    shared = next(folder.glob("onnxruntime_pybind11_state*"))
    assert missing_libraries(shared) == ()
    assert missing_libraries(tmp_path / "libabsent.so") == ("libabsent.so",)


def nvidia_smi(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool of that name, first on the path."""
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_a_gpu_is_believed_only_when_a_model_ran_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi(tmp_path, "echo 'Imagined 9000, 1 MiB, 1.0'", monkeypatch)
    facts = machine_facts.gpu()
    assert facts.devices == ("Imagined 9000, 1 MiB, 1.0",)
    line = machine.gpu(facts)
    works = facts.provider and facts.error == ""
    assert (line.status == OK) == works == (facts.provider and try_cuda().error == "")
    assert line.text.startswith("Imagined 9000")


def test_a_tool_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, "exec sleep 1000", monkeypatch)
    monkeypatch.setattr(machine_facts, "NVIDIA_SMI_S", 0.2)
    assert machine_facts.gpu() == Gpu(error="nvidia-smi does not answer within 0.2 s")


def test_a_tool_that_fails_shows_no_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, "echo 'NVIDIA-SMI has failed'; exit 9", monkeypatch)
    assert machine_facts.gpu(tmp_path) == Gpu()
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    (tmp_path / "dev" / "nvidiactl").touch()
    assert machine_facts.gpu(tmp_path).devices == (str(tmp_path / "dev" / "nvidia0"),)


BROKEN = [
    ("raises", "raise RuntimeError('no luck')", "cannot be imported: RuntimeError: no luck"),
    ("ends the process", "import os; os.write(2, b'last words'); os.abort()", "SIGABRT: last words"),
    ("exits", "import os; os._exit(3)", "it ended with 3"),
    ("never ends", "import time\nwhile True: time.sleep(1)", "not done after 5 s"),
    ("prints", "print('hello'); __version__ = '0'; get_available_providers = list", "are those of 0"),
]


@pytest.mark.parametrize(("what", "code", "text"), BROKEN, ids=[b[0] for b in BROKEN])
def test_an_engine_that_breaks_the_process_is_one_line_of_the_report(
    what: str, code: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    seconds = 5 if what == "never ends" else 60
    lines = {line.check: line for line in doctor.examine(doctor.Ask((str(tmp_path),)), seconds)}
    assert lines["engine"].status == PROBLEM
    assert text in lines["engine"].text
    assert lines["numpy"].status == OK
    assert "steps of" in lines["clock"].text
    assert "free" in lines[str(tmp_path)].text


def test_a_check_that_raises_is_reported_with_its_error() -> None:
    class Out(list[str]):
        write = list.append

        def flush(self) -> None: ...

    def bad() -> list[Line]:
        raise KeyError("MemTotal")

    checks: dict[str, Callable[[], Iterable[Line]]] = {"bad": bad, "good": lambda: [Line("good", OK, "x")]}
    doctor.work(checks, out := Out())  # type: ignore[arg-type]
    assert [json.loads(line)[0]["status"] for line in out] == [PROBLEM, OK]
    assert "KeyError: 'MemTotal'" in out[0]


def test_the_report_of_this_machine(tmp_path: Path) -> None:
    base, cache = tmp_path / "models", tmp_path / "cache"
    base.mkdir()
    done = run("doctor", base, "--json", env={"XDG_CACHE_HOME": str(cache)})
    report = json.loads(done.stdout)
    assert (report["schema"], report["kind"]) == (1, "doctor")
    found = {entry["check"]: entry for entry in report["checks"]}
    assert found["mserve"]["text"].startswith(mserve.__version__)
    assert found["python"]["text"] == f"Python {sys.version.split()[0]}"
    assert {"numpy", "engine", "gpu", "cpu", "open files", "port 8500", "port 8501", "clock"} <= found.keys()
    assert {"cache", str(base)} <= found.keys()
    problems = [entry for entry in report["checks"] if entry["status"] == PROBLEM]
    assert report["ok"] == (not problems)
    assert done.returncode == (1 if problems else 0)
    assert not [entry for entry in problems if "check itself failed" in entry["text"]]
    assert list(base.iterdir()) == []
    assert not (cache / "mserve").exists()


def test_a_problem_is_exit_1_and_rows_say_what_is_next(tmp_path: Path) -> None:
    done = run("doctor", tmp_path / "typo")
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert done.returncode == 1
    row = next(row for row in rows if row[1:2] == [str(tmp_path / "typo")])
    assert row[0] == PROBLEM
    assert row[3].startswith("mkdir -p ")
    assert rows[-1][0].startswith("FAILED: ")


def test_a_machine_on_which_no_heavy_library_can_be_imported_still_gets_its_report(tmp_path: Path) -> None:
    heavy = ("numpy", "onnx", "onnxruntime", "h5py", "orjson", "grpc", "google", "uvloop", "httptools")
    for name in heavy:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('no {name}')")
    path = os.pathsep.join([str(tmp_path), *(p for p in sys.path if p)])
    done = run("doctor", "--json", env={"PYTHONPATH": path})
    problems = [entry for entry in json.loads(done.stdout)["checks"] if entry["status"] == PROBLEM]
    assert [entry["check"] for entry in problems] == ["engine"]
    assert "no onnxruntime" in problems[0]["text"]
