"""Doctor: every check of the machine, in a process of its own.

A check may crash the process (a broken engine), or never come back (a network mount whose
server is gone). So a worker process makes the checks one after the other and writes a
line of JSON for each; when it dies or falls silent, that check is reported as failed and a
new worker goes on with the next.
"""

from __future__ import annotations

import json
import os
import platform
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from .. import __version__
from ..loader.cache import cache_directory
from . import machine, machine_facts
from .machine import OK, Line

CHECK_S = 30.0
GOODBYE_S = 2.0
Check = Callable[[], Iterable[Line]]


@dataclass(frozen=True, slots=True)
class Ask:
    """What to look at: base paths, the ports and the number of connections of a server."""

    paths: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    connections: int = 0


def checks(ask: Ask) -> dict[str, Check]:
    """All checks by name, in the order of the report."""
    facts = machine_facts
    found: dict[str, Check] = {
        "mserve": lambda: [Line("mserve", OK, f"{__version__}, {platform.platform()}")],
        "python": lambda: [machine.python(*facts.python())],
        "dependencies": lambda: machine.dependencies(facts.needs()),
        "engine": lambda: [machine.engine(facts.engine(), facts.needs())],
        "gpu": lambda: [machine.gpu(facts.gpu())],
        "extras": lambda: machine.extras(facts.needs()),
        "cpu": lambda: [machine.cpu(facts.cpu())],
    }
    if sys.platform == "linux":
        found["memory"] = lambda: machine.memory(facts.memory())
    if sys.platform != "win32":
        found["open files"] = lambda: [machine.open_files(*facts.open_files(), ask.connections)]
        found["backlog"] = lambda: [machine.backlog(facts.somaxconn())]
        found |= {f"port {number}": partial(_port, number) for number in ask.ports}
    found["clock"] = lambda: [machine.clock(facts.clock())]
    found["cache"] = lambda: machine.place("cache", facts.place(cache_directory()), must_exist=False)
    return found | {path: partial(_base_path, path) for path in ask.paths}


def _port(number: int) -> Iterable[Line]:
    return [machine.port(number, machine_facts.port(number))]


def _base_path(path: str) -> Iterable[Line]:
    return machine.place(path, machine_facts.place(Path(path)))


def examine(ask: Ask, seconds: float = CHECK_S) -> Iterator[Line]:
    """The lines of all checks, each given so many seconds. Raises nothing for what a check does."""
    names, done = list(checks(ask)), 0
    while done < len(names):
        with _Worker(ask, done) as worker:
            for name in names[done:]:
                lines = worker.next(seconds)
                done += 1
                if lines is None:
                    yield machine.failed(name, worker.ending())
                    break
                yield from lines


class _Worker:
    """A process that makes the checks from one on."""

    def __init__(self, ask: Ask, start: int) -> None:
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        command = [sys.executable, "-m", "mserve.checks.doctor", json.dumps(asdict(ask)), str(start)]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._said, env=env)
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._silent = 0.0

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(b"")

    def next(self, seconds: float) -> list[Line] | None:
        """The lines of the next check; None if it does not come to an end, or the process does."""
        try:
            text = self._lines.get(timeout=seconds)
        except queue.Empty:
            self._silent = seconds
            return None
        return [Line(**entry) for entry in json.loads(text)] if text.endswith(b"\n") else None

    def ending(self) -> str:
        """Why there was no line."""
        if self._silent:
            return f"not done after {self._silent:g} s"
        try:
            code = self._process.wait(timeout=GOODBYE_S)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        self._said.seek(0)
        last = (self._said.read()[-2000:].decode("utf-8", "replace").strip().splitlines() or [""])[-1]
        how = f"it ended with {signal.Signals(-code).name}" if code < 0 else f"it ended with {code}"
        return f"{how}: {last}" if last else how

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        # A process that waits for a dead mount does not die either; it is left behind.
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=GOODBYE_S)
            self._reader.join()
            assert self._process.stdout is not None
            self._process.stdout.close()
        self._said.close()


def work(named: dict[str, Check], out: IO[str]) -> None:
    """Make checks, and write the lines of each as one line of JSON."""
    for name, check in named.items():
        try:
            lines = list(check())
        except Exception as error:
            lines = [machine.failed(name, f"{type(error).__name__}: {error}"[:500])]
        out.write(json.dumps([line.to_json() for line in lines]) + "\n")
        out.flush()


def main(arguments: list[str]) -> None:
    """The worker: the checks from a number on. What libraries print goes to standard error."""
    given: dict[str, Any] = json.loads(arguments[0])
    ask = Ask(tuple(given["paths"]), tuple(given["ports"]), given["connections"])
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        work(dict(list(checks(ask).items())[int(arguments[1]) :]), out)


if __name__ == "__main__":
    main(sys.argv[1:])
