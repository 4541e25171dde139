"""The Open Inference Protocol's REST API, as a codec over the Front.

    GET  /v2                                       the server
    GET  /v2/health/live, /v2/health/ready
    GET  /v2/models                                names of the models (as KServe has it)
    GET  /v2/models/NAME[/versions/V]              inputs and outputs
    GET  /v2/models/NAME[/versions/V]/ready, /config, /stats
    GET  /v2/models/stats
    POST /v2/models/NAME[/versions/V]/infer
    POST /v2/repository/index, /v2/repository/models/NAME/load, .../unload

V is a number or a label; `/labels/L` stands for a label, too. Sources: see `server/oip.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple
from urllib.parse import unquote

from ..errors import MethodNotAllowed, NotFound, Unimplemented
from ..front import Query
from ..tensors import Array
from ..wire import oip_json
from ..wire.http1 import JSON, Request, Response, json_response
from ..wire.oip_plan import Plan, shapes_of
from . import oip
from .calls import as_error
from .exchange import Cancel, Reply, error_response
from .oip import Oip
from .peers import Peers
from .rest import RestCall, content, context_of
from .rest_express import Admit, InferLane, Make

_MODEL = re.compile(r"/v2/models/([^/]+)(?:/(?:versions|labels)/([^/]+))?(?:/(ready|infer|config|stats))?/?")
_REPOSITORY = re.compile(r"/v2/repository/models/([^/]+)/(load|unload)/?")
# What Triton answers besides, and this server does not.
_FOREIGN = re.compile(
    r"/v2/(?:repository/[^/]+/.+|models/.+/(?:generate|generate_stream|trace/setting)|trace/setting|logging"
    r"|(?:system|cuda)sharedmemory(?:/region/[^/]+)?/register)"
)
_NO_REGIONS = re.compile(r"/v2/(?:system|cuda)sharedmemory(?:/region/[^/]+)?/(status|unregister)")
_HEADER = oip_json.HEADER.lower().encode()


class Route(NamedTuple):
    """What a path asks for: a page, or one of a model's, and of which version as the client calls it."""

    page: str
    model: str = ""
    version: str = ""


@lru_cache(maxsize=1024)
def parse_path(target: bytes) -> Route:
    """The route of a request target that begins with /v2. Raises NotFound, Unimplemented."""
    path = target.split(b"?", 1)[0].decode("latin-1")
    if path.rstrip("/") in _PAGES:
        return Route(path.rstrip("/"))
    if match := _REPOSITORY.fullmatch(path):
        return Route(match[2], unquote(match[1]))
    if match := _MODEL.fullmatch(path):
        return Route(match[3] or "metadata", unquote(match[1]), unquote(match[2] or ""))
    if match := _NO_REGIONS.fullmatch(path):
        return Route(match[1])
    if _FOREIGN.fullmatch(path):
        raise Unimplemented("this server does not have this part of Triton's API", where=path)
    raise NotFound("no such page", where=path, hint="GET /v2/models lists the models")


# Route.page: the method that it answers.
_METHODS = {
    **dict.fromkeys(("infer", "load", "unload", "unregister", "/v2/repository/index"), "POST"),
    **dict.fromkeys(("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models", "/v2/models/stats"), "GET"),
    **dict.fromkeys(("metadata", "ready", "config", "stats", "status"), "GET"),
}
_PAGES = frozenset(page for page in _METHODS if page.startswith("/"))


