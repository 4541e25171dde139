"""Reconciler: bring the loaded versions of every model to what its base path and configuration say.

`plan` decides; here its steps are taken. Each model is looked after by a task of its own
on the event-loop thread, which owns every state here, so nothing is locked, and a base
path that hangs holds up no other model. Listing directories, loading and freeing happen
on threads.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from ..errors import BundleError, EnvironmentProblem, MserveError
from ..format import open_bundle
from ..runtime.memory import give_back
from .model import UNSEEN
from .model import Model as Model
from .plan import DEFAULT_LABEL, Action, ModelConfig, Policy, Slot, plan
from .servable import Servable, State, load
from .source import Candidate, Scan, scan

log = logging.getLogger("mserve")

RETRY_FIRST_NS = 1_000_000_000
RETRY_MAX_NS = 60_000_000_000
POLL_S = 1.0
ENDED_KEPT = 8
LOAD_THREADS = 8  # a load that hangs, in its first run say, is not to keep others waiting
FREE_THREADS = 2
SCAN_THREADS = 32


class Reconciler:
    """Runs `plan` for a set of models until stopped."""

    def __init__(
        self,
        models: Iterable[ModelConfig],
        *,
        opener: Callable[[Path, str], Servable] = load,
        poll_s: float = POLL_S,
        published: Callable[[], None] = lambda: None,
    ) -> None:
        """`opener(path, device)` runs on a thread; `published()` is called when what answers has changed."""
        self.models = {config.name: Model(config) for config in models}
        self.poll_s = poll_s
        self._open = opener
        self._published = published
        # No lower priority: a thread that loads holds Python's lock at times, and would keep
        # it while others, less important than the event loop, have the CPU.
        self._loaders = ThreadPoolExecutor(LOAD_THREADS, "mserve-load")
        self._freers = ThreadPoolExecutor(FREE_THREADS, "mserve-free")
        self._scanners = ThreadPoolExecutor(SCAN_THREADS, "mserve-scan")
        self._tasks: set[asyncio.Task[None]] = set()
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._started = False

    def start(self) -> None:
        """Begin to look after every model."""
        self._started = True
        for name, model in self.models.items():
            if name not in self._watches:
                self._watches[name] = asyncio.get_running_loop().create_task(self._watch(model))

    async def close(self) -> None:
        """Stop looking, wait for loads under way and free every servable."""
        for watch in self._watches.values():
            watch.cancel()
        await asyncio.gather(*self._watches.values(), *self._tasks, return_exceptions=True)
        self._loaders.shutdown(wait=True, cancel_futures=True)
        self._freers.shutdown(wait=True)
        self._scanners.shutdown(wait=False, cancel_futures=True)
        for model in self.models.values():
            for slot in [*model.slots.values(), *model.retired]:
                if slot.servable:
                    slot.servable.close()

    def settled(self) -> bool:
        """Whether every model was looked at and nothing is loading."""
        return all(m.settled() for m in self.models.values())

    def configure(self, configs: Iterable[ModelConfig]) -> None:
        """Take another set of models: new ones are loaded, absent ones drained, the others adapted."""
        wanted = {config.name: config for config in configs}
        for name, model in self.models.items():
            if name not in wanted:
                model.wanted, model.leaving = False, True
                model.wake.set()
        for name, config in wanted.items():
            if name in self.models:
                self._adapt(self.models[name], config)
            else:
                self.models[name] = Model(config)
        if self._started:
            self.start()

    def set_wanted(self, name: str, wanted: bool) -> None:
        """Load a configured model again, or drain it and keep it unloaded. Raises KeyError.

        Its configuration may change meanwhile; only a call, or its return to the
        configuration after it had left that, makes it wanted again.
        """
        log.info("%s: %s by a client's call", name, "loaded" if wanted else "unloaded")
        self.models[name].wanted = wanted
        self.models[name].wake.set()

    def look(self, name: str) -> None:
        """Look at a model's base path now, and retry what failed. Raises KeyError."""
        model = self.models[name]
        for slot in model.slots.values():
            slot.retry_at_ns = 0
        model.wake.set()

    def _adapt(self, model: Model, config: ModelConfig) -> None:
        """Give a model another configuration; versions of another base path serve until a new one does."""
        old, model.config = model.config, config
        if model.leaving:
            model.wanted, model.leaving = True, False
        model.problem = UNSEEN
        if old.base != config.base:
            model.retired += [s for s in model.slots.values() if s.state is State.AVAILABLE]
            model.slots = {}
        if DEFAULT_LABEL in config.labels and DEFAULT_LABEL not in old.labels and model.default:
            # What answers now goes on until the label's version can.
            model.labels = {**model.labels, DEFAULT_LABEL: model.default.version}
        self._publish(model)
        model.wake.set()

    async def _watch(self, model: Model) -> None:
        """Look, plan and act until the model has left the configuration and its last version is gone."""
        while True:
            model.wake.clear()  # before the look, so that whatever happens meanwhile leads to another
            begun = time.monotonic_ns()
            try:
                await self._step(model)
            except Exception:
                log.exception("%s: our bug while looking after it", model.config.name)
            model.looked_ns = begun
            if model.leaving and not model.slots and not model.retired:
                del self.models[model.config.name], self._watches[model.config.name]
                return
            # Not wait_for: in Python 3.11 it loses a cancellation that comes with its result.
            with suppress(TimeoutError):
                async with asyncio.timeout(self.poll_s):
                    await model.wake.wait()

    async def _step(self, model: Model) -> None:
        """One look at a base path, and the actions that follow; loads go on in the background."""
        base = model.config.base
        found = await asyncio.get_running_loop().run_in_executor(self._scanners, scan, base)
        if base != model.config.base:
            return
        self._note(model, found)
        outdated = model.outdated()
        model.retired = [slot for slot in model.retired if slot not in outdated]
        for slot in outdated:
            self._unload(model, slot)
        for action in self._plan(model, found.candidates):
            self._execute(model, action, found.candidates)
        self._note_labels(model)

    def _note_labels(self, model: Model) -> None:
        """Say once why a label cannot name its version; not while that is being loaded."""
        waiting = model.labels_waiting() if model.wanted and model.settled() else {}
        for label, why in waiting.items():
            if model.complained.get(label) != why:
                log.warning("%s: label %s waits: %s", model.config.name, label, why)
        if model.settled():
            model.complained = waiting

    def _plan(self, model: Model, candidates: Mapping[int, Candidate]) -> list[Action]:
        if model.wanted:
            return plan(candidates, model.slots, model.config, model.labels, time.monotonic_ns())
        kinds = {State.AVAILABLE: "unload", State.WAITING: "forget", State.FAILED: "forget"}
        return [Action(kinds[s.state], v) for v, s in model.slots.items() if s.state in kinds]

    def _note(self, model: Model, found: Scan) -> None:
        name = model.config.name
        problem = found.problem or _missing(model.config.policy, found)
        if problem and problem != model.problem:
            log.warning("%s: %s%s", name, problem, "; keeping what is loaded" if model.available else "")
        model.problem = problem
        for version, slot in model.slots.items():
            candidate = found.candidates.get(version)
            if slot.state is not State.AVAILABLE or candidate is None:
                continue
            changed = candidate.fingerprint != slot.fingerprint
            if changed and not slot.warning:
                slot.warning = "the files changed under this version's number; still serving what was loaded"
                log.warning("%s version %d: %s", name, version, slot.warning)
            elif not changed:
                slot.warning = ""

    def _publish(self, model: Model) -> None:
        model.publish()
        self._published()

    def _execute(self, model: Model, action: Action, candidates: Mapping[int, Candidate]) -> None:
        if action.kind in ("load", "check"):
            candidate = candidates[action.version]
            slot = model.slots.setdefault(action.version, Slot(action.version, candidate.path))
            if slot.fingerprint != candidate.fingerprint:
                slot.checked = False
            slot.path, slot.fingerprint = candidate.path, candidate.fingerprint
            slot.attempts += 1
            slot.become(State.LOADING)
            self._start(self._load(model, slot) if action.kind == "load" else self._check(model, slot))
        elif action.kind == "unload":
            self._unload(model, model.slots[action.version])
        else:
            self._end(model, model.slots[action.version])

    def _start(self, work: asyncio._CoroutineLike[None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _check(self, model: Model, slot: Slot) -> None:
        """Whether a version's files are whole, before the old version is let go for it."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._loaders, open_bundle, slot.path)
        except MserveError as error:
            self._failed(model, slot, error)
        else:
            slot.checked = True
            slot.become(State.WAITING)
        model.wake.set()

    async def _load(self, model: Model, slot: Slot) -> None:
        name, device, start = model.config.name, model.config.device, time.monotonic_ns()
        loop = asyncio.get_running_loop()
        try:
            servable = await loop.run_in_executor(self._loaders, self._open, slot.path, device)
        except MserveError as error:
            self._failed(model, slot, error)
        except MemoryError as error:
            self._failed(model, slot, _short_of_memory(slot.path, error))
        except Exception as error:
            log.exception("%s version %d: our bug while loading", name, slot.version)
            self._failed(model, slot, MserveError("loading failed unexpectedly", found=repr(error)))
        else:
            slot.servable, slot.error, slot.attempts = servable, None, 0
            servable.version = slot.version
            servable.stats = model.stats.pop(slot.version, servable.stats)
            slot.load_ns = time.monotonic_ns() - start
            slot.become(State.AVAILABLE)
            model.loads["ok"] += 1
            log.info("%s version %d: available, loaded in %.0f ms", name, slot.version, slot.load_ns / 1e6)
            if model.slots.get(slot.version) is not slot:  # the base path changed meanwhile
                self._unload(model, slot)
            self._publish(model)
        model.wake.set()

    def _failed(self, model: Model, slot: Slot, error: MserveError) -> None:
        """Still arriving: look again soon. Bad for good: when it changes. Else: wait longer each time."""
        name, arriving = model.config.name, isinstance(error, BundleError) and error.may_complete
        model.loads["waiting" if arriving else "failed"] += 1
        if str(error) != str(slot.error or ""):
            log.warning(
                "%s version %d: %s: %s", name, slot.version, "waiting" if arriving else "failed", error
            )
        # The frames of a traceback would keep a half-loaded model, and the lock on its directory.
        slot.error, slot.checked = error.without_frames(), False
        slot.become(State.WAITING if arriving else State.FAILED)
        now = time.monotonic_ns()
        if arriving:
            slot.retry_at_ns = now + min(slot.attempts, 4) * RETRY_FIRST_NS // 2
        elif isinstance(error, BundleError):
            slot.retry_at_ns = math.inf
        else:
            slot.retry_at_ns = now + min(RETRY_FIRST_NS << min(slot.attempts - 1, 6), RETRY_MAX_NS)

    def _unload(self, model: Model, slot: Slot) -> None:
        """Stop sending requests to a version, and free it once the last one is answered."""
        slot.become(State.DRAINING)
        log.info("%s version %d: draining", model.config.name, slot.version)
        self._publish(model)
        self._start(self._drain(model, slot))

    async def _drain(self, model: Model, slot: Slot) -> None:
        servable = slot.servable
        while servable is not None and servable.in_flight > 0:
            await asyncio.sleep(0.01)
        if servable is not None:
            await asyncio.get_running_loop().run_in_executor(self._freers, _free, servable)
        self._end(model, slot)
        log.info("%s version %d: unloaded", model.config.name, slot.version)
        model.wake.set()

    def _end(self, model: Model, slot: Slot) -> None:
        slot.become(State.ENDED)
        if slot.servable is not None:
            model.stats[slot.version] = slot.servable.stats
        slot.servable = None
        model.looked_ns = 0  # whatever was found by the last look, this version may come back now
        if model.slots.get(slot.version) is slot:
            del model.slots[slot.version]
        model.ended = [*(v for v in model.ended if v != slot.version), slot.version][-ENDED_KEPT:]
        model.stats = {v: stats for v, stats in model.stats.items() if v in model.ended}


def _missing(policy: Policy, found: Scan) -> str:
    """What a policy asks for and the base path does not hold."""
    absent = [str(v) for v in policy.versions if v not in found.candidates]
    return f"version {', '.join(absent)} is not there" if absent else ""


def _short_of_memory(path: Path, error: MemoryError) -> EnvironmentProblem:
    hint = "it is tried again; stop serving other versions, or give the server more memory"
    return EnvironmentProblem("not enough memory to load the version", where=path, found=error, hint=hint)


def _free(servable: Servable) -> None:
    servable.close()
    give_back()
