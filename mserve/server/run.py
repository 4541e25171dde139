"""Start and stop of a server process.

Start: bind, load in the background, say where it listens; the last line of the start-up
message is a request that can be pasted. Stop (SIGTERM or Ctrl-C): not ready, no new
connections, finish what was accepted, exit 0; a second signal stops at once.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import resource
import shlex
import signal
import sys
import time
from contextlib import suppress
from typing import NoReturn
from urllib.parse import quote

import uvloop

from .. import __version__
from ..errors import EnvironmentProblem, MserveError, RequestError, printable
from ..front import Front
from ..numerics import show_bytes
from ..runtime import devices
from ..runtime.ort import import_engine
from ..wire import tfs_json
from .app import Server
from .config import Config, changed, tls_files
from .grpc_server import GrpcServer, listen_grpc
from .listener import Listener, listen
from .logs import begin, set_level
from .tls import Tls
from .watch import Change, ConfigWatch

log = logging.getLogger("mserve")

SETTLE_S = 60.0
FILES_RESERVED = 512
INLINE_BODY_CHARS = 300
CHANGES_TOLD = 10
BACKLOG = 4096
COLLECT_AFTER = (10_000, 20, 50)


def run(watch: ConfigWatch) -> NoReturn:
    """Serve until a signal says stop; ends the process.

    Raises InputError (TLS files), EnvironmentProblem (port taken, no such device).
    """
    begin(watch.config.log)
    devices.resolve(watch.config.server.device)
    _allow_files(2 * watch.config.limits.connections + FILES_RESERVED)  # of each port
    if watch.config.server.processes > 1:
        from .parent import serve

        uvloop.run(serve(watch))
    else:
        import_engine()
        uvloop.run(_serve(watch))
    raise AssertionError("unreachable")


def _allow_files(wanted: int) -> None:
    """Raise the soft limit of open files, which is often 1024, to what the connections need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, raised), hard))


def follow_signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Events that signals set: stop (a second such signal ends the process), and reload."""
    loop = asyncio.get_running_loop()
    stop, reload = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            log.warning("second signal: stopping at once")
            os._exit(130)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    loop.add_signal_handler(signal.SIGHUP, reload.set)
    return stop, reload


async def _serve(watch: ConfigWatch) -> None:
    loop = asyncio.get_running_loop()
    config = watch.config
    server = Server(config)
    stop, reload = follow_signals()
    files = tls_files(config)
    tls = Tls(files) if files else None
    listener = await _listen(server, tls)
    port = listener.sockets[0].getsockname()[1]
    grpc_server = server.grpc()
    if config.server.grpc_port is not None:
        sockets = await listen_grpc(config.server.host, config.server.grpc_port)
        await grpc_server.start(sockets, (lambda: tls.h2) if tls else None)
    server.reconciler.start()
    background = [
        loop.create_task(sweep(server)),
        loop.create_task(follow(server, watch, reload, tls)),
        loop.create_task(announce(server, port, grpc_server.port)),
    ]
    await stop.wait()
    await drain(server, listener, grpc_server)
    for task in background:
        task.cancel()
    if server.request_log is not None:
        server.request_log.close()
    logging.shutdown()
    # Everything accepted is answered. What still runs (a load, a model past the grace time, a
    # listing that hangs) would only hold up the end, and the system frees it better.
    os._exit(0)


async def follow(server: Server, watch: ConfigWatch, reload: asyncio.Event, tls: Tls | None) -> None:
    """Read the configuration, tokens and certificates again when they change; SIGHUP asks for it at once."""
    for warning in watch.config.warnings:
        log.warning("%s", warning)
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(server.config.server.poll):
                await reload.wait()
        try:
            await asyncio.to_thread(server.access.follow)
            if tls is not None:
                await asyncio.to_thread(tls.renew)
            if reload.is_set() or await asyncio.to_thread(watch.due):
                reload.clear()
                _take(server, await asyncio.to_thread(watch.reload), watch.problem)
        except Exception:
            log.exception("our bug while following the configuration")


def _take(server: Server, change: Change | None, problem: str) -> None:
    """Make a configuration that was read the server's, or note why it cannot be."""
    if change is not None:
        try:
            before = server.config
            server.reconfigure(change.config)
        except MserveError as error:
            problem = str(error)
            log.warning("the new configuration is not used: %s", problem)
        else:
            set_level(change.config.log)
            log.info("took a new configuration")
            lines = changed(before, change.config)
            for line in lines[:CHANGES_TOLD]:
                log.info("configuration: %s", line)
            if len(lines) > CHANGES_TOLD:
                log.info("configuration: %d more keys changed", len(lines) - CHANGES_TOLD)
            for warning in change.config.warnings:
                if warning not in before.warnings:
                    log.warning("%s", warning)
            if change.restart:
                log.warning("these keys take effect with a restart: %s", ", ".join(change.restart))
    server.config_problem = problem


async def _listen(server: Server, tls: Tls | None) -> Listener:
    config = server.config.server
    try:
        sockets = await listen(config.host, config.port, BACKLOG)
    except OSError as error:
        raise cannot_listen(config.host, config.port, error) from error
    return Listener(sockets, server.connection, lambda: tls.context if tls else None, server.peers.room)