class OipRest:
    """Handles the requests whose path begins with /v2."""

    def __init__(self, protocol: Oip, limits: Peers, admit: Admit | None) -> None:
        """`admit` raises Unauthenticated for an Authorization header that is not known; None where
        every request must go the long way.
        """
        self._oip = protocol
        self._admit = admit
        self._calls = protocol.calls
        self._limits = limits
        self._answers: dict[str, Callable[[Route], Response]] = {
            "/v2": lambda _: json_response(protocol.server()),
            "/v2/health/live": lambda _: json_response({"live": True}),
            "/v2/health/ready": self._ready,
            "/v2/models": lambda _: json_response({"models": sorted(self._calls.front.models)}),
            "/v2/models/stats": lambda _: json_response(protocol.statistics("", "")),
            "metadata": lambda route: json_response(protocol.metadata(route.model, route.version)),
            "ready": self._model_ready,
            "config": lambda route: json_response(protocol.config(route.model, route.version)),
            "stats": lambda route: json_response(protocol.statistics(route.model, route.version)),
            "status": lambda _: json_response([]),
            "unregister": lambda _: Response(200, b""),
        }

    def handle(self, request: Request, reply: Reply) -> Cancel | None:
        """Answer a request, now or later. Raises MserveError."""
        route = parse_path(request.target)
        expected = _METHODS[route.page]
        if request.method != expected:
            raise MethodNotAllowed("the page answers another method", expected=expected, found=request.method)
        if route.page == "infer":
            header = request.headers.get(_HEADER)
            make = partial(self._call, route.model, oip.version_of(route.version), header)
            request.head.begin = begin = partial(self._infer, make)
            return begin(request, reply)
        if route.page in ("load", "unload"):
            self._calls.spawn(self._administer(route, request, reply))
        elif route.page == "/v2/repository/index":
            reply(json_response(self._oip.index(ready=self._body(request).get("ready") is True)))
        else:
            reply(self._answers[route.page](route))
        return None

    def _call(
        self,
        model: str,
        version: tuple[int | None, str | None],
        header: bytes | None,
        request: Request,
        reply: Reply,
    ) -> Infer:
        call = Infer(request, reply, self._limits.body_max)
        call.model, call.header = model, header
        call.version, call.label = version
        return call

    def _infer(self, make: Make[Infer], request: Request, reply: Reply) -> Cancel:
        call, head = make(request, reply), request.head
        cancel = self._calls.begin(call, len(request.body))
        if head.lane is None and call.planned and self._admit is not None and not (head.coded or head.timed):
            head.lane = InferLane(self._calls, self._limits, self._admit, make, call)
        return cancel

    def _ready(self, _: Route) -> Response:
        missing = self._oip.unready()
        page: dict[str, Any] = {"ready": not missing, "live": True}
        if missing:
            page["error"] = "; ".join(missing)
        return json_response(page, 503 if missing else 200)

    def _model_ready(self, route: Route) -> Response:
        error = self._oip.why_unready(route.model, route.version)
        page: dict[str, Any] = {"name": route.model, "ready": error is None}
        if error is not None:
            page["error"] = str(error)
        return json_response(page, error.http_status if error else 200)

    def _body(self, request: Request) -> dict[str, Any]:
        body = content(request, self._limits.body_max)
        return oip_json.load(body, "{}") if body.strip() else {}

    async def _administer(self, route: Route, request: Request, reply: Reply) -> None:
        try:
            if route.page == "load":
                parameters = oip_json.read_parameters(self._body(request), "the request")
                await self._oip.load(route.model, parameters, context_of(request))
            else:
                await self._oip.unload(route.model, context_of(request))
        except Exception as error:
            reply(error_response(as_error(error, route.model)))
        else:
            reply(Response(200, b""))


class Infer(RestCall):
    """/infer, in JSON, or JSON and raw bytes."""

    protocol = "oip-rest"

    header: bytes | None = None
    _plan: Plan | None = None

    def parse(self) -> None:
        header = self.header
        self._body = body = self.body()
        if header is not None:
            plan = self.servable.plans.find(body, oip_json.header_length(header, len(body)))
            if plan is not None:
                self._plan, self._message = plan, plan.message
                if plan.timed:
                    oip.prepare(self, plan.message)
                return
        self._message = oip_json.parse(body, header)
        oip.prepare(self, self._message)

    @property
    def planned(self) -> bool:
        """Whether there is a plan for it."""
        return self._plan is not None

    def queries(self) -> Sequence[Query]:
        plan = self._plan
        if plan is not None:
            inputs = plan.inputs(self._body, len(self._body) - plan.size)
            return (Query(plan.signature, inputs, plan.rows),)
        query = oip.query(self._message, self.servable)
        for given in self._message.inputs:
            given.values = None  # thousands of numbers, whose memory the next request can have
        if self.header:
            length, signature = int(self.header), self.servable.signatures[query.signature]
            self.servable.plans.learn(self._body, length, self._message, query.signature, signature)
        return (query,)

    def encode(self, results: Sequence[Sequence[Array]]) -> Response:
        outputs, plan = results[0], self._plan
        if plan is not None and (known := plan.heads.get(shapes_of(outputs))):
            raw = [outputs[place].tobytes() for place in plan.places]
            response = self.respond(b"".join((known[0], *raw)), oip_json.BINARY, known[1])
            if response.head and shapes_of(outputs) not in plan.answers:
                plan.keep_answer(shapes_of(outputs), response.head, len(response.body))
            return response
        head = {"model_name": self.model, "model_version": str(self.servable.version)}
        if self._message.id is not None:
            head["id"] = self._message.id
        asked = oip.outputs(self._message, self.servable, self.signature, outputs)
        body, length = oip_json.encode(head, asked)
        if length is None:
            return self.respond(body, JSON)
        if plan is not None:
            plan.keep_head(shapes_of(outputs), body[:length])
        return self.respond(body, oip_json.BINARY, str(length))
