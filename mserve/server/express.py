"""The express way: a request whose form is known, from bytes to bytes in one object.

The long way has an object for each side of a request: an Exchange for the connection, a
Call for the protocol, an Entry for the batcher, a Response for the wire, and each asks
what most requests of a client have in common. Where a request's head and what it says of
its tensors have come before and the version knows them (`Plans`), one Express stands for
all of these. The rows of a JSON request come first here, too: what it holds is read and
checked anew, and only what stands around that is known.

What may differ from request to request is asked each time: whether the client is
admitted, which version answers, whether there is room, the deadline, the request's id.
Whatever is unusual goes the long way, before or after the run: then the call is made up
as if it had come that way, and answered by it. So an error, an answer of another shape,
one that is compressed or large, and a client that leaves are dealt with in one place only.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from ..batching.batcher import Entry
from ..errors import MserveError
from ..front import Query
from ..loader.servable import Servable
from ..tensors import Array
from .calls import Call, Calls


class Express(Entry):
    """An entry of the batcher that is a call, too, as far as counters and the recorder ask."""

    __slots__ = ("_long", "calls", "model", "request_id", "start_ns")

    protocol: ClassVar[str]
    request_id: str

    def __init__(self, calls: Calls, model: str, servable: Servable, start_ns: int) -> None:
        """`start_ns` is when the request's last byte came. A subclass sets `request_id`, and what the
        batcher asks for: `signature`, `inputs`, `rows`, `alone`.
        """
        self.calls = calls
        self.model = model
        self.start_ns = start_ns
        self._long: Call | None = None
        self.servable = servable
        self.cancelled = False
        self.started_ns = self.ended_ns = self.nbytes = self.batch = 0

    def begin(self, timeout_ns: int = 0) -> None:
        """Queue it. Raises Overloaded."""
        front = self.calls.front
        self.arrived_ns = time.monotonic_ns()
        self.deadline_ns = self.start_ns + min(timeout_ns or front.timeout_ns, front.timeout_ns)
        front.executor.submit(self)

    @property
    def context(self) -> Express:
        """It knows itself who asks, and when that came."""
        return self

    @property
    def entries(self) -> tuple[Entry]:
        """It is its own only entry."""
        return (self,)

    @property
    def parsed_ns(self) -> int:
        """When it was queued."""
        return self.arrived_ns

    @abstractmethod
    def code(self, error: MserveError | None) -> str:
        """As `Call.code`."""

    @abstractmethod
    def encode(self, outputs: Sequence[Array]) -> Any:
        """The answer, for `send`; None where it must be made the long way."""

    @abstractmethod
    def send(self, answer: Any) -> None:
        """Give the answer to the connection."""

    @abstractmethod
    def make(self) -> Call:
        """The call that it would be, had it come the long way."""

    def prepare(self, call: Call) -> None:
        """Have the call read its message."""
        call.parse()

    def reply(self, result: Sequence[Array] | MserveError) -> None:
        """The end of it, for the batcher."""
        try:
            answer = None if isinstance(result, MserveError) else self.encode(result)
        except Exception:  # the long way will say why
            answer = None
        if answer is None:
            self.calls.finish(self._made(), result)
        else:
            self.calls.count(self, None, time.monotonic_ns())
            self.send(answer)

    def cancel(self) -> None:
        """The client has left before it was answered."""
        self.calls.cancel(self._made())

    def _made(self) -> Call:
        if self._long is None:
            self._long = call = self.make()
            call.servable = self.servable
            self.prepare(call)
            call.queried = (Query(self.signature, self.inputs, self.rows),)
            call.parsed_ns, call.entries = self.arrived_ns, (self,)
        return self._long
