"""The standard health service of gRPC.

The service "" is the server as a whole, and so is each service that it answers; every
other name is that of a model. Probes carry no token; where clients need one, only the
server's own names are answered without it. A name stays for as long as it is watched, so
names are short.

Source: https://github.com/grpc/grpc/blob/master/doc/health-checking.md
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from typing import Any

from ..errors import NotFound, RequestError, Unauthenticated
from ..loader.reconciler import Model
from ..wire.messages import message
from .rpc import Methods, Rpc, RpcReply

POLL_S = 0.2
SERVICE = "grpc.health.v1.Health"
NAME_BYTES_MAX = 256
# A message has nothing but the name and what introduces it.
_FRAME_BYTES = 8


class Health:
    """Answers whether the server, or one model, can take requests.

    `unready()` gives the reasons why the server cannot; a watch ends when `draining()`;
    `knows(metadata)` tells whether a client may ask for models.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        unready: Callable[[], Sequence[str]],
        draining: Callable[[], bool],
        services: Collection[str],
        knows: Callable[[Mapping[str, str | bytes]], bool],
    ) -> None:
        self._knows = knows
        self._models = models
        self._unready = unready
        self._draining = draining
        self._services = {"", SERVICE, *services}

    def methods(self) -> Methods:
        """Check and Watch."""
        return Methods({f"{SERVICE}/Check": self._check}, {f"{SERVICE}/Watch": self._watch})

    def status(self, service: str) -> str:
        """The name of a service's status; one that nobody knows is SERVICE_UNKNOWN."""
        if service in self._services:
            return "NOT_SERVING" if self._unready() else "SERVING"
        model = self._models.get(service)
        if model is None:
            return "SERVICE_UNKNOWN"
        return "SERVING" if model.default is not None and not self._draining() else "NOT_SERVING"

    def _check(self, rpc: Rpc, reply: RpcReply) -> None:
        service = self._asked(rpc.message, rpc)
        status = self.status(service)
        if status == "SERVICE_UNKNOWN":
            raise NotFound("no such service or model", found=repr(service[:200]))
        reply(_response(status))

    async def _watch(self, messages: AsyncIterator[bytes], rpc: Rpc) -> AsyncIterator[bytes]:
        """Say the status, and say it again whenever it has changed."""
        async for first in messages:
            service, said = self._asked(first, rpc), ""
            while True:
                status = self.status(service)
                if status != said:
                    yield _response(status)
                    said = status
                if self._draining():
                    return
                await asyncio.sleep(POLL_S)

    def _asked(self, data: bytes, rpc: Rpc) -> str:
        """The service of a message. Raises RequestError; Unauthenticated where it needs a token."""
        service = _service(data)
        if service not in self._services and not self._knows(rpc.metadata):
            raise Unauthenticated(
                "the health of a model needs a token", expected="Authorization: Bearer TOKEN"
            )
        return service


def _service(data: bytes) -> str:
    """The name in a HealthCheckRequest. Raises RequestError."""
    from google.protobuf.message import DecodeError

    name = ""
    if len(data) <= NAME_BYTES_MAX + _FRAME_BYTES:
        try:
            request: Any = message("grpc.health.v1.HealthCheckRequest").FromString(data)
        except (DecodeError, UnicodeDecodeError) as error:
            raise RequestError("the message is not a HealthCheckRequest", found=error) from error
        name = request.service
    if max(len(data) - _FRAME_BYTES, len(name.encode())) > NAME_BYTES_MAX:
        raise RequestError("the name is too long", expected=f"at most {NAME_BYTES_MAX} bytes")
    return name


def _response(status: str) -> bytes:
    response = message("grpc.health.v1.HealthCheckResponse")()
    response.status = response.ServingStatus.Value(status)
    data: bytes = response.SerializeToString()
    return data
