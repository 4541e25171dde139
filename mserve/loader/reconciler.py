"""Reconciler: bring the loaded versions of every model to what its base path holds.

`plan` decides and is pure; one loop executes. The loop runs on the event-loop thread and
owns every state here, so nothing is locked; listing directories and loading models
happens on threads of its own.

The policy is "the newest N versions that work": a version that is still arriving, or
that fails to load, is looked at again, and meanwhile the next older one takes its place.
A version that is no longer wanted goes only when a wanted one is available, and an empty
or vanished base path changes nothing, so a mistake on the disk never takes the service
down.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import BundleError, MserveError
from .servable import NEXT, Servable, State, load
from .source import Candidate, Fingerprint, Scan, scan

log = logging.getLogger("mserve")

RETRY_FIRST_NS = 1_000_000_000
RETRY_MAX_NS = 60_000_000_000
POLL_S = 1.0
ENDED_KEPT = 8


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One model: its name, where its versions lie, and how many of the newest to serve."""

    name: str
    base: Path
    latest: int = 1


@dataclass(slots=True)
class Slot:
    """One version of one model as the reconciler sees it. Times are monotonic nanoseconds."""

    version: int
    path: Path
    state: State = State.WAITING
    servable: Servable | None = None
    error: MserveError | None = None
    warning: str = ""
    fingerprint: Fingerprint | None = None
    attempts: int = 0
    retry_at_ns: int = 0
    load_ns: int = 0

    def become(self, state: State) -> None:
        """Move to another state; the table in `servable.NEXT` says which are allowed."""
        if state not in NEXT[self.state]:
            raise RuntimeError(f"version {self.version}: {self.state.value} -> {state.value}")
        self.state = state


@dataclass(slots=True)
class Model:
    """A model with its slots; `available` holds what requests may be sent to, oldest first."""

    config: ModelConfig
    slots: dict[int, Slot] = field(default_factory=dict)
    ended: list[int] = field(default_factory=list)
    problem: str = "not looked at yet"
    available: dict[int, Servable] = field(default_factory=dict)

    def publish(self) -> None:
        """Make `available` say what the slots say; called after every change."""
        self.available = {
            v: s.servable
            for v, s in sorted(self.slots.items())
            if s.state is State.AVAILABLE and s.servable is not None
        }

    def why_unavailable(self) -> str:
        """Why no version answers, for people."""
        reasons = [
            f"version {v} is {s.state.value}" + (f": {s.error}" if s.error else "")
            for v, s in sorted(self.slots.items())
        ]
        return "; ".join(reasons) or self.problem


@dataclass(frozen=True, slots=True)
class Action:
    """One step: "load", "unload" (stop taking requests and drain) or "forget" a version."""

    kind: str
    version: int


_TAKES_PLACE = frozenset({State.LOADING, State.AVAILABLE})


def plan(
    candidates: Mapping[int, Candidate], slots: Mapping[int, Slot], latest: int, now_ns: int
) -> list[Action]:
    """What to do next for one model; pure.

    Versions are tried from the newest down until `latest` of them are loading or
    available. A version that failed is tried again when its time has come or its files
    have changed.
    """
    wanted: set[int] = set()
    loads: list[Action] = []
    placed = 0
    for version in sorted(candidates, reverse=True):
        if placed >= latest:
            break
        wanted.add(version)
        slot = slots.get(version)
        if slot is None or (
            slot.state in (State.WAITING, State.FAILED) and _due(slot, candidates[version], now_ns)
        ):
            loads.append(Action("load", version))
        if slot is None or slot.state in _TAKES_PLACE:
            placed += 1
    if not candidates:
        wanted |= {v for v, s in slots.items() if s.state is State.AVAILABLE}
    serving = any(slots[v].state is State.AVAILABLE for v in wanted if v in slots)
    actions = loads
    for version, slot in slots.items():
        if version in wanted:
            continue
        if slot.state is State.AVAILABLE and serving:
            actions.append(Action("unload", version))
        elif slot.state in (State.WAITING, State.FAILED):
            actions.append(Action("forget", version))
    return actions


def _due(slot: Slot, candidate: Candidate, now_ns: int) -> bool:
    return now_ns >= slot.retry_at_ns or candidate.fingerprint != slot.fingerprint


