"""The listener on a real loop and real sockets."""

from __future__ import annotations

import asyncio
import socket
from typing import cast

import uvloop

from mserve.server.listener import AT_ONCE, Listener, listen

CLIENTS = 200


class Greets(asyncio.Protocol):
    """Greets whoever comes."""

    met = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say hello."""
        Greets.met += 1
        cast(asyncio.Transport, transport).write(b"hello")


def begin(sockets: list[socket.socket]) -> Listener:
    Greets.met = 0
    return Listener(sockets, Greets, lambda: None, lambda _: True)


def test_all_who_come_at_once_are_met_within_a_few_turns_of_the_loop() -> None:
    """A loop under load turns a hundred times a second: one connection a turn would be two seconds."""

    async def work() -> int:
        sockets = await listen("127.0.0.1", 0, CLIENTS)
        listener = begin(sockets)
        clients = [socket.create_connection(sockets[0].getsockname()) for _ in range(CLIENTS)]
        turns = 0
        while Greets.met < CLIENTS and turns < CLIENTS:
            await asyncio.sleep(0)
            turns += 1
        assert Greets.met == CLIENTS
        assert [client.recv(5) for client in clients] == [b"hello"] * CLIENTS
        await listener.finish()
        for client in clients:
            client.close()
        return turns

    assert uvloop.run(work()) < 5 * CLIENTS / AT_ONCE


def test_who_waits_to_be_accepted_when_the_end_comes_is_still_met() -> None:
    async def work() -> None:
        sockets = await listen("127.0.0.1", 0, CLIENTS)
        address = sockets[0].getsockname()
        listener = begin(sockets)
        clients = [socket.create_connection(address) for _ in range(CLIENTS)]
        await listener.finish()
        await asyncio.sleep(0)
        assert Greets.met == CLIENTS
        assert [client.recv(5) for client in clients] == [b"hello"] * CLIENTS
        for client in clients:
            client.close()
        with socket.socket() as late:
            assert late.connect_ex(address) != 0, "nobody listens any more"

    uvloop.run(work())
