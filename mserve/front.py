"""Front: a request in domain terms in, an answer in domain terms out.

Every protocol is a codec over these calls, and bench makes them without any protocol.
A request is resolved to one servable once, and keeps it until it is answered, so an
answer always comes from exactly one version.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple

from .batching.batcher import Entry, Reply
from .batching.executor import Executor
from .defaults import fill_defaults
from .errors import NotFound, RequestError, Unavailable
from .loader.reconciler import Model
from .loader.servable import Servable
from .tensors import Array, check_inputs


class Query(NamedTuple):
    """One run that is asked for: a signature's resolved name, and its inputs by alias.

    `rows` is how many rows they have where they are known to be right, otherwise -1.
    """

    signature: str
    inputs: Mapping[str, Array]
    rows: int = -1


class Front:
    """Answers requests from the models' available versions, through one executor."""

    def __init__(self, models: Mapping[str, Model], executor: Executor, timeout_s: float = 30.0) -> None:
        self.models = models
        self.executor = executor
        self.timeout_ns = int(timeout_s * 1e9)

    def model(self, name: str) -> Model:
        """A configured model. Raises NotFound."""
        model = self.models.get(name)
        if model is None:
            known = ", ".join(sorted(self.models)) or "no models"
            raise NotFound(
                f"Servable not found for request: Latest({name})", expected=known, found=repr(name)
            )
        return model

    def resolve(self, name: str, version: int | None = None, label: str | None = None) -> Servable:
        """The servable that answers: a given version, that of a label, or the model's choice.

        Raises NotFound (no such model or version), RequestError (no such label) or
        Unavailable (nothing loaded yet).
        """
        model = self.models.get(name)
        if version is None and label is None and model is not None and model.default is not None:
            return model.default
        model = self.model(name)
        if version is not None:
            if version in model.available:
                return model.available[version]
            known = ", ".join(str(v) for v in model.available) or "none"
            raise NotFound(
                f"Servable not found for request: Specific({name}, {version})",
                expected=f"an available version: {known}",
            )
        if label is not None:
            return _labelled(model, name, label)
        if model.default is None:
            raise Unavailable(f"model {name!r} has no version that can answer", found=model.why_unavailable())
        return model.default

    def predict(
        self, servable: Servable, query: Query, reply: Reply, start_ns: int = 0, timeout_ns: int = 0
    ) -> Entry:
        """Check a query and queue it; `reply` is called once, later, on the event-loop thread.

        The deadline is the client's timeout, or the server's if that is sooner, counted
        from `start_ns` (monotonic; 0 is now). Returns the queued entry, whose
        `cancelled` drops it. Raises RequestError, or Overloaded when the queue is full.
        """
        name, inputs, rows = query
        spec = servable.signatures[name]
        if rows < 0:
            inputs = fill_defaults(spec, inputs)
            rows = check_inputs(spec, inputs)
        now = time.monotonic_ns()
        timeout = min(timeout_ns or self.timeout_ns, self.timeout_ns)
        alone = spec.batch_axis is None or rows == 0
        deadline = (start_ns or now) + timeout
        entry = Entry(servable, name, inputs, rows, alone, reply, now, deadline)
        self.executor.submit(entry)
        return entry


def _labelled(model: Model, name: str, label: str) -> Servable:
    if label not in model.config.labels:
        known = ", ".join(sorted(model.config.labels)) or "none"
        raise RequestError(
            f"Unrecognized servable version label: {label}", expected=f"a label of {name!r}: {known}"
        )
    version = model.labels.get(label)
    if version is None or version not in model.available:
        wanted = model.config.labels[label]
        raise Unavailable(
            f"label {label!r} of model {name!r} names version {wanted}, which is not available",
            found=model.why(wanted),
        )
    return model.available[version]
