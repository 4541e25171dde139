"""The Open Inference Protocol beside its two carriers: what pages say, and what a call means.

Pages are plain values as REST shows them as JSON; gRPC makes its messages of the same.
Sources: https://github.com/kserve/open-inference-protocol, and for the extensions
https://github.com/triton-inference-server/server/tree/main/docs/protocol.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .. import __version__
from ..errors import DeadlineExceeded, MserveError, NotFound, RequestError, Unavailable
from ..format.layout import MAX_VERSION
from ..front import Query
from ..loader.plan import Policy, Slot
from ..loader.reconciler import Model, Reconciler
from ..loader.servable import BATCH_BUCKETS, Batching, Servable, State
from ..tensors import Array, Signature, TensorSpec
from ..wire.context import Context
from ..wire.oip import DATATYPES, InferRequest, Output, classify, datatype_name
from .access import require_admin
from .calls import Call, Calls
from .metrics import Histogram

PLATFORM = "onnxruntime_onnx"
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "parameters",
    "statistics",
)
# Triton's words for a version's state.
_STATES = {
    State.WAITING: "UNAVAILABLE",
    State.LOADING: "LOADING",
    State.AVAILABLE: "READY",
    State.DRAINING: "UNLOADING",
    State.FAILED: "UNAVAILABLE",
    State.ENDED: "UNAVAILABLE",
}
# Where a configuration calls a datatype otherwise.
_TYPES = {"BYTES": "STRING"}
LOOK_S = 0.01


def version_of(text: str) -> tuple[int | None, str | None]:
    """A version as the protocol names it, as a number or else a label. Raises RequestError."""
    if not text:
        return None, None
    if not (text.isascii() and text.isdigit()):
        return None, text
    if len(text) > 19 or int(text) > MAX_VERSION:
        raise RequestError("the version is too large a number", found=text[:32])
    return int(text), None


def prepare(call: Call, request: InferRequest) -> None:
    """Take the parameters of a request that are about the call. Raises RequestError."""
    context, timeout_ns = call.context, request.timeout_ns
    if timeout_ns:
        context.timeout_ns = min(timeout_ns, context.timeout_ns or timeout_ns)


def query(request: InferRequest, servable: Servable) -> Query:
    """What a request asks a servable to compute. Raises RequestError."""
    name, signature = servable.signature(request.signature)
    request.wanted(signature)
    return Query(name, request.arrays(signature))


def outputs(
    request: InferRequest, servable: Servable, name: str, results: Sequence[Array]
) -> Sequence[Output]:
    """The outputs that a request asks for, in its order. Raises RequestError."""
    signature = servable.signatures[name]
    arrays = dict(zip(signature.outputs, results, strict=True))
    answers = []
    for wanted in request.wanted(signature):
        array = arrays[wanted.name]
        if wanted.classes:
            labels = servable.labels(name, wanted.name)
            array = classify(array, wanted.classes, labels, rows=signature.batch_axis is not None)
        answers.append(Output(wanted.name, array, wanted.binary))
    return answers


class Oip:
    """What the protocol's calls answer, but inference itself."""

    def __init__(self, calls: Calls, reconciler: Reconciler, unready: Callable[[], list[str]]) -> None:
        self.calls = calls
        self.unready = unready
        self._front = calls.front
        self._reconciler = reconciler

    def server(self) -> dict[str, Any]:
        """The server's metadata."""
        return {"name": "mserve", "version": __version__, "extensions": list(EXTENSIONS)}

    def why_unready(self, name: str, version: str) -> MserveError | None:
        """Why a model or a version of it cannot answer; None if it can."""
        try:
            self._front.resolve(name, *version_of(version))
        except MserveError as error:
            return error
        return None

    def metadata(self, name: str, version: str) -> dict[str, Any]:
        """Inputs and outputs of the default signature, and of the others beside. Raises RequestError."""
        servable = self._front.resolve(name, *version_of(version))
        page = {
            "name": name,
            "versions": [str(v) for v in self._front.model(name).available],
            "platform": PLATFORM,
            **_ports(_default(servable)),
        }
        if len(servable.signatures) > 1:
            page["signatures"] = {n: _ports(s) for n, s in servable.signatures.items()}
        return page

    def config(self, name: str, version: str) -> dict[str, Any]:
        """A model's configuration in Triton's words. Raises RequestError."""
        servable, model = self._front.resolve(name, *version_of(version)), self._front.model(name)
        batching: Batching = servable.batching or self._front.executor.batcher.limits
        signature = _default(servable)
        # The parts of a sparse input have no row in front that the protocol could leave out.
        alone = signature is None or signature.batch_axis is None or signature.sparse
        skip = 0 if alone else 1
        sides = {"input": signature.inputs, "output": signature.outputs} if signature else {}
        page: dict[str, Any] = {
            "name": name,
            "platform": PLATFORM,
            "backend": "onnxruntime",
            "version_policy": _policy(model.config.policy),
            "max_batch_size": batching.max_batch_rows if skip else 0,
            **{side: [_port(a, s, skip) for a, s in ports.items()] for side, ports in sides.items()},
        }
        if skip:
            preferred = {"preferred_batch_size": list(batching.preferred)} if batching.preferred else {}
            delay = {"max_queue_delay_microseconds": batching.delay_ns // 1000}
            page["dynamic_batching"] = {**preferred, **delay}
        return page

    def statistics(self, name: str, version: str) -> dict[str, Any]:
        """The counters of a version, of a model's available ones, or of all models'. Raises RequestError."""
        if not name:
            found = [(n, s) for n, m in self._front.models.items() for s in m.available.values()]
        elif version:
            found = [(name, self._front.resolve(name, *version_of(version)))]
        else:
            found = [(name, s) for s in self._front.model(name).available.values()]
        return {"model_stats": [self._counters(n, s) for n, s in found]}

    def _counters(self, name: str, servable: Servable) -> dict[str, Any]:
        version, stats = str(servable.version), servable.stats
        series = [
            counts
            for key, counts in self.calls.metrics.series.items()
            if key.model == name and key.version == version
        ]
        phases = [_total([counts.phases[i] for counts in series]) for i in range(4)]
        none = {"count": 0, "ns": 0}
        fail = {"count": sum(c.failures for c in series), "ns": sum(c.failed_ns for c in series)}
        steps = zip(("compute_input", "queue", "compute_infer", "compute_output"), phases, strict=True)
        inference = {"success": _total([c.total for c in series]), "fail": fail, **dict(steps)}
        batches = zip((*BATCH_BUCKETS, 2 * BATCH_BUCKETS[-1]), stats.batch_rows, stats.batch_ns, strict=True)
        return {
            "name": name,
            "version": version,
            "last_inference": max((c.last_ms for c in series), default=0),
            "inference_count": stats.rows,
            "execution_count": stats.batches,
            "inference_stats": {**inference, "cache_hit": none, "cache_miss": none},
            "response_stats": {},
            "batch_stats": [
                {
                    "batch_size": bound,
                    "compute_input": none,
                    "compute_infer": {"count": n, "ns": ns},
                    "compute_output": none,
                }
                for bound, n, ns in batches
                if n
            ],
            "memory_usage": [{"type": "CPU", "id": 0, "byte_size": servable.bundle.byte_size}],
        }

    def index(self, *, ready: bool) -> list[dict[str, Any]]:
        """Every version of every model with its state, or only those that are ready."""
        rows: list[dict[str, Any]] = []
        for name, model in sorted(self._front.models.items()):
            slots = sorted([*model.slots.values(), *model.retired], key=lambda s: s.version)
            rows += [_index_row(name, slot) for slot in slots]
            if not slots:
                why = model.why_unavailable()
                rows.append({"name": name, "version": "", "state": "UNAVAILABLE", "reason": why})
        return [row for row in rows if not ready or row["state"] == "READY"]

    async def load(self, name: str, parameters: Mapping[str, Any], context: Context) -> None:
        """Load a configured model, or look at it again; returns when it can answer.

        Raises Forbidden, NotFound, RequestError (parameters), Unavailable (it cannot be
        loaded) or DeadlineExceeded.
        """
        model = self._administered(name, context)
        for key in parameters:
            if key == "config" or key.startswith("file:"):
                raise RequestError(
                    f"the parameter {key[:60]!r} is not taken",
                    hint="files and settings come from the model's base path and the server's configuration",
                )
        asked = time.monotonic_ns()
        self._reconciler.set_wanted(name, True)
        self._reconciler.look(name)

        def done() -> bool:
            # A version that still drains comes back when its last answer is given.
            returning = model.default is None and model.draining()
            return model.looked_ns >= asked and model.settled() and not returning

        await self._until(done, f"loading {name!r}", context)
        if model.default is None:
            raise Unavailable(f"model {name!r} cannot be loaded", found=model.why_unavailable())

    async def unload(self, name: str, context: Context) -> None:
        """Drain a model's versions, and keep it unloaded; returns when it takes no more requests.

        Raises Forbidden, NotFound or DeadlineExceeded.
        """
        model = self._administered(name, context)
        self._reconciler.set_wanted(name, False)
        await self._until(lambda: not model.available, f"unloading {name!r}", context)

    def _administered(self, name: str, context: Context) -> Model:
        require_admin(context.admin)
        return self._front.model(name)

    async def _until(self, done: Callable[[], bool], what: str, context: Context) -> None:
        limit = min(context.timeout_ns or self._front.timeout_ns, self._front.timeout_ns)
        while not done():
            if time.monotonic_ns() - context.start_ns > limit:
                raise DeadlineExceeded(f"{what} takes longer than the call may take; it goes on")
            await asyncio.sleep(LOOK_S)


def _default(servable: Servable) -> Signature | None:
    """The signature that answers a request without a name; None where a name is needed."""
    try:
        return servable.signature()[1]
    except NotFound:
        return None


def _ports(signature: Signature | None) -> dict[str, Any]:
    sides = {"inputs": signature.inputs, "outputs": signature.outputs} if signature else {}
    return {
        side: [{"name": a, "datatype": datatype_name(s.dtype), "shape": _sizes(s)} for a, s in ports.items()]
        for side, ports in sides.items()
    }


def _sizes(spec: TensorSpec) -> list[int]:
    """A shape with -1 for what varies; the protocol has no word for an unknown rank, which is one -1."""
    return [-1] if spec.shape is None else [size if isinstance(size, int) else -1 for size in spec.shape]


def _port(alias: str, spec: TensorSpec, skip: int) -> dict[str, Any]:
    datatype = datatype_name(spec.dtype)
    kind = _TYPES.get(datatype, datatype if datatype in DATATYPES else "INVALID")
    port: dict[str, Any] = {"name": alias, "data_type": f"TYPE_{kind}", "dims": _sizes(spec)[skip:]}
    if spec.optional:
        port["optional"] = True
    if spec.labels:
        port["label_filename"] = spec.labels
    return port


def _policy(policy: Policy) -> dict[str, Any]:
    if policy.versions:
        return {"specific": {"versions": list(policy.versions)}}
    return {"latest": {"num_versions": policy.latest}} if policy.latest else {"all": {}}


def _total(histograms: Sequence[Histogram]) -> dict[str, int]:
    return {"count": sum(sum(h.counts) for h in histograms), "ns": sum(h.total_ns for h in histograms)}


def _index_row(name: str, slot: Slot) -> dict[str, Any]:
    reason = str(slot.error or slot.warning or "")
    return {"name": name, "version": str(slot.version), "state": _STATES[slot.state], "reason": reason}
