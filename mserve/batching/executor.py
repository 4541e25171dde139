"""Executor: runs the batches that the batcher closes, inline or on a worker thread.

Everything here but `_work` runs on the event-loop thread, which owns the queues: no
locks. All requests that arrive in one tick of the loop are queued first; then `_pump`
closes batches while an executor is free. The loop thread is itself an executor, for
batches that are shorter than a hand-over to a thread, or that nobody else waits for: a
predicted time of at most INLINE_RUN_NS where several models are served, weights in
private memory (a mapped page might have to come from the disk), and at most
INLINE_TICK_NS in one tick, so that sockets are served in between. A tick that brought
hundreds of requests has taken many times as long to read them: its runs may take
INLINE_SHARE of that, since a worker would take the interpreter's lock from the loop
for each batch, and the server would do less the more it is asked.

Worker threads need the interpreter's lock when a run ends. A loop that always has
something to do hands it over every 5 ms at best, so while a run is outstanding the loop
lets go of it in passing, and from a timer for when no requests come through here.

A batch that fails is split in halves until the requests that fail are alone with their
error; their neighbours get their answers.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from bisect import bisect_left
from collections.abc import Callable
from queue import SimpleQueue

from ..errors import DeadlineExceeded, ExecutionFailed, MserveError, Overloaded, Unavailable
from ..loader.servable import BATCH_BUCKETS, Servable
from .assembly import Outputs, run_batch
from .batcher import Batch, Batcher, Entry, Limits
from .outbox import Outbox

log = logging.getLogger("mserve")

INLINE_TICK_NS, INLINE_SHARE = 500_000, 0.25
# So few requests seldom fill a queue; when they are queued, that is looked at again.
FEW = 64
RETRY_AFTER_MAX_S = 60
SWEEP_S = 0.05
MAKE_WAY_NS, GUARD_S = 200_000, 0.001

Observer = Callable[[Batch, int, MserveError | None], None]


class Executor:
    """Takes entries, answers each exactly once, on the event-loop thread.

    `on_batch`, where there is one, is called once for each batch that has run, when its
    requests are answered: the batch, its run time in nanoseconds, and the error if it failed.
    What answers requests may write by `outbox`, which sends a batch's answers together.
    """

    def __init__(self, limits: Limits, workers: int, on_batch: Observer | None = None) -> None:
        self.batcher = Batcher(limits)
        self.on_batch = on_batch
        self.outbox = Outbox()
        self._loop = asyncio.get_running_loop()
        self._pumping = False
        self._began_ns = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0
        self._sweeper: asyncio.TimerHandle | None = None
        self._guard: asyncio.TimerHandle | None = None
        self._made_way_ns = 0
        self._free = workers
        self._running: set[Batch] = set()
        self._work_queue: SimpleQueue[Batch | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"mserve-run-{i}", daemon=True) for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, entry: Entry) -> None:
        """Queue a checked request; it may run at the end of this tick.

        Raises Overloaded when the queue is full, or so long that the request's time will
        be over before its turn; it says when to try again.
        """
        servable, batcher = entry.servable, self.batcher
        if servable.stats.knows_drain and batcher:
            self._check_wait(entry)
        try:
            batcher.add(entry)
        except Overloaded as error:
            error.retry_after_s = _retry_after_s(self._wait_ns(servable))
            raise
        servable.in_flight += 1
        if not self._pumping:
            self._pumping = True
            self._began_ns = entry.arrived_ns
            self._loop.call_soon(self._pump)
        if self._sweeper is None and entry.deadline_ns:
            self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    def check_room(self, servable: Servable) -> None:
        """Whether there is room for one more request, to be asked before anything is spent on it.

        Raises Overloaded when a servable's queue is full, with the time after which to try again.
        """
        if self.batcher.backlog(servable).requests >= FEW:
            try:
                self.batcher.check_room(servable)
            except Overloaded as error:
                error.retry_after_s = _retry_after_s(self._wait_ns(servable))
                raise

    def _wait_ns(self, servable: Servable, rows: int = 0) -> float:
        """How long a request of so many rows for a servable will take, as far as is known.

        It ends when all that was there before it has been run, and its own batch with it.
        """
        rows += self.batcher.backlog(servable).rows
        for batch in self._running:
            if batch.entries[0].servable is servable:
                rows += batch.rows
        return servable.stats.expected_wait_ns(rows)

    def _check_wait(self, entry: Entry) -> None:
        wait_ns, now = self._wait_ns(entry.servable, entry.rows), time.monotonic_ns()
        if not 0 < entry.deadline_ns < now + wait_ns or not wait_ns:
            return
        error = Overloaded(
            "the queue is too long for the request's time",
            expected=f"an answer within {max(0, entry.deadline_ns - now) / 1e9:.3g} s",
            found=f"about {wait_ns / 1e9:.3g} s",
        )
        error.retry_after_s = _retry_after_s(wait_ns)
        raise error

    def close(self) -> None:
        """Stop the worker threads and refuse what still waits."""
        for entry in self.batcher.remove(lambda _: True):
            entry.answer(Unavailable("the server is shutting down"))
        for _ in self._threads:
            self._work_queue.put(None)
        for thread in self._threads:
            thread.join(timeout=10)
        for timer in (self._timer, self._sweeper, self._guard):
            if timer:
                timer.cancel()

    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._running and not self.batcher

    def _pump(self) -> None:
        """Close batches while an executor is free for them."""
        now = time.monotonic_ns()
        tick_ns = now - self._began_ns if self._pumping else 0
        self._pumping = False
        batcher, most = self.batcher, inline_ns(tick_ns)
        left = most
        room = batcher.inline_room(left)
        while batch := batcher.next_batch(now, free=self._free > 0, room_ns=room, rest_ns=left):
            if batch.inline:
                left -= int(batch.charged_ns)
                room = batcher.inline_room(left)
                # An answer may have caused the next request, so the time is read again.
                self._start(batch, time.monotonic_ns())
                batch.entries[0].servable.stats.inline += 1
                self._finish(batch, *_timed_run(batch))
            else:
                self._start(batch, time.monotonic_ns())
                self._send(batch)
        if batcher.gone:
            self._answer_gone(now)
        if self._running:
            self._make_way()
        if batcher:
            self._come_back(spent=left < most)

    def _send(self, batch: Batch) -> None:
        """Hand a batch to the worker threads."""
        self._free -= 1
        servable = batch.entries[0].servable
        alone = len(batch.entries) == 1 and not self._running and not self.batcher
        batch.wide = alone and servable.can_be_wide
        batch.options = servable.run_options(batch.entries[0].signature)
        self._running.add(batch)
        self._work_queue.put(batch)
        if self._guard is None:
            self._guard = self._loop.call_later(GUARD_S, self._on_guard)

    def _make_way(self) -> None:
        """Let a worker have the interpreter's lock, if it wants it."""
        if time.monotonic_ns() - self._made_way_ns >= MAKE_WAY_NS:
            time.sleep(0)
            self._made_way_ns = time.monotonic_ns()

    def _on_guard(self) -> None:
        self._guard = None
        if self._running:
            self._make_way()
            self._guard = self._loop.call_later(GUARD_S, self._on_guard)

    def _come_back(self, *, spent: bool) -> None:
        """Pump again when the first batch is due, or next tick if only this tick's budget held it back."""
        due = self.batcher.due_at_ns()
        if due is None or not (self._free > 0 or spent):
            return
        if self._timer is not None:
            if self._timer_ns <= due:
                return
            self._timer.cancel()
        self._timer_ns = due
        self._timer = self._loop.call_later(max(0, due - time.monotonic_ns()) / 1e9, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._pump()

    def _answer_gone(self, now: int) -> None:
        """Answer what the batcher left out: nobody waits for it any more, or no longer."""
        gone, self.batcher.gone = self.batcher.gone, []
        for entry in gone:
            late = 0 < entry.deadline_ns <= now and not entry.cancelled
            entry.answer(_too_late("waiting in the queue") if late else Unavailable("the client has left"))

    def _start(self, batch: Batch, now: int) -> None:
        entries = batch.entries
        stats = entries[0].servable.stats
        stats.batches += 1
        stats.rows += batch.rows
        stats.padding += batch.padding
        stats.batch_rows[bisect_left(BATCH_BUCKETS, batch.rows)] += 1
        for entry in entries:
            entry.started_ns, entry.batch = now, batch.number
            stats.queue_ns += now - entry.arrived_ns

    def _work(self) -> None:
        """A worker thread: nothing but running models."""
        while (batch := self._work_queue.get()) is not None:
            result = _timed_run(batch)
            try:
                self._loop.call_soon_threadsafe(self._worker_done, batch, *result)
            except RuntimeError:  # the loop was closed under us: nobody is left to answer
                return
            del batch, result  # or they would live as long as this thread waits for the next

    def _worker_done(self, batch: Batch, outputs: Outputs, error: Exception | None, run_ns: int) -> None:
        self._free += 1
        self._running.discard(batch)
        self._finish(batch, outputs, error, run_ns)
        if len(self.batcher):
            self._pump()

    def _finish(self, batch: Batch, outputs: Outputs, error: Exception | None, run_ns: int) -> None:
        entries = batch.entries
        servable, batcher, now = entries[0].servable, self.batcher, time.monotonic_ns()
        stats = servable.stats
        stats.run_ns += run_ns
        stats.batch_ns[bisect_left(BATCH_BUCKETS, batch.rows)] += run_ns
        stats.drained(batch.rows, now, more=bool(batcher) and batcher.backlog(servable).requests > 0)
        batcher.ran(batch, run_ns, failed=error is not None)
        for entry in entries:
            entry.ended_ns = now
        failure = None if error is None else _as_error(error)
        if failure is None:
            with self.outbox:
                for entry, result in zip(entries, outputs, strict=True):
                    entry.answer(result)
        elif len(entries) == 1:
            entries[0].answer(failure)
        else:
            for half in batcher.halves(batch):
                self._send(half)
        if self.on_batch is not None:
            self._observe(batch, run_ns, failure)

    def _observe(self, batch: Batch, run_ns: int, failure: MserveError | None) -> None:
        try:
            if self.on_batch is not None:
                self.on_batch(batch, run_ns, failure)
        except Exception:  # the requests are answered; what is wrong with noting that is not theirs
            log.exception("our bug while noting a batch")

    def _sweep(self) -> None:
        """Answer requests whose deadline has passed, also while their model is busy."""
        self._sweeper = None
        now = time.monotonic_ns()
        for entry in self.batcher.remove(lambda e: 0 < e.deadline_ns <= now or e.cancelled):
            entry.answer(_too_late("waiting in the queue"))
        for batch in self._running:
            for entry in batch.entries:
                if 0 < entry.deadline_ns <= now and not entry.cancelled:
                    entry.give(_too_late("running"))
            if batch.options is not None and all(e.cancelled for e in batch.entries):
                batch.options.terminate = True  # nobody waits for it, and others wait for its thread
        if not self.idle():
            self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)


