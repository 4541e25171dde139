"""Start and stop of a server process.

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
from urllib.parse import quote

import uvloop

from .. import __version__
from ..errors import EnvironmentProblem
from ..front import Front
from ..loader.plan import ModelConfig
from ..numerics import show_bytes
from ..runtime.ort import cpu_budget, share_threads
from ..wire import tfs_json
from .app import Options, Server, models_of
from .grpc_server import GrpcServer

log = logging.getLogger("mserve")

GRACE_S = 30.0
SETTLE_S = 60.0
INLINE_BODY_CHARS = 300


def run(options: Options) -> int:
    """Serve until a signal says stop. Returns the exit code.

    Raises UsageError (path), EnvironmentProblem (port taken).
    """
    models = models_of(options)
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
    grpc_server = server.grpc()
    if options.grpc_port is not None:
        await grpc_server.start(f"{options.host}:{options.grpc_port}")
    server.reconciler.start()
    background = [
        loop.create_task(_sweep(server)),
        loop.create_task(_announce(server, options.host, port, grpc_server.port)),
    ]
    await stop.wait()
    await _drain(server, listener, grpc_server)
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


async def _drain(server: Server, listener: asyncio.Server, grpc_server: GrpcServer) -> None:
    """Stop taking connections, finish what was accepted, within the grace time."""
    log.info("stopping: finishing %d connections", len(server.peers.open))
    server.draining = True
    listener.close()
    rpcs = asyncio.get_running_loop().create_task(grpc_server.stop(GRACE_S))
    for connection in list(server.peers.open):
        connection.drain()
    deadline = time.monotonic() + GRACE_S
    while time.monotonic() < deadline and (server.peers.open or not server.executor.idle()):
        await asyncio.sleep(0.02)
        for connection in list(server.peers.open):
            connection.drain()
    if server.peers.open:
        log.warning("stopping: %d connections were cut after %g s", len(server.peers.open), GRACE_S)
    await rpcs


async def _announce(server: Server, host: str, port: int, grpc_port: int) -> None:
    """Say where the server listens, what it serves, and how to ask it."""
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    _say(f"mserve {__version__} listening on {url} (Ctrl-C stops)")
    if grpc_port:
        _say(f"  gRPC on {f'[{host}]' if ':' in host else host}:{grpc_port}")
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