def cannot_listen(host: str, port: int, error: OSError) -> EnvironmentProblem:
    """Why nobody can listen at an address, for people."""
    taken = error.errno == errno.EADDRINUSE
    return EnvironmentProblem(
        "the port is taken" if taken else "cannot listen",
        where=f"{host}:{port}",
        found="another process listens there" if taken else (error.strerror or error),
        hint="choose another --port; --port 0 takes any free one" if taken else "check --host and --port",
    )


async def sweep(server: Server) -> None:
    """Look after connections that are idle or slow, for ever."""
    while True:
        await asyncio.sleep(1.0)
        now = time.monotonic()
        for connection in list(server.peers.open):
            connection.sweep(now)


async def drain(server: Server, listener: Listener | None, grpc_server: GrpcServer) -> None:
    """Stop taking connections, finish what was accepted, within the grace time."""
    log.info("stopping: finishing %d connections", len(server.peers.open))
    server.draining = True
    if listener is not None:
        await listener.finish()
    grace = server.config.server.grace
    rpcs = asyncio.get_running_loop().create_task(grpc_server.stop(grace))
    for connection in list(server.peers.open):
        connection.drain()
    deadline = time.monotonic() + grace
    while time.monotonic() < deadline and (server.peers.open or not server.executor.idle()):
        await asyncio.sleep(0.02)
        for connection in list(server.peers.open):
            connection.drain()
    if server.peers.open:
        log.warning("stopping: %d connections were cut after %g s", len(server.peers.open), grace)
    await rpcs


async def announce(server: Server, port: int, grpc_port: int) -> None:
    """Say where the server listens, what it serves, and how to ask it."""
    host, scheme = server.config.server.host, "https" if server.config.tls.cert else "http"
    url = f"{scheme}://{_in_url(host)}:{port}"
    say = _say_json if server.config.log.format == "json" else _say
    say(f"mserve {__version__} listening on {url} (Ctrl-C stops)")
    if grpc_port:
        say(f"  gRPC on {_in_url(host)}:{grpc_port}")
    if line := await asyncio.to_thread(device_line, server.config):
        say(f"  {line}")
    start = time.monotonic()
    while not server.reconciler.settled() and time.monotonic() - start < SETTLE_S:
        await asyncio.sleep(0.01)
    quieten_collector()
    for name, model in server.reconciler.models.items():
        for version, servable in model.available.items():
            names = printable(", ".join(servable.signatures))
            size = show_bytes(servable.bundle.byte_size)
            say(f"  {name} version {version}: available ({size}; signatures: {names})")
        if not model.available:
            say(f"  {name}: nothing to serve yet: {model.why_unavailable()}")
    _check_redacted(server)
    while True:
        for name, model in server.reconciler.models.items():
            if model.default is not None:
                say("Ask it:")
                say("  " + curl_line(server.front, name, url, curl_options(server.config)))
                return
        await asyncio.sleep(0.2)


def device_line(config: Config) -> str:
    """Which device models run on, for people; "" where that is the CPU and nobody asked for more."""
    wanted = {config.server.device, *(model.device for model in config.models.values())}
    if devices.AUTO not in wanted:
        return "" if config.server.device == devices.CPU else f"models run on {config.server.device}"
    device, why = devices.automatic()
    return f"device auto: {device}, since CUDA cannot be used: {why}" if why else f"device auto: {device}"


def quieten_collector() -> None:
    """Have the collector of cycles leave alone what has been read so far, which stays for good.

    It would walk through it again and again, for tens of milliseconds, between two requests. They
    make few cycles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


def _check_redacted(server: Server) -> None:
    """Warn of names in `redact` that no signature has: a slip there would record what is to be kept out."""
    loaded = [s for m in server.reconciler.models.values() for s in m.available.values()]
    signatures = [signature for servable in loaded for signature in servable.signatures.values()]
    ports = {a for s in signatures for a in (*s.inputs, *s.sparse, *s.outputs)}
    unknown = [name for name in server.config.request_log.redact if name not in ports]
    if server.request_log is not None and loaded and unknown:
        log.warning("request_log.redact names what no loaded signature has: %s", ", ".join(unknown))


def curl_options(config: Config) -> str:
    """What every call of curl needs, ready for a shell: whom to trust, and places for what is secret."""
    options = ""
    if config.tls.cert:
        options += f" --cacert {shlex.quote(str(config.tls.cert))}"
    if config.tls.client_ca:
        options += " --cert CLIENT.pem --key CLIENT.key"
    if config.auth.tokens or config.auth.admin_tokens:
        options += " -H 'Authorization: Bearer TOKEN'"
    return options


def curl_line(front: Front, name: str, url: str, options: str = "") -> str:
    """A shell line that makes a prediction when pasted."""
    servable = front.resolve(name)
    _, spec = servable.signature()
    model = f"{url}/v1/models/{quote(name, safe='')}"
    try:
        body = tfs_json.encode_inputs(
            servable.example(), rows=spec.batch_axis is not None, signature=spec
        ).decode()
    except RequestError:  # nobody can paste inputs that are too large to make some up
        return f"curl -s{options} {shlex.quote(f'{model}/metadata')}"
    call = shlex.quote(f"{model}:predict")
    if len(body) <= INLINE_BODY_CHARS:
        return f"curl -s{options} -d {shlex.quote(body)} {call}"
    return f"curl -s{options} {shlex.quote(f'{model}/example')} | curl -s{options} -d @- {call}"


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _say(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)


def _say_json(line: str) -> None:
    """The same as a line of the log, whatever its level: this is said at every start."""
    log.handle(log.makeRecord(log.name, logging.INFO, "", 0, line.strip(), (), None))
