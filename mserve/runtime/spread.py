"""One model on several devices: each run goes to the device with the least under way.

What is under way is counted over all models of a process, since they share the devices.
Among devices that are equal there, the one goes first whose last run began the longest ago.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from ..tensors import Array

if TYPE_CHECKING:
    from .engines import Engine


class Busy:
    """How many runs are under way on each device, by its number. Safe for many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[int, int] = {}
        self._latest: dict[int, int] = {}
        self._runs = 0

    @contextmanager
    def least(self, devices: Sequence[int]) -> Iterator[int]:
        """The one of these devices with the least under way, where a run is under way meanwhile."""
        with self._lock:
            chosen = min(devices, key=lambda d: (self._under_way.get(d, 0), self._latest.get(d, 0)))
            self._under_way[chosen] = self._under_way.get(chosen, 0) + 1
            self._runs += 1
            self._latest[chosen] = self._runs
        try:
            yield chosen
        finally:
            with self._lock:
                self._under_way[chosen] -= 1


BUSY = Busy()


class Spread:
    """An engine that is an engine on each of one or more CUDA devices, by number."""

    on_cpu: ClassVar[bool] = False
    threads: ClassVar[int] = 0

    def __init__(self, engines: Mapping[int, Engine], busy: Busy = BUSY) -> None:
        self.engines = engines
        self._devices = tuple(engines)
        self._busy = busy

    @property
    def private(self) -> bool:
        """Whether the weights lie in private memory, so that a run cannot wait for the disk."""
        return all(engine.private for engine in self.engines.values())

    def release(self) -> None:
        """Let go of the weights' pages, before the sessions themselves go."""
        for engine in self.engines.values():
            engine.release()

    def run_options(self) -> Any:
        """Options of one run, on whichever device."""
        return self.engines[self._devices[0]].run_options()

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array], options: Any = None) -> list[Array]:
        """Compute the named tensors on the device with the least under way. Raises ExecutionFailed."""
        with self._busy.least(self._devices) as device:
            return self.engines[device].run(outputs, feeds, options)


def spread(copies: Mapping[int, Mapping[str, Engine]]) -> dict[str, Engine]:
    """One engine for each signature, of the engines for each signature on each device."""
    signatures = next(iter(copies.values()))
    return {name: Spread({d: engines[name] for d, engines in copies.items()}) for name in signatures}


def apart(engines: Mapping[str, Engine]) -> list[Mapping[str, Engine]]:
    """The engines for each signature on each device alone; what is not spread is whole."""
    devices = next((e.engines for e in engines.values() if isinstance(e, Spread)), None)
    if devices is None:
        return [engines]
    return [{n: e.engines[d] for n, e in engines.items() if isinstance(e, Spread)} for d in devices]
