"""Facts of this machine, for the checks of `machine`.

Only the standard library at import, so that missing dependencies are found, not stumbled
over. Where a path under `root` is read, tests give a tree of their own.
"""

from __future__ import annotations

import errno
import os
import platform
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from ..loader.cache import file_system, is_network
from .machine import ENGINES, Clock, Cpu, Engine, Gpu, Memory, Need, Place

ROOT = Path("/")
NVIDIA_SMI_S = 10.0
DEVELOPMENT = "dev"
_UNLIMITED = 1 << 60


def needs() -> list[Need]:
    """What mserve's installed metadata requires here, with what is installed. Raises PackageNotFoundError."""
    from packaging.requirements import Requirement

    about = metadata.metadata("mserve")
    found = []
    for extra in ("", *(e for e in about.get_all("Provides-Extra") or () if e != DEVELOPMENT)):
        for text in metadata.requires("mserve") or ():
            requirement = Requirement(text)
            here = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
            if not here or (extra and "extra" not in str(requirement.marker)):
                continue
            version = _installed(requirement.name)
            fits = version is not None and requirement.specifier.contains(version, prereleases=True)
            found.append(Need(requirement.name, str(requirement.specifier), version, fits, extra))
    return found


def python() -> tuple[str, str, bool]:
    """This interpreter's version, the versions that mserve takes, and whether it is one."""
    from packaging.specifiers import SpecifierSet

    wanted = metadata.metadata("mserve")["Requires-Python"] or ""
    version = platform.python_version()
    return version, wanted, SpecifierSet(wanted).contains(version, prereleases=True)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def engine() -> Engine:
    """Every distribution of the package onnxruntime, and what it says when it is imported."""
    owners = {*metadata.packages_distributions().get("onnxruntime", ()), *ENGINES}
    versions = {name: version for name in sorted(owners) if (version := _installed(name))}
    if not versions:
        return Engine(versions)
    from ..runtime.providers import engine_facts

    try:
        facts = engine_facts()
    except Exception as error:  # a broken installation raises whatever it meets
        return Engine(versions, error=f"{type(error).__name__}: {error}"[:300])
    return Engine(versions, facts.version, facts.providers)


def gpu(root: Path = ROOT) -> Gpu:
    """NVIDIA's devices, and whether a model runs on the first."""
    try:
        devices = _nvidia_smi() or tuple(str(p) for p in sorted((root / "dev").glob("nvidia[0-9]*")))
    except subprocess.TimeoutExpired:
        return Gpu(error=f"nvidia-smi does not answer within {NVIDIA_SMI_S:g} s")
    if not devices:
        return Gpu()
    from ..runtime.providers import CUDA, engine_facts, try_cuda

    if CUDA not in engine_facts().providers:
        return Gpu(devices)
    trial = try_cuda()
    return Gpu(devices, True, trial.error, trial.missing)


