"""Targets: what is measured, and with which request. A bundle in this process, or a server's URL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..files import read_input
from ..format.golden import read_npz
from ..tensors import Array
from .client import Connection
from .server_view import Counters


@dataclass(frozen=True, slots=True)
class Ask:
    """What the command line says about the request, and about where a bundle runs: all optional."""

    model: str = ""
    signature: str = ""
    rows: int = 1
    inputs: Path | None = None
    device: str = ""


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

    def description(self) -> Connector:
        """The part of the target that another process needs: it can be pickled.

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


def read_inputs(path: Path) -> Mapping[str, Array] | bytes:
    """An inputs file: arrays of an npz archive, or the bytes of a JSON predict request. Raises InputError."""
    if path.suffix == ".npz":
        arrays = read_npz(path).items()
        return {a: x.astype(str).astype(object) if x.dtype.kind in "UST" else x for a, x in arrays}
    return read_input(path)
