"""Front: a request in domain terms in, an answer in domain terms out.

Every protocol is a codec over these calls, and bench makes them without any protocol.
A request is resolved to one servable once, and keeps it until it is answered, so an
answer always comes from exactly one version.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from .batching.batcher import Entry, Reply
from .batching.executor import Executor
from .errors import NotFound, Unavailable
from .loader.reconciler import Model
from .loader.servable import Servable
from .tensors import Array, check_inputs, fill_defaults


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

    def resolve(self, name: str, version: int | None = None) -> Servable:
        """The servable that answers: the newest available version, or a given one.

        Raises NotFound (no such model or version) or Unavailable (nothing loaded yet).
        """
        model = self.model(name)
        available = model.available
        if version is not None:
            if version in available:
                return available[version]
            known = ", ".join(str(v) for v in available) or "none"
            raise NotFound(
                f"Servable not found for request: Specific({name}, {version})",
                expected=f"an available version: {known}",
            )
        if not available:
            raise Unavailable(f"model {name!r} has no version that can answer", found=model.why_unavailable())
        return available[max(available)]

    def predict(self, servable: Servable, signature: str, inputs: Mapping[str, Array], reply: Reply) -> Entry:
        """Check a request and queue it; `reply` is called once, later, on the event-loop thread.

        `signature` is a resolved name. Returns the queued entry, whose `cancelled` drops
        it. Raises RequestError, or Overloaded when the queue is full.
        """
        spec = servable.signatures[signature]
        inputs = fill_defaults(spec, inputs)
        rows = check_inputs(spec, inputs)
        now = time.monotonic_ns()
        alone = spec.batch_axis is None or rows == 0
        entry = Entry(servable, signature, inputs, rows, alone, reply, now, now + self.timeout_ns)
        self.executor.submit(entry)
        return entry