class Reconciler:
    """Runs `plan` for a set of models until stopped.

    `on_change` is called after each change of what is available.
    """

    def __init__(
        self,
        models: Iterable[ModelConfig],
        *,
        opener: Callable[[Path], Servable] = load,
        on_change: Callable[[], None] = lambda: None,
        poll_s: float = POLL_S,
    ) -> None:
        self.models = {config.name: Model(config) for config in models}
        self._open = opener
        self._on_change = on_change
        self._poll_s = poll_s
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="mserve-load")
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Look, plan and act until cancelled."""
        while True:
            await self.step()
            self._wake.clear()
            try:
                await asyncio.wait_for(self._wake.wait(), self._poll_s)
            except TimeoutError:
                continue

    async def step(self) -> None:
        """One look at every base path, and the actions that follow; loads go on in the background."""
        loop = asyncio.get_running_loop()
        for model in self.models.values():
            found = await loop.run_in_executor(self._threads, scan, model.config.base)
            self._note(model, found)
            for action in plan(found.candidates, model.slots, model.config.latest, time.monotonic_ns()):
                self._execute(model, action, found.candidates)

    async def close(self) -> None:
        """Wait for loads under way and free every servable."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._threads.shutdown(wait=True, cancel_futures=True)
        for model in self.models.values():
            for slot in model.slots.values():
                if slot.servable:
                    slot.servable.close()

    def settled(self) -> bool:
        """Whether every model was looked at and nothing is loading."""
        return all(
            m.problem != "not looked at yet" and not any(s.state is State.LOADING for s in m.slots.values())
            for m in self.models.values()
        )

    def _note(self, model: Model, found: Scan) -> None:
        if found.problem != model.problem and found.problem:
            log.warning(
                "%s: %s%s",
                model.config.name,
                found.problem,
                "; keeping what is loaded" if model.slots else "",
            )
        model.problem = found.problem
        for version, slot in model.slots.items():
            candidate = found.candidates.get(version)
            if slot.state is not State.AVAILABLE or candidate is None:
                continue
            changed = candidate.fingerprint != slot.fingerprint
            if changed and not slot.warning:
                slot.warning = "the files changed under this version's number; still serving what was loaded"
                log.warning("%s version %d: %s", model.config.name, version, slot.warning)
            elif not changed:
                slot.warning = ""

    def _execute(self, model: Model, action: Action, candidates: Mapping[int, Candidate]) -> None:
        if action.kind == "load":
            candidate = candidates[action.version]
            slot = model.slots.setdefault(action.version, Slot(action.version, candidate.path))
            slot.path, slot.fingerprint = candidate.path, candidate.fingerprint
            slot.become(State.LOADING)
            self._start(self._load(model, slot))
        elif action.kind == "unload":
            slot = model.slots[action.version]
            slot.become(State.DRAINING)
            log.info("%s version %d: draining", model.config.name, action.version)
            self._changed(model)
            self._start(self._drain(model, slot))
        else:
            self._end(model, model.slots[action.version])

    def _changed(self, model: Model) -> None:
        model.publish()
        self._on_change()

    def _start(self, work: asyncio._CoroutineLike[None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load(self, model: Model, slot: Slot) -> None:
        name = model.config.name
        start = time.monotonic_ns()
        slot.attempts += 1
        try:
            servable = await asyncio.get_running_loop().run_in_executor(self._threads, self._open, slot.path)
        except MserveError as error:
            self._failed(name, slot, error)
        except Exception as error:
            log.exception("%s version %d: our bug while loading", name, slot.version)
            self._failed(name, slot, MserveError("loading failed unexpectedly", found=repr(error)))
        else:
            slot.servable, slot.error, slot.attempts = servable, None, 0
            servable.version = slot.version
            slot.load_ns = time.monotonic_ns() - start
            slot.become(State.AVAILABLE)
            log.info("%s version %d: available, loaded in %.0f ms", name, slot.version, slot.load_ns / 1e6)
            self._changed(model)
        self._wake.set()

    def _failed(self, name: str, slot: Slot, error: MserveError) -> None:
        """Still arriving: look again soon. Anything else: wait longer each time."""
        arriving = isinstance(error, BundleError) and error.may_complete
        if str(error) != str(slot.error or ""):
            log.warning(
                "%s version %d: %s: %s", name, slot.version, "waiting" if arriving else "failed", error
            )
        slot.error = error
        slot.become(State.WAITING if arriving else State.FAILED)
        backoff = RETRY_FIRST_NS << min(slot.attempts - 1, 6)
        slot.retry_at_ns = time.monotonic_ns() + (
            min(slot.attempts, 4) * RETRY_FIRST_NS // 2 if arriving else min(backoff, RETRY_MAX_NS)
        )

    async def _drain(self, model: Model, slot: Slot) -> None:
        servable = slot.servable
        while servable is not None and servable.in_flight > 0:
            await asyncio.sleep(0.01)
        if servable is not None:
            await asyncio.get_running_loop().run_in_executor(self._threads, servable.close)
        self._end(model, slot)
        log.info("%s version %d: unloaded", model.config.name, slot.version)

    def _end(self, model: Model, slot: Slot) -> None:
        slot.become(State.ENDED)
        slot.servable = None
        del model.slots[slot.version]
        model.ended = [*(v for v in model.ended if v != slot.version), slot.version][-ENDED_KEPT:]
