"""Batcher: which waiting requests form the next batch, and when. Pure: times come in, decisions go out.

There is one queue for each servable, signature and set of sizes that rows must share to
be joined (see `form`), first in, first out. One rule closes a batch: an executor is free
(the caller asks only then) and the queue's head batch is full, or due, or the delay is
zero. Due is what has waited for the delay, and what would miss a deadline if it waited
longer: from the run times seen before follows when the run must start. A preferred size
counts as full.

Which servable is next: the one that was given the least run time so far. Each run is
charged when it starts, as far as its time can be predicted, and corrected when it ends
(`ran`). A servable that was idle starts level with the one that was last chosen, so that
nobody saves time up. So a slow model gets its share of the time and not of the turns,
and a fast one beside it runs many batches meanwhile. The queues of one servable take turns.
"""

from __future__ import annotations

import weakref
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from operator import attrgetter

from ..errors import Overloaded
from ..loader.servable import Batching, Servable
from .entry import Batch, Entry, Reply
from .form import MUCH
from .queues import NEVER_NS, Backlog, Flow, Queue, first_deadline, left
from .times import expected_ns

__all__ = ["Backlog", "Batch", "Batcher", "Entry", "Limits", "Reply"]

# A run takes longer than predicted, a timer goes off late.
DEADLINE_SLACK_NS, DEADLINE_SLACK = 5_000_000, 1.25
# Clients may make as many queues as there are sizes; so many are looked at for a run on the loop.
QUEUES_TRIED = 64
# Of several servables none may hold the event loop for longer.
INLINE_RUN_NS = 150_000
# What a run is charged of which nothing is known yet.
UNKNOWN_RUN_NS = 1_000_000
# No larger request runs whole where nobody has set a limit.
WHOLE_RUN_NS = 5_000_000
# What is run in pieces is run in pieces of at least half of 2 ** PIECE_BITS rows.
PIECE_BITS = 4


@dataclass(frozen=True, slots=True)
class Limits(Batching):
    """How batches close where a servable does not say otherwise, and what may wait for one servable."""

    max_queue_rows: int = 8192
    max_queue_bytes: int = 1 << 28


_used = attrgetter("used_ns")


