"""The server: what lives on the event loop, and the way of a request to the codec that answers it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from urllib.parse import unquote

from .. import __version__
from ..batching.batcher import Limits
from ..batching.executor import Executor
from ..errors import MethodNotAllowed, NotFound
from ..format.serving import Serving
from ..front import Front
from ..loader.plan import ModelConfig, Policy
from ..loader.reconciler import Reconciler
from ..loader.servable import Batching, Servable, load
from ..runtime.ort import cpu_budget
from ..wire.http1 import TEXT, Request, Response, json_response
from . import grpc_health, grpc_reflection, logs, openapi, tfs_reload
from .access import Access
from .calls import Calls, as_error
from .config import Config
from .exchange import Cancel, Reply, error_response
from .exposition import CONTENT_TYPE
from .grpc_server import GrpcServer
from .http import Connection
from .metrics import Metrics
from .oip import Oip
from .oip_grpc import OipGrpc
from .oip_rest import OipRest
from .peers import Peers
from .recorder import Recorder
from .request_log import RequestLog, Sampling
from .rest import VERSION_HEADER
from .rpc import Methods
from .settings import ModelBatching, ModelTable
from .tfs_grpc import TfsGrpc
from .tfs_rest import TfsRest, parse_path

log = logging.getLogger("mserve")

# Pages for probes, which carry no token.
OPEN_PAGES = frozenset({b"/livez", b"/readyz", b"/v2/health/live", b"/v2/health/ready"})
COUNTERS = (b"/metrics", b"/monitoring/prometheus/metrics")
EXPLAIN = "/debug/requests/"
OPEN_METHODS = ("grpc.health.v1.Health/", "inference.GRPCInferenceService/Server")


Opener = Callable[[Path, str], Servable]
Published = Callable[[], None]


def model_configs(config: Config) -> list[ModelConfig]:
    """The models of a configuration as the reconciler takes them."""
    return [_model_config(name, table, config) for name, table in config.models.items()]


def _model_config(name: str, table: ModelTable, config: Config) -> ModelConfig:
    match table.versions:
        case "all":
            policy = Policy(0)
        case tuple(listed):
            policy = Policy(versions=listed)
        case latest:
            policy = Policy(latest)
    override = None
    if table.batching != ModelBatching():
        rows, delay_ms, allowed, preferred = table.batching.over(config.batching)
        soft = _is_soft(config, table.batching)
        override = Batching(rows, _ms(delay_ms), allowed=allowed, preferred=preferred, soft=soft)
    first = table.transition == "unload-first"
    device = table.device or config.server.device
    return ModelConfig(
        name, table.base_path, policy, table.labels, first, override, device, configured(name, config)
    )


def configured(name: str, config: Config) -> Serving:
    """What somebody has set about a model's batches: for the model itself, or for all."""
    table = config.models[name].batching
    said = {f.name: getattr(table, f.name) for f in fields(table)}
    for key in said.keys() & {f.name for f in fields(config.batching)}:
        if said[key] is None and f"batching.{key}" in config.origins:
            said[key] = getattr(config.batching, key)
    return Serving(**said)


def _is_soft(config: Config, model: ModelBatching) -> bool:
    return model.max_batch is None and "batching.max_batch" not in config.origins


def limits_of(config: Config) -> Limits:
    """How batches close where nothing else is said, and what may wait."""
    table, model = config.batching, ModelBatching()
    rows, delay_ms, allowed, preferred = model.over(table)
    return Limits(
        rows,
        _ms(delay_ms),
        table.max_queue,
        table.max_queue_bytes,
        allowed=allowed,
        preferred=preferred,
        soft=_is_soft(config, model),
    )


def _ms(milliseconds: float) -> int:
    return int(milliseconds * 1e6)


def _access(config: Config) -> Access:
    return Access(config.auth.tokens, config.auth.admin_tokens, config.server.admin)


def _present(**texts: str) -> dict[str, str]:
    return {key: text for key, text in texts.items() if text}


def _request_log(config: Config) -> RequestLog | None:
    table = config.request_log
    if table.path is None:
        return None
    return RequestLog(Sampling(table.path, table.sample, frozenset(table.redact), table.max_bytes))


