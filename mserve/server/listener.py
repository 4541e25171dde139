"""Listener: accepts the connections of a port and hands each to a protocol.

The event loop's own listeners accept one connection in each turn of the loop. Under load a
turn takes milliseconds, clients answer slowness with more connections, and the last of 500
waited for three seconds. So this one takes all that wait, up to a number in each turn.

With TLS there is more: the loop's listener keeps the one context it began with, and a
context can only be given more authorities, never fewer: clients of an authority that was
taken away would be let in until the end, also by the sessions that the old context resumes.
And it does not tell of a connection before the handshake is over. So connections are counted
here, and each is handed over together with the context that is in use then.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress

log = logging.getLogger("mserve")

HANDSHAKE_S = 10.0
FINISH_S = 1.0
YIELDS, YIELD_S = 4, 0.001
# So many connections are taken in a turn of the loop: a flood of them leaves time for the others.
AT_ONCE = 32
# How long to wait when the process has no file descriptor left.
FULL_S = 0.1

Turn = Callable[[int], bool]


class Listener:
    """Accepts on `sockets`, which listen and do not block.

    `context()` is asked for each connection; where it is None there is no TLS. With TLS, one for
    which `room(handshakes)`, given how many shake hands now, is False is closed at once; without,
    the protocol can say why not.

    The sockets may be shared with other processes that accept on them, too: while `turn(handshakes)`
    is False, the next connection is left to them for a moment.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        protocol: Callable[[], asyncio.Protocol],
        context: Callable[[], ssl.SSLContext | None],
        room: Callable[[int], bool],
        turn: Turn | None = None,
    ) -> None:
        self.sockets = sockets
        self._turn = turn or (lambda more: True)
        self._protocol = protocol
        self._context = context
        self._room = room
        self._handshakes: set[asyncio.Task[None]] = set()
        loop = asyncio.get_running_loop()
        self._accepting = [loop.create_task(self._accept(s)) for s in sockets]

    async def finish(self) -> None:
        """Accept what is waiting to be accepted, which would be cut with the last socket, and no more.

        Who has not shaken hands soon is cut; connections go on.
        """
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        for listening in self.sockets:
            with suppress(OSError):
                while True:
                    self._begin(listening.accept()[0])
            listening.close()
        if self._handshakes:
            await asyncio.wait(self._handshakes, timeout=FINISH_S)
        for task in self._handshakes:
            task.cancel()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            for _ in range(YIELDS):
                if self._turn(len(self._handshakes)):
                    break
                await asyncio.sleep(YIELD_S)
            try:
                client, _ = await loop.sock_accept(listening)
            except OSError as error:
                log.warning("cannot accept a connection: %s", error.strerror)
                await asyncio.sleep(FULL_S)
                continue
            self._begin(client)
            self._accept_waiting(listening)

    def _accept_waiting(self, listening: socket.socket) -> None:
        # An error is that nobody waits any more, or it meets the next accept, too, and is told there.
        with suppress(OSError):
            for _ in range(1, AT_ONCE):
                if not self._turn(len(self._handshakes)):
                    break
                self._begin(listening.accept()[0])

    def _begin(self, client: socket.socket) -> None:
        context = self._context()
        if context is not None and not self._room(len(self._handshakes)):
            client.close()
            return
        task = asyncio.get_running_loop().create_task(self._hand_over(client, context))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

    async def _hand_over(self, client: socket.socket, context: ssl.SSLContext | None) -> None:
        try:
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().connect_accepted_socket(
                self._protocol, client, ssl=context, ssl_handshake_timeout=HANDSHAKE_S if context else None
            )
        except (OSError, asyncio.CancelledError):
            client.close()  # not a client of ours, or none that speaks TLS


async def listen(host: str, port: int, backlog: int) -> list[socket.socket]:
    """Sockets that listen on each address of a host. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, address in dict.fromkeys((f[0], f[4]) for f in found):
            sockets.append(socket.create_server(address, family=family, backlog=backlog))
            sockets[-1].setblocking(False)
    except OSError:
        for listening in sockets:
            listening.close()
        raise
    return sockets