class Batcher:
    """The queues of all servables.

    Each servable has a backlog of its own, so that one that is asked too much leaves room
    for the others. `gone` collects entries that were found in a batch and are not run,
    because nobody waits for them or their deadline has passed; the caller answers them.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.gone: list[Entry] = []
        self._flows: dict[int, Flow] = {}
        self._active: list[Flow] = []
        self._clock_ns = 0.0
        self._numbers = 0

    def __len__(self) -> int:
        return sum(flow.requests for flow in self._active)

    def __bool__(self) -> bool:
        return bool(self._active)

    @property
    def rows(self) -> int:
        """How many rows wait in all."""
        return sum(flow.rows for flow in self._active)

    def backlog(self, servable: Servable) -> Backlog:
        """What waits for a servable now."""
        return self._flows.get(id(servable)) or Backlog()

    def check_room(self, servable: Servable) -> None:
        """Whether there is room for one more request. Raises Overloaded when a servable's queue is full."""
        flow = self._flows.get(id(servable))
        if flow is not None:
            self._check_room(flow)

    def _check_room(self, flow: Flow) -> None:
        limits = self.limits
        if max(flow.rows, flow.requests) < limits.max_queue_rows and flow.nbytes < limits.max_queue_bytes:
            return
        raise Overloaded(
            "the queue is full",
            expected=f"fewer than {limits.max_queue_rows} rows and {limits.max_queue_bytes} bytes waiting",
            found=f"{flow.rows} rows in {flow.requests} requests, {flow.nbytes} bytes",
            hint="try again later, or with fewer requests at once",
        )

    def add(self, entry: Entry) -> None:
        """Queue a request, in parts if it is larger than a batch and its run would not be short.

        Raises Overloaded when the queue is full; one that is not takes any request.
        """
        servable = entry.servable
        flow = self._flows.get(id(servable))
        if flow is None:
            flow = self._flows[id(servable)] = Flow()
            # When the servable goes, so does what is known of it.
            flow.alive = weakref.ref(servable, partial(self._flows.pop, id(servable)))
        elif flow.requests:
            self._check_room(flow)
        batching = servable.batching or self.limits
        most = batching.max_batch_rows
        if entry.rows <= most or entry.alone or _stays_whole(flow, entry, batching):
            self._put(flow, entry)
        else:
            for part in entry.parts(most):
                self._put(flow, part)

    def _put(self, flow: Flow, entry: Entry) -> None:
        # Where a signature fixes all sizes there is one queue, and nothing to look at.
        queue = flow.only.get(entry.signature)
        if queue is None or entry.alone:
            queue = flow.queue(entry)
        rows, deadline = entry.rows, entry.deadline_ns
        nbytes = queue.row_bytes if entry.alone else queue.row_bytes * rows
        if queue.form.varies:
            nbytes = queue.form.nbytes(entry, nbytes)
        entry.nbytes = nbytes
        if not queue.entries:
            if not flow.turns:
                flow.used_ns = max(flow.used_ns, self._clock_ns)
                self._active.append(flow)
            flow.turns.append(queue)
            queue.deadline_ns = NEVER_NS
        if 0 < deadline < queue.deadline_ns:
            queue.deadline_ns = deadline
        queue.entries.append(entry)
        queue.rows += rows
        queue.nbytes += nbytes
        flow.requests += 1
        flow.rows += rows
        flow.nbytes += nbytes

    def next_batch(
        self, now_ns: int, *, free: bool = True, room_ns: float = 0, rest_ns: float = 0
    ) -> Batch | None:
        """The next batch that may close now, or None.

        `free` tells whether a worker is free; `room_ns` is the longest predicted run that
        may be made on the event loop now, `rest_ns` how long all that follow may take with it.
        """
        active = self._active
        if len(active) > 1:
            active.sort(key=_used)
        for flow in active.copy() if len(active) > 1 else active:
            for _ in range(len(flow.turns) if free else min(len(flow.turns), QUEUES_TRIED)):
                queue = flow.turns[0]
                reason, most = self._closes(queue, now_ns)
                rows = max(queue.entries[0].rows, min(queue.rows, most))
                short = self._short_rows(queue, rows, room_ns, rest_ns) if reason else 0
                if not (short or (reason and free)):
                    flow.turns.rotate(-1)
                elif batch := self._take(flow, queue, reason, short or most, now_ns):
                    batch.inline = short > 0
                    return batch
        return None

    def inline_room(self, left_ns: int) -> int:
        """The longest predicted run that may be made on the event loop, where `left_ns` are left of a turn.

        One servable that has the server to itself may take all of it: only its own requests wait.
        """
        return left_ns if len(self._flows) == 1 else min(INLINE_RUN_NS, left_ns)

    def ran(self, batch: Batch, run_ns: int, *, failed: bool = False) -> None:
        """Note how long a batch has run: for predictions, and for its servable's share."""
        flow = self._flows.get(id(batch.entries[0].servable))
        if flow is not None:
            flow.used_ns += run_ns - batch.charged_ns
        if not failed:
            batch.times.learn(batch.rows + batch.padding, run_ns, inline=batch.inline)

    def due_at_ns(self) -> int | None:
        """When the next batch that is not full will close, or None if nothing waits."""
        queues = (queue for flow in self._active for queue in flow.turns)
        return min((self._due(queue) for queue in queues), default=None)

    def waiting(self) -> Iterator[Entry]:
        """Every queued entry."""
        for flow in self._active:
            for queue in flow.turns:
                yield from queue.entries

    def remove(self, gone: Callable[[Entry], bool]) -> list[Entry]:
        """Take the entries for which `gone` is true out of the queues and return them."""
        removed: list[Entry] = []
        for flow in self._active.copy():
            for queue in list(flow.turns):
                found = [e for e in queue.entries if gone(e)]
                if found:
                    lost = set(map(id, found))
                    queue.entries = deque(e for e in queue.entries if id(e) not in lost)
                    removed += found
                    left(flow, queue, len(found), sum(e.rows for e in found), sum(e.nbytes for e in found))
                    queue.deadline_ns = first_deadline(queue)
                    if not queue.entries:
                        flow.turns.remove(queue)
            if not flow.turns:
                self._active.remove(flow)
        return removed

    def halves(self, batch: Batch) -> list[Batch]:
        """The halves of a batch that failed, so that a bad request fails alone in the end."""
        middle = len(batch.entries) // 2
        batching = batch.entries[0].servable.batching or self.limits
        halves = [batch.entries[:middle], batch.entries[middle:]]
        return [self._batch("bisect", part, batch, batching) for part in halves]

    def _batch(self, reason: str, entries: list[Entry], like: Queue | Batch, batching: Batching) -> Batch:
        rows = 0
        for entry in entries:
            rows += entry.rows
        padding = _padded(rows, batching) - rows if batching.allowed and not entries[0].alone else 0
        self._numbers += 1
        return Batch(self._numbers, reason, entries, rows, padding, like.form, like.times)

    def _batching(self, queue: Queue) -> Batching:
        return queue.entries[0].servable.batching or self.limits

    def _closes(self, queue: Queue, now_ns: int) -> tuple[str, int]:
        """Why the head batch of a queue closes now, and the rows it has at most; "" if it does not."""
        batching = self._batching(queue)
        most = batching.max_batch_rows
        if queue.alone:
            return "alone", queue.entries[0].rows
        if queue.rows >= most:
            return ("split" if queue.entries[0].is_part else "full"), most
        if batching.delay_ns == 0:
            return "no-delay", most
        if batching.preferred and queue.rows >= batching.preferred[0]:
            return "preferred", batching.preferred[bisect_right(batching.preferred, queue.rows) - 1]
        if now_ns - queue.entries[0].arrived_ns >= batching.delay_ns:
            return "due", most
        return ("deadline" if now_ns >= self._due(queue) else ""), most

    def _due(self, queue: Queue) -> int:
        """When a queue's head batch closes if nothing more comes."""
        head, batching = queue.entries[0], self._batching(queue)
        if queue.alone or batching.delay_ns == 0:
            return head.arrived_ns
        due = head.arrived_ns + batching.delay_ns
        if queue.deadline_ns == NEVER_NS:
            return due
        run = expected_ns(queue.times, _padded(queue.rows, batching), head.servable) * DEADLINE_SLACK
        return min(due, queue.deadline_ns - int(run) - DEADLINE_SLACK_NS)

    def _short_rows(self, queue: Queue, rows: int, room_ns: float, rest_ns: float) -> int:
        """How many of the rows at the head are predicted to run in a short time: all, some, or 0.

        Some, where runs one after the other take less than the rest of this turn: for such a
        model the way to a worker is longer. What cannot be predicted is not short.
        """
        head, times = queue.entries[0], queue.times.inline
        if not head.servable.predictable or (queue.form.varies and queue.nbytes > MUCH):
            return 0
        batching = self._batching(queue)
        bits = (rows if queue.alone else _padded(rows, batching)).bit_length()
        if 0 < times[bits] <= room_ns:
            return rows
        if queue.alone or batching.allowed:
            return 0
        while (bits := bits - 1) >= PIECE_BITS:
            piece = (1 << bits) - 1
            if 0 < times[bits] <= room_ns:
                return piece if head.rows <= piece and times[bits] * rows <= rest_ns * piece else 0
        return 0

    def _take(self, flow: Flow, queue: Queue, reason: str, most: int, now_ns: int) -> Batch | None:
        """The head batch of a queue, without what is gone; None where all of it is."""
        head, batching = queue.entries[0], self._batching(queue)
        entries = self._head(flow, queue, most)
        flow.turns.rotate(-1)
        if not queue.entries:
            flow.turns.pop()
            if not flow.turns:
                self._active.remove(flow)
        elif batching.delay_ns and queue.rows < batching.max_batch_rows:
            queue.deadline_ns = first_deadline(queue)
        live = [e for e in entries if not e.cancelled and (e.deadline_ns > now_ns or not e.deadline_ns)]
        if len(live) != len(entries):
            kept = set(map(id, live))
            self.gone += [e for e in entries if id(e) not in kept]
            if not live:
                return None
        batch = self._batch(reason, live, queue, batching)
        charge = expected_ns(batch.times, batch.rows + batch.padding, head.servable) or UNKNOWN_RUN_NS
        self._clock_ns = max(self._clock_ns, flow.used_ns)
        flow.used_ns += charge
        batch.charged_ns = charge
        return batch

    def _head(self, flow: Flow, queue: Queue, most: int) -> list[Entry]:
        """Take as many entries from a queue as fit into so many rows, at least one."""
        waiting = queue.entries
        if queue.rows <= most and not queue.alone:
            entries, rows, nbytes = list(waiting), queue.rows, queue.nbytes
            waiting.clear()
        else:
            entries = [waiting.popleft()]
            rows, nbytes = entries[0].rows, entries[0].nbytes
            while waiting and not queue.alone and rows + waiting[0].rows <= most:
                entry = waiting.popleft()
                rows, nbytes = rows + entry.rows, nbytes + entry.nbytes
                entries.append(entry)
        left(flow, queue, len(entries), rows, nbytes)
        return entries


def _stays_whole(flow: Flow, entry: Entry, batching: Batching) -> bool:
    """Whether a request of more rows than a batch has is run as one all the same.

    Each part costs a way to a worker and back. What the whole takes follows from what the rows of
    a full batch took: from the most that it can be, since a large run teaches nothing of its parts.
    """
    if not batching.soft or batching.allowed:
        return False
    most = batching.max_batch_rows
    known = flow.queue(entry).times.runs[most.bit_length()]
    return 0 < known * entry.rows <= WHOLE_RUN_NS * (1 << most.bit_length() - 1)


def _padded(rows: int, batching: Batching) -> int:
    """The rows of a run: the next allowed size."""
    allowed = batching.allowed
    if not allowed or rows >= allowed[-1]:
        return rows
    return allowed[bisect_left(allowed, rows)]