def _nvidia_smi() -> tuple[str, ...]:
    """Name, memory and driver of each device; none where the tool fails. Raises TimeoutExpired."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, timeout=NVIDIA_SMI_S, check=False)
    lines = done.stdout.decode("utf-8", "replace").splitlines() if done.returncode == 0 else []
    return tuple(line.strip() for line in lines if line.strip())


def cpu(root: Path = ROOT) -> Cpu:
    """CPUs and their limits."""
    from ..runtime.ort import cpu_budget

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Cpu(os.cpu_count() or 1, usable, cpu_quota(root), cpu_budget())


def cpu_quota(root: Path = ROOT) -> float | None:
    """CPUs that the control groups of this process allow, the tightest one; None without a limit."""
    quotas = []
    for group in groups("cpu", root):
        with suppress(OSError, ValueError):
            quota, period = (group / "cpu.max").read_text().split()
            if quota != "max":
                quotas.append(int(quota) / int(period))
        with suppress(OSError, ValueError):
            micros = int((group / "cpu.cfs_quota_us").read_text())
            if micros > 0:
                quotas.append(micros / int((group / "cpu.cfs_period_us").read_text()))
    return min(quotas, default=None)


def memory(root: Path = ROOT) -> Memory:
    """Memory, its limit and the kernel's settings. Raises OSError, KeyError where there is no /proc."""
    text = (root / "proc/meminfo").read_text()
    rows = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    total, available = (int(rows[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    limits: list[tuple[int, int]] = []
    for group in groups("memory", root):
        for limit, used in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            with suppress(OSError, ValueError):
                found = int((group / limit).read_text())
                if found < _UNLIMITED:
                    limits.append((found, int((group / used).read_text())))
    limit_bytes, used_bytes = min(limits, default=(None, 0), key=lambda pair: pair[0] - pair[1])
    huge = _word(root / "sys/kernel/mm/transparent_hugepage/enabled")
    chosen = huge[huge.find("[") + 1 : huge.find("]")] if "[" in huge else ""
    overcommit = _word(root / "proc/sys/vm/overcommit_memory")
    return Memory(total, available, limit_bytes, used_bytes, overcommit, chosen)


def groups(controller: str, root: Path = ROOT) -> Iterator[Path]:
    """This process's control groups, of version 1 and 2, and all above it, as directories."""
    for line in _word(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        unified = number == "0" and not controllers
        if not unified and controller not in controllers.split(","):
            continue
        for top, point in _group_mounts(controller, unified, root):
            inside = os.path.relpath(path, top) if path.startswith(top) else "."
            group = Path(os.path.normpath(point / inside))
            while group != point.parent:
                yield group
                group = group.parent


def _group_mounts(controller: str, unified: bool, root: Path) -> Iterator[tuple[str, Path]]:
    """Mounts of a controller: which group is mounted, and where."""
    for line in _word(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, (kind, _, options) = before.split(), after.split(" ", 2)
        matches = kind == "cgroup2" if unified else kind == "cgroup" and controller in options.split(",")
        if matches:
            yield fields[3], root / fields[4].lstrip("/")


def _word(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def open_files() -> tuple[int, int]:
    """Soft and hard limit; -1 is none. Raises ImportError where there is no such limit."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return tuple(-1 if n == resource.RLIM_INFINITY else n for n in (soft, hard))  # type: ignore[return-value]


def somaxconn(root: Path = ROOT) -> int | None:
    """How many connections may wait to be accepted; None where the system does not say."""
    text = _word(root / "proc/sys/net/core/somaxconn")
    return int(text) if text.isdigit() else None


def port(number: int, host: str = "127.0.0.1") -> str:
    """What keeps a port from being listened on; "" if nothing."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, number))
            probe.listen(1)
        except OSError as error:
            return "in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
    return ""


def clock(root: Path = ROOT) -> Clock:
    """The smallest of many steps of the monotonic clock."""
    steps: list[int] = []
    last = time.monotonic_ns()
    deadline = last + 100_000_000
    while len(steps) < 1000 and last < deadline:
        now = time.monotonic_ns()
        if now > last:
            steps.append(now - last)
        last = now
    source = _word(root / "sys/devices/system/clocksource/clocksource0/current_clocksource")
    return Clock(min(steps, default=100_000_000), source)


def place(path: Path) -> Place:
    """A directory, or the nearest one above it, and what can be done there. Writes a little, removes it."""
    path = Path(os.path.abspath(path))
    there = path
    while not there.is_dir() and there != there.parent:
        there = there.parent
    space = shutil.disk_usage(there)
    found = Place(
        str(path),
        str(there),
        file_system(there),
        is_network(there),
        path.is_file(),
        space.free if space.total else None,
    )
    try:
        staging = Path(tempfile.mkdtemp(prefix=".mserve-doctor-", dir=there))
    except OSError as error:
        return replace(found, writable=_said(error))
    trials: dict[str, Callable[[Path], None]] = {"hard links": _link, "locks": _lock, "rename": _rename}
    try:
        (staging / "file").write_bytes(b"mserve")
        return replace(found, tried={what: _tried(trial, staging) for what, trial in trials.items()})
    except OSError as error:
        return replace(found, writable=_said(error))
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _tried(trial: Callable[[Path], None], staging: Path) -> str:
    try:
        trial(staging)
    except OSError as error:
        return _said(error)
    return ""


def _link(staging: Path) -> None:
    os.link(staging / "file", staging / "linked")


def _lock(staging: Path) -> None:
    import fcntl

    fd = os.open(staging, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(fd)


def _rename(staging: Path) -> None:
    (staging / "before").mkdir()
    (staging / "before").rename(staging / "after")


def _said(error: OSError) -> str:
    return error.strerror or str(error)
