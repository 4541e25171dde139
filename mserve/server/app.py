"""The server: one event loop that owns connections, queues and versions.

Start: bind, load in the background, say where it listens; the last line of the start-up
message is a request that can be pasted. Stop (SIGTERM or Ctrl-C): not ready, no new
connections, finish what was accepted, exit 0; a second signal stops at once.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from urllib.parse import quote

import uvloop

from .. import __version__
from ..batching.batcher import Entry, Limits
from ..batching.executor import Executor
from ..errors import EnvironmentProblem, MethodNotAllowed, NotFound
from ..front import Front
from ..loader.reconciler import ModelConfig, Reconciler
from ..loader.servable import load
from ..numerics import show_bytes
from ..runtime.ort import cpu_budget, share_threads
from ..wire import tfs_json
from ..wire.http1 import TEXT, Request, Response, json_response
from .http import BODY_BYTES_MAX, BUFFERED_BYTES_MAX, Connection, Peers, Reply
from .metrics import CONTENT_TYPE, Metrics
from .tfs_rest import TfsRest, parse_path

log = logging.getLogger("mserve")

GRACE_S = 30.0
SETTLE_S = 60.0
INLINE_BODY_CHARS = 300


@dataclass(frozen=True, slots=True)
class Options:
    """How to serve."""

    host: str = "127.0.0.1"
    port: int = 8501
    limits: Limits = Limits()  # noqa: RUF009 - frozen
    body_max: int = BODY_BYTES_MAX
    timeout_s: float = 30.0
    poll_s: float = 1.0
    prefetch: bool = False


class Server:
    """Everything that lives on the event loop."""

    def __init__(self, options: Options, models: Sequence[ModelConfig]) -> None:
        self.options = options
        budget = cpu_budget()
        opener = partial(load, prefetch=options.prefetch)
        self.reconciler = Reconciler(models, opener=opener, poll_s=options.poll_s)
        self.executor = Executor(options.limits, workers=budget)
        self.front = Front(self.reconciler.models, self.executor, options.timeout_s)
        self.metrics = Metrics(self.reconciler.models)
        self.peers = Peers(options.body_max, max(BUFFERED_BYTES_MAX, 2 * options.body_max))
        self.draining = False
        self._tfs = TfsRest(self.front, self.metrics)

    def handle(self, request: Request, reply: Reply) -> Entry | None:
        """Route one request. Raises MserveError."""
        route = parse_path(request.target)
        if route is not None:
            return self._tfs.handle(route, request, reply)
        path = request.target.split(b"?", 1)[0].decode("latin-1")
        page = self._page(path)
        if page is None:
            raise NotFound("no such page", where=path, hint="GET /v1/models lists the models")
        if request.method != "GET":
            raise MethodNotAllowed("the page answers another method", expected="GET", found=request.method)
        reply(page)
        return None

    def _page(self, path: str) -> Response | None:
        if path in ("/metrics", "/monitoring/prometheus/metrics"):
            return Response(200, self.metrics.render(), CONTENT_TYPE)
        if path == "/livez":
            return Response(200, b"ok\n", TEXT)
        if path == "/readyz":
            missing = self.unready()
            text = "ok\n" if not missing else "\n".join(missing) + "\n"
            return Response(503 if missing else 200, text.encode(), TEXT)
        if path == "/":
            return json_response({"server": "mserve", "version": __version__, "models": "/v1/models"})
        return None

    def unready(self) -> list[str]:
        """Why the server is not ready, a line for each reason; empty when it is."""
        if self.draining:
            return ["shutting down"]
        models = self.reconciler.models.items()
        return [f"{name}: {m.why_unavailable()}" for name, m in models if not m.available]

    def connection(self) -> Connection:
        """A protocol for a new client."""
        return Connection(self.handle, self.peers)


def run(options: Options, models: Sequence[ModelConfig]) -> int:
    """Serve until a signal says stop. Returns the exit code.

    Raises EnvironmentProblem (port taken).
    """
    share_threads(cpu_budget())
    return uvloop.run(_serve(options, models))


async def _serve(options: Options, models: Sequence[ModelConfig]) -> int:
    loop = asyncio.get_running_loop()
    server = Server(options, models)
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            log.warning("second signal: stopping at once")
            os._exit(130)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    listener = await _listen(loop, server)
    port = listener.sockets[0].getsockname()[1]
    background = [
        loop.create_task(server.reconciler.run()),
        loop.create_task(_sweep(server)),
        loop.create_task(_announce(server, options.host, port)),
    ]
    await stop.wait()
    await _drain(server, listener)
    for task in background:
        task.cancel()
    await asyncio.gather(*background, return_exceptions=True)
    server.executor.close()
    await server.reconciler.close()
    return 0


async def _listen(loop: asyncio.AbstractEventLoop, server: Server) -> asyncio.Server:
    options = server.options
    try:
        return await loop.create_server(server.connection, options.host, options.port, backlog=4096)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        raise EnvironmentProblem(
            "the port is taken" if taken else "cannot listen",
            where=f"{options.host}:{options.port}",
            found="another process listens there" if taken else (error.strerror or error),
            hint="choose another --port; --port 0 takes any free one" if taken else "check --host and --port",
        ) from error


async def _sweep(server: Server) -> None:
    while True:
        await asyncio.sleep(1.0)
        now = time.monotonic()
        for connection in list(server.peers.open):
            connection.sweep(now)


async def _drain(server: Server, listener: asyncio.Server) -> None:
    """Stop taking connections, finish what was accepted, within the grace time."""
    log.info("stopping: finishing %d connections", len(server.peers.open))
    server.draining = True
    listener.close()
    for connection in list(server.peers.open):
        connection.drain()
    deadline = time.monotonic() + GRACE_S
    while time.monotonic() < deadline and (server.peers.open or not server.executor.idle()):
        await asyncio.sleep(0.02)
        for connection in list(server.peers.open):
            connection.drain()
    if server.peers.open:
        log.warning("stopping: %d connections were cut after %g s", len(server.peers.open), GRACE_S)


async def _announce(server: Server, host: str, port: int) -> None:
    """Say where the server listens, what it serves, and how to ask it."""
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    _say(f"mserve {__version__} listening on {url} (Ctrl-C stops)")
    start = time.monotonic()
    while not server.reconciler.settled() and time.monotonic() - start < SETTLE_S:
        await asyncio.sleep(0.01)
    for name, model in server.reconciler.models.items():
        for version, servable in model.available.items():
            names = ", ".join(servable.signatures)
            size = show_bytes(servable.bundle.byte_size)
            _say(f"  {name} version {version}: available ({size}; signatures: {names})")
        if not model.available:
            _say(f"  {name}: nothing to serve yet: {model.why_unavailable()}")
    while True:
        for name, model in server.reconciler.models.items():
            if model.available:
                _say("Ask it:")
                _say("  " + curl_line(server.front, name, url))
                return
        await asyncio.sleep(0.2)


def curl_line(front: Front, name: str, url: str) -> str:
    """A shell line that makes a prediction when pasted."""
    servable = front.resolve(name)
    _, spec = servable.signature()
    body = tfs_json.encode_inputs(servable.example(), rows=spec.batch_axis is not None).decode()
    model = f"{url}/v1/models/{quote(name, safe='')}"
    call = shlex.quote(f"{model}:predict")
    if len(body) <= INLINE_BODY_CHARS:
        return f"curl -s -d {shlex.quote(body)} {call}"
    return f"curl -s {shlex.quote(f'{model}/example')} | curl -s -d @- {call}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
