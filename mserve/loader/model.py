"""A model as the reconciler keeps it: its versions, and what requests may be sent to now."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..errors import printable
from .plan import DEFAULT_LABEL, ModelConfig, Slot, follow
from .servable import Servable, State, Stats

log = logging.getLogger("mserve")

UNSEEN = "not looked at yet"
UNLOADED = "it was unloaded"


@dataclass(slots=True, eq=False)
class Model:
    """A model with its slots.

    `available` holds what requests may be sent to, oldest first; `labels` which version
    each label names now; `default` what answers requests without either. `retired` are
    the versions of an earlier base path; each serves until the default, and every label
    that names it, can be answered from the new one. `wanted` is
    false once a client unloaded the model, or it is `leaving` the configuration.
    `stats` are the counters of ended versions, which go on where they stopped when the
    version comes back; `loads` counts loads by outcome: "ok", "failed", and "waiting" for
    versions that were still arriving. `complained` holds why labels wait, as it was logged.
    `looked_ns` is when the last look that is over began.
    """

    config: ModelConfig
    slots: dict[int, Slot] = field(default_factory=dict)
    retired: list[Slot] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    problem: str = UNSEEN
    available: dict[int, Servable] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    default: Servable | None = None
    stats: dict[int, Stats] = field(default_factory=dict)
    loads: Counter[str] = field(default_factory=Counter)
    complained: dict[str, str] = field(default_factory=dict)
    looked_ns: int = 0
    wanted: bool = True
    leaving: bool = False
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def publish(self) -> None:
        """Make `available`, `labels` and `default` say what the slots say; called after every change."""
        fresh, old = _loaded(self.slots.values()), _loaded(self.retired)
        self._move_labels(follow(self.labels, self.config, fresh, old))
        if fresh:
            old = {v: s for v, s in old.items() if v in self.labels.values() and v not in fresh}
        self.available = dict(sorted((old | fresh).items()))
        for servable in self.available.values():
            servable.batching = self.config.batching_of(servable.serving)
        if DEFAULT_LABEL in self.config.labels:
            self.default = self.available.get(self.labels.get(DEFAULT_LABEL, -1))
        else:
            choice = fresh or old
            named = [v for v in self.config.policy.versions if v in choice]
            newest = max(named or choice, default=None)
            self.default = None if newest is None else choice[newest]

    def _move_labels(self, labels: dict[str, int]) -> None:
        for label, version in labels.items():
            before = self.labels.get(label)
            if before != version:
                moved = f"{version}" if before is None else f"{before} -> {version}"
                log.info("%s: label %s: %s", self.config.name, label, moved)
        self.labels = labels

    def outdated(self) -> list[Slot]:
        """The retired versions that nothing needs any more."""
        needed = self.available.values() if self.wanted else ()
        return [slot for slot in self.retired if slot.servable not in needed]

    def labels_waiting(self) -> dict[str, str]:
        """The labels that do not name their version yet, and why."""
        targets = self.config.labels.items()
        return {label: self.why(v) for label, v in targets if _available(self.slots, v) is None}

    def draining(self) -> bool:
        """Whether a version waits for its last answers."""
        return any(s.state is State.DRAINING for s in self.slots.values())

    def why(self, version: int) -> str:
        """The state of a version, for people."""
        slot = self.slots.get(version)
        if slot is None:
            return f"version {version} is not in {printable(str(self.config.base))}"
        return f"version {version} is {slot.state.value}" + (f": {slot.error}" if slot.error else "")

    def why_unavailable(self) -> str:
        """Why no version answers, for people."""
        if not self.wanted:
            return UNLOADED
        label = self.config.labels.get(DEFAULT_LABEL)
        if label is not None and self.available:
            return f"the label {DEFAULT_LABEL!r} names version {label}; {self.why(label)}"
        return "; ".join(self.why(v) for v in sorted(self.slots)) or self.problem

    def settled(self) -> bool:
        """Whether the base path was looked at and nothing is loading."""
        return self.problem != UNSEEN and not any(s.state is State.LOADING for s in self.slots.values())


def _loaded(slots: Iterable[Slot]) -> dict[int, Servable]:
    found = sorted(slots, key=lambda s: s.version)
    return {s.version: s.servable for s in found if s.state is State.AVAILABLE and s.servable is not None}


def _available(slots: Mapping[int, Slot], version: int) -> Servable | None:
    slot = slots.get(version)
    return slot.servable if slot is not None and slot.state is State.AVAILABLE else None
