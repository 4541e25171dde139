"""Connectors: what opens connections to a server, in this process or, pickled, in another.

Everything that was asked of the server and of the user is settled by then: a connector
holds requests as bytes, and where and how they are sent.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from ...errors import MserveError
from ..requests.codecs import CODECS, version_of
from ..targets.endpoint import Endpoint
from .client import Check, Connection, HttpConnection, Seen
from .grpc_client import Channel, call

CONNECT_TIMEOUT_S = 5.0
CONNECTIONS_MAX = 1024
# A stream costs memory only, so a few sockets carry very many.
STREAMS_ALL_MAX = 1 << 16
_FILES_RESERVED = 64

P = TypeVar("P", bound=asyncio.Protocol)


def connector(
    endpoint: Endpoint, protocol: str, requests: Sequence[bytes], check: Check | None, streams: int
) -> HttpConnector | GrpcConnector:
    """What opens connections of a protocol; `requests` are as its codec encodes them."""
    if CODECS[protocol].method:
        return GrpcConnector(endpoint, CODECS[protocol].method, requests, check, streams)
    return HttpConnector(endpoint, requests, check)


async def _open(endpoint: Endpoint, factory: Callable[[], P], tls: ssl.SSLContext | None) -> P:
    """One more connection to the server. Raises OSError."""
    _, connection = await asyncio.wait_for(
        asyncio.get_running_loop().create_connection(
            factory,
            endpoint.address,
            endpoint.port,
            ssl=tls,
            server_hostname=endpoint.host if tls else None,
        ),
        CONNECT_TIMEOUT_S,
    )
    return connection


class HttpConnector:
    """Connections that carry one request at a time."""

    def __init__(self, endpoint: Endpoint, requests: Sequence[bytes], check: Check | None = None) -> None:
        self.__setstate__((endpoint, requests, check))

    def __getstate__(self) -> tuple[Any, ...]:
        return self._endpoint, self._requests, self._seen.check

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._endpoint, self._requests, check = state
        self._seen = Seen(len(self._requests), check)
        self._tls = self._endpoint.tls()
        self.versions: dict[bytes, int] = {}
        self.connections_max = min(CONNECTIONS_MAX, files_max())

    async def connect(self) -> Connection:
        """Open one more connection. Raises OSError."""
        factory = partial(HttpConnection, self._requests, self.versions, self._seen)
        return await _open(self._endpoint, factory, self._tls)


class GrpcConnector:
    """Connections that carry `streams` calls at a time; what `connect` gives is a place in one."""

    def __init__(
        self, endpoint: Endpoint, method: str, messages: Sequence[bytes], check: Check | None, streams: int
    ) -> None:
        self.__setstate__((endpoint, method, messages, check, streams))

    def __getstate__(self) -> tuple[Any, ...]:
        return self._endpoint, self._method, self._messages, self._check, self._streams

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._endpoint, self._method, self._messages, self._check, self._streams = state
        secure, token = self._endpoint.scheme == "grpcs", self._endpoint.token
        self._requests = [
            call(self._endpoint.authority, self._method, m, secure=secure, token=token)
            for m in self._messages
        ]
        self._tls = self._endpoint.tls()
        self._channels: list[Channel] = []
        self._opening: dict[Channel, asyncio.Task[Channel]] = {}
        self.versions: dict[bytes, int] = {}
        self.connections_max = min(STREAMS_ALL_MAX, self._streams * min(CONNECTIONS_MAX, files_max()))

    async def connect(self) -> Connection:
        """A place in a connection that has one, or in a new one. Raises OSError."""
        self._channels = [channel for channel in self._channels if channel.usable]
        channel = next((c for c in self._channels if c.taken < self._streams), None)
        if channel is None:
            channel = self._new()
        channel.taken += 1
        try:
            if channel in self._opening:
                await asyncio.shield(self._opening[channel])
            await asyncio.wait_for(asyncio.shield(channel.settled), CONNECT_TIMEOUT_S)
        except BaseException:
            channel.taken -= 1
            if not channel.taken:
                channel.close("")
            raise
        return channel.place()

    def _new(self) -> Channel:
        channel = Channel(self._requests, version_of)
        channel.versions, channel.check = self.versions, self._check
        task = asyncio.get_running_loop().create_task(_open(self._endpoint, lambda: channel, self._tls))
        self._channels.append(channel)
        self._opening[channel] = task
        task.add_done_callback(lambda done: self._opened(channel, done))
        return channel

    def _opened(self, channel: Channel, task: asyncio.Task[Channel]) -> None:
        self._opening.pop(channel, None)
        if task.cancelled() or task.exception() is not None:
            channel.close("it could not be opened")


async def answer(source: HttpConnector | GrpcConnector, index: int, connection: Connection) -> int:
    """Send one request and wait for its outcome. Raises MserveError when none comes."""
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    connection.send(index, lambda _, outcome, __: ended.set_result(outcome))
    try:
        return await asyncio.wait_for(ended, CONNECT_TIMEOUT_S * 6)
    except TimeoutError as error:
        raise MserveError("no answer to a request") from error


def files_max() -> int:
    """How many sockets this process may have."""
    try:
        import resource
    except ImportError:
        return CONNECTIONS_MAX
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return limit - _FILES_RESERVED if limit > 0 else CONNECTIONS_MAX
