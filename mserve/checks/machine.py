"""What the machine must give mserve: facts in, lines out. Pure; `machine_facts` finds the facts.

A problem keeps mserve from working as it should; a warning costs speed, or something that
not everybody needs. Each says what to do next.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..numerics import show_bytes as size

OK, WARNING, PROBLEM = "ok", "warning", "problem"

ENGINES = ("onnxruntime-gpu", "onnxruntime")
BACKLOG = 4096  # how many connections `serve` asks the system to keep waiting
FILES_RESERVED = 64
LITTLE_MEMORY = 1 << 30
LITTLE_SPACE, NO_SPACE = 1 << 30, 64 << 20
COARSE_STEP_NS = 50_000
SLOW_CLOCKS = ("hpet", "acpi_pm", "jiffies", "pit")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the report: which check, ok, warning or problem, what was found, the next step."""

    check: str
    status: str
    text: str
    next: str = ""

    def to_json(self) -> dict[str, str]:
        return {"check": self.check, "status": self.status, "text": self.text, "next": self.next}


@dataclass(frozen=True, slots=True)
class Need:
    """A requirement of mserve, and what is installed for it; `found` is None where nothing is."""

    name: str
    range: str
    found: str | None
    fits: bool
    extra: str = ""


@dataclass(frozen=True, slots=True)
class Engine:
    """The distributions that hold the package onnxruntime, by version, and what it says when imported."""

    installed: Mapping[str, str]
    version: str = ""
    providers: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class Gpu:
    """NVIDIA devices as nvidia-smi, or /dev, shows them, and a trial of CUDA; None if not tried."""

    devices: tuple[str, ...] = ()
    provider: bool = False
    error: str | None = None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPUs: of the machine, in this process's affinity, the control group's quota, and mserve's count."""

    present: int
    usable: int
    quota: float | None
    threads: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes; `limit` and `used` are the control group's, `overcommit` and `huge` the kernel's settings."""

    total: int
    available: int
    limit: int | None = None
    used: int = 0
    overcommit: str = ""
    huge: str = ""


@dataclass(frozen=True, slots=True)
class Clock:
    """The monotonic clock: the smallest step seen, in nanoseconds, and where the kernel reads it."""

    step_ns: int
    source: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """A directory: `looked_at` is the nearest one that exists, `free` its bytes, None if nobody says.

    Of what was tried there, `writable` and `tried` have "" or what went wrong.
    """

    path: str
    looked_at: str
    kind: str = ""
    network: bool = False
    is_file: bool = False
    free: int | None = None
    writable: str = ""
    tried: Mapping[str, str] = field(default_factory=dict)


def python(version: str, wanted: str, fits: bool) -> Line:
    """The interpreter against mserve's `requires-python`."""
    if fits:
        return Line("python", OK, f"Python {version}")
    return Line("python", PROBLEM, f"Python {version}; mserve needs {wanted}", f"install Python {wanted}")


def dependencies(needs: Sequence[Need]) -> Iterator[Line]:
    """One line for each requirement that is no engine and belongs to no extra."""
    for need in needs:
        if need.extra or need.name in ENGINES:
            continue
        fix = f"pip install '{need.name}{need.range}'"
        if need.found is None:
            yield Line(need.name, PROBLEM, f"not installed; mserve needs {need.range or 'it'}", fix)
        elif not need.fits:
            yield Line(need.name, PROBLEM, f"{need.found}; mserve needs {need.range}", fix)
        else:
            yield Line(need.name, OK, need.found)


def extras(needs: Sequence[Need]) -> Iterator[Line]:
    """One line for each extra: installed, partly installed, or how to get it."""
    for extra in dict.fromkeys(n.extra for n in needs if n.extra):
        mine = [n for n in needs if n.extra == extra]
        name, fix = f"extra {extra}", f"pip install 'mserve[{extra}]'"
        present = ", ".join(f"{n.name} {n.found}" for n in mine if n.found is not None)
        wrong = [f"{n.name} {n.range}" for n in mine if n.found is not None and not n.fits]
        absent = [n.name for n in mine if n.found is None]
        if wrong:
            yield Line(name, WARNING, f"{present}; needs {', '.join(wrong)}", fix)
        elif not present:
            yield Line(name, OK, "not installed", fix)
        elif absent:
            yield Line(name, OK, f"{present}; not installed: {', '.join(absent)}", fix)
        else:
            yield Line(name, OK, present)


