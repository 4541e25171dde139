"""The standard health service of gRPC.

The service "" is the server as a whole, and so is each service that it answers; every
other name is that of a model. It is open: probes carry no token.

Source: https://github.com/grpc/grpc/blob/master/doc/health-checking.md
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from typing import Any

from ..errors import NotFound, RequestError
from ..loader.reconciler import Model
from ..wire.messages import message
from .grpc_server import Methods, Rpc, RpcReply

POLL_S = 0.2
SERVICE = "grpc.health.v1.Health"


class Health:
    """Answers whether the server, or one model, can take requests.

    `unready()` gives the reasons why the server cannot; a watch ends when `draining()`.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        unready: Callable[[], Sequence[str]],
        draining: Callable[[], bool],
        services: Collection[str],
    ) -> None:
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
        service = _service(rpc.message)
        status = self.status(service)
        if status == "SERVICE_UNKNOWN":
            raise NotFound("no such service or model", found=repr(service[:200]))
        reply(_response(status))

    async def _watch(self, messages: AsyncIterator[bytes], rpc: Rpc) -> AsyncIterator[bytes]:
        """Say the status, and say it again whenever it has changed."""
        async for first in messages:
            service, said = _service(first), ""
            while True:
                status = self.status(service)
                if status != said:
                    yield _response(status)
                    said = status
                if self._draining():
                    return
                await asyncio.sleep(POLL_S)


def _service(data: bytes) -> str:
    from google.protobuf.message import DecodeError

    try:
        request: Any = message("grpc.health.v1.HealthCheckRequest").FromString(data)
    except (DecodeError, UnicodeDecodeError) as error:
        raise RequestError("the message is not a HealthCheckRequest", found=error) from error
    name: str = request.service
    return name


def _response(status: str) -> bytes:
    response = message("grpc.health.v1.HealthCheckResponse")()
    response.status = response.ServingStatus.Value(status)
    data: bytes = response.SerializeToString()
    return data
