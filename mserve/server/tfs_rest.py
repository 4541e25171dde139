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

import asyncio
import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple
from urllib.parse import unquote

from ..batching.batcher import Entry
from ..errors import MethodNotAllowed, MserveError, NotFound, RequestError, UnsupportedEncoding
from ..format.layout import MAX_VERSION
from ..front import Front
from ..loader.reconciler import Model, Slot
from ..loader.servable import Servable, State
from ..tensors import DTYPES, Array, Signature, TensorSpec
from ..wire import tfs_json
from ..wire.http1 import JSON, Request, Response, json_response
from .http import Reply, error_response
from .metrics import Metrics

log = logging.getLogger("mserve")

VERSION_HEADER = "mserve-model-version"
_PATH = re.compile(r"/v1/models(?:/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?(?::(\w+)|/(\w+))?)?/?")
_METHODS = {"predict": "POST", "classify": "POST", "regress": "POST"}
LOOP_BODY_BYTES = 256 << 10
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

    def __init__(self, front: Front, metrics: Metrics) -> None:
        self._front = front
        self._metrics = metrics

    def handle(self, route: Route, request: Request, reply: Reply) -> Entry | None:
        """Answer a request, now or later. Raises MserveError."""
        if route.label is not None:
            raise RequestError(f"Unrecognized servable version label: {route.label}")
        if route.verb:
            return self._infer(route, request, reply)
        if route.page not in _PAGES:
            raise NotFound("no such page", where=request.target.decode("latin-1"))
        if request.method != "GET":
            raise MethodNotAllowed("the page answers another method", expected="GET", found=request.method)
        reply(self._page(route))
        return None

    def _infer(self, route: Route, request: Request, reply: Reply) -> Entry | None:
        if route.verb not in _METHODS:
            raise NotFound("no such call", expected=":predict", found=f":{route.verb}")
        if request.method != "POST":
            raise MethodNotAllowed("the call answers another method", expected="POST", found=request.method)
        if route.verb != "predict":
            raise NotFound(f"the call :{route.verb} is not served", expected=":predict")
        start = time.monotonic_ns()
        name = route.model or ""
        self._front.model(name)
        try:
            return self._predict(name, route.version, request, reply, start)
        except MserveError as error:
            self._metrics.count(name, error.http_status, time.monotonic_ns() - start)
            raise

    def _predict(
        self, name: str, version: int | None, request: Request, reply: Reply, start: int
    ) -> Entry | None:
        encoding = request.headers.get(b"content-encoding", b"identity").lower()
        if encoding != b"identity":
            raise UnsupportedEncoding(
                "the body is compressed", expected="identity", found=encoding.decode("latin-1")
            )
        servable = self._front.resolve(name, version)
        call = _Call(name, servable, start, self._metrics, reply)
        if len(request.body) <= LOOP_BODY_BYTES:
            return self._submit(call, call.decode(request.body))
        # A large body takes long to read: on a thread, so that the others are answered meanwhile.
        servable.in_flight += 1
        task = asyncio.get_running_loop().run_in_executor(None, call.decode, request.body)
        task.add_done_callback(partial(self._decoded, call))
        return None

    def _submit(self, call: _Call, inputs: dict[str, Array]) -> Entry:
        return self._front.predict(call.servable, call.name, inputs, call.answer)

    def _decoded(self, call: _Call, task: asyncio.Future[dict[str, Array]]) -> None:
        """Go on with a request whose body was read on a thread."""
        call.servable.in_flight -= 1
        try:
            self._submit(call, task.result())
        except MserveError as error:
            call.answer(error)
        except Exception as error:
            log.exception("our bug while reading a request for %s", call.model)
            call.answer(MserveError("internal error", found=repr(error)[:200]))

    def _page(self, route: Route) -> Response:
        if route.model is None:
            models = self._front.models.items()
            return json_response({"models": [{"name": n, **_status(m, None)} for n, m in models]})
        model = self._front.model(route.model)
        if route.page == "":
            return json_response(_status(model, route.version))
        servable = self._front.resolve(route.model, route.version)
        if route.page == "metadata":
            return json_response(_metadata(route.model, servable))
        _, spec = servable.signature()
        return Response(200, tfs_json.encode_inputs(servable.example(), rows=spec.batch_axis is not None))


@dataclass(slots=True)
class _Call:
    """A predict call under way: what is needed to answer once the model's outputs are there."""

    model: str
    servable: Servable
    start_ns: int
    metrics: Metrics
    reply: Reply
    name: str = ""
    rows: bool = False

    def decode(self, body: bytes | bytearray) -> dict[str, Array]:
        """The request's arrays; notes which signature was asked for, in which form. Raises RequestError."""
        value = tfs_json.parse(body)
        self.name, signature = _signature(self.servable, tfs_json.signature_name(value))
        inputs, self.rows = tfs_json.inputs_of(value, signature)
        return inputs

    def answer(self, result: Sequence[Array] | MserveError) -> None:
        """Encode outputs or an error, count, and reply."""
        try:
            response = error_response(result) if isinstance(result, MserveError) else self._encode(result)
        except MserveError as error:
            response = error_response(error)
        except Exception as error:  # a client must never be left without an answer
            log.exception("our bug while encoding an answer of %s", self.model)
            response = error_response(MserveError("internal error", found=repr(error)[:200]))
        self.metrics.count(self.model, response.status, time.monotonic_ns() - self.start_ns)
        self.reply(response)

    def _encode(self, outputs: Sequence[Array]) -> Response:
        named = dict(zip(self.servable.signatures[self.name].outputs, outputs, strict=True))
        headers = ((VERSION_HEADER, str(self.servable.version)),)
        return Response(200, tfs_json.encode(named, rows=self.rows), JSON, headers)


def _signature(servable: Servable, name: str) -> tuple[str, Signature]:
    try:
        return servable.signature(name)
    except NotFound as error:
        raise RequestError(
            f'Serving signature name: "{name}" not found in signature def', expected=error.expected
        ) from error


def _status(model: Model, version: int | None) -> dict[str, Any]:
    """The versions of a model, newest first, with state and reason."""
    slots = [s for v, s in sorted(model.slots.items(), reverse=True) if version in (None, v)]
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