def engine(facts: Engine, needs: Sequence[Need]) -> Line:
    """The one engine that must be there."""
    names = ", ".join(f"{name} {version}" for name, version in facts.installed.items())
    wanted = [n for n in needs if n.name in ENGINES and not n.extra]
    install = f"pip install '{wanted[0].name}{wanted[0].range}'" if wanted else "pip install onnxruntime"
    if not facts.installed:
        return Line("engine", PROBLEM, "ONNX Runtime is not installed", install)
    if len(facts.installed) > 1:
        remove = "pip uninstall -y " + " ".join(facts.installed)
        text = f"{names}: all are the package onnxruntime, and their files overwrite each other"
        return Line("engine", PROBLEM, text, f"{remove}; then {install}")
    if facts.error:
        return Line("engine", PROBLEM, f"{names} cannot be imported: {facts.error}", install)
    name, version = next(iter(facts.installed.items()))
    text = f"{names}, providers {', '.join(p.removesuffix('ExecutionProvider') for p in facts.providers)}"
    if facts.version != version:
        fix = f"pip install --force-reinstall --no-deps '{name}=={version}'"
        return Line("engine", PROBLEM, f"{names} is installed, its files are those of {facts.version}", fix)
    unfit = [n for n in wanted if n.name == name and not n.fits]
    if unfit:
        return Line("engine", PROBLEM, f"{names}; mserve needs {unfit[0].range}", install)
    return Line("engine", OK, text)


def gpu(facts: Gpu) -> Line:
    """Whether there is a GPU, and whether the engine can use it."""
    if not facts.devices and facts.error:
        return Line("gpu", WARNING, facts.error, "the kernel's log tells more: dmesg | grep -i nvrm")
    if not facts.devices:
        return Line("gpu", OK, "no NVIDIA GPU; models run on the CPUs")
    shown = "; ".join(facts.devices)
    if not facts.provider:
        text = f"{shown}: the installed ONNX Runtime has no CUDA provider"
        return Line("gpu", WARNING, text, "pip uninstall -y onnxruntime; pip install onnxruntime-gpu")
    if facts.missing:
        text = f"{shown}: CUDA does not work, these libraries do not load: {', '.join(facts.missing)}"
        fix = "pip install 'onnxruntime-gpu[cuda,cudnn]', or put their directory into LD_LIBRARY_PATH"
        return Line("gpu", WARNING, text, fix)
    if facts.error:
        fix = "does nvidia-smi work, and does its driver fit the CUDA of this ONNX Runtime?"
        return Line("gpu", WARNING, f"{shown}: CUDA does not work: {facts.error}", fix)
    return Line("gpu", OK, f"{shown}: a model ran on it")


def cpu(facts: Cpu) -> Line:
    """CPUs, and whether mserve counts them as the system does."""
    text = f"{facts.present} present, {facts.usable} usable"
    if facts.quota is not None:
        text += f", limited to {facts.quota:g}"
    text += f"; mserve computes with {facts.threads} threads"
    if facts.quota is not None and facts.threads >= facts.quota + 1:
        last = max(1, math.floor(facts.quota)) - 1
        fix = f"taskset -c 0-{last} mserve serve ..., or a limit by CPU set instead of quota"
        return Line("cpu", WARNING, f"{text}, more than it may, and will be held up", fix)
    return Line("cpu", OK, text)


def memory(facts: Memory) -> Iterator[Line]:
    """Room for models, and the setting that makes large allocations fail."""
    text = f"{size(facts.total)}, {size(facts.available)} available"
    room = facts.available
    if facts.limit is not None and facts.limit < facts.total:
        text += f", limited to {size(facts.limit)}, {size(facts.used)} of it used"
        room = min(room, max(0, facts.limit - facts.used))
    if facts.huge:
        text += f"; transparent huge pages: {facts.huge}"
    if room < LITTLE_MEMORY:
        fix = "free some, or raise the limit: models and requests need room beside the 150 MB of the engine"
        yield Line("memory", WARNING, text, fix)
    else:
        yield Line("memory", OK, text)
    if facts.overcommit == "2":
        text = "vm.overcommit_memory is 2: allocations may fail while memory is free"
        yield Line("overcommit", WARNING, text, "sysctl vm.overcommit_memory=0, or watch CommitLimit")


