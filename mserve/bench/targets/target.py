"""Targets: what is measured. A bundle in this process, or a server's URL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..load.client import Connection
from ..load.placement import EVERYWHERE, Placement
from ..load.server_view import Counters
from .endpoint import Endpoint

DISTINCT = 16


@dataclass(frozen=True, slots=True)
class Ask:
    """What the command line says about the requests, the server, and where a bundle runs: all optional.

    `rows` is 0 where it does not say. `inputs` is a file, a bundle, or the word golden. With
    `spawn`, the server runs where `placement` puts it, and can do the `reload` of `--during-reload`.
    """

    model: str = ""
    signature: str = ""
    rows: int = 0
    inputs: Path | None = None
    device: str = ""
    protocol: str = "auto"
    streams: int = 16
    ca: Path | None = None
    token_file: Path | None = None
    distinct: int = DISTINCT
    seed: int = 1
    verify: bool = False
    spawn: bool = False
    serve_flags: tuple[str, ...] = ()
    placement: Placement = EVERYWHERE
    reload: str = ""
    note: Callable[[str], None] = lambda text: None


class Connector(Protocol):
    """What opens connections. `versions` counts answers by model version since the beginning."""

    versions: dict[bytes, int]
    connections_max: int

    async def connect(self) -> Connection:
        """One more way to have one request at a time answered. Raises OSError."""


class Target(Connector, Protocol):
    """What is measured."""

    # Client and server run on one event loop, so that one's work delays the other.
    shares_loop: bool

    @property
    def endpoint(self) -> Endpoint | None:
        """Where it listens; None in this process."""

    def description(self) -> Connector:
        """The part of the target that another process needs, once `start` was called: it can be pickled.

        Raises UsageError where there is none: a bundle in this process.
        """

    def describe(self) -> dict[str, Any]:
        """Facts for the report: kind, model, signature, rows, bytes of a request, and identity."""

    async def start(self) -> None:
        """Get ready on the running loop."""

    async def counters(self) -> Counters | None:
        """The server's own counters now, or None."""

    async def close(self) -> None:
        """Free what `start` took."""
