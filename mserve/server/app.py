"""The server: what lives on the event loop, and the way of a request to the codec that answers it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .. import __version__
from ..batching.batcher import Limits
from ..batching.executor import Executor
from ..errors import BundleError, MethodNotAllowed, NotFound, UsageError
from ..format import META_FILE, open_bundle
from ..format.layout import versions
from ..front import Front
from ..loader.plan import ModelConfig, Policy
from ..loader.reconciler import Reconciler
from ..loader.servable import load
from ..runtime.ort import cpu_budget
from ..wire.http1 import TEXT, Request, Response, json_response
from .access import Access
from .calls import Calls
from .grpc_server import GrpcServer, Methods
from .http import BODY_BYTES_MAX, BUFFERED_BYTES_MAX, Cancel, Connection, Peers, Reply
from .metrics import CONTENT_TYPE, Metrics
from .oip import Oip
from .oip_grpc import OipGrpc
from .oip_rest import OipRest
from .tfs_rest import TfsRest, parse_path

log = logging.getLogger("mserve")

# Pages for probes, which carry no token.
OPEN_PAGES = frozenset({b"/livez", b"/readyz", b"/v2/health/live", b"/v2/health/ready"})
OPEN_METHODS = ("grpc.health.v1.Health/", "inference.GRPCInferenceService/Server")


@dataclass(frozen=True, slots=True)
class Options:
    """How to serve; the command line's flags."""

    base_path: Path
    name: str = ""
    host: str = "127.0.0.1"
    port: int = 8501
    grpc_port: int | None = None
    admin: bool = False
    limits: Limits = Limits()  # noqa: RUF009 - frozen
    body_max: int = BODY_BYTES_MAX
    timeout_s: float = 30.0
    poll_s: float = 1.0
    latest: int = 1
    prefetch: bool = False


def models_of(options: Options) -> list[ModelConfig]:
    """The models under a path: one base path, or a directory of base paths.

    Raises UsageError for a path that can never become one.
    """
    base = options.base_path
    if "/" in options.name or not options.name.isprintable():
        raise UsageError("bad --name", expected="printable characters without '/'", found=repr(options.name))
    if base.is_file():
        hint = f"export it first: mserve export {base} BASE_PATH, then: mserve serve BASE_PATH"
        raise UsageError("serve takes a base path, not a file", where=base, hint=hint)
    if (base / META_FILE).exists():
        raise UsageError(
            "this is one version, not a base path", where=base, hint=f"mserve serve {base.resolve().parent}"
        )
    if base.is_dir() and not versions(base):
        inner = sorted(d for d in base.iterdir() if d.is_dir() and not d.name.startswith(".") and versions(d))
        if inner:
            if options.name:
                raise UsageError(
                    "--name is for one model", where=base, found=", ".join(d.name for d in inner)
                )
            return [ModelConfig(d.name, d, Policy(options.latest)) for d in inner]
    return [ModelConfig(options.name or _recorded_name(base), base, Policy(options.latest))]


def _recorded_name(base: Path) -> str:
    """The name recorded at export in the newest version that can be read, else the directory's."""
    try:
        for path in reversed(list(versions(base).values())):
            try:
                if name := open_bundle(path).metagraph.name:
                    return name
            except BundleError:
                continue
    except OSError:
        pass
    return base.resolve().name


class Server:
    """Everything that lives on the event loop."""

    def __init__(self, options: Options, models: Sequence[ModelConfig]) -> None:
        self.options = options
        budget = cpu_budget()
        opener = partial(load, prefetch=options.prefetch)
        self.reconciler = Reconciler(models, opener=opener, poll_s=options.poll_s)
        self.executor = Executor(options.limits, workers=budget)
        self.front = Front(self.reconciler.models, self.executor, options.timeout_s)
        self.metrics = Metrics(self.reconciler.models)
        self.peers = Peers(options.body_max, max(BUFFERED_BYTES_MAX, 2 * options.body_max))
        self.calls = Calls(self.front, self.metrics)
        self.access = Access(admin=options.admin)
        self.draining = False
        self._tfs = TfsRest(self.calls, self.peers)
        protocol = Oip(self.calls, self.reconciler, self.unready)
        self._oip = OipRest(protocol, self.peers)
        self._oip_grpc = OipGrpc(protocol)

    def handle(self, request: Request, reply: Reply) -> Cancel | None:
        """Route one request. Raises MserveError."""
        path = request.target.split(b"?", 1)[0]
        if path not in OPEN_PAGES:
            request.admin = self.access.admit(request.headers.get(b"authorization", b""))
        if path == b"/v2" or path.startswith(b"/v2/"):
            return self._oip.handle(request, reply)
        route = parse_path(request.target)
        if route is not None:
            return self._tfs.handle(route, request, reply)
        page = self._page(path.decode("latin-1"))
        if page is None:
            raise NotFound(
                "no such page", where=path.decode("latin-1"), hint="GET /v1/models lists the models"
            )
        if request.method != "GET":
            raise MethodNotAllowed("the page answers another method", expected="GET", found=request.method)
        reply(page)
        return None

    def grpc(self) -> GrpcServer:
        """The gRPC side of the server."""
        codecs = (self._oip_grpc.methods(),)
        unary = {name: handler for codec in codecs for name, handler in codec.unary.items()}
        streams = {name: handler for codec in codecs for name, handler in codec.streams.items()}
        return GrpcServer(Methods(unary, streams), self.admit_rpc, self.peers.body_max)

    def admit_rpc(self, method: str, metadata: Mapping[str, str | bytes]) -> bool:
        """Whether a call may be administrative. Raises Unauthenticated where it may not be made at all."""
        if method.startswith(OPEN_METHODS):
            return False
        value = metadata.get("authorization", "")
        return self.access.admit(value if isinstance(value, bytes) else value.encode())

    def _page(self, path: str) -> Response | None:
        if path in ("/metrics", "/monitoring/prometheus/metrics"):
            return Response(200, self.metrics.render(), CONTENT_TYPE)
        if path == "/livez":
            return Response(200, b"ok\n", TEXT)
        if path == "/readyz":
            missing = self.unready()
            text = "ok\n" if not missing else "\n".join(missing) + "\n"
            return Response(503 if missing else 200, text.encode(), TEXT)
        if path == "/":
            return json_response({"server": "mserve", "version": __version__, "models": "/v1/models"})
        return None

    def unready(self) -> list[str]:
        """Why the server is not ready, a line for each reason; empty when it is."""
        if self.draining:
            return ["shutting down"]
        models = self.reconciler.models.items()
        return [f"{name}: {m.why_unavailable()}" for name, m in models if not m.available]

    def connection(self) -> Connection:
        """A protocol for a new client."""
        return Connection(self.handle, self.peers)
