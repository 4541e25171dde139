"""Several serving processes as their parent sees them: a fleet that loads and answers as one.

Versions switch in two phases. `open` has every child load and warm a version up: first one
alone, so that a model which ends its process ends one and not all, then the others. Only
when all have it does the reconciler make it available, and `publish` tells all children at once
where requests go from now on. A version that one child cannot load is loaded by none.

What holds (the models' state, the configuration, who may ask, certificates) is told as a
whole whenever it changes, and to every child that starts. `synced` waits until all have
taken it; an answer about the state goes out only then, so a client that was told of a
version finds it, whichever child it asks next.

A child that ends is started again, later and later while it does not stay. It takes
connections once it has loaded what is current; those waiting on the shared sockets go to its
neighbours meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .. import __version__
from ..loader.model import Model
from ..loader.servable import Servable, State, describe
from ..runtime.devices import settled
from ..runtime.ort import cpu_budget
from . import tallies
from .control import Channel, Closed, Head, Message
from .metrics import Process as Figures
from .mirror import Proxy, handle_of, state_of
from .process import Process, how_ended, spawn
from .shares import Shares, shared_memory

log = logging.getLogger("mserve")

RESTART_FIRST_S = 0.1
RESTART_MAX_S = 30.0
STEADY_S = 10.0
RETRY_MAX_S = 10.0
LOOK_S = 0.1
COUNT_S = 1.0
SYNC_S = 2.0
SYNC_POLL_S = 0.001
CUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Told:
    """Something that holds, as every child is told."""

    seq: int
    said: Any


@dataclass(frozen=True, slots=True)
class Plan:
    """What every child is started with: how many there are, the sockets to accept on, whether to prefetch."""

    count: int
    http: Sequence[socket.socket]
    grpc: Sequence[socket.socket]
    prefetch: bool = False


Asked = Callable[[Process, Message], None]


class Fleet:
    """The children. `models` are the parent's, `asked(process, message)` takes what children ask."""

    def __init__(self, plan: Plan, config: Callable[[], Head], asked: Asked) -> None:
        self._plan = plan
        self._sockets = (*plan.http, *plan.grpc)
        self._config = config
        self._asked = asked
        self._loop = asyncio.get_running_loop()
        self.models: dict[str, Model] = {}
        self.counted: Callable[[list[Any]], int] = lambda series: 0
        self.processes: dict[int, Process] = {}
        self._starts = [0] * plan.count
        self._requests = [0] * plan.count
        self._up = [asyncio.Event() for _ in range(plan.count)]
        self._told: dict[str, Told] = {}
        self._seq = self._last_handle = 0
        self._proxies: dict[int, Proxy] = {}  # those that children have, or are to have
        self._ready: set[int] = set()  # those that every child has loaded
        self._held: set[int] = set()  # those that were available at the last look
        self._leaving: dict[int, tuple[Proxy, set[Process]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._shares_fd = shared_memory(plan.count)
        self._shares = Shares(self._shares_fd, plan.count)

    # life and death

    async def start(self) -> None:
        """Start every child; returns when each has said a word, or has ended once."""
        for number in range(self._plan.count):
            self._begin(self._keep(number))
        await asyncio.gather(*(up.wait() for up in self._up))

    def _begin(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep(self, number: int) -> None:
        """Have a child run, for ever."""
        delay = RESTART_FIRST_S
        while not self._stopping:
            began = time.monotonic()
            how = await self._run(number)
            if self._stopping:
                return
            delay = RESTART_FIRST_S if time.monotonic() - began > STEADY_S else delay
            log.warning("serving process %d %s; starting another in %g s", number, how, delay)
            await asyncio.sleep(delay)
            delay = min(2 * delay, RESTART_MAX_S)

    async def _run(self, number: int) -> str:
        """One life of a child; returns how it ended."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                popen = spawn(theirs, [self._shares_fd, *(s.fileno() for s in self._sockets)])
        except OSError as error:
            ours.close()
            return f"cannot be started: {error.strerror}"
        ours.setblocking(False)
        ended = asyncio.Event()
        channel = Channel(lambda message: self._take(process, message), ended.set)
        process = self.processes[number] = Process(number, popen, channel, ended)
        self._starts[number] += 1
        await self._loop.create_unix_connection(lambda: channel, sock=ours)
        channel.send(self._boot(number))
        await process.ended.wait()
        with suppress(ProcessLookupError):
            popen.kill()  # one that has closed its end is of no use
        await self._loop.run_in_executor(None, popen.wait)
        del self.processes[number]
        self._shares.leave(number)
        for handle in list(self._leaving):
            self._left(process, handle)
        self._up[number].set()
        return f"(pid {popen.pid}) {how_ended(popen.returncode)}"

    def _boot(self, number: int) -> Head:
        share, more = divmod(cpu_budget(), self._plan.count)
        return {
            "version": __version__,
            "config": self._config(),
            "threads": max(1, share + (number < more)),
            "number": number,
            "count": self._plan.count,
            "shares": self._shares_fd,
            "http": [s.fileno() for s in self._plan.http],
            "grpc": [s.fileno() for s in self._plan.grpc],
        }

    def _take(self, process: Process, message: Message) -> None:
        """What a child says of itself; anything else is a question for the server."""
        head = message.head
        match head["do"]:
            case "hello":
                self._greet(process)
            case "done":
                process.done = max(process.done, head["seq"])
            case "released":
                self._add(head["handle"], head["stats"])
                process.loads.pop(head["handle"], None)
                self._left(process, head["handle"])
            case "counted":
                self._absorb(process, head)
                process.channel.send({"re": head["id"]})
            case _:
                self._asked(process, message)

    def _greet(self, process: Process) -> None:
        process.greeted = True
        log.info("serving process %d: pid %d", process.number, process.popen.pid)
        for what, told in self._told.items():
            process.channel.send(_learn(what, told))
        self._begin(self._bring_up(process))

    async def _bring_up(self, process: Process) -> None:
        """Have a child load what is current, then accept. While others accept, it waits until it has all."""
        delay = RESTART_FIRST_S
        while missing := [h for h in self._ready if not process.has(h)]:
            loads = [process.load(self._proxies[h], self._plan.prefetch) for h in missing]
            failed = [r for r in await asyncio.gather(*loads, return_exceptions=True) if r is not None]
            if process.ended.is_set():
                return
            if not failed:
                continue
            log.warning("serving process %d lacks a version: %s", process.number, failed[0])
            if not self.accepting():
                break
            await asyncio.sleep(delay)
            delay = min(2 * delay, RETRY_MAX_S)
        process.channel.send({"do": "accept"})
        process.accepting = True
        self._up[process.number].set()

    def accepting(self) -> list[Process]:
        """The children that take connections."""
        return [p for p in self.processes.values() if p.accepting and not p.ended.is_set()]

    def _greeted(self) -> list[Process]:
        return [p for p in self.processes.values() if p.greeted and not p.ended.is_set()]

    # versions

    def open(self, path: Path, device: str) -> Servable:
        """Have every child load a version; called on a thread. Raises what keeps any of them from it."""
        proxy = describe(path, Proxy)
        proxy.device = settled(device)
        try:
            asyncio.run_coroutine_threadsafe(self._load(proxy), self._loop).result()
        except BaseException:
            proxy.close()
            raise
        proxy.closed = partial(self._loop.call_soon_threadsafe, self._release, proxy)
        return proxy

    async def _load(self, proxy: Proxy) -> None:
        self._last_handle += 1
        proxy.handle = self._last_handle
        self._proxies[proxy.handle] = proxy
        try:
            first = next(iter(self._greeted()), None)
            if first is None:
                raise Closed("no serving process runs", hint="they are started again")
            await first.load(proxy, self._plan.prefetch)
            while missing := [p for p in self._greeted() if not p.has(proxy.handle)]:
                await asyncio.gather(*(p.load(proxy, self._plan.prefetch) for p in missing))
        except BaseException:
            self._release(proxy)
            raise
        self._ready.add(proxy.handle)

    def publish(self) -> None:
        """Tell all children where requests go now; those that drain are let go."""
        self.tell("state", state_of(self.models))
        slots = [s for m in self.models.values() for s in (*m.slots.values(), *m.retired)]
        held = {handle_of(s.servable) for s in slots if s.state is State.AVAILABLE}
        gone, self._held = self._held - held, held
        for handle in gone:
            self._release(self._proxies[handle])

    def _release(self, proxy: Proxy) -> None:
        """Have every child drain and free a version; `in_flight` tells how many have not done so yet."""
        if self._proxies.pop(proxy.handle, None) is None:
            return
        self._ready.discard(proxy.handle)
        holders = {p for p in self._greeted() if proxy.handle in p.loads}
        for process in holders:
            process.channel.send({"do": "release", "handle": proxy.handle})
        if holders:
            self._leaving[proxy.handle] = (proxy, holders)
            proxy.in_flight = len(holders)

    def _left(self, process: Process, handle: int) -> None:
        proxy, holders = self._leaving.get(handle, (None, set()))
        holders.discard(process)
        if proxy is not None:
            proxy.in_flight = len(holders)
            if not holders:
                del self._leaving[handle]

    # what holds

    def tell(self, what: str, said: Any) -> None:
        """Tell every child something that holds from now on, unless they know."""
        known = self._told.get(what)
        if known is None or known.said != said:
            self._seq += 1
            told = self._told[what] = Told(self._seq, said)
            for process in self._greeted():
                process.channel.send(_learn(what, told))

    def synced(self) -> bool:
        """Whether every child that answers has taken what it was told."""
        return all(p.done >= self._seq for p in self.accepting())

    async def sync(self) -> None:
        """Wait until they have, but for one that hangs."""
        until = time.monotonic() + SYNC_S
        while not self.synced() and time.monotonic() < until:
            await asyncio.sleep(SYNC_POLL_S)

    # counters

    async def count(self) -> None:
        """Add what the children have counted since the last time."""
        asked = []
        for process in self._greeted():
            answer = process.channel.ask({"do": "count"})
            answer.add_done_callback(partial(self._counted, process))
            asked.append(answer)
        if asked:
            await asyncio.wait(asked, timeout=COUNT_S)

    async def recall(self, request_id: str, *, batches: bool) -> tuple[Any, list[Any]]:
        """What the children's flight recorders know of a request, and of the last batches."""
        head = {"do": "recall", "request_id": request_id, "batches": batches}
        asked = [process.channel.ask(head) for process in self._greeted()]
        if asked:
            await asyncio.wait(asked, timeout=COUNT_S)
        told = [a.result().head for a in asked if a.done() and a.exception() is None]
        found = next((head["found"] for head in told if head["found"] is not None), None)
        return found, [batch for head in told for batch in head["latest"]]

    def _counted(self, process: Process, answer: asyncio.Future[Message]) -> None:
        if not answer.cancelled() and answer.exception() is None:
            self._absorb(process, answer.result().head)

    def _absorb(self, process: Process, head: Head) -> None:
        self._requests[process.number] += self.counted(head["series"])
        process.connections = head["connections"]
        process.gauges = {h: (flight, rows) for h, flight, rows, _ in head["versions"]}
        for handle, _, _, added in head["versions"]:
            self._add(handle, added)

    def _add(self, handle: int, added: Any) -> None:
        leaving, _ = self._leaving.get(handle, (None, None))
        proxy = self._proxies.get(handle, leaving)
        if proxy is not None and added is not None:
            tallies.add_stats(proxy.stats, added)

    def gauge(self, servable: Servable, which: int) -> int:
        """Requests in flight (0), or rows that wait (1), for a version, in all children."""
        return sum(p.gauges.get(handle_of(servable), (0, 0))[which] for p in self.processes.values())

    def figures(self) -> list[Figures]:
        """The children in numbers."""
        found = []
        for number, (starts, requests) in enumerate(zip(self._starts, self._requests, strict=True)):
            process = self.processes.get(number)
            up = process in self.accepting()
            connections = process.connections if process is not None else 0
            found.append(Figures(number, up, starts, connections, requests))
        return found

    # the end

    async def drain(self, grace_s: float) -> None:
        """Have every child answer what it has accepted, and end; one that does not is ended."""
        self._stopping = True
        for listening in self._sockets:
            listening.close()
        waiting = list(self.processes.values())
        for process in waiting:
            if process.greeted:
                process.channel.send({"do": "drain"})
            else:
                process.popen.kill()
        ends = [self._loop.create_task(p.ended.wait()) for p in waiting]
        if ends:
            await asyncio.wait(ends, timeout=grace_s + CUT_S)
        for process in waiting:
            if not process.ended.is_set():
                log.warning("serving process %d was ended: it did not stop", process.number)
                process.popen.kill()


def _learn(what: str, told: Told) -> Head:
    return {"do": "learn", "what": what, "said": told.said, "seq": told.seq}
