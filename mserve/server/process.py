"""One child of several serving processes, as its parent holds it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from .control import Channel, error_of
from .mirror import Proxy


@dataclass(eq=False)
class Process:
    """One child.

    `loads` are the versions it has or is loading, by handle; `done` is the number of the last
    thing that it was told and has taken; `gauges` are requests in flight and rows that wait.
    """

    number: int
    popen: subprocess.Popen[bytes]
    channel: Channel
    ended: asyncio.Event
    greeted: bool = False
    accepting: bool = False
    done: int = 0
    connections: int = 0
    loads: dict[int, asyncio.Future[None]] = field(default_factory=dict)
    gauges: dict[int, tuple[int, int]] = field(default_factory=dict)

    def has(self, handle: int) -> bool:
        """Whether a version is loaded."""
        load = self.loads.get(handle)
        return load is not None and load.done() and not load.cancelled() and load.exception() is None

    def load(self, proxy: Proxy, prefetch: bool) -> asyncio.Future[None]:
        """Load a version, unless that is under way; the future raises what keeps the child from it."""
        known = self.loads.get(proxy.handle)
        if known is None or (known.done() and not self.has(proxy.handle)):
            known = self.loads[proxy.handle] = asyncio.ensure_future(self._load(proxy, prefetch))
        return known

    async def _load(self, proxy: Proxy, prefetch: bool) -> None:
        path, identity = str(proxy.bundle.path), proxy.bundle.metagraph.identity
        head = {
            "do": "load",
            "handle": proxy.handle,
            "path": path,
            "identity": identity,
            "device": proxy.device,
            "prefetch": prefetch,
        }
        answer = (await self.channel.ask(head)).head
        if "error" in answer:
            raise error_of(answer["error"])


def spawn(control: socket.socket, handed: Sequence[int]) -> subprocess.Popen[bytes]:
    """A fresh process with this one's modules, a group of its own, and these file descriptors."""
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "mserve.server.child", str(control.fileno())],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": paths},
        pass_fds=[control.fileno(), *handed],
        process_group=0,
    )


def how_ended(code: int) -> str:
    """How a process ended, for people."""
    if code < 0:
        with suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with code {code}"
