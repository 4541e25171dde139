"""The express way of HTTP: binary requests of the Open Inference Protocol. See `express`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from ..errors import MserveError
from ..loader.servable import Servable
from ..tensors import Array
from ..wire.http1 import Known, Request, Response
from ..wire.oip_plan import Plan, shapes_of
from . import logs
from .calls import LOOP_BYTES, Calls
from .exchange import Reply
from .express import Express
from .peers import Peers
from .rest import COMPRESS_BYTES

if TYPE_CHECKING:
    from .http import Connection
    from .oip_rest import Infer

Admit = Callable[[bytes], bool]
Make = Callable[[Request, Reply], "Infer"]


class Lane:
    """What requests with one head have in common: where they go, and who answers.

    `make` makes the call of a request and a reply; `like` is one of them.
    """

    def __init__(self, calls: Calls, peers: Peers, admit: Admit, make: Make, like: Infer) -> None:
        self.calls = calls
        self.peers = peers
        self.make = make
        self.model = like.model
        self.json_bytes = int(like.header or 0)
        self.compresses = like.compresses()
        self._version, self._label = like.version, like.label
        self._admit = admit
        self._token = like.request.headers.get(b"authorization", b"")

    def take(self, connection: Connection, known: Known, body: bytes) -> RestExpress | None:
        """Begin a request, which is answered later; None where it must go the long way."""
        if len(body) > LOOP_BYTES:
            return None
        try:
            self._admit(self._token)
            servable = self.calls.front.resolve(self.model, self._version, self._label)
            plan = servable.plans.find(body, self.json_bytes)
            if plan is None or not plan.answers:
                return None
            express = RestExpress(self, connection, known, body, servable=servable, plan=plan)
            express.begin(len(body))
        except MserveError:
            return None  # the long way will say why
        self.peers.received += len(body)
        return express


class RestExpress(Express):
    """A request that is its connection's exchange, too."""

    __slots__ = ("body", "connection", "dropped", "echo", "head", "lane", "response", "traceparent")

    protocol = "oip-rest"

    def __init__(
        self, lane: Lane, connection: Connection, known: Known, body: bytes, *, servable: Servable, plan: Plan
    ) -> None:
        super().__init__(lane.calls, lane.model, servable, plan, connection.quiet_ns)
        self.lane, self.connection, self.body = lane, connection, body
        self.head, self.request_id, self.traceparent = known
        self.inputs = plan.inputs(body, lane.json_bytes)
        self.dropped = False
        self.response: Response | bytes | None = None
        self.echo = b""
        if self.request_id or self.traceparent:
            who = logs.identity(self.request_id, self.traceparent)
            self.request_id, self.traceparent, self.echo = who.request_id, who.traceparent, who.lines()

    def code(self, error: MserveError | None) -> str:
        return str(error.http_status) if error else "200"

    def encode(self, outputs: Sequence[Array]) -> bytes | None:
        plan = self.plan
        kept = plan.answers.get(shapes_of(outputs))
        if kept is None or (self.lane.compresses and kept.size >= COMPRESS_BYTES):
            return None
        raw = [outputs[place].tobytes() for place in plan.places]
        return b"".join((kept.head, self.echo, kept.body, *raw))

    def send(self, answer: Response | bytes) -> None:
        self.connection.answer(self, answer)

    def make(self) -> Infer:
        request = Request(self.head, self.body, self.start_ns, self.connection.client)
        request.request_id, request.traceparent, request.echo = self.request_id, self.traceparent, self.echo
        return self.lane.make(request, partial(self.connection.answer, self))

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
