"""The express way: a binary request whose head and JSON have come before, from bytes to bytes in one object.

The long way has an object for each side of a request: an Exchange for the connection, a
Call for the protocol, an Entry for the batcher, a Response for the wire, and each asks
what most requests of a client have in common. Where a connection sends a head again
(`HeadMemo`) with JSON that the version knows (`Plans`), one Express stands for all four.

What may differ from request to request is asked each time: whether the client is
admitted, which version answers, whether there is room, the deadline, the request's id.
Whatever is unusual goes the long way, before (`Lane.take` is None) or after the run:
then the call is made up as if it had come that way, and answered by it. So an error, an
answer of another shape, one that is compressed or large, and a client that leaves are
dealt with in one place only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from ..batching.batcher import Entry
from ..errors import MserveError
from ..front import Query
from ..tensors import Array
from ..wire.http1 import Known, Request, Response
from ..wire.oip_plan import Plan, shapes_of
from . import logs
from .calls import LOOP_BYTES, READ_BYTES, Calls
from .exchange import Reply
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
        self.model, self.protocol = like.model, like.protocol
        self.json_bytes = int(like.header or 0)
        self.compresses = like.compresses()
        self._version, self._label = like.version, like.label
        self._admit = admit
        self._token = like.request.headers.get(b"authorization", b"")

    def take(self, connection: Connection, known: Known, body: bytes) -> Express | None:
        """Begin a request, which is answered later; None where it must go the long way."""
        front, size = self.calls.front, len(body)
        try:
            self._admit(self._token)
            servable = front.resolve(self.model, self._version, self._label)
            plan = servable.plans.find(body, self.json_bytes)
            if plan is None or not plan.answers or size > LOOP_BYTES:
                return None
            if size > READ_BYTES:
                front.executor.check_room(servable)
            express = Express(self, connection, known, body, plan)
            express.servable = servable
            express.deadline_ns = express.start_ns + front.timeout_ns
            front.executor.submit(express)
        except MserveError:
            return None  # the long way will say why
        self.peers.received += size
        return express


class Express(Entry):
    """One request: a connection's exchange, a call to be counted, and an entry of the batcher."""

    __slots__ = (
        "body",
        "connection",
        "dropped",
        "echo",
        "head",
        "lane",
        "long",
        "plan",
        "request_id",
        "response",
        "start_ns",
        "traceparent",
    )

    def __init__(self, lane: Lane, connection: Connection, known: Known, body: bytes, plan: Plan) -> None:
        self.lane, self.connection, self.plan, self.body = lane, connection, plan, body
        self.head, self.request_id, self.traceparent = known
        self.echo = b""
        if self.request_id or self.traceparent:
            who = logs.identity(self.request_id, self.traceparent)
            self.request_id, self.traceparent, self.echo = who.request_id, who.traceparent, who.lines()
        self.response: Response | bytes | None = None
        self.long: Infer | None = None
        self.dropped = self.cancelled = False
        self.signature, self.rows, self.alone = plan.signature, plan.rows, plan.alone
        self.inputs = plan.inputs(body, lane.json_bytes)
        self.start_ns, self.arrived_ns = connection.quiet_ns, time.monotonic_ns()
        self.started_ns = self.ended_ns = self.nbytes = self.batch = 0

    # as a call: what counters and the recorder ask

    @property
    def context(self) -> Express:
        """It knows its own id and when it came."""
        return self

    @property
    def entries(self) -> tuple[Entry]:
        """It is its own only entry."""
        return (self,)

    @property
    def model(self) -> str:
        """The model's name, as the client says it."""
        return self.lane.model

    @property
    def protocol(self) -> str:
        """The protocol's name, for counters."""
        return self.lane.protocol

    @property
    def parsed_ns(self) -> int:
        """When it was queued."""
        return self.arrived_ns

    def code(self, error: MserveError | None) -> str:
        """The status, for counters; errors go the long way."""
        return str(error.http_status) if error else "200"

    # as an entry: its end

    def reply(self, result: Sequence[Array] | MserveError) -> None:
        """Answer it: with what is known of such answers, or the long way."""
        lane, plan = self.lane, self.plan
        if (
            isinstance(result, MserveError)
            or (kept := plan.answers.get(shapes_of(result))) is None
            or (lane.compresses and kept.size >= COMPRESS_BYTES)
        ):
            lane.calls.finish(self._long(), result)
            return
        lane.calls.count(self, None, time.monotonic_ns())
        raw = [result[place].tobytes() for place in plan.places]
        self.connection.answer(self, b"".join((kept.head, self.echo, kept.body, *raw)))

    def _long(self) -> Infer:
        """The call that it would be, had it come the long way."""
        request = Request(self.head, self.body, self.start_ns, self.connection.client)
        request.request_id, request.traceparent, request.echo = self.request_id, self.traceparent, self.echo
        self.long = call = self.lane.make(request, partial(self.connection.answer, self))
        call.servable = self.servable
        call.parse()
        call.queried = (Query(self.signature, self.inputs, self.rows),)
        call.parsed_ns, call.entries = self.arrived_ns, (self,)
        return call

    # as an exchange

    def cancel(self) -> None:
        """The client has left."""
        if self.response is None:
            self.lane.calls.cancel(self.long or self._long())

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
