"""Interleaved measurements, their medians and ratios, and the table of bars at the end."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

from serving_load import Load

Run = Callable[[float], Load]
PACKAGES = "mserve onnxruntime-gpu onnxruntime numpy uvloop httptools orjson grpcio protobuf".split()


@dataclass(frozen=True)
class Bar:
    """A figure that is to be reached: its median, its range over the rounds, what it is held against."""

    section: str
    what: str
    figure: float
    low: float
    high: float
    sense: str
    limit: float

    @property
    def ok(self) -> bool:
        """Whether the median reaches it."""
        return self.figure >= self.limit if self.sense == ">=" else self.figure <= self.limit


@dataclass
class Report:
    """What was measured and how it stands; prints as it goes."""

    section: str = ""
    bars: list[Bar] = field(default_factory=list)
    figures: list[dict[str, object]] = field(default_factory=list)
    not_run: list[dict[str, str]] = field(default_factory=list)

    def begin(self, section: str, what: str) -> None:
        """Head of a section."""
        self.section = section
        print(f"\n== {section}: {what}", flush=True)

    def say(self, text: str) -> None:
        """A line that belongs to the section."""
        print(f"   {text}", flush=True)

    def skip(self, what: str, why: str) -> None:
        """Something that was not run, and why."""
        self.not_run.append({"section": self.section, "what": what, "why": why})
        self.say(f"{what}: not run: {why}")

    def bar(self, what: str, figures: Iterable[float], sense: str, limit: float) -> None:
        """Hold the median of the rounds' figures against a limit."""
        got = [f for f in figures if f == f]
        if not got:
            self.skip(what, "no figure")
            return
        bar = Bar(self.section, what, statistics.median(got), min(got), max(got), sense, limit)
        self.bars.append(bar)
        self.say(f"{_row(bar)}")

    def figure(self, what: str, figures: Sequence[float], unit: str) -> None:
        """A figure without a bar."""
        self.figures.append({"section": self.section, "what": what, "unit": unit, "rounds": list(figures)})
        self.say(
            f"{what}: {statistics.median(figures):,.3f} {unit} ({min(figures):,.3f}-{max(figures):,.3f})"
        )

    def loads(self, what: str, loads: Sequence[Load], rows: float = 1) -> None:
        """The line of one server: medians, spread, and who was busy."""
        self.figures.append(
            {"section": self.section, "what": what, "rounds": [asdict(load) for load in loads]}
        )
        rates = [load.rate * rows for load in loads]
        rate, client, server, p50, p99 = (
            statistics.median(column)
            for column in zip(
                *(
                    (r, x.client_cpu, x.server_cpu, x.p50_ms, x.p99_ms)
                    for r, x in zip(rates, loads, strict=True)
                ),
                strict=True,
            )
        )
        busier = "server busier" if server >= client else "CLIENT busier"
        latency = f"p50 {p50:7.3f} p99 {p99:7.3f} ms, " if p50 == p50 else ""
        errors = sum(load.errors for load in loads)
        self.say(
            f"{what:34} {rate:10,.0f}/s ({min(rates):,.0f}-{max(rates):,.0f}), {latency}"
            f"cores: server {server:.2f} client {client:.2f} ({busier}), "
            f"{statistics.median(x.per_server_cpu * rows for x in loads):,.0f} per server CPU second"
            + (f", {errors} ERRORS" if errors else "")
        )

    def table(self) -> None:
        """All bars."""
        print(f"\n== bars: {sum(b.ok for b in self.bars)} of {len(self.bars)} reached")
        section = ""
        for bar in self.bars:
            if bar.section != section:
                section = bar.section
                print(section)
            print(f"   {_row(bar)}")
        for left in self.not_run:
            print(f"   {left['section']}, {left['what']}: not run: {left['why']}")

    def write(self, file: Path, machine: Mapping[str, object]) -> None:
        """The same as one JSON document."""
        bars = [{**asdict(bar), "ok": bar.ok} for bar in self.bars]
        whole = {"machine": machine, "bars": bars, "figures": self.figures, "not_run": self.not_run}
        file.write_text(json.dumps(_standard(whole), indent=1))


def _standard(value: object) -> object:
    """The same with null for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _standard(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_standard(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _row(bar: Bar) -> str:
    digits = 3 if abs(bar.figure) < 10 else 1
    reach = f"({bar.low:.{digits}f}-{bar.high:.{digits}f})"
    verdict = "ok" if bar.ok else "short"
    return f"{bar.what:58} {bar.figure:8.{digits}f} {reach:17} bar {bar.sense} {bar.limit:<5g} {verdict}"


def interleaved(arms: Mapping[str, Run], rounds: int, seconds: float) -> dict[str, list[Load]]:
    """Each arm once a round, every other round in the opposite order; before that a second of each."""
    for run in arms.values():
        run(1.0)
    loads: dict[str, list[Load]] = {name: [] for name in arms}
    for i in range(rounds):
        for name in list(arms)[:: 1 if i % 2 == 0 else -1]:
            loads[name].append(arms[name](seconds))
    return loads


def ratios(above: Sequence[Load], below: Sequence[Load]) -> list[float]:
    """Rates of one over those of the other, round by round."""
    return [a.rate / b.rate for a, b in zip(above, below, strict=True)]


def machine() -> dict[str, object]:
    """Where this is measured, and with what."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_average": list(os.getloadavg()),
        **{name: found for name in PACKAGES if (found := _version(name))},
        "wrk": _first_line("wrk", "-v"),
        "h2load": _first_line("h2load", "--version"),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _first_line(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return (done.stdout + done.stderr).partition("\n")[0].strip()
