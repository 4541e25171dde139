"""The parent of several serving processes: everything of a server but answering inference.

It runs the ordinary reconciler, whose versions the children load; follows the configuration,
tokens and certificates, and tells the children; listens, and leaves it to them to accept. What
a client asks of a child that is not inference arrives here, and is answered by the ordinary
handlers, from the state and the counters of the whole.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from typing import Any, NoReturn
from urllib.parse import unquote

from ..errors import MserveError
from ..wire.context import Context
from ..wire.http1 import Head as HttpHead
from ..wire.http1 import Request, Response
from . import tallies
from .app import EXPLAIN, Server
from .calls import as_error
from .config import Config, tls_files, to_tables
from .control import Head, Message, error_head
from .grpc_server import listen_grpc
from .listener import listen
from .process import Process
from .processes import LOOK_S, Fleet, Plan
from .recorder import Recorder
from .rpc import Rpc
from .run import BACKLOG, announce, cannot_listen, follow, follow_signals
from .tls import Tls
from .watch import ConfigWatch

log = logging.getLogger("mserve")

COUNT_EVERY = 10
# What shows counters, which are fetched first.
_COUNTED = (b"/metrics", b"/prometheus/", b"/stats")
_COUNTED_METHODS = ("/ModelStatistics",)


class Recalled(Recorder):
    """What the children's flight recorders have told, for one answer."""

    def __init__(self, found: Any, batches: list[Any]) -> None:
        super().__init__()
        self._found, self._batches = found, batches

    def explain(self, request_id: str) -> dict[str, Any] | None:
        return None if self._found is None else dict(self._found)

    def latest(self) -> Iterator[dict[str, Any]]:
        return iter(self._batches)


class Parent(Server):
    """A server whose models are loaded, and whose inference is answered, by a fleet."""

    def __init__(self, config: Config, plan: Plan) -> None:
        self._started = config
        self.fleet = Fleet(plan, self._tables, self._asked)
        super().__init__(config, 0, self.fleet.open, self.fleet.publish)
        self.fleet.models = self.reconciler.models
        self.fleet.counted = lambda series: tallies.add_series(self.metrics, series)
        self.metrics.processes = self.fleet.figures
        self.metrics.in_flight = lambda servable: self.fleet.gauge(servable, 0)
        self.metrics.waiting = lambda servable: self.fleet.gauge(servable, 1)
        self._unary = self.grpc_methods().unary

    def _tables(self) -> Head:
        """The configuration, as children are told."""
        return to_tables(self.config, self._started)

    def reconfigure(self, config: Config) -> None:
        super().reconfigure(config)
        self.tell(None)

    def tell(self, tls: Tls | None) -> None:
        """Tell the children what holds now, as far as it has changed."""
        self.fleet.tell("config", self._tables())
        self.fleet.tell("access", self.access.rules())
        if tls is not None:
            self.fleet.tell("tls", tls.pem())
        self.fleet.publish()

    def unready(self) -> list[str]:
        if not self.draining and not self.fleet.accepting():
            return ["no serving process runs"]
        return super().unready()

    async def look(self, tls: Tls | None) -> None:
        """Tell the children what has changed without a word, and count, for ever."""
        turn = 0
        while True:
            await asyncio.sleep(LOOK_S)
            turn += 1
            try:
                self.tell(tls)
                if turn % COUNT_EVERY == 0:
                    await self.fleet.count()
            except Exception:
                log.exception("our bug while looking after serving processes")

    def _asked(self, process: Process, message: Message) -> None:
        """What a client has asked a child."""
        work = self._http if message.head["do"] == "http" else self._rpc
        self.calls.spawn(work(process, message))

    async def _http(self, process: Process, message: Message) -> None:
        head = message.head
        target = head["target"].encode("latin-1")
        if any(word in target for word in _COUNTED):
            await self.fleet.count()
        elif target.startswith(b"/debug/"):
            path = target.decode("latin-1")
            wanted = unquote(path.removeprefix(EXPLAIN)) if path.startswith(EXPLAIN) else ""
            self.recorder = Recalled(*await self.fleet.recall(wanted, batches=not wanted))
        headers = {k.encode("latin-1"): v.encode("latin-1") for k, v in head["headers"]}
        about = HttpHead(head["method"], target, headers)
        request = Request(about, message.body, head["start_ns"], head["client"])
        request.request_id, request.traceparent = head["identity"]
        answered: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self.handle(request, answered.set_result)
        response = await answered
        await self.fleet.sync()
        answer: Head = {
            "re": head["id"],
            "status": response.status,
            "type": response.content_type,
            "headers": response.headers,
            "echo": request.echo.decode("latin-1"),
        }
        process.channel.send(answer, response.body)

    async def _rpc(self, process: Process, message: Message) -> None:
        head = message.head
        if head["method"].endswith(_COUNTED_METHODS):
            await self.fleet.count()
        start_ns, timeout_ns, request_id, traceparent = head["context"]
        context = Context(start_ns, timeout_ns, request_id, traceparent, head["admin"])
        token = {"authorization": head["authorization"]} if head["authorization"] else {}
        rpc = Rpc(head["method"], message.body, context, token)
        answered: asyncio.Future[bytes | MserveError] = asyncio.get_running_loop().create_future()
        try:
            self._unary[rpc.method](rpc, answered.set_result)
            result = await answered
        except Exception as error:
            result = as_error(error, rpc.method)
        await self.fleet.sync()
        failed = error_head(result) if isinstance(result, MserveError) else None
        process.channel.send(
            {"re": head["id"], "error": failed}, result if isinstance(result, bytes) else b""
        )


async def serve(watch: ConfigWatch) -> NoReturn:
    """Serve with several processes until a signal says stop; ends the process.

    Raises InputError (TLS files), EnvironmentProblem (port taken).
    """
    loop = asyncio.get_running_loop()
    config = watch.config
    stop, reload = follow_signals()
    files = tls_files(config)
    tls = Tls(files) if files else None
    table = config.server
    try:
        http = await listen(table.host, table.port, BACKLOG)
    except OSError as error:
        raise cannot_listen(table.host, table.port, error) from error
    grpc = [] if table.grpc_port is None else await listen_grpc(table.host, table.grpc_port)
    port, grpc_port = (s[0].getsockname()[1] if s else 0 for s in (http, grpc))
    server = Parent(config, Plan(table.processes, http, grpc, table.prefetch))
    server.tell(tls)
    started = loop.create_task(server.fleet.start())
    stopping = loop.create_task(stop.wait())
    await asyncio.wait((started, stopping), return_when=asyncio.FIRST_COMPLETED)
    background: list[asyncio.Task[Any]] = []
    if not stop.is_set():
        server.reconciler.start()
        background = [
            loop.create_task(server.look(tls)),
            loop.create_task(follow(server, watch, reload, tls)),
            loop.create_task(announce(server, port, grpc_port)),
        ]
        await stopping
    log.info("stopping: %d serving processes finish what they accepted", len(server.fleet.processes))
    server.draining = True
    await server.fleet.drain(server.config.server.grace)
    for task in background:
        task.cancel()
    logging.shutdown()
    os._exit(0)
