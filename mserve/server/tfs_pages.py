"""What TensorFlow Serving's clients can look up: the states of versions, and signatures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..errors import MserveError, NotFound, RequestError
from ..loader.model import UNLOADED, Model
from ..loader.plan import Slot
from ..loader.servable import Servable, State
from ..tensors import DTYPES, Signature, TensorSpec

# TensorFlow Serving's public states; END is also where a failed version is.
_STATES = {
    State.WAITING: "START",
    State.LOADING: "LOADING",
    State.AVAILABLE: "AVAILABLE",
    State.DRAINING: "UNLOADING",
    State.FAILED: "END",
    State.ENDED: "END",
}


class VersionStatus(NamedTuple):
    """One version: its public state, and why; `code` is a gRPC status."""

    version: int
    state: str
    code: str = "OK"
    reason: str = ""


def find(models: Mapping[str, Model], name: str) -> Model:
    """A model whose versions are asked for. Raises NotFound."""
    model = models.get(name)
    if model is None:
        known = ", ".join(sorted(models)) or "no models"
        raise NotFound(f"Could not find any versions of model {name}", expected=known, found=repr(name))
    return model


def statuses(model: Model, version: int | None = None, label: str | None = None) -> list[VersionStatus]:
    """The versions of a model, newest first; only the given one, or the one that a label names.

    Raises NotFound (no such version), RequestError (no such label).
    """
    if label is not None:
        version = _labelled(model, label)
    every = sorted([*model.slots.values(), *model.retired], key=lambda s: s.version, reverse=True)
    found = [_status(slot) for slot in every if version in (None, slot.version)]
    present = {slot.version for slot in every}
    found += [
        VersionStatus(v, "END")
        for v in sorted(model.ended, reverse=True)
        if v not in present and version in (None, v)
    ]
    if version is not None and not found:
        raise NotFound(f"Could not find version {version} of model {model.config.name}")
    return found


def _labelled(model: Model, label: str) -> int:
    """The version that a label names now, or will name."""
    if label not in model.config.labels:
        known = ", ".join(sorted(model.config.labels)) or "none"
        raise RequestError(
            f"Unrecognized servable version label: {label}",
            expected=f"a label of {model.config.name!r}: {known}",
        )
    return model.labels.get(label, model.config.labels[label])


def _status(slot: Slot) -> VersionStatus:
    reason: MserveError | str = slot.error or slot.warning
    code = reason.grpc_status if isinstance(reason, MserveError) else "OK"
    return VersionStatus(slot.version, _STATES[slot.state], code, str(reason))


def status_json(model: Model, found: list[VersionStatus]) -> dict[str, Any]:
    """The status page of a model, and besides `labels` with the versions that they name now.

    `labels_waiting` says of the labels whose own version cannot answer yet why not;
    `problem` what keeps the base path, or the model, from being used.
    """
    entries = [
        {
            "version": str(s.version),
            "state": s.state,
            "status": {"error_code": s.code, "error_message": s.reason},
        }
        for s in found
    ]
    status: dict[str, Any] = {"model_version_status": entries}
    if model.labels:
        status["labels"] = model.labels
    if waiting := model.labels_waiting():
        status["labels_waiting"] = waiting
    problem = model.problem if model.wanted else UNLOADED
    return status | ({"problem": problem} if problem else {})


def metadata_json(name: str, servable: Servable) -> dict[str, Any]:
    """The metadata page of a version: its signatures."""
    return {
        "model_spec": {"name": name, "signature_name": "", "version": str(servable.version)},
        "metadata": {
            "signature_def": {"signature_def": {n: _signature_def(s) for n, s in servable.signatures.items()}}
        },
    }


def _signature_def(signature: Signature) -> dict[str, Any]:
    return {
        "inputs": {a: _tensor_info(s) for a, s in signature.inputs.items()},
        "outputs": {a: _tensor_info(s) for a, s in signature.outputs.items()},
        "method_name": f"tensorflow/serving/{signature.method}",
        "defaults": {},
    }


def _tensor_info(spec: TensorSpec) -> dict[str, Any]:
    dims = [
        {"size": str(d if isinstance(d, int) else -1), "name": "" if isinstance(d, int) or d == "?" else d}
        for d in spec.shape or ()
    ]
    return {
        "dtype": DTYPES[spec.dtype].tf,
        "tensor_shape": {"dim": dims, "unknown_rank": spec.shape is None},
        "name": spec.name,
    }
