"""A server of bench's own: `mserve serve` on free ports of this machine, for as long as it is measured.

It gets CPUs of its own where there are two or more, so that client and server do not
compete; Ctrl-C reaches bench alone, which stops the server in order; and should bench be
killed, the server is, too.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson

from ...errors import EnvironmentProblem, UsageError
from ...format import layout, open_bundle
from ..load.client import Connection
from ..load.placement import Placement
from ..load.reload import WORDS
from ..load.server_view import Counters
from ..requests.bundle_inputs import bundle_samples
from ..requests.codecs import CODECS
from .endpoint import locate, parse_url
from .pages import get
from .target import Ask, Connector, Target
from .url_target import UrlTarget, open_url

START_S = 120.0
STOP_S = 40.0
LOG_TAIL = 2000
_LOOK_S = 0.02
_HTTP = re.compile(r"listening on (https?)://[^\s]+?:(\d+) ")
_GRPC = re.compile(r"^  gRPC on [^\n]+?:(\d+)$", re.MULTILINE)


class Child:
    """A server process, from its start to its exit code."""

    def __init__(self, config: bytes, flags: Sequence[str], cpus: frozenset[int]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mserve-bench-")
        folder = Path(self._folder.name)
        self._log = folder / "log"
        (folder / "serve.toml").write_bytes(config)
        where = ["--config", str(folder / "serve.toml"), "--port", "0", "--grpc-port", "0"]
        bound = ["-m", "mserve.runtime.children", str(os.getpid()), ",".join(map(str, sorted(cpus)))]
        command = [sys.executable, *bound, "serve", *where, *flags]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def log(self) -> str:
        """What the server has said."""
        return self._log.read_text(errors="replace")

    def ports(self) -> tuple[str, int, int]:
        """Wait until the server listens: the scheme, and the ports of HTTP and gRPC (0: none).

        Raises EnvironmentProblem.
        """
        found = self._wait(lambda: _HTTP.search(self.log()), "did not start")
        self._wait(lambda: _ready(f"{found[1]}://127.0.0.1:{found[2]}"), "has nothing to serve")
        grpc = _GRPC.search(self.log())
        return found[1], int(found[2]), int(grpc[1]) if grpc else 0

    def _wait(self, holds: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + START_S
        while not (found := holds()):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise EnvironmentProblem(
                    f"the server that bench started {what}",
                    found=f"exit code {self._process.returncode}" if self._process.returncode is not None
                    else f"nothing after {START_S:g} s",
                    hint=f"its log ends: {self.log()[-LOG_TAIL:].strip()}",
                )  # fmt: skip
            time.sleep(_LOOK_S)
        return found

    def stop(self) -> int:
        """SIGTERM, and wait; SIGKILL if that is not enough. Returns the exit code, negative for a signal."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        code = self._process.wait()
        self._folder.cleanup()
        return code


def configuration(bundle: Path, reload: str = "") -> bytes:
    """A configuration of one version of one model; JSON's strings are TOML's.

    Where new versions are to be published (`reload` is then a path), it is of the newest one.
    Raises BundleError, or UsageError where the bundle is not the newest one then.
    """
    opened = open_bundle(bundle)
    path = opened.path.resolve()
    name = orjson.dumps(opened.metagraph.name or path.parent.name)
    base = orjson.dumps(str(path.parent))
    head = b"[models.%b]\nbase_path = %b\n" % (name, base)
    if not reload or reload in WORDS:
        return head + b"versions = [%d]\n" % opened.version
    if Path(reload).resolve() != path.parent:
        raise UsageError(
            "the server that bench starts looks elsewhere",
            expected=f"--during-reload {path.parent}", found=reload,
        )  # fmt: skip
    if (newest := max(layout.versions(path.parent))) != opened.version:
        raise UsageError(
            "new versions are published after the newest one", expected=f"version {newest}", found=str(path)
        )
    return head


def _ready(url: str) -> bool:
    return get(locate(parse_url(url)[0]), "/readyz")[0] == 200


def open_spawned(bundle: Path, ask: Ask) -> Target:
    """Start a server of a bundle, find out how to ask it. Raises MserveError, and leaves nothing running."""
    samples = bundle_samples(bundle, ask)
    placement = ask.placement
    flags = [*ask.serve_flags, *(["--admin"] if ask.reload in WORDS else [])]
    child = Child(configuration(bundle, ask.reload), flags, placement.server)
    try:
        scheme, port, grpc_port = child.ports()
        if ask.protocol in CODECS and CODECS[ask.protocol].method:
            scheme, port = scheme.replace("http", "grpc"), grpc_port
            if not grpc_port:
                raise UsageError("the server was started without gRPC", found=" ".join(ask.serve_flags))
        url = f"{scheme}://127.0.0.1:{port}"
        target = open_url(url, ask, samples)
    except BaseException:
        child.stop()
        raise
    ask.note(f"started a server: {url}, process {child.pid}, {_named(placement.server)}")
    if placement.own:
        os.sched_setaffinity(0, placement.own)
    return Spawned(child, target, placement, ask.note)


def _named(cpus: frozenset[int]) -> str:
    return f"CPUs {', '.join(map(str, sorted(cpus)))}" if cpus else "on the same CPUs as the client"


class Spawned:
    """A server of our own as a target: a URL target that ends with its server."""

    shares_loop = False

    def __init__(
        self, child: Child, target: UrlTarget, placement: Placement, note: Callable[[str], None]
    ) -> None:
        self._child, self._target, self._placement, self._note = child, target, placement, note
        self.endpoint = target.endpoint
        self.versions = target.versions
        self.connections_max = target.connections_max

    def describe(self) -> dict[str, Any]:
        """Facts for the report."""
        cpus = {"generator": sorted(self._placement.own), "server": sorted(self._placement.server)}
        return self._target.describe() | {"spawned": {"process": self._child.pid, "cpus": cpus}}

    async def start(self) -> None:
        """Get ready on the running loop."""
        try:
            await self._target.start()
        except BaseException:
            self._child.stop()
            raise

    def description(self) -> Connector:
        """What opens connections, here or in another process."""
        return self._target.description()

    async def connect(self) -> Connection:
        """Open one more connection. Raises OSError."""
        return await self._target.connect()

    async def counters(self) -> Counters | None:
        """The model's counters, or None."""
        return await self._target.counters()

    async def close(self) -> None:
        """Stop the server, and say how it ended."""
        await self._target.close()
        log = self._child.log()
        code = self._child.stop()
        self._note(f"the server stopped with exit code {code}")
        if code:
            self._note(f"its log ends: {log[-LOG_TAIL:].strip()}")
