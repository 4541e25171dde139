"""Entry: one checked request on its way through the batcher. Batch: entries that run together.

A request with more rows than a batch may have is run in parts. Each part is an entry of
its own, whose outputs are put into the request's as they come, so that no single moment
copies all of a large answer; the first part that fails answers for all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import ExecutionFailed, MserveError
from ..loader.servable import Servable
from ..rows import Cuts
from ..tensors import Array
from .form import Form
from .times import Times

log = logging.getLogger("mserve")

Reply = Callable[[Sequence[Array] | MserveError], None]


@dataclass(slots=True, eq=False)
class Entry:
    """One checked request. `reply` is called once, with outputs in the signature's order or an error.

    `alone` marks a request that must not share a batch. Times are monotonic nanoseconds;
    a deadline of 0 means none; `started_ns` and `ended_ns` are those of its last run.
    `cancelled` says that nobody waits for it: its client has left, or it was answered.
    `nbytes` is about what its inputs take in memory, known once it is queued; `batch` is the
    number of the (last) one that it ran in.
    """

    servable: Servable
    signature: str
    inputs: Mapping[str, Array]
    rows: int
    alone: bool
    reply: Reply
    arrived_ns: int
    deadline_ns: int = 0
    cancelled: bool = False
    started_ns: int = 0
    ended_ns: int = 0
    nbytes: int = 0
    batch: int = 0
    is_part: ClassVar[bool] = False

    def answer(self, result: Sequence[Array] | MserveError) -> None:
        """The end of its last run, or of its waiting: answer it if that has not been done yet."""
        self.servable.in_flight -= 1
        if self.cancelled:
            return
        self.cancelled = True
        try:
            self.reply(result)
        except Exception:
            log.exception("our bug while answering a request")

    def give(self, result: Sequence[Array] | MserveError) -> None:
        """Answer it now; whatever goes wrong in that is not its neighbours' business."""
        self.cancelled = True
        try:
            self.reply(result)
        except Exception:
            log.exception("our bug while answering a request")

    def parts(self, most: int) -> Iterator[Entry]:
        """Entries of at most so many rows that are this one together."""
        whole = _Whole(self, -(-self.rows // most))
        cuts = Cuts(self.servable.signatures[self.signature], self.inputs)
        for start in range(0, self.rows, most):
            stop = min(self.rows, start + most)
            yield _Part(whole, cuts.rows(start, stop), start, stop)


@dataclass(slots=True, eq=False)
class _Whole:
    """A request that is run in parts: how many have not ended, and the outputs of those that have."""

    entry: Entry
    left: int
    outputs: list[Array] | None = None

    def put(self, start: int, rows: int, outputs: Sequence[Array]) -> None:
        """Keep one part's outputs. Raises ExecutionFailed when they do not fit the others'."""
        import numpy as np

        if self.outputs is None:
            self.outputs = [np.empty((self.entry.rows, *x.shape[1:]), x.dtype) for x in outputs]
        for output, part in zip(self.outputs, outputs, strict=True):
            if part.shape != (rows, *output.shape[1:]):
                raise ExecutionFailed(
                    "the parts of a large request do not fit together",
                    expected=[rows, *output.shape[1:]],
                    found=list(part.shape),
                    hint="send fewer rows at once, or raise max_batch",
                )
            output[start : start + rows] = part


class _Part(Entry):
    """Some rows of a request. Nobody waits for it when nobody waits for the request."""

    __slots__ = ("start", "whole")
    is_part = True

    def __init__(self, whole: _Whole, inputs: Mapping[str, Array], start: int, stop: int) -> None:
        self.whole, self.start = whole, start
        entry = whole.entry
        super().__init__(
            entry.servable, entry.signature, inputs, stop - start, False, entry.reply, entry.arrived_ns
        )
        self.deadline_ns = entry.deadline_ns

    @property
    def cancelled(self) -> bool:
        return self.whole.entry.cancelled

    @cancelled.setter
    def cancelled(self, value: bool) -> None:
        self.whole.entry.cancelled |= value

    def answer(self, result: Sequence[Array] | MserveError) -> None:
        whole = self.whole
        entry = whole.entry
        whole.left -= 1
        entry.started_ns, entry.ended_ns = entry.started_ns or self.started_ns, self.ended_ns
        entry.batch = self.batch
        if not entry.cancelled:
            result = self._kept(result)
        if not whole.left:
            entry.servable.in_flight -= 1
        if entry.cancelled:
            whole.outputs = None
        elif isinstance(result, MserveError):
            entry.give(result)
        elif not whole.left:
            entry.give(whole.outputs or [])

    def _kept(self, result: Sequence[Array] | MserveError) -> Sequence[Array] | MserveError:
        if isinstance(result, MserveError):
            return result
        try:
            self.whole.put(self.start, self.rows, result)
        except MserveError as error:
            return error
        except MemoryError as error:
            return ExecutionFailed("there is no memory for the outputs of a large request", found=repr(error))
        return result

    def give(self, result: Sequence[Array] | MserveError) -> None:
        self.whole.entry.give(result)


@dataclass(slots=True, eq=False)
class Batch:
    """Entries to be run together; all of one servable and signature.

    `number` counts the batches of one batcher. `reason` says why it closed: full, due,
    no-delay, deadline, preferred, alone, split (full with parts of one request) or bisect
    (a half of one that failed). `padding` rows are run besides `rows` and thrown away.
    `times` holds the run times known of its sizes. `inline`
    says whether it runs on the event loop, `wide` whether it has all CPUs to itself; `options`
    can end its run.
    """

    number: int
    reason: str
    entries: list[Entry]
    rows: int
    padding: int
    form: Form
    times: Times
    inline: bool = False
    wide: bool = False
    charged_ns: float = 0.0
    options: Any = None
