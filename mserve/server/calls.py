"""Calls: an inference request on its way from bytes to bytes, the same way for every protocol.

    parse     bytes to a message: syntax, and which model, version or label is asked for
    resolve   one servable, which then answers, whatever happens to the versions meanwhile
    queries   arrays by signature, checked
    run       the executor answers each query once: outputs or an error
    encode    outputs to bytes

A protocol is a subclass of Call with `parse`, `queries`, `encode` and `refuse`. Calls does
the rest: what is large is parsed and encoded on a thread so that its neighbours are
answered meanwhile; deadlines; the client that leaves; counters and logs. Everything here
but those methods of large calls runs on the event-loop thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

from ..batching.batcher import Entry
from ..errors import ClientLeft, MserveError
from ..front import Front, Query
from ..loader.servable import Servable
from ..tensors import Array
from ..wire.context import Context
from .metrics import Metrics, Over

log = logging.getLogger("mserve")

# What is larger is parsed and encoded on a thread.
LOOP_BYTES = 256 << 10
# What is smaller is sooner read than refused.
READ_BYTES = 4 << 10


class Call(ABC):
    """One call. A subclass sets `model`, and `version` or `label`, at the latest in `parse`."""

    protocol: ClassVar[str]
    slow = False  # whether parsing may take long whatever the size (a compressed body)
    model = ""
    version: int | None = None
    label: str | None = None
    queried: Sequence[Query] = ()
    results: Sequence[Sequence[Array]] = ()
    missing = 0
    entries: Sequence[Entry] = ()
    done = False
    parsed_ns = 0
    servable: Servable

    def __init__(self, context: Context, reply: Callable[[Any], None]) -> None:
        self.context = context
        self.reply = reply

    @property
    def signature(self) -> str:
        """The signature of the first query; "" before there is one."""
        return self.queried[0].signature if self.queried else ""

    @abstractmethod
    def parse(self) -> None:
        """Read the message. May run on a thread. Raises RequestError."""

    @abstractmethod
    def queries(self) -> Sequence[Query]:
        """What to run on `self.servable`. May run on a thread. Raises RequestError."""

    @abstractmethod
    def encode(self, results: Sequence[Sequence[Array]]) -> Any:
        """The answer, from the outputs of each query in its signature's order. May run on a thread."""

    @abstractmethod
    def refuse(self, error: MserveError) -> Any:
        """The answer that is an error."""

    @abstractmethod
    def code(self, error: MserveError | None) -> str:
        """The status as the protocol calls it, for counters; None is success."""


Observer = Callable[[Any, MserveError | None, int], None]