def open_files(soft: int, hard: int, connections: int) -> Line:
    """The limit of open files against `[limits] connections`; -1 is no limit."""
    shown = "no limit" if soft < 0 else f"{soft:,}"
    wanted = connections + FILES_RESERVED
    if soft < 0 or soft >= wanted:
        return Line("open files", OK, shown)
    within = 0 <= hard < wanted
    fix = f"ulimit -n {wanted} before mserve serve" + (
        " (as root: the hard limit is lower)" if within else ""
    )
    text = f"{shown}; [limits] connections lets in {connections:,} clients"
    return Line("open files", WARNING, text, f"{fix}, or a smaller [limits] connections")


def backlog(somaxconn: int | None) -> Line:
    """How many new connections may wait; None where the system does not say."""
    if somaxconn is None or somaxconn >= BACKLOG:
        return Line("backlog", OK, "not limited" if somaxconn is None else f"net.core.somaxconn {somaxconn}")
    text = f"net.core.somaxconn is {somaxconn}: a burst of more new connections is slowed down"
    return Line("backlog", WARNING, text, f"sysctl net.core.somaxconn={BACKLOG}")


def port(number: int, error: str) -> Line:
    """Whether a port can be listened on; `error` is "" if so."""
    if not error:
        return Line(f"port {number}", OK, "free")
    fix = "an mserve that runs already? otherwise choose others: --port, --grpc-port"
    return Line(f"port {number}", WARNING, error, fix)


def clock(facts: Clock) -> Line:
    """Whether latencies can be measured."""
    text = f"steps of {facts.step_ns:,} ns" + (f", source {facts.source}" if facts.source else "")
    if facts.step_ns > COARSE_STEP_NS or facts.source in SLOW_CLOCKS:
        fix = "use the clock source tsc, or the hypervisor's own: bench and batching read the clock often"
        return Line("clock", WARNING, text, fix)
    return Line("clock", OK, text)


_COSTS = {
    "hard links": (WARNING, "export --dedup copies shards instead of sharing them"),
    "locks": (PROBLEM, "two exports, or gc and a server, would not see each other"),
    "rename": (PROBLEM, "a version cannot appear as a whole, so export fails"),
}


def place(name: str, facts: Place, *, must_exist: bool = True) -> Iterator[Line]:
    """A directory that holds versions, or copies of them."""
    there = facts.path == facts.looked_at
    free = LITTLE_SPACE if facts.free is None else facts.free
    text = f"{facts.kind or 'unknown file system'}, {'?' if facts.free is None else size(free)} free"
    if facts.is_file:
        yield Line(name, PROBLEM, "a file, not a directory", "name the directory that holds the versions")
        return
    if not there:
        text = f"does not exist yet; {facts.looked_at}: {text}"
    if not there and must_exist:
        yield Line(name, PROBLEM, text, f"mkdir -p {facts.path}, or check the spelling")
    elif free < NO_SPACE:
        yield Line(name, PROBLEM, text, "free some space")
    elif free < LITTLE_SPACE:
        yield Line(name, WARNING, text, "free some space: every version is a full copy of its weights")
    else:
        yield Line(name, OK, text)
    if facts.network:
        text = f"{facts.kind} is a network mount: bundles are copied to this machine before they are served"
        yield Line(name, WARNING, text, "enough space for the cache; or serve from a local disk")
    if facts.writable:
        status = WARNING if must_exist else PROBLEM
        fix = "fine for serve; export, gc and label need to write"
        fix = fix if must_exist else "set XDG_CACHE_HOME: network mounts are copied there"
        yield Line(name, status, f"cannot be written: {facts.writable}", fix)
    for what, error in facts.tried.items():
        if error:
            status, cost = _COSTS[what]
            yield Line(name, status, f"no {what} here ({error}): {cost}", "use another file system")


def failed(check: str, error: str) -> Line:
    """A check that did not come to an end."""
    return Line(check, PROBLEM, f"the check itself failed: {error}", "report this line")
