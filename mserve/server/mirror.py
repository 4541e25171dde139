"""What the serving processes know of the models: the parent's state, and its image in a child.

The parent's reconciler decides; after every change the whole state goes to every child, as
one message, so that a child is always at one of the parent's states and never in between.
A loaded version is named by a handle, a number that is never used twice: a version that is
unloaded and comes back has another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import MserveError
from ..format.serving import Serving
from ..loader.model import Model
from ..loader.plan import ModelConfig, Slot
from ..loader.servable import Batching, Servable, State
from ..runtime.devices import CPU

UNSERVED = -1


class Proxy(Servable):
    """A version that the children have loaded, as the parent holds it: signatures, and no engine.

    `in_flight` is how many children still hold a version that drains; `closed()` has them let go of it.
    `device` is where it runs, which is not `auto`.
    """

    handle = UNSERVED
    device = CPU
    closed: Callable[[], object] = staticmethod(lambda: None)

    def close(self) -> None:
        super().close()
        self.closed()


def handle_of(servable: Servable | None) -> int:
    """The handle of a version; UNSERVED where nothing is loaded."""
    return servable.handle if isinstance(servable, Proxy) else UNSERVED


def state_of(models: Mapping[str, Model]) -> list[dict[str, Any]]:
    """All models, as children are told."""
    return [_model_of(name, model) for name, model in models.items()]


def _model_of(name: str, model: Model) -> dict[str, Any]:
    batching = model.config.batching
    return {
        "name": name,
        "base": str(model.config.base),
        "targets": dict(model.config.labels),
        "labels": model.labels,
        "available": [handle_of(s) for s in model.available.values()],
        "default": handle_of(model.default),
        "batching": None if batching is None else asdict(batching),
        "configured": model.config.configured.to_json(),
        "problem": model.problem,
        "wanted": model.wanted,
        "ended": model.ended,
        "slots": [_slot_of(s) for s in model.slots.values()],
        "retired": [_slot_of(s) for s in model.retired],
    }


def _slot_of(slot: Slot) -> dict[str, Any]:
    return {
        "version": slot.version,
        "state": slot.state.value,
        "error": str(slot.error or ""),
        "handle": handle_of(slot.servable),
    }


def follow(models: dict[str, Model], state: Iterable[Any], held: Mapping[int, Servable]) -> None:
    """Make a child's models say what the parent's do; `held` are the versions it has, by handle."""
    told = {entry["name"]: entry for entry in state}
    for name in models.keys() - told.keys():
        del models[name]
    for name, entry in told.items():
        labels = entry["targets"]
        batching = _batching_of(entry["batching"])
        configured = Serving.from_json(entry["configured"], name)
        config = ModelConfig(
            name, Path(entry["base"]), labels=labels, batching=batching, configured=configured
        )
        model = models.setdefault(name, Model(config))
        model.config = config
        model.slots = {slot.version: slot for slot in _slots(entry["slots"], held)}
        model.retired = list(_slots(entry["retired"], held))
        model.labels, model.ended = entry["labels"], entry["ended"]
        model.problem, model.wanted = entry["problem"], entry["wanted"]
        found = [held[handle] for handle in entry["available"] if handle in held]
        for servable in found:
            servable.batching = config.batching_of(servable.serving)
        model.available = {servable.version: servable for servable in found}
        model.default = held.get(entry["default"])


def _batching_of(told: Mapping[str, Any] | None) -> Batching | None:
    """JSON has lists where the settings have tuples."""
    if told is None:
        return None
    settings: dict[str, Any] = {k: tuple(x) if isinstance(x, list) else x for k, x in told.items()}
    return Batching(**settings)


def _slots(entries: Iterable[Any], held: Mapping[int, Servable]) -> Iterable[Slot]:
    for entry in entries:
        servable = held.get(entry["handle"])
        if servable is not None:
            servable.version = entry["version"]
        error = MserveError(entry["error"]) if entry["error"] else None
        yield Slot(entry["version"], Path(), State(entry["state"]), servable, error)