class Calls:
    """Takes calls and answers each exactly once, unless its client leaves.

    `observers` are told of each call that is over, `recorder` of those that have an id.
    """

    def __init__(self, front: Front, metrics: Metrics) -> None:
        self.front = front
        self.metrics = metrics
        self.observers: list[Observer] = []
        self.recorder: Observer | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, call: Call, size: int) -> Callable[[], None]:
        """Start a call whose body has `size` bytes; it is answered now or later. Never raises.

        Returns what to call when the client leaves.
        """
        if call.slow or size > LOOP_BYTES:
            self.spawn(self._begin_slowly(call))
        else:
            try:
                if call.model:  # the address says it, and what is known of the version may help
                    call.servable = self.front.resolve(call.model, call.version, call.label)
                    if size > READ_BYTES:  # a full queue need not read the body
                        self.front.executor.check_room(call.servable)
                    call.parse()
                else:
                    call.parse()
                    call.servable = self.front.resolve(call.model, call.version, call.label)
                self._submit(call, call.queries())
            except Exception as error:
                self._fail(call, error)
        return partial(self.cancel, call)

    def cancel(self, call: Call) -> None:
        """The client has left: what waits is dropped, what runs is not answered."""
        if not call.done:
            for entry in call.entries:
                entry.cancelled = True
            self._end(call, ClientLeft("the client has left"))

    def spawn(self, work: asyncio._CoroutineLike[None]) -> None:
        """Run something in the background that answers for itself."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _begin_slowly(self, call: Call) -> None:
        """Large bodies, on a thread; the servable is held meanwhile."""
        loop = asyncio.get_running_loop()
        try:
            parsed = not call.model
            if parsed:
                await loop.run_in_executor(None, call.parse)
            self._resolve(call)
            call.servable.in_flight += 1
            try:
                if not parsed:
                    await loop.run_in_executor(None, call.parse)
                queries = await loop.run_in_executor(None, call.queries)
            finally:
                call.servable.in_flight -= 1
            if not call.done:
                self._submit(call, queries)
        except Exception as error:
            self._fail(call, error)

    def _resolve(self, call: Call) -> None:
        call.servable = self.front.resolve(call.model, call.version, call.label)
        self.front.executor.check_room(call.servable)

    def _submit(self, call: Call, queries: Sequence[Query]) -> None:
        call.queried = queries
        call.parsed_ns = time.monotonic_ns()
        servable, context, predict = call.servable, call.context, self.front.predict
        if len(queries) == 1:
            reply = partial(self.finish, call)
            call.entries = (predict(servable, queries[0], reply, context.start_ns, context.timeout_ns),)
            return
        call.missing, call.entries, call.results = len(queries), [], [()] * len(queries)
        for index, query in enumerate(queries):
            reply = partial(self._one_of_several, call, index)
            call.entries.append(predict(servable, query, reply, context.start_ns, context.timeout_ns))

    def _one_of_several(self, call: Call, index: int, result: Sequence[Array] | MserveError) -> None:
        """One query's outputs, or its error, which is then the whole call's."""
        if isinstance(result, MserveError):
            self.finish(call, result)
            return
        call.results[index] = result  # type: ignore[index]
        call.missing -= 1
        if not call.missing:
            self._answer(call)

    def finish(self, call: Call, result: Sequence[Array] | MserveError) -> None:
        """The outputs of a call's only query, or an error."""
        if call.done:
            return
        if isinstance(result, MserveError):
            self._fail(call, result)
            return
        call.results = (result,)
        self._answer(call)

    def _answer(self, call: Call) -> None:
        if call.done:
            return
        if size_of(call.results) > LOOP_BYTES:
            self.spawn(self._encode_slowly(call))
            return
        try:
            answer = call.encode(call.results)
        except Exception as error:
            self._fail(call, error)
        else:
            self._end(call, None)
            call.reply(answer)

    async def _encode_slowly(self, call: Call) -> None:
        try:
            answer = await asyncio.get_running_loop().run_in_executor(None, call.encode, call.results)
        except Exception as error:
            self._fail(call, error)
        else:
            self._finish(call, answer, None)

    def _fail(self, call: Call, error: Exception) -> None:
        """Answer with an error; a client must never be left without an answer."""
        for entry in call.entries:
            entry.cancelled = True
        known = as_error(error, call.model)
        self._finish(call, call.refuse(known), known)

    def _finish(self, call: Call, answer: Any, error: MserveError | None) -> None:
        if not call.done:
            self._end(call, error)
            call.reply(answer)

    def _end(self, call: Call, error: MserveError | None) -> None:
        """Count the call, and let go of its entries: each holds the call by its `reply`, and such a
        reference cycle would keep the body, arrays and the servable until the garbage collector comes.
        """
        call.done = True
        self.count(call, error, time.monotonic_ns())
        call.entries = ()

    def count(self, call: Over, error: MserveError | None, now: int) -> None:
        """Tell those who want to know that a call is over."""
        try:
            self.metrics.observe(call, error, now)
            if self.recorder is not None and call.context.request_id:
                self.recorder(call, error, now)
            for observer in self.observers:
                observer(call, error, now)
        except Exception:  # the answer goes out, whatever is wrong with counting it
            log.exception("our bug while counting an answer of %s", call.model)


def as_error(error: Exception, what: str) -> MserveError:
    """An error that can be shown; one that is not ours is our bug, and goes to the log."""
    if isinstance(error, MserveError):
        return error
    log.error("our bug while answering %s", what, exc_info=error)
    return MserveError("internal error", found=repr(error)[:200])


def size_of(results: Sequence[Sequence[Array]]) -> int:
    """Bytes that outputs take about as text: strings are of unknown length."""
    size = 0
    for outputs in results:
        for array in outputs:
            size += array.nbytes * 8 if array.dtype.hasobject else array.nbytes
    return size