def inline_ns(tick_ns: float) -> int:
    """How long batches may run on the loop in a tick that took so long to read, in nanoseconds."""
    return max(INLINE_TICK_NS, int(INLINE_SHARE * tick_ns))


def _retry_after_s(wait_ns: float) -> int:
    return min(RETRY_AFTER_MAX_S, max(1, math.ceil(wait_ns / 1e9)))


def _too_late(where: str) -> DeadlineExceeded:
    return DeadlineExceeded(f"the deadline passed while the request was {where}")


def _as_error(error: Exception) -> MserveError:
    if isinstance(error, MserveError):
        return error
    return ExecutionFailed("the model failed on these inputs", found=repr(error)[:200])


def _timed_run(batch: Batch) -> tuple[Outputs, Exception | None, int]:
    """Run a batch; its outputs or its error, and how long it took.

    A run of one thread is timed by what the thread has worked: the wall clock would also
    count its waits, for the interpreter or for a CPU, and on a busy machine no model would
    look short enough to be run on the loop.
    """
    in_thread = batch.entries[0].servable.in_thread and not batch.wide
    clock = time.thread_time_ns if in_thread else time.perf_counter_ns
    start = clock()
    try:
        return run_batch(batch), None, clock() - start
    except Exception as error:
        return [], error, clock() - start
