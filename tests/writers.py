"""A warm process that forks a child for each export, so that killing one costs little.

Run as a script, it reads one JSON command a line and answers each with one JSON line:
`start` forks a child that exports, `wait` reports how a child ended. A child may be told
to kill itself at its n-th step; a step is anything that Python's audit events show of
the file system while an export runs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEPS = ("open", "os.", "shutil.", "tempfile.", "fcntl.")


@dataclass(frozen=True)
class Ended:
    """How a child ended: killed, or with a version or an error, after so many seconds and steps."""

    killed: bool
    version: int = 0
    error: str = ""
    seconds: float = 0.0
    steps: int = 0


class Writers:
    """The warm process, seen from a test."""

    def __enter__(self) -> Writers:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()

    def start(self, source: Path, base: Path, *, die_at: int = 0, **options: Any) -> int:
        """Begin an export in a new process and return its id."""
        command = {"do": "start", "source": str(source), "base": str(base), "die_at": die_at}
        return int(self._ask(command | {"options": options})["pid"])

    def wait(self, pid: int) -> Ended:
        return Ended(**self._ask({"do": "wait", "pid": pid}))

    def export(self, source: Path, base: Path, *, die_at: int = 0, **options: Any) -> Ended:
        return self.wait(self.start(source, base, die_at=die_at, **options))

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


def main() -> None:
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # threads do not survive a fork
    import h5py  # noqa: F401
    import onnxruntime  # noqa: F401

    import mserve.exporters.pipeline  # noqa: F401

    pipes: dict[int, int] = {}
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "start":
            reader, writer = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(reader)
                _child(command, writer)
            os.close(writer)
            pipes[pid] = reader
            answer: dict[str, Any] = {"pid": pid}
        else:
            with open(pipes.pop(command["pid"]), "rb") as pipe:
                told = pipe.read()
            _, status = os.waitpid(command["pid"], 0)
            answer = {"killed": os.WIFSIGNALED(status), **(json.loads(told) if told else {})}
        print(json.dumps(answer), flush=True)


def _child(command: dict[str, Any], writer: int) -> None:
    import mserve

    steps = 0

    def audit(event: str, _: object) -> None:
        nonlocal steps
        if event.startswith(STEPS):
            steps += 1
            if steps == command["die_at"]:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)
    start = time.perf_counter()
    told: dict[str, Any] = {}
    try:
        told["version"] = mserve.export(command["source"], command["base"], **command["options"]).version
    except Exception as error:
        told["error"] = type(error).__name__
    told |= {"seconds": time.perf_counter() - start, "steps": steps}
    os.write(writer, json.dumps(told).encode())
    os._exit(0)


if __name__ == "__main__":
    main()
