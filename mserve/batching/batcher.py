"""Batcher: which waiting requests form the next batch, and when. Pure: times come in, decisions go out.

There is one queue for each key (servable, signature and the shapes that rows must share
to be joined), first in, first out. One rule closes a batch: an executor is free (the
caller asks only then) and the queue's head batch is full, or has waited for the delay,
or the delay is zero. Queues take turns, so that no model starves another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import MserveError, Overloaded
from ..loader.servable import Batching, Servable
from ..tensors import Array

Reply = Callable[[Sequence[Array] | MserveError], None]


@dataclass(frozen=True, slots=True)
class Limits(Batching):
    """How batches close where a servable does not say otherwise, and rows that may wait for one servable."""

    max_queue_rows: int = 8192


@dataclass(slots=True, eq=False)
class Entry:
    """One checked request. `reply` is called once, with outputs in the signature's order or an error.

    `alone` marks a request that must not share a batch. Times are monotonic nanoseconds;
    a deadline of 0 means none; `started_ns` and `ended_ns` are those of its last run.
    `key` is what it must share with others to run together, once it is queued.
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
    key: Hashable = None


@dataclass(slots=True, eq=False)
class Batch:
    """Entries to be run together; all of one servable and signature. `options` can end its run."""

    key: Hashable
    entries: list[Entry]
    rows: int
    options: Any = None


@dataclass(slots=True)
class _Queue:
    entries: deque[Entry] = field(default_factory=deque)
    rows: int = 0


@dataclass(slots=True)
class Backlog:
    """What waits for one servable."""

    rows: int = 0
    requests: int = 0


class Batcher:
    """The queues of all servables.

    Each servable has a backlog of its own, so that one that is asked too much leaves room
    for the others. `rows` counts what waits in all.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.rows = 0
        self._requests = 0
        self._queues: dict[Hashable, _Queue] = {}
        self._backlogs: dict[int, Backlog] = {}
        self._turns: deque[Hashable] = deque()

    def __len__(self) -> int:
        return self._requests

    def waits_for(self, servable: Servable) -> bool:
        """Whether any request waits for a servable."""
        return id(servable) in self._backlogs

    def backlog(self, servable: Servable) -> Backlog:
        """What waits for a servable now."""
        return self._backlogs.get(id(servable)) or Backlog()

    def check_room(self, servable: Servable) -> Backlog:
        """What waits for a servable, if there is room for more. Raises Overloaded when its queue is full."""
        backlog = self._backlogs.get(id(servable))
        if backlog is None:
            return Backlog()
        limit = self.limits.max_queue_rows
        if max(backlog.rows, backlog.requests) >= limit:
            raise Overloaded(
                "the queue is full",
                expected=f"fewer than {limit} rows waiting",
                found=f"{backlog.rows} rows in {backlog.requests} requests",
                hint="try again later, or with fewer requests at once",
            )
        return backlog

    def add(self, entry: Entry) -> None:
        """Queue a request. Raises Overloaded when the queue is full; one that is not takes any request."""
        backlog = self.check_room(entry.servable)
        key = entry.key = batch_key(entry)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _Queue()
            self._turns.append(key)
        queue.entries.append(entry)
        queue.rows += entry.rows
        self._backlogs[id(entry.servable)] = backlog
        self._count(entry, 1)

    def next_batch(self, now_ns: int, free: Callable[[Entry, int], bool]) -> Batch | None:
        """The next batch that may close now, or None.

        `free(head, rows)` tells whether an executor is free for a batch of that size.
        """
        for _ in range(len(self._turns)):
            key = self._turns[0]
            self._turns.rotate(-1)
            queue = self._queues[key]
            head = queue.entries[0]
            rows = head.rows if head.alone else min(queue.rows, self._batching(head).max_batch_rows)
            if self._closes(queue, now_ns) and free(head, rows):
                return self._take(key, queue)
        return None

    def due_at_ns(self) -> int | None:
        """When the next batch that is not full will close, or None if nothing waits."""
        heads = [q.entries[0] for q in self._queues.values() if q.entries]
        return min((h.arrived_ns + self._batching(h).delay_ns for h in heads), default=None)

    def waiting(self) -> Iterator[Entry]:
        """Every queued entry."""
        for queue in self._queues.values():
            yield from queue.entries

    def remove(self, gone: Callable[[Entry], bool]) -> list[Entry]:
        """Take the entries for which `gone` is true out of the queues and return them."""
        removed: list[Entry] = []
        for key, queue in list(self._queues.items()):
            kept: deque[Entry] = deque()
            for entry in queue.entries:
                (removed if gone(entry) else kept).append(entry)
            if len(kept) != len(queue.entries):
                queue.entries, queue.rows = kept, sum(e.rows for e in kept)
                self._tidy(key, queue)
        for entry in removed:
            self._count(entry, -1)
        return removed

    def _batching(self, entry: Entry) -> Batching:
        return entry.servable.batching or self.limits

    def _closes(self, queue: _Queue, now_ns: int) -> bool:
        head = queue.entries[0]
        limits = self._batching(head)
        if limits.delay_ns == 0 or queue.rows >= limits.max_batch_rows:
            return True
        return head.alone or now_ns - head.arrived_ns >= limits.delay_ns

    def _take(self, key: Hashable, queue: _Queue) -> Batch:
        entries = [queue.entries.popleft()]
        rows, limit = entries[0].rows, self._batching(entries[0]).max_batch_rows
        while queue.entries and not entries[0].alone and rows + queue.entries[0].rows <= limit:
            entries.append(queue.entries.popleft())
            rows += entries[-1].rows
        queue.rows -= rows
        for entry in entries:
            self._count(entry, -1)
        self._tidy(key, queue)
        return Batch(key, entries, rows)

    def _count(self, entry: Entry, sign: int) -> None:
        backlog = self._backlogs[id(entry.servable)]
        backlog.rows += sign * entry.rows
        backlog.requests += sign
        self.rows += sign * entry.rows
        self._requests += sign
        if not backlog.requests:
            del self._backlogs[id(entry.servable)]

    def _tidy(self, key: Hashable, queue: _Queue) -> None:
        if not queue.entries:
            del self._queues[key]
            self._turns.remove(key)


def batch_key(entry: Entry) -> Hashable:
    """What two requests must share to run together: servable, signature, sizes behind axis 0.

    A request that runs alone shares nothing, and all of its sizes count.
    """
    return (
        id(entry.servable),
        entry.signature,
        entry.alone,
        tuple(x.shape if entry.alone else x.shape[1:] for x in entry.inputs.values()),
    )
