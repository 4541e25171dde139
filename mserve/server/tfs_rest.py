"""TensorFlow Serving's REST API, as a codec over the Front.

    POST /v1/models/NAME[/versions/N]:predict
    GET  /v1/models                               all models with their versions
    GET  /v1/models/NAME[/versions/N]             status
    GET  /v1/models/NAME[/versions/N]/metadata    signatures
    GET  /v1/models/NAME[/versions/N]/example     a request body that can be posted (ours)

Source: https://www.tensorflow.org/tfx/serving/api_rest. Different on purpose: the list
of models exists, a wrong method is 405, the answering version stands in the header
`mserve-model-version`, and integers are never wrapped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import unquote

from ..errors import MethodNotAllowed, MserveError, NotFound, RequestError
from ..format.layout import MAX_VERSION
from ..front import Query
from ..loader.plan import Slot
from ..loader.reconciler import Model
from ..loader.servable import Servable, State
from ..tensors import DTYPES, Array, Signature, TensorSpec
from ..wire import tfs_json
from ..wire.http1 import Request, Response, json_response
from .calls import Calls
from .http import Cancel, Peers, Reply
from .rest import RestCall

_PATH = re.compile(r"/v1/models(?:/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?(?::(\w+)|/(\w+))?)?/?")
_PAGES = ("", "metadata", "example")

# TensorFlow Serving's public states; END is also where a failed version is.
_STATES = {
    State.WAITING: "START",
    State.LOADING: "LOADING",
    State.AVAILABLE: "AVAILABLE",
    State.DRAINING: "UNLOADING",
    State.FAILED: "END",
    State.ENDED: "END",
}


class Route(NamedTuple):
    """What a path asks for; `model` is None for the list of models."""

    model: str | None
    version: int | None
    label: str | None
    verb: str
    page: str


@lru_cache(maxsize=1024)
def parse_path(target: bytes) -> Route | None:
    """The route of a request target, or None where it is not ours. Raises RequestError."""
    path = target.split(b"?", 1)[0].decode("latin-1")
    match = _PATH.fullmatch(path)
    if match is None:
        return None
    name, version, label, verb, page = match.groups()
    if version is not None and (len(version) > 19 or int(version) > MAX_VERSION):
        raise RequestError(f"Failed to convert version: {version[:32]} to numeric.")
    return Route(
        None if name is None else unquote(name),
        None if version is None else int(version),
        None if label is None else unquote(label),
        verb or "",
        page or "",
    )


class TfsRest:
    """Handles the requests whose path is TensorFlow Serving's."""

    def __init__(self, calls: Calls, limits: Peers) -> None:
        self._calls = calls
        self._front = calls.front
        self._limits = limits

    def handle(self, route: Route, request: Request, reply: Reply) -> Cancel | None:
        """Answer a request, now or later. Raises MserveError."""
        if route.verb:
            return self._infer(route, request, reply)
        if route.page not in _PAGES:
            raise NotFound("no such page", where=request.target.decode("latin-1"))
        if request.method != "GET":
            raise MethodNotAllowed("the page answers another method", expected="GET", found=request.method)
        reply(self._page(route))
        return None

    def _infer(self, route: Route, request: Request, reply: Reply) -> Cancel:
        kind = _VERBS.get(route.verb)
        if kind is None:
            raise NotFound(
                "no such call", expected=", ".join(f":{v}" for v in _VERBS), found=f":{route.verb}"
            )
        if request.method != "POST":
            raise MethodNotAllowed("the call answers another method", expected="POST", found=request.method)
        call = kind(request, reply, self._limits.body_max)
        call.model, call.version, call.label = route.model or "", route.version, route.label
        return self._calls.begin(call, len(request.body))

    def _page(self, route: Route) -> Response:
        if route.model is None:
            models = self._front.models.items()
            return json_response({"models": [{"name": n, **_status(m, None)} for n, m in models]})
        model = self._front.model(route.model)
        version = route.version
        if route.label is not None:
            version = self._front.resolve(route.model, None, route.label).version
        if route.page == "":
            return json_response(_status(model, version))
        servable = self._front.resolve(route.model, version)
        if route.page == "metadata":
            return json_response(_metadata(route.model, servable))
        _, spec = servable.signature()
        return Response(200, tfs_json.encode_inputs(servable.example(), rows=spec.batch_axis is not None))


class Predict(RestCall):
    """:predict, in row or column form."""

    protocol = "tfs-rest"
    _rows = False

    def parse(self) -> None:
        self._message = tfs_json.parse(self.body())

    def queries(self) -> Sequence[Query]:
        name, signature = _signature(self.servable, tfs_json.signature_name(self._message))
        inputs, self._rows = tfs_json.inputs_of(self._message, signature)
        return (Query(name, inputs),)

    def encode(self, results: Sequence[Sequence[Array]]) -> Response:
        outputs = self.servable.signatures[self.signature].outputs
        named = dict(zip(outputs, results[0], strict=True))
        return self.respond(tfs_json.encode(named, rows=self._rows))


_VERBS: dict[str, type[RestCall]] = {"predict": Predict}


def _signature(servable: Servable, name: str) -> tuple[str, Signature]:
    try:
        return servable.signature(name)
    except NotFound as error:
        raise RequestError(
            f'Serving signature name: "{name}" not found in signature def', expected=error.expected
        ) from error


def _status(model: Model, version: int | None) -> dict[str, Any]:
    """The versions of a model, newest first, with state and reason."""
    every = sorted([*model.slots.values(), *model.retired], key=lambda s: s.version, reverse=True)
    slots = [s for s in every if version in (None, s.version)]
    if version is not None and not slots and version not in model.ended:
        raise NotFound(f"Could not find version {version} of model {model.config.name}")
    entries = [_version_status(str(s.version), _STATES[s.state], _reason(s)) for s in slots]
    ended = [v for v in sorted(model.ended, reverse=True) if v not in model.slots and version in (None, v)]
    entries += [_version_status(str(v), "END", None) for v in ended]
    status: dict[str, Any] = {"model_version_status": entries}
    if model.problem:
        status["problem"] = model.problem
    return status


def _reason(slot: Slot) -> MserveError | str | None:
    return slot.error or slot.warning or None


def _version_status(version: str, state: str, reason: MserveError | str | None) -> dict[str, Any]:
    code = reason.grpc_status if isinstance(reason, MserveError) else "OK"
    message = str(reason) if reason else ""
    return {"version": version, "state": state, "status": {"error_code": code, "error_message": message}}


def _metadata(name: str, servable: Servable) -> dict[str, Any]:
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
