"""TensorFlow Serving's REST API, as a codec over the Front.

    POST /v1/models/NAME[/versions/N|/labels/L]:predict|:classify|:regress
    GET  /v1/models                                          all models with their versions
    GET  /v1/models/NAME[/versions/N|/labels/L]              status
    GET  /v1/models/NAME[/versions/N|/labels/L]/metadata     signatures
    GET  /v1/models/NAME[/versions/N|/labels/L]/example      a request body that can be posted (ours)

Source: https://www.tensorflow.org/tfx/serving/api_rest. Different on purpose: the list
of models exists, a wrong method is 405, the answering version stands in the header
`mserve-model-version`, and integers are never wrapped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, ClassVar, NamedTuple
from urllib.parse import unquote

from ..errors import MethodNotAllowed, NotFound, RequestError
from ..format.layout import MAX_VERSION
from ..front import Query
from ..loader.servable import Servable
from ..tensors import Array, Signature
from ..wire import tfs_examples, tfs_json
from ..wire.http1 import TEXT, Request, Response, json_response
from ..wire.json_values import without_booleans
from . import tfs_methods
from .calls import Calls
from .exchange import Cancel, Reply
from .peers import Peers
from .rest import RestCall
from .rest_express import Admit, Make, PredictLane
from .tfs_pages import find, metadata_json, status_json, statuses

_PATH = re.compile(
    r"/v1/models(?:/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?(?::(\w+)|/(\w+))?)?/?", re.IGNORECASE
)
_PAGES = ("", "metadata", "example")


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
        (verb or "").lower(),
        (page or "").lower(),
    )


class TfsRest:
    """Handles the requests whose path is TensorFlow Serving's.

    A strict one takes and answers no NaN and no Infinity.
    """

    def __init__(
        self, calls: Calls, limits: Peers, admit: Admit | None = None, *, strict: bool = False
    ) -> None:
        """`admit` raises Unauthenticated for an Authorization header that is not known; None where
        every request must go the long way.
        """
        self.strict = strict
        self._admit = admit
        self._calls = calls
        self._front = calls.front
        self._limits = limits

    def handle(self, route: Route, request: Request, reply: Reply) -> Cancel | None:
        """Answer a request, now or later. Raises MserveError."""
        if route.verb and route.verb not in _VERBS:
            raise NotFound(
                "no such call", expected=", ".join(f":{v}" for v in _VERBS), found=f":{route.verb}"
            )
        if route.page not in _PAGES:
            raise NotFound("no such page", where=request.target.decode("latin-1"))
        allowed, what = ("POST", "call") if route.verb else ("GET", "page")
        if request.method == "OPTIONS":
            methods = "POST, OPTIONS" if route.verb else "GET, HEAD, OPTIONS"
            reply(Response(200, b"", TEXT, (("Allow", methods),)))
            return None
        if request.method != allowed:
            raise MethodNotAllowed(
                f"the {what} answers another method", expected=allowed, found=request.method
            )
        if route.verb:
            make = partial(self._call, route)
            request.head.begin = begin = partial(self._infer, make)
            return begin(request, reply)
        reply(self._page(route))
        return None

    def _call(self, route: Route, request: Request, reply: Reply) -> TfsRestCall:
        call = _VERBS[route.verb](request, reply, self._limits.body_max)
        call.strict = self.strict
        call.model, call.version, call.label = route.model or "", route.version, route.label
        return call

    def _infer(self, make: Make[Any], request: Request, reply: Reply) -> Cancel:
        call, head = make(request, reply), request.head
        cancel = self._calls.begin(call, len(request.body))
        known = isinstance(call, Predict) and call.queried and head.lane is None
        if known and self._admit is not None and not (head.coded or head.timed):
            head.lane = PredictLane(self._calls, self._limits, self._admit, make, call, rest=self)
        return cancel

    def _page(self, route: Route) -> Response:
        models = self._front.models
        if route.model is None:
            return json_response(
                {"models": [{"name": n, **status_json(m, statuses(m))} for n, m in models.items()]}
            )
        if route.page == "":
            model = find(models, route.model)
            return json_response(status_json(model, statuses(model, route.version, route.label)))
        servable = self._front.resolve(route.model, route.version, route.label)
        if route.page == "metadata":
            return json_response(metadata_json(route.model, servable))
        _, spec = servable.signature()
        return Response(
            200, tfs_json.encode_inputs(servable.example(), rows=spec.batch_axis is not None, signature=spec)
        )


class TfsRestCall(RestCall):
    """A call of TensorFlow Serving's REST API."""

    protocol = "tfs-rest"
    strict = False

    def parse(self) -> None:
        body = self.body()
        self._message = tfs_json.parse(body, strict=self.strict)
        self._booleans = not without_booleans(body)

    def named(self, results: Sequence[Array]) -> dict[str, Array]:
        """A query's outputs by alias."""
        return dict(zip(self.servable.signatures[self.signature].outputs, results, strict=True))


class Predict(TfsRestCall):
    """:predict, in row or column form."""

    _rows = False
    _wanted: Sequence[str] = ()

    def queries(self) -> Sequence[Query]:
        name, signature = _signature(self.servable, tfs_json.signature_name(self._message))
        self._wanted = tfs_json.selected(self._message, signature)
        inputs, self._rows = tfs_json.inputs_of(self._message, signature, booleans=self._booleans)
        self._message = {}  # thousands of numbers, whose memory the next request can have
        return (Query(name, inputs),)

    def encode(self, results: Sequence[Sequence[Array]]) -> Response:
        named = self.named(results[0])
        outputs = {alias: named[alias] for alias in self._wanted}
        return self.respond(tfs_json.encode(outputs, rows=self._rows, strict=self.strict))


class OnExamples(TfsRestCall):
    """:classify and :regress, which are asked with examples."""

    method: ClassVar[str]

    def queries(self) -> Sequence[Query]:
        name = tfs_json.signature_name(self._message)
        try:
            name, signature = tfs_methods.choose(self.servable, self.method, name)
        except NotFound as error:
            raise _unknown(name, error) from error
        examples, context = tfs_examples.of_body(self._message)
        return (Query(name, tfs_examples.to_inputs(examples, context, signature, self._limit)),)


class Classify(OnExamples):
    """:classify, answered with pairs of label and score."""

    method = "classify"

    def encode(self, results: Sequence[Sequence[Array]]) -> Response:
        labels, scores = tfs_methods.classes(self.servable, self.signature, self.named(results[0]))
        return self.respond(tfs_json.encode_classes(labels, scores, strict=self.strict))


class Regress(OnExamples):
    """:regress, answered with values."""

    method = "regress"

    def encode(self, results: Sequence[Sequence[Array]]) -> Response:
        values = tfs_methods.values(self.servable.signatures[self.signature], self.named(results[0]))
        return self.respond(tfs_json.encode_values(values, strict=self.strict))


_VERBS: dict[str, type[TfsRestCall]] = {"predict": Predict, "classify": Classify, "regress": Regress}


def _signature(servable: Servable, name: str) -> tuple[str, Signature]:
    try:
        return servable.signature(name)
    except NotFound as error:
        raise _unknown(name, error) from error


def _unknown(name: str, error: NotFound) -> RequestError:
    return RequestError(
        f'Serving signature name: "{name}" not found in signature def', expected=error.expected
    )
