"""The express way of HTTP. See `express`.

A Lane belongs to one head of one connection. It is made by the first request that came the
long way and went well, and begins the others: binary ones of the Open Inference Protocol,
whose JSON the version knows, and TensorFlow Serving's predict calls in JSON.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..defaults import fill_defaults
from ..errors import MserveError
from ..loader.servable import Servable
from ..tensors import Array, check_inputs
from ..wire import tfs_json
from ..wire.http1 import JSON, Known, Request, Response
from ..wire.json_values import without_booleans
from ..wire.oip_plan import Plan, shapes_of
from . import logs
from .calls import LOOP_BYTES, READ_BYTES, Call, Calls, size_of
from .exchange import Reply
from .express import Express
from .peers import Peers
from .rest import COMPRESS_BYTES, RestCall, compressed, good

if TYPE_CHECKING:
    from .http import Connection
    from .oip_rest import Infer
    from .tfs_rest import Predict, TfsRest

Admit = Callable[[bytes], bool]
AnyCall = TypeVar("AnyCall", bound=RestCall)
Make = Callable[[Request, Reply], AnyCall]


class Lane(ABC, Generic[AnyCall]):
    """What requests with one head have in common: where they go, and who answers.

    `make` makes the call of a request and a reply; `like` is one of them.
    """

    def __init__(self, calls: Calls, peers: Peers, admit: Admit, make: Make[AnyCall], like: AnyCall) -> None:
        self.calls = calls
        self.peers = peers
        self.make = make
        self.model = like.model
        self.encoding = like.accepted()
        self._version, self._label = like.version, like.label
        self._admit = admit
        self._token = like.request.headers.get(b"authorization", b"")

    def take(self, connection: Connection, known: Known, body: bytes) -> RestExpress | None:
        """Begin a request, which is answered later; None where it must go the long way."""
        front, size = self.calls.front, len(body)
        if size > LOOP_BYTES:
            return None
        try:
            self._admit(self._token)
            servable = front.resolve(self.model, self._version, self._label)
            if size > READ_BYTES:  # a full queue need not read the body
                front.executor.check_room(servable)
            express = self.express(connection, known, body, servable)
            if express is not None:
                express.begin()
        except MserveError:
            return None  # the long way will say why
        if express is not None:
            self.peers.received += size
        return express

    @abstractmethod
    def express(
        self, connection: Connection, known: Known, body: bytes, servable: Servable
    ) -> RestExpress | None:
        """A request, checked; None where it must go the long way. Raises MserveError."""


class RestExpress(Express):
    """A request that is its connection's exchange, too."""

    __slots__ = ("body", "connection", "dropped", "echo", "head", "lane", "response", "traceparent")

    def __init__(
        self, lane: Lane[Any], connection: Connection, known: Known, body: bytes, servable: Servable
    ) -> None:
        super().__init__(lane.calls, lane.model, servable, connection.quiet_ns)
        self.lane, self.connection, self.body = lane, connection, body
        self.head, _, self.request_id, self.traceparent = known
        self.dropped = False
        self.response: Response | bytes | None = None
        self.echo = b""
        if self.request_id or self.traceparent:
            who = logs.identity(self.request_id, self.traceparent)
            self.request_id, self.traceparent, self.echo = who.request_id, who.traceparent, who.lines()

    def code(self, error: MserveError | None) -> str:
        return str(error.http_status) if error else "200"

    def send(self, answer: Response | bytes) -> None:
        self.connection.answer(self, answer)

    def make(self) -> Call:
        request = Request(self.head, self.body, self.start_ns, self.connection.client)
        request.request_id, request.traceparent, request.echo = self.request_id, self.traceparent, self.echo
        call: Call = self.lane.make(request, partial(self.connection.answer, self))
        return call

    # as an exchange; it is cancelled whether or not it was answered

    def cancel(self) -> None:
        if self.response is None:
            super().cancel()

    def release(self) -> None:
        """It is answered, or never will be: its bytes do not count any more."""
        self.lane.peers.received -= len(self.body)
        self.body = b""

    def encoded(self, *, keep_alive: bool) -> bytes:
        """Its answer's bytes on the wire."""
        answer = self.response
        if isinstance(answer, Response):
            return answer.encode(keep_alive=keep_alive, echo=self.echo)
        assert answer is not None
        return answer if keep_alive else answer.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)


