"""What to do next for one model: policies, labels and `plan`, which is pure.

Wanted are the versions that the policy names and those that a label needs. The policy
"the newest N" means the newest N *that work*: a version that is still arriving, or that
fails to load, is looked at again, and meanwhile the next older one takes its place. A
version that is no longer wanted goes only when a wanted one is available and none is on its way, and an empty
or vanished base path changes nothing, so a mistake on the disk never takes the service
down.

Two transitions. Load-first keeps the old version until the new one is available.
Unload-first, for models of which two do not fit into memory, first checks the new
version's files, then lets the old one go, then loads.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import MserveError
from ..format.serving import Serving
from ..runtime.devices import CPU
from .batching_defaults import resolved
from .servable import NEXT, Batching, Servable, State
from .source import Candidate, Fingerprint

DEFAULT_LABEL = "default"


@dataclass(frozen=True, slots=True)
class Policy:
    """Which versions should serve: exactly `versions` if any, else the newest `latest`; 0 is all."""

    latest: int = 1
    versions: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One model: its name, where its versions lie, which of them serve, and what they are called.

    A label is another name for a version; the label `default` answers requests that
    name neither version nor label. `batching` overrides the server's. `device` is where versions
    run that are loaded from now on, as `--device` says it. `configured` is what somebody has set
    about batches, for this model or for all: it goes before what a version says of itself.
    """

    name: str
    base: Path
    policy: Policy = Policy()
    labels: Mapping[str, int] = field(default_factory=dict)
    unload_first: bool = False
    batching: Batching | None = None
    device: str = CPU
    configured: Serving = field(default_factory=Serving)

    def batching_of(self, serving: Serving) -> Batching | None:
        """How batches of a version close that says this of itself; None: as the server's do."""
        return resolved(self.configured.over(serving)) if serving else self.batching


@dataclass(slots=True)
class Slot:
    """One version of one model as the reconciler sees it. Times are monotonic nanoseconds.

    `checked` tells that the files were found whole (unload-first only).
    """

    version: int
    path: Path
    state: State = State.WAITING
    servable: Servable | None = None
    error: MserveError | None = None
    warning: str = ""
    fingerprint: Fingerprint | None = None
    attempts: int = 0
    retry_at_ns: float = 0
    load_ns: int = 0
    checked: bool = False

    def become(self, state: State) -> None:
        """Move to another state; the table in `servable.NEXT` says which are allowed."""
        if state not in NEXT[self.state]:
            raise RuntimeError(f"version {self.version}: {self.state.value} -> {state.value}")
        self.state = state


@dataclass(frozen=True, slots=True)
class Action:
    """One step: "check", "load", "unload" (stop taking requests and drain) or "forget" a version."""

    kind: str
    version: int


# One that drains though it is wanted comes back: what wants it again is waited for.
_TAKES_PLACE = frozenset({State.LOADING, State.AVAILABLE, State.DRAINING})
_IDLE = frozenset({State.WAITING, State.FAILED})
_HELD = frozenset({State.LOADING, State.AVAILABLE, State.DRAINING})


def plan(
    candidates: Mapping[int, Candidate],
    slots: Mapping[int, Slot],
    config: ModelConfig,
    labels: Mapping[str, int],
    now_ns: int,
) -> list[Action]:
    """The next steps; `labels` says which version each label names until its target is available."""
    policy = _by_policy(candidates, slots, config.policy)
    wanted = policy | _by_label(candidates, slots, config, labels)
    if not candidates:
        wanted |= {v for v, s in slots.items() if s.state is State.AVAILABLE}
    due = [v for v in sorted(wanted & candidates.keys(), reverse=True) if _due(v, slots, candidates, now_ns)]
    arriving = due or any(slots[v].state is State.LOADING for v in wanted if v in slots)
    # What only a label needs does not stand in for what the policy names.
    serving = not arriving and any(_available(slots, v) for v in policy)
    unwanted = {v: s for v, s in slots.items() if v not in wanted}
    drop = [Action("forget", v) for v, s in unwanted.items() if s.state in _IDLE]
    leave = [Action("unload", v) for v, s in unwanted.items() if s.state is State.AVAILABLE]
    if not config.unload_first:
        return [Action("load", v) for v in due] + (leave if serving else []) + drop
    checked = [v for v in due if v in slots and slots[v].checked]
    actions = [Action("check", v) for v in due if v not in checked]
    if any(s.state in _HELD for s in unwanted.values()):
        return actions + (leave if serving or checked else []) + drop
    return actions + [Action("load", v) for v in checked] + drop


def _by_label(
    candidates: Mapping[int, Candidate],
    slots: Mapping[int, Slot],
    config: ModelConfig,
    labels: Mapping[str, int],
) -> set[int]:
    """The versions that labels should name, and those that they name meanwhile."""
    wanted: set[int] = set()
    for label, target in config.labels.items():
        if target in candidates or target in slots:
            wanted.add(target)
        if label in labels and not _available(slots, target):
            wanted.add(labels[label])
    return wanted


def _by_policy(candidates: Mapping[int, Candidate], slots: Mapping[int, Slot], policy: Policy) -> set[int]:
    if policy.versions:
        return {v for v in policy.versions if v in candidates}
    if policy.latest == 0:
        return set(candidates)
    wanted: set[int] = set()
    placed = 0
    for version in sorted(candidates, reverse=True):
        if placed >= policy.latest:
            break
        wanted.add(version)
        slot = slots.get(version)
        placed += slot is None or slot.state in _TAKES_PLACE or slot.checked
    return wanted


def _available(slots: Mapping[int, Slot], version: int) -> bool:
    return version in slots and slots[version].state is State.AVAILABLE


def _due(version: int, slots: Mapping[int, Slot], candidates: Mapping[int, Candidate], now_ns: int) -> bool:
    """Whether to try a version: it is new, its time has come, or its files have changed."""
    slot = slots.get(version)
    if slot is None:
        return True
    changed = candidates[version].fingerprint != slot.fingerprint
    return slot.state in _IDLE and (now_ns >= slot.retry_at_ns or changed)


def follow(
    labels: Mapping[str, int],
    config: ModelConfig,
    available: Collection[int],
    retired: Collection[int] = (),
) -> dict[str, int]:
    """Which version each label names now: its target once that is available, until then what it named.

    That may be one of the `retired` versions of an earlier base path.
    """
    moved = {label: target for label, target in config.labels.items() if target in available}
    kept = {
        label: v for label, v in labels.items() if label in config.labels and (v in available or v in retired)
    }
    return kept | moved
