"""The circumstances of a measurement: without them a number cannot be compared with another.

The stamp is taken before the run. What disturbed it is read at its end: how often this
process had to give up a CPU it wanted, how much time the host took away from the machine,
and how late the machine wakes a process up.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ... import __version__
from ...runtime.ort import cpu_budget, threads_max
from ...runtime.providers import engine_facts

_ENGINES = ("onnxruntime-gpu", "onnxruntime")
_GIT_S = 2.0
# What must agree before two stored results may be compared.
COMPARABLE = ("system", "cpu", "cpus", "memory_bytes", "gpu", "onnxruntime", "python", "network")
_FILE_BYTES_MAX = 1 << 20
STEAL_MAX = 0.01


def stamp(arguments: Sequence[str], seed: int | None = None, target: str = "") -> dict[str, Any]:
    """Machine, versions, load and command line, taken before the run.

    `target` is what is measured, as it was named: it tells whether a network is in between.
    """
    return {
        "mserve": __version__,
        "python": platform.python_version(),
        "onnxruntime": _engine_version(),
        "providers": list(engine_facts().providers),
        "threads": threads_max(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cpus": cpu_budget(),
        "cores": os.cpu_count(),
        "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "memory_bytes": _memory_bytes(),
        "gpu": _gpus(),
        "gpu_driver": _gpu_driver(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "git": _git_revision(),
        "command": shlex.join(["mserve", *arguments]),
        "seed": seed,
        "network": network(target),
        "client_loop": "asyncio" if sys.platform == "win32" else "uvloop",
    }


def network(target: str) -> str:
    """What lies between client and server: nothing ("in process"), "loopback" or "network"."""
    scheme, found, rest = target.partition("://")
    if not found or scheme not in ("http", "https", "grpc", "grpcs"):
        return "in process"
    host = rest.partition("/")[0].rpartition("@")[2]
    host = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    local = host in ("localhost", "::1", platform.node()) or host.startswith("127.")
    return "loopback" if local else "network"


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Where two stamps differ in what makes their numbers comparable, one text for each."""
    return [
        f"{key}: {theirs.get(key)!r} then, {ours.get(key)!r} now"
        for key in COMPARABLE
        if ours.get(key) != theirs.get(key)
    ]


@dataclass(frozen=True, slots=True)
class Ticks:
    """Counters of this process and of the machine; a difference of two says what disturbed a run."""

    wall_s: float
    preempted: int
    steal_s: float | None

    @classmethod
    def now(cls) -> Ticks:
        """Read them; without the fields that this system does not have."""
        preempted = 0
        if sys.platform != "win32":
            import resource

            preempted = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        return cls(time.perf_counter(), preempted, _steal_s())


def interference(before: Ticks, jitter_ns: int | None = None) -> dict[str, Any]:
    """What disturbed the run that began at `before`; `jitter_ns` is what a self-test measured."""
    after = Ticks.now()
    wall_s = max(1e-9, after.wall_s - before.wall_s)
    steal = None
    if after.steal_s is not None and before.steal_s is not None:
        steal = (after.steal_s - before.steal_s) / wall_s / (os.cpu_count() or 1)
    return {
        "seconds": wall_s,
        "involuntary_switches": after.preempted - before.preempted,
        "steal_share": steal,
        "timer_jitter_ms": None if jitter_ns is None else jitter_ns / 1e6,
    }


def disturbances(seen: Mapping[str, Any]) -> list[str]:
    """What of `interference` a reader must know."""
    notes = []
    if (steal := seen.get("steal_share")) is not None and steal > STEAL_MAX:
        notes.append(f"the host took {steal:.1%} of this machine's CPU time away during the run")
    if (jitter := seen.get("timer_jitter_ms")) is not None and jitter > 1.0:
        notes.append(f"before the run, this machine woke a process up to {jitter:.1f} ms late")
    return notes


def _steal_s() -> float | None:
    """CPU time that the host of a virtual machine gave to others, since boot, over all CPUs."""
    first = (_read("/proc/stat") or "").partition("\n")[0].split()
    if len(first) < 9 or first[0] != "cpu" or not first[8].isdigit():
        return None
    return int(first[8]) / os.sysconf("SC_CLK_TCK")


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _gpus() -> list[str]:
    """The models of NVIDIA's devices, as their driver lists them."""
    models = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in (_read(path) or "").splitlines():
            key, _, value = line.partition(":")
            if key == "Model":
                models.append(value.strip())
    return models


def _gpu_driver() -> str | None:
    first = (_read("/proc/driver/nvidia/version") or "").partition("\n")[0]
    return first or None


def _git_revision() -> str | None:
    """The revision of the working directory, with `-dirty` where it was changed; None without one."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _engine_version() -> str | None:
    for name in _ENGINES:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _cpu_model() -> str:
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _read(path: str | Path) -> str | None:
    try:
        with open(path, errors="replace") as file:
            return file.read(_FILE_BYTES_MAX).strip()
    except OSError:
        return None
