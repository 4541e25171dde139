"""A real server process on a real socket, and a plain client for it."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_S = 60.0


@dataclass
class Running:
    """A server process: its port, process id and what it wrote to stderr."""

    process: subprocess.Popen[bytes]
    port: int
    log_path: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def grpc_port(self) -> int:
        match = re.search(r"gRPC on [^:]+:(\d+)", self.log())
        assert match, self.log()
        return int(match[1])

    def log(self) -> str:
        return self.log_path.read_text()

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def get(self, path: str) -> Answer:
        return self.ask("GET", path)

    def predict(self, model: str, request: Any) -> Answer:
        body = request if isinstance(request, bytes) else json.dumps(request).encode()
        return self.ask("POST", f"/v1/models/{model}:predict", body)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=60)

    def wait_until(self, holds: Any, seconds: float = 30.0) -> None:
        """Wait until `holds()` is true. Fails with the server's log."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert self.process.poll() is None, f"the server ended:\n{self.log()}"
            assert time.monotonic() < deadline, f"not within {seconds} s:\n{self.log()}"
            time.sleep(0.02)

    def wait_ready(self) -> None:
        self.wait_until(lambda: self.get("/readyz").status == 200)

    def version(self, model: str) -> str:
        """The version that answers now."""
        return self.get(f"/v1/models/{model}/metadata").json()["model_spec"]["version"]


@dataclass
class Answer:
    """Status, headers and body of one response."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(self.json()["error"])


@contextmanager
def serving(base: Path | str, log_path: Path, *flags: str, ready: bool = True) -> Iterator[Running]:
    """`mserve serve BASE --port 0 FLAGS` as a process; stopped by its process id at the end."""
    command = [
        sys.executable,
        "-m",
        "mserve",
        "serve",
        str(base),
        "--port",
        "0",
        "--grpc-port",
        "0",
        "--poll",
        "0.1",
        *flags,
    ]
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stderr=log, stdout=log)
    try:
        deadline = time.monotonic() + START_S
        while not (match := re.search(r"listening on https?://[^:]+:(\d+)", log_path.read_text())):
            assert process.poll() is None, log_path.read_text()
            assert time.monotonic() < deadline, log_path.read_text()
            time.sleep(0.02)
        running = Running(process, int(match[1]), log_path)
        if ready:
            running.wait_ready()
        yield running
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
