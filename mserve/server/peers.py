"""What the clients of a server share: limits, and a budget of the bytes that are held for them.

A body counts from the first byte received until its request is answered, and so does what
comes out of a compressed one. Bodies are inflated on threads, hence the lock; what the
event loop alone counts needs none.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..batching.outbox import Outbox
from ..errors import ClientLeft, Overloaded, PayloadTooLarge, Unavailable

if TYPE_CHECKING:
    from .http import Connection

BODY_BYTES_MAX = 64 << 20
BUFFERED_BYTES_MAX = 512 << 20
SEND_TIMEOUT_S = 30.0
IDLE_TIMEOUT_S = 75.0
CONNECTIONS_MAX = 10_000
# Who sends so much at once is not read from again in the same tick of the loop, which would
# otherwise take in megabytes before it turns to the next client.
REST_BYTES = 64 << 10


@dataclass(slots=True)
class Peers:
    """The set of connections of the HTTP listener, limits, and the bytes held for clients of both ports.

    `received` counts bodies as they came, and only the event loop writes it;
    `buffered` counts what is `Held`, under the lock. `streamed` are bytes of gRPC's streams
    that no codec has asked for yet, with a budget of their own: a message must not be refused
    for what follows it. Answers over HTTP go out by `outbox`.
    """

    body_max: int = BODY_BYTES_MAX
    buffered_max: int = BUFFERED_BYTES_MAX
    connections_max: int = CONNECTIONS_MAX
    send_timeout_s: float = SEND_TIMEOUT_S
    idle_timeout_s: float = IDLE_TIMEOUT_S
    open: set[Connection] = field(default_factory=set)
    buffered: int = 0
    received: int = 0
    streamed: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    outbox: Outbox = field(default_factory=Outbox)

    def room(self, more: int) -> bool:
        """Whether another connection may come, beside those open and `more`."""
        return len(self.open) + more < self.connections_max

    def takes(self, size: int) -> bool:
        """Whether there is room for so many bytes more."""
        return self.received + self.buffered + size <= self.buffered_max

    def check_body(self, size: int) -> None:
        """Whether a body may have so many bytes. Raises PayloadTooLarge."""
        if size > self.body_max:
            raise PayloadTooLarge(
                "the request body is too large", expected=f"at most {self.body_max} bytes", found=size
            )

    def receive(self, size: int) -> None:
        """Count bytes of a body as they come. Raises Overloaded."""
        self.received += size
        if not self.takes(0):
            raise self.too_many()

    def full(self) -> Unavailable:
        """What a connection is told where there are too many."""
        return Unavailable(
            "the server has too many connections",
            expected=f"at most {self.connections_max}",
            hint="try again later",
        )

    def too_many(self) -> Overloaded:
        """What is said where there is no room."""
        return Overloaded(
            "the server holds too many request bodies",
            expected=f"at most {self.buffered_max} bytes at once",
            hint="try again later",
        )


@dataclass(slots=True)
class Held:
    """The bytes that are held for one request."""

    peers: Peers
    size: int = 0
    over: bool = False

    def take(self, size: int) -> None:
        """Count more bytes. Raises Overloaded: too many are held for all together; ClientLeft: answered."""
        peers = self.peers
        with peers.lock:
            if self.over:
                raise ClientLeft("the client has left")
            self.size += size
            peers.buffered += size
        if not peers.takes(0):
            raise peers.too_many()

    def release(self) -> None:
        """The request is answered, or never will be: nothing of it counts any more."""
        with self.peers.lock:
            self.peers.buffered -= self.size
            self.size, self.over = 0, True
