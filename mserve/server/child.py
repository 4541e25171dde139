"""One of several serving processes: `python -m mserve.server.child FD`, started by the parent.

It accepts on the sockets that the parent listens on, and answers inference with versions that it
has loaded because the parent said so. It decides nothing: which versions are loaded, which of
them requests go to, the configuration, who may ask and the certificates all come over the
control channel. Every other request goes over that channel to the parent, whose answer is that
of the server as a whole. A child never outlives its parent.

    parent says                     child answers
    load: path, device, handle      when the version is warm, or why it cannot be
    learn: state, config, ...       done, when it has taken it (see `mirror`)
    accept                          -
    release: handle                 released, when its last request is answered
    count                           what was counted since the last time (see `tallies`)
    recall                          what its flight recorder knows
    drain                           counted; it ends with code 0
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from .. import __version__
from ..errors import BundleIncomplete, EnvironmentProblem, MserveError
from ..loader.servable import Servable, Stats, load
from ..runtime.children import die_with_parent
from ..runtime.memory import give_back
from ..runtime.ort import import_engine, limit_threads
from . import mirror, tallies
from .access import Access
from .config import Config, from_tables
from .control import Channel, Closed, Frames, Head, Message, error_head
from .grpc_server import GrpcServer
from .listener import Listener
from .logs import begin
from .run import drain, quieten_collector, sweep
from .shares import Shares
from .tls import Tls, of_pem
from .worker import Worker

log = logging.getLogger("mserve")

LOAD_THREADS = 8
READ_BYTES = 64 << 10
POLL_S = 0.01
NOTE_S = 0.1


def main() -> None:
    """Serve until the parent says otherwise, or is gone."""
    control = socket.socket(fileno=int(sys.argv[1]))
    die_with_parent()  # elsewhere than on Linux the channel's end does it
    # A line is one write, so that lines of several processes never mix.
    sys.stderr = io.TextIOWrapper(
        io.FileIO(2, "w", closefd=False),
        errors="backslashreplace",
        write_through=True,
    )
    boot = _first_message(control)
    if boot["version"] != __version__:
        sys.exit(f"mserve was changed on the disk, from {boot['version']}; restart the server")
    config = from_tables(boot["config"])
    begin(config.log)
    import_engine()
    limit_threads(boot["threads"])
    try:
        uvloop.run(_serve(boot, config, control))
    except MserveError as error:
        log.error("a serving process cannot start: %s", error)
        sys.exit(error.exit_code)


def _first_message(control: socket.socket) -> Head:
    """What the parent says first; it then waits for a word."""
    frames = Frames()
    while data := control.recv(READ_BYTES):
        for message in frames.feed(data):
            return message.head
    sys.exit(0)  # the parent is gone


async def _serve(boot: Head, config: Config, control: socket.socket) -> None:
    worker = Worker(config, boot["threads"])
    shares = Shares(boot["shares"], boot["count"], boot["number"])
    http, grpc = ([socket.socket(fileno=fd) for fd in boot[port]] for port in ("http", "grpc"))
    child = Child(worker, http, grpc, shares)
    loop = asyncio.get_running_loop()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, child.stop)
    control.setblocking(False)
    _, worker.control = await loop.create_unix_connection(
        lambda: Channel(child.take, _orphaned), sock=control
    )
    worker.control.send({"do": "hello"})
    await sweep(worker)


def _orphaned() -> None:
    """The parent is gone: nobody would end this process."""
    os._exit(1)


class Child:
    """Does what the parent says."""

    def __init__(
        self,
        worker: Worker,
        http: Sequence[socket.socket],
        grpc: Sequence[socket.socket],
        shares: Shares,
    ) -> None:
        self._worker = worker
        self._http, self._grpc_sockets = http, grpc
        self._shares = shares
        self._held: dict[int, Servable] = {}
        self._loading: dict[int, asyncio.Task[None]] = {}
        self._counted: dict[int, Stats] = {}
        self._state: list[Any] = []
        self._loaders = ThreadPoolExecutor(LOAD_THREADS, "mserve-load")
        self._tls: Tls | None = None
        self._listener: Listener | None = None
        self._grpc: GrpcServer = worker.grpc()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = self._settled = False

    def take(self, message: Message) -> None:
        """Do what a message says; what takes time goes on in the background."""
        head = message.head
        match head["do"]:
            case "load":
                task = self._start(self._load(head))
                self._loading[head["handle"]] = task
            case "release":
                self._start(self._release(head["handle"]))
            case "accept":
                self._start(self._accept())
            case "count":
                self._send({"re": head["id"], **self._counts()})
            case "recall":
                recorder = self._worker.recorder
                found, latest = recorder.explain(head["request_id"]), list(recorder.latest())
                self._send({"re": head["id"], "found": found, "latest": latest if head["batches"] else []})
            case "drain":
                self.stop()
            case "learn":
                self._learn(head["what"], head["said"])
                self._send({"do": "done", "seq": head["seq"]})

    def _learn(self, what: str, said: Any) -> None:
        """Take what holds from now on."""
        if what == "state":
            self._state = said
            self._follow()
            if not self._settled and any(m.available for m in self._worker.models.values()):
                self._settled = True
                quieten_collector()
        elif what == "config":
            self._worker.take_config(from_tables(said))
        elif what == "access":
            self._worker.access = Access.of(said)
        elif what == "tls":
            self._tls = of_pem(said)

    def _follow(self) -> None:
        mirror.follow(self._worker.models, self._state, self._held)

    def _send(self, head: Mapping[str, Any]) -> None:
        self._worker.control.send(head)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _load(self, head: Head) -> None:
        """Load and warm up a version, and say how that went."""
        handle = head["handle"]
        opener = partial(_open, Path(head["path"]), head["identity"], head["device"], head["prefetch"])
        answer: Head = {"re": head["id"]}
        try:
            servable = await asyncio.get_running_loop().run_in_executor(self._loaders, opener)
        except MserveError as error:
            answer["error"] = error_head(error)
        except MemoryError as error:
            short = EnvironmentProblem("not enough memory to load the version", where=head["path"])
            short.found = str(error)
            answer["error"] = error_head(short)
        except Exception as error:
            log.exception("%s: our bug while loading", head["path"])
            answer["error"] = error_head(MserveError("loading failed unexpectedly", found=repr(error)))
        else:
            self._held[handle], self._counted[handle] = servable, tallies.copy_stats(servable.stats)
            self._follow()
        self._send(answer)

    async def _release(self, handle: int) -> None:
        """Free a version that gets no more requests, once the last one is answered."""
        if (loading := self._loading.pop(handle, None)) is not None:
            await loading
        servable, added = self._held.get(handle), None
        if servable is not None:
            while servable.in_flight > 0:
                await asyncio.sleep(POLL_S)
            added = self._added(handle)
            del self._held[handle], self._counted[handle]
            await asyncio.get_running_loop().run_in_executor(self._loaders, _free, servable)
        self._send({"do": "released", "handle": handle, "stats": added})

    def _added(self, handle: int) -> Head:
        """What a version has counted since the last time."""
        stats, before = self._held[handle].stats, self._counted[handle]
        self._counted[handle] = tallies.copy_stats(stats)
        return tallies.stats_since(stats, before)

    def _counts(self) -> Head:
        backlog = self._worker.executor.batcher.backlog
        return {
            "series": tallies.take_series(self._worker.metrics),
            "versions": [
                [handle, servable.in_flight, backlog(servable).rows, self._added(handle)]
                for handle, servable in self._held.items()
            ],
            "connections": self._connections(),
        }

    async def _accept(self) -> None:
        """Begin to take connections."""
        if self._listener is not None or self._stopping:
            return
        worker = self._worker
        self._listener = Listener(
            self._http,
            worker.connection,
            lambda: self._tls.context if self._tls else None,
            worker.peers.room,
            self._turn,
        )
        if self._grpc_sockets:
            await self._grpc.start(self._grpc_sockets, self._h2 if self._tls else None, self._turn)
        while not self._stopping:  # some have left without a word
            self._shares.note(self._connections())
            await asyncio.sleep(NOTE_S)

    def _h2(self) -> ssl.SSLContext:
        assert self._tls is not None
        return self._tls.h2

    def _turn(self, more: int) -> bool:
        return self._shares.turn(self._connections() + more)

    def _connections(self) -> int:
        return len(self._worker.peers.open) + len(self._grpc.open)

    def stop(self) -> None:
        """Answer what was accepted, and end."""
        if not self._stopping:
            self._stopping = True
            self._start(self._finish())

    async def _finish(self) -> None:
        if self._listener is not None:
            await self._listener.finish()
            await self._grpc.finish()
            self._shares.leave()
        await drain(self._worker, self._listener, self._grpc)
        if self._worker.request_log is not None:
            self._worker.request_log.close()
        with suppress(Closed):
            await self._worker.control.ask({"do": "counted", **self._counts()})
        logging.shutdown()
        os._exit(0)


def _open(path: Path, identity: str, device: str, prefetch: bool) -> Servable:
    """Load the bundle that the parent has looked at. Raises a BundleError, also where it is another one."""
    servable = load(path, device, prefetch=prefetch)
    found = servable.bundle.metagraph.identity
    if found != identity:
        servable.close()
        raise BundleIncomplete("another bundle lies there now", where=path, expected=identity, found=found)
    return servable


def _free(servable: Servable) -> None:
    servable.close()
    give_back()


if __name__ == "__main__":
    main()