class Server:
    """Everything that lives on the event loop."""

    def __init__(
        self,
        config: Config,
        workers: int | None = None,
        opener: Opener | None = None,
        published: Published = lambda: None,
    ) -> None:
        """`config_problem` says why the newest configuration is not used, or is "".

        `workers` threads run models, by default one for each CPU; `opener` and `published` are
        the reconciler's.
        """
        self.config = config
        self.config_problem = ""
        opener = opener or partial(load, prefetch=config.server.prefetch)
        self.reconciler = Reconciler(
            model_configs(config), opener=opener, poll_s=config.server.poll, published=published
        )
        workers = cpu_budget() if workers is None else workers
        self.recorder = Recorder()
        self.executor = Executor(limits_of(config), workers, self.recorder.on_batch)
        self.front = Front(self.reconciler.models, self.executor, config.limits.timeout)
        batcher = self.executor.batcher
        self.metrics = Metrics(
            self.reconciler.models,
            lambda servable: batcher.backlog(servable).rows,
            lambda: bool(self.config_problem),
        )
        self.peers = Peers(config.limits.body, outbox=self.executor.outbox)
        self.calls = Calls(self.front, self.metrics)
        self.calls.recorder = self.recorder.on_call
        self.access = _access(config)
        self.draining = False
        self.access_log = bool(config.log.access)
        self.request_log = _request_log(config)
        if self.request_log is not None:
            self.calls.observers.append(self.request_log.observe)
        # Who writes every request down asks for more than the express way knows.
        admit = self._admit if not self.access_log and self.request_log is None else None
        self._tfs = TfsRest(self.calls, self.peers, admit)
        protocol = Oip(self.calls, self.reconciler, self.unready)
        self._oip = OipRest(protocol, self.peers, admit)
        self._oip_grpc = OipGrpc(protocol, self.peers)
        self._apply(config)

    def reconfigure(self, config: Config) -> None:
        """Take another configuration, but for the keys that need a restart; requests go on.

        Raises InputError, and nothing has changed, when a token file cannot be read.
        """
        self.access = _access(config)
        self.config = config
        self._apply(config)
        self.reconciler.poll_s = config.server.poll
        self.reconciler.configure(model_configs(config))

    def _apply(self, config: Config) -> None:
        """Take the limits of a configuration."""
        limits = config.limits
        self.executor.batcher.limits = limits_of(config)
        self._tfs.strict = config.server.strict_json
        self.front.timeout_ns = int(limits.timeout * 1e9)
        self.peers.buffered_max = limits.buffered
        self.peers.connections_max = limits.connections
        self.peers.idle_timeout_s, self.peers.send_timeout_s = limits.idle, limits.send

    def _admit(self, authorization: bytes) -> bool:
        return self.access.admit(authorization)

    def handle(self, request: Request, reply: Reply) -> Cancel | None:
        """Answer one request, now or later."""
        if self.access_log or request.request_id or request.traceparent:
            reply = self._identified(request, reply)
        try:
            begin = request.head.begin
            if begin is None:
                return self._route(request, reply)
            self.access.admit(request.headers.get(b"authorization", b""))
            return begin(request, reply)  # type: ignore[no-any-return]
        except Exception as error:
            reply(error_response(as_error(error, request.target[:200].decode("latin-1"))))
            return None

    def _identified(self, request: Request, reply: Reply) -> Reply:
        """Give a request its identity, which its answer echoes; log it where that is asked for."""
        who = logs.identity(request.request_id, request.traceparent)
        if self.access_log and not who.request_id:
            who.request_id = logs.new_request_id()
        request.request_id, request.traceparent = who.request_id, who.traceparent
        request.echo = who.lines()
        if not self.access_log:
            return reply

        def logged(response: Response) -> None:
            reply(response)
            path, sizes = request.target.decode("latin-1"), (len(request.body), len(response.body))
            line = (request.client, request.method, path, str(response.status), *sizes, request.start_ns)
            version = dict(response.headers).get(VERSION_HEADER, "")
            logs.write_access(logs.Line(*line, who, version))

        return logged

    def _route(self, request: Request, reply: Reply) -> Cancel | None:
        path = request.head.path
        token = request.headers.get(b"authorization", b"")
        if path not in OPEN_PAGES:
            request.admin = self.access.admit(token)
        elif request.method == "GET" and b"ready" in path and self.unready() and not self.access.knows(token):
            reply(_not_ready(path))
            return None
        if path == b"/v2" or path.startswith(b"/v2/"):
            return self._oip.handle(request, reply)
        route = parse_path(request.target)
        if route is not None:
            return self._tfs.handle(route, request, reply)
        counters = path in COUNTERS
        page = None if counters else self._page(path.decode("latin-1"))
        if page is None and not counters:
            raise NotFound(
                "no such page", where=path.decode("latin-1"), hint="GET /v1/models lists the models"
            )
        if request.method != "GET":
            raise MethodNotAllowed("the page answers another method", expected="GET", found=request.method)
        if page is None:
            self.calls.spawn(self._show_counters(reply))
        else:
            reply(page)
        return None

    async def _show_counters(self, reply: Reply) -> None:
        try:
            page = Response(200, await self.metrics.render(), CONTENT_TYPE)
        except Exception as error:
            page = error_response(as_error(error, "a page of counters"))
        reply(page)

    def grpc(self) -> GrpcServer:
        """The gRPC side of the server."""
        return GrpcServer(self.grpc_methods(), self.admit_rpc, self.peers, access_log=self.access_log)

    def grpc_methods(self) -> Methods:
        """Every method of gRPC with its handler."""
        codecs = [
            self._oip_grpc.methods(),
            TfsGrpc(self.calls, self.peers).methods(),
            tfs_reload.methods(self),
        ]
        services = {name.partition("/")[0] for c in codecs for name in (*c.unary, *c.streams)}
        codecs.append(grpc_reflection.methods((*services, grpc_health.SERVICE)))
        services.update(grpc_reflection.SERVICES)
        health = grpc_health.Health(
            self.reconciler.models, self.unready, lambda: self.draining, services, self.knows_rpc
        )
        codecs.append(health.methods())
        unary = {name: handler for c in codecs for name, handler in c.unary.items()}
        streams = {name: handler for c in codecs for name, handler in c.streams.items()}
        return Methods(unary, streams)

    def admit_rpc(self, method: str, metadata: Mapping[str, str | bytes]) -> bool:
        """Whether a call may be administrative. Raises Unauthenticated where it may not be made at all."""
        if method.startswith(OPEN_METHODS):
            return False
        return self.access.admit(_token(metadata))

    def knows_rpc(self, metadata: Mapping[str, str | bytes]) -> bool:
        """Whether a call comes from a client that has a token, or needs none."""
        return self.access.knows(_token(metadata))

    def _page(self, path: str) -> Response | None:
        if path == "/debug/batches":
            return json_response({"batches": list(self.recorder.latest())})
        if path.startswith(EXPLAIN):
            found = self.recorder.explain(unquote(path.removeprefix(EXPLAIN)))
            return None if found is None else json_response(found)
        if path == "/openapi.json":
            tokens, admins = self.access.tokens_asked, self.access.admin_tokens_asked
            models = self.reconciler.models
            return json_response(openapi.document(models, tokens=tokens, admin_tokens=admins))
        if path == "/livez":
            return Response(200, b"ok\n", TEXT)
        if path == "/readyz":
            missing = self.unready()
            text = "ok\n" if not missing else "\n".join(missing) + "\n"
            return Response(503 if missing else 200, text.encode(), TEXT)
        if path == "/":
            page = {"server": "mserve", "version": __version__, "models": "/v1/models"}
            return json_response(page | _present(configuration_problem=self.config_problem))
        return None

    def unready(self) -> list[str]:
        """Why the server is not ready, a line for each reason; empty when it is.

        A model that a client unloaded, or that leaves the configuration, is not missing.
        """
        if self.draining:
            return ["shutting down"]
        missing = {n: m for n, m in self.reconciler.models.items() if m.wanted and m.default is None}
        return [f"{name}: {model.why_unavailable()}" for name, model in missing.items()]

    def connection(self) -> Connection:
        """A protocol for a new client."""
        return Connection(self.handle, self.peers)


def _token(metadata: Mapping[str, str | bytes]) -> bytes:
    value = metadata.get("authorization", "")
    return value if isinstance(value, bytes) else value.encode()


def _not_ready(path: bytes) -> Response:
    """What a probe without a token is told: no names, paths or texts of bundles."""
    if path == b"/readyz":
        return Response(503, b"not ready\n", TEXT)
    return json_response({"ready": False, "live": True, "error": "not ready"}, 503)
