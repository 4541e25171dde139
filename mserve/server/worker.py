"""The server inside a child of several serving processes: it answers inference, and asks the parent the rest.

Every request that is not inference goes over the control channel as it came, and is answered
by the parent's handlers.
"""

from __future__ import annotations

import asyncio
from functools import partial

from ..errors import MserveError
from ..wire.http1 import Request, Response
from .app import Server
from .config import Config
from .control import Channel, Message, error_of
from .exchange import Cancel, Reply, error_response
from .logs import set_level
from .oip_rest import parse_path as oip_route
from .rpc import Methods, Rpc, RpcReply
from .tfs_rest import parse_path as tfs_route

_OIP, _TFS = "inference.GRPCInferenceService/", "tensorflow.serving.PredictionService/"
# What a child answers itself.
LIVE = frozenset({b"/livez", b"/v2/health/live"})
OWN_METHODS = frozenset(
    {f"{_OIP}ModelInfer", f"{_OIP}ServerLive"}
    | {_TFS + name for name in ("Predict", "Classify", "Regress", "MultiInference")}
)


class Worker(Server):
    """A server that answers inference itself, and hands everything else to the parent."""

    def __init__(self, config: Config, threads: int) -> None:
        super().__init__(config, threads)
        self.models = self.reconciler.models
        self.control: Channel

    def take_config(self, config: Config) -> None:
        """Take another configuration; who may ask is told apart from it."""
        self.config = config
        self._apply(config)
        set_level(config.log)

    def handle(self, request: Request, reply: Reply) -> Cancel | None:
        if request.head.begin is not None or _is_own(request.target):
            return super().handle(request, reply)
        head = {
            "do": "http",
            "method": request.head.method,
            "target": request.target.decode("latin-1"),
            "headers": [[k.decode("latin-1"), v.decode("latin-1")] for k, v in request.headers.items()],
            "client": request.client,
            "start_ns": request.start_ns,
            "identity": [request.request_id, request.traceparent],
        }
        asked = self.control.ask(head, request.body)
        asked.add_done_callback(partial(_answer, request, reply))
        return partial(_forget, asked)

    def grpc_methods(self) -> Methods:
        methods = super().grpc_methods()
        unary = {name: h if name in OWN_METHODS else self._forward for name, h in methods.unary.items()}
        return Methods(unary, methods.streams)

    def _forward(self, rpc: Rpc, reply: RpcReply) -> Cancel:
        context, token = rpc.context, rpc.metadata.get("authorization", "")
        head = {
            "do": "rpc",
            "method": rpc.method,
            "authorization": token if isinstance(token, str) else token.decode("latin-1"),
            "context": [context.start_ns, context.timeout_ns, context.request_id, context.traceparent],
            "admin": context.admin,
        }
        asked = self.control.ask(head, rpc.message)
        asked.add_done_callback(partial(_answer_rpc, reply))
        return partial(_forget, asked)


def _forget(asked: asyncio.Future[Message]) -> None:
    """The client has left."""
    asked.cancel()


def _is_own(target: bytes) -> bool:
    """Whether a request is inference, or asks whether this process lives."""
    try:
        if target.startswith(b"/v2/"):
            return target in LIVE or oip_route(target).page == "infer"
        route = tfs_route(target)
    except MserveError:
        return False
    return bool(route.verb) if route is not None else target in LIVE


def _answer(request: Request, reply: Reply, asked: asyncio.Future[Message]) -> None:
    """Give a client the parent's answer."""
    if asked.cancelled():
        return
    if error := asked.exception():
        assert isinstance(error, MserveError)
        reply(error_response(error))
        return
    head, body = asked.result()
    request.echo = head["echo"].encode("latin-1")
    reply(Response(head["status"], body, head["type"], tuple((k, v) for k, v in head["headers"])))


def _answer_rpc(reply: RpcReply, asked: asyncio.Future[Message]) -> None:
    if asked.cancelled():
        return
    if error := asked.exception():
        assert isinstance(error, MserveError)
        reply(error)
        return
    head, body = asked.result()
    reply(error_of(head["error"]) if head["error"] else body)