class InferLane(Lane["Infer"]):
    """Open Inference Protocol, tensors as raw bytes."""

    def __init__(self, calls: Calls, peers: Peers, admit: Admit, make: Make[Infer], like: Infer) -> None:
        super().__init__(calls, peers, admit, make, like)
        self.json_bytes = int(like.header or 0)

    def express(
        self, connection: Connection, known: Known, body: bytes, servable: Servable
    ) -> RestExpress | None:
        plan = servable.plans.find(body, self.json_bytes)
        if plan is None or not plan.answers:
            return None
        express = InferExpress(self, connection, known, body, servable)
        express.plan = plan
        express.inputs = plan.inputs(body, self.json_bytes)
        express.signature, express.rows, express.alone = plan.signature, plan.rows, plan.alone
        return express


class InferExpress(RestExpress):
    """A binary request."""

    __slots__ = ("plan",)

    protocol = "oip-rest"
    plan: Plan

    def encode(self, outputs: Sequence[Array]) -> bytes | None:
        plan = self.plan
        kept = plan.answers.get(shapes_of(outputs))
        if kept is None or kept.size > LOOP_BYTES or (self.lane.encoding and kept.size >= COMPRESS_BYTES):
            return None
        raw = [outputs[place].tobytes() for place in plan.places]
        return b"".join((kept.head, self.echo, kept.body, *raw))


class PredictLane(Lane["Predict"]):
    """TensorFlow Serving's predict; a strict server's go the long way."""

    def __init__(
        self, calls: Calls, peers: Peers, admit: Admit, make: Make[Predict], like: Predict, *, rest: TfsRest
    ) -> None:
        super().__init__(calls, peers, admit, make, like)
        self._rest = rest

    def express(
        self, connection: Connection, known: Known, body: bytes, servable: Servable
    ) -> RestExpress | None:
        if self._rest.strict:
            return None
        express = PredictExpress(self, connection, known, body, servable)
        message = tfs_json.parse(body)
        name, signature = servable.signature(tfs_json.signature_name(message))
        express.wanted = tfs_json.selected(message, signature)
        inputs, express.in_rows = tfs_json.inputs_of(message, signature, booleans=not without_booleans(body))
        del message  # thousands of numbers, whose memory the next request can have
        express.signature, express.inputs = name, fill_defaults(signature, inputs)
        express.rows = rows = check_inputs(signature, express.inputs)
        express.alone = signature.batch_axis is None or rows == 0
        return express


class PredictExpress(RestExpress):
    """A predict request in JSON."""

    __slots__ = ("in_rows", "wanted")

    protocol = "tfs-rest"
    in_rows: bool
    wanted: Sequence[str]

    def prepare(self, call: Call) -> None:
        super().prepare(call)
        call.queries()  # by which it learns in what form to answer

    def encode(self, outputs: Sequence[Array]) -> bytes | Response | None:
        if size_of((outputs,)) > LOOP_BYTES:
            return None
        servable = self.servable
        named = dict(zip(servable.signatures[self.signature].outputs, outputs, strict=True))
        body = tfs_json.encode({alias: named[alias] for alias in self.wanted}, rows=self.in_rows)
        headers, head = good(servable.version, JSON, "")
        if len(body) >= COMPRESS_BYTES and self.lane.encoding:
            return compressed(body, JSON, headers, self.lane.encoding)
        return b"%bContent-Length: %d\r\n%b\r\n%b" % (head, len(body), self.echo, body)
