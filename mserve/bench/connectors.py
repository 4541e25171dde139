"""Connectors: what opens connections to a server, in this process or, pickled, in another."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from functools import lru_cache

from .client import Connection, HttpConnection

CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server listens. `address` is the numeric one that `host` stands for."""

    url: str
    scheme: str
    host: str
    port: int
    address: str = ""
    same_machine: bool = False

    @property
    def authority(self) -> str:
        """The Host header's value."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"


class HttpConnector:
    """Opens connections that send one request, here or in another process."""

    def __init__(
        self,
        endpoint: Endpoint,
        request: bytes,
        connections_max: int,
        versions: dict[bytes, int] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.connections_max = connections_max
        self.versions: dict[bytes, int] = {} if versions is None else versions
        self._request = request

    async def connect(self) -> Connection:
        """Open one more connection. Raises OSError."""
        tls = _tls() if self.endpoint.scheme == "https" else None
        _, connection = await asyncio.wait_for(
            asyncio.get_running_loop().create_connection(
                lambda: HttpConnection(self._request, self.versions),
                self.endpoint.address,
                self.endpoint.port,
                ssl=tls,
                server_hostname=self.endpoint.host if tls else None,
            ),
            CONNECT_TIMEOUT_S,
        )
        return connection


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()
