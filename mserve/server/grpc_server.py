"""The gRPC port: sockets to connections, and their end."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from ..errors import EnvironmentProblem
from .grpc_connection import GrpcConnection
from .listener import Listener, Turn, listen
from .peers import Peers
from .rpc import Admit, Methods

SWEEP_S = 1.0
POLL_S = 0.02
BACKLOG = 4096


class GrpcServer:
    """Listens, and hands calls to the codecs' handlers on the event loop.

    `admit(method, metadata)` raises MserveError for a call that may not be made, and
    tells whether the client may make administrative ones.
    """

    def __init__(self, methods: Methods, admit: Admit, peers: Peers, *, access_log: bool = False) -> None:
        self.methods = methods
        self.admit = admit
        self.peers = peers
        self.access_log = access_log
        self.open: set[GrpcConnection] = set()
        self.stopping = False
        self.port = 0
        self._listener: Listener | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(
        self,
        sockets: Sequence[socket.socket],
        context: Callable[[], ssl.SSLContext] | None = None,
        turn: Turn | None = None,
    ) -> None:
        """Serve on sockets that listen, over TLS where there is a context, asked for with each connection.

        `turn` is for sockets that are shared with other processes: see Listener.
        """
        self._listener = Listener(
            sockets, self._connection, lambda: context() if context else None, self._room, turn
        )
        self.port = sockets[0].getsockname()[1]
        self.spawn(self._sweep())

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something in the background that answers for itself."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self) -> None:
        """Accept what is waiting to be accepted, and no more."""
        if self._listener is not None:
            await self._listener.finish()

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, and finish those under way within the grace time."""
        self.stopping = True
        await self.finish()
        until = time.monotonic() + grace_s
        while self.open and time.monotonic() < until:
            for connection in list(self.open):
                connection.drain()
            await asyncio.sleep(POLL_S)
        for connection in list(self.open):
            connection.cut()

    def _connection(self) -> GrpcConnection:
        return GrpcConnection(self)

    def _room(self, more: int) -> bool:
        return len(self.open) + more < self.peers.connections_max

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            now = time.monotonic_ns()
            for connection in list(self.open):
                connection.sweep(now)


async def listen_grpc(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen for gRPC. Raises EnvironmentProblem when that is not possible."""
    try:
        return await listen(host, port, BACKLOG)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        raise EnvironmentProblem(
            "cannot listen for gRPC",
            where=f"{host}:{port}",
            found="another process listens there" if taken else (error.strerror or error),
            hint="choose another --grpc-port; 0 takes any free one, off none",
        ) from error
