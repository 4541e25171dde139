"""Queues of one servable, and what is known of their run times."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field

from ..loader.servable import Servable
from .entry import Entry
from .form import Form
from .times import Times

NEVER_NS = 1 << 63
SIZES_MAX = 1 << 10
QUEUES_KEPT = 64


@dataclass(slots=True)
class Backlog:
    """What waits for one servable."""

    rows: int = 0
    requests: int = 0
    nbytes: int = 0


@dataclass(slots=True, eq=False)
class Queue:
    """Entries that may run together."""

    form: Form
    times: Times
    row_bytes: int
    alone: bool
    entries: deque[Entry] = field(default_factory=deque)
    rows: int = 0
    nbytes: int = 0
    deadline_ns: int = NEVER_NS


@dataclass(slots=True, eq=False)
class Flow(Backlog):
    """What is known of one servable, for as long as it lives.

    `turns` are its queues that are not empty; `only` has the queues of signatures whose
    requests all have the same sizes.
    """

    used_ns: float = 0.0
    turns: deque[Queue] = field(default_factory=deque)
    queues: dict[Hashable, Queue] = field(default_factory=dict)
    only: dict[str, Queue] = field(default_factory=dict)
    queues_kept: int = QUEUES_KEPT
    forms: dict[str, Form] = field(default_factory=dict)
    curve: dict[Hashable, Times] = field(default_factory=dict)
    alive: weakref.ref[Servable] | None = None

    def queue(self, entry: Entry) -> Queue:
        """The queue for an entry; empty ones are kept for the next request, up to some number."""
        form = self.forms.get(entry.signature)
        if form is None:
            form = Form(entry.signature, entry.servable.signatures[entry.signature])
            self.forms[entry.signature] = form
        key = form.key(entry)
        queue = self.queues.get(key)
        if queue is None:
            if len(self.queues) >= self.queues_kept:
                self.queues = {k: q for k, q in self.queues.items() if q.entries}
                self.queues_kept = max(QUEUES_KEPT, 2 * len(self.queues))
            queue = self.queues[key] = self._new(form, entry)
            if key == entry.signature:
                self.only[entry.signature] = queue
        return queue

    def _new(self, form: Form, entry: Entry) -> Queue:
        if len(self.curve) >= SIZES_MAX:
            self.curve.clear()
        # Times depend on sizes, each to the next power of two; sizes that only clients know are many.
        bits = tuple(size.bit_length() for shape in form.shapes(entry) for size in shape)
        times = self.curve.setdefault((entry.signature, entry.alone, bits), Times())
        return Queue(form, times, form.row_bytes(entry), entry.alone)


def left(flow: Flow, queue: Queue, requests: int, rows: int, nbytes: int) -> None:
    """Count entries that no longer wait."""
    queue.rows -= rows
    queue.nbytes -= nbytes
    flow.requests -= requests
    flow.rows -= rows
    flow.nbytes -= nbytes


def first_deadline(queue: Queue) -> int:
    return min((e.deadline_ns for e in queue.entries if e.deadline_ns), default=NEVER_NS)
