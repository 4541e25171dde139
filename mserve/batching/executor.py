"""Executor: runs the batches that the batcher closes, inline or on a worker thread.

Everything here but `_work` runs on the event-loop thread, which owns the queues: no
locks. All requests that arrive in one tick of the loop are queued first; then `_pump`
closes batches while an executor is free. The loop thread is itself an executor, for
batches that are surely shorter than a hand-over to a thread: a predicted time of at
most INLINE_RUN_NS, weights in private memory (a mapped page might have to come from the
disk), and at most INLINE_TICK_NS in one tick, so that sockets are served in between.

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
from collections.abc import Callable, Hashable, Sequence
from queue import SimpleQueue

from ..errors import DeadlineExceeded, ExecutionFailed, MserveError, Overloaded, Unavailable
from ..loader.servable import BATCH_BUCKETS, Servable
from ..tensors import Array
from .batcher import Batch, Batcher, Entry, Limits

log = logging.getLogger("mserve")

INLINE_RUN_NS = 150_000
INLINE_TICK_NS = 500_000
INLINE_TEXTS, INLINE_TEXT = 1 << 10, 64 << 10
SIZES_MAX = 1 << 10
RETRY_AFTER_MAX_S = 60
SWEEP_S = 0.05

Outputs = list[list[Array]]


class Executor:
    """Takes entries, answers each exactly once, on the event-loop thread."""

    def __init__(self, limits: Limits, workers: int) -> None:
        self.batcher = Batcher(limits)
        self._loop = asyncio.get_running_loop()
        self._pumping = False
        self._timer: asyncio.TimerHandle | None = None
        self._sweeper: asyncio.TimerHandle | None = None
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
        wait_ns = self.check_room(entry.servable)
        if wait_ns and 0 < entry.deadline_ns < time.monotonic_ns() + wait_ns:
            error = Overloaded(
                "the queue is too long for the request's time",
                expected=f"a wait of at most {(entry.deadline_ns - entry.arrived_ns) / 1e9:.3g} s",
                found=f"about {wait_ns / 1e9:.3g} s",
            )
            error.retry_after_s = _retry_after_s(wait_ns)
            raise error
        self.batcher.add(entry)
        entry.servable.in_flight += 1
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)
        if entry.deadline_ns and self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    def check_room(self, servable: Servable) -> float:
        """How long a request for a servable will wait, in nanoseconds, as far as is known.

        Raises Overloaded when its queue is full, with the time after which to try again.
        """
        if not len(self.batcher):
            return 0.0
        wait_ns = servable.stats.expected_wait_ns(self.batcher.backlog(servable).rows)
        try:
            self.batcher.check_room(servable)
        except Overloaded as error:
            error.retry_after_s = _retry_after_s(wait_ns)
            raise
        return wait_ns

    def close(self) -> None:
        """Stop the worker threads and refuse what still waits."""
        for entry in self.batcher.remove(lambda _: True):
            self._answer(entry, Unavailable("the server is shutting down"))
        for _ in self._threads:
            self._work_queue.put(None)
        for thread in self._threads:
            thread.join(timeout=10)
        for timer in (self._timer, self._sweeper):
            if timer:
                timer.cancel()

    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._running and not self.batcher.rows and not len(self.batcher)

    def _pump(self) -> None:
        """Close batches while an executor is free for them."""
        self._pumping = False
        now = time.monotonic_ns()
        inline_left = INLINE_TICK_NS

        def free(head: Entry, rows: int) -> bool:
            return self._free > 0 or _predict(head, rows) <= min(INLINE_RUN_NS, inline_left)

        while (batch := self.batcher.next_batch(now, free)) is not None:
            batch.entries = [e for e in batch.entries if not self._dropped(e, now)]
            if not batch.entries:
                continue
            self._count(batch, time.monotonic_ns())
            predicted = _predict(batch.entries[0], batch.rows)
            if predicted <= min(INLINE_RUN_NS, inline_left):
                inline_left -= int(predicted)
                batch.entries[0].servable.stats.inline += 1
                self._finish(batch, *_timed_run(batch, time.perf_counter_ns))
            else:
                self._send(batch)
        self._come_back(spent=inline_left < INLINE_TICK_NS)

    def _send(self, batch: Batch) -> None:
        """Hand a batch to the worker threads."""
        self._free -= 1
        batch.options = batch.entries[0].servable.run_options(batch.entries[0].signature)
        self._running.add(batch)
        self._work_queue.put(batch)

    def _come_back(self, *, spent: bool) -> None:
        """Pump again when the oldest batch is due, or next tick if only this tick's budget held it back."""
        due = self.batcher.due_at_ns()
        if due is None or self._timer is not None or not (self._free > 0 or spent):
            return
        delay = max(0, due - time.monotonic_ns()) / 1e9
        self._timer = self._loop.call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._pump()

    def _dropped(self, entry: Entry, now: int) -> bool:
        """Whether nobody waits for the entry any more, or no longer; such work is not done."""
        if entry.cancelled:
            self._answer(entry, Unavailable("the client has left"))
        elif 0 < entry.deadline_ns <= now:
            self._answer(entry, _too_late("waiting in the queue"))
        return entry.cancelled

    def _count(self, batch: Batch, now: int) -> None:
        batch.rows = sum(e.rows for e in batch.entries)
        stats = batch.entries[0].servable.stats
        stats.batches += 1
        stats.rows += batch.rows
        stats.batch_rows[bisect_left(BATCH_BUCKETS, batch.rows)] += 1
        for entry in batch.entries:
            entry.started_ns = now
            stats.queue_ns += now - entry.arrived_ns

    def _work(self) -> None:
        """A worker thread: nothing but running models."""
        while (batch := self._work_queue.get()) is not None:
            # Here the wall clock would count the waits for the interpreter, too, and no model
            # would ever look short enough to be run on the loop.
            result = _timed_run(batch, time.thread_time_ns)
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
        servable = batch.entries[0].servable
        stats, now = servable.stats, time.monotonic_ns()
        stats.run_ns += run_ns
        stats.batch_ns[bisect_left(BATCH_BUCKETS, batch.rows)] += run_ns
        stats.drained(batch.rows, now, more=self.batcher.waits_for(servable))
        for entry in batch.entries:
            entry.ended_ns = now
        if error is None:
            _learn(batch, run_ns)
            for entry, result in zip(batch.entries, outputs, strict=True):
                self._answer(entry, result)
        elif len(batch.entries) == 1:
            self._answer(batch.entries[0], _as_error(error))
        else:
            self._bisect(batch)

    def _bisect(self, batch: Batch) -> None:
        """Run the halves of a failed batch, so that a bad request fails alone."""
        middle = len(batch.entries) // 2
        for part in (batch.entries[:middle], batch.entries[middle:]):
            self._send(Batch(batch.key, part, sum(e.rows for e in part)))

    def _answer(self, entry: Entry, result: Sequence[Array] | MserveError) -> None:
        entry.servable.in_flight -= 1
        if not entry.cancelled:
            _reply(entry, result)

    def _sweep(self) -> None:
        """Answer requests whose deadline has passed, also while their model is busy."""
        self._sweeper = None
        now = time.monotonic_ns()
        for entry in self.batcher.remove(lambda e: 0 < e.deadline_ns <= now or e.cancelled):
            self._answer(entry, _too_late("waiting in the queue"))
        for batch in self._running:
            for entry in batch.entries:
                if 0 < entry.deadline_ns <= now and not entry.cancelled:
                    _reply(entry, _too_late("running"))
            if batch.options is not None and all(e.cancelled for e in batch.entries):
                batch.options.terminate = True  # nobody waits for it, and others wait for its thread
        if not self.idle():
            self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)


def _reply(entry: Entry, result: Sequence[Array] | MserveError) -> None:
    """Answer an entry; whatever goes wrong in that is not its neighbours' business."""
    entry.cancelled = True
    try:
        entry.reply(result)
    except Exception:
        log.exception("our bug while answering a request")


def _retry_after_s(wait_ns: float) -> int:
    return min(RETRY_AFTER_MAX_S, max(1, math.ceil(wait_ns / 1e9)))


def _too_late(where: str) -> DeadlineExceeded:
    return DeadlineExceeded(f"the deadline passed while the request was {where}")


def _predict(head: Entry, rows: int) -> float:
    """Predicted run time in nanoseconds; what cannot be told from sizes seen before counts as long."""
    if not head.servable.predictable or _text_size(head) > INLINE_TEXT:
        return float("inf")
    return head.servable.stats.curve.get(_size(head, rows), float("inf"))


def _size(entry: Entry, rows: int) -> Hashable:
    """The size of a run, as far as its time depends on it: each axis to the next power of two."""
    shapes: tuple[tuple[int, ...], ...] = entry.key[3]  # type: ignore[index]
    axes = tuple(size.bit_length() for shape in shapes for size in shape)
    return entry.signature, rows.bit_length(), axes


def _text_size(entry: Entry) -> int:
    """Characters of a request's texts; many texts count as too many without being read."""
    texts = [x for x in entry.inputs.values() if x.dtype.hasobject]
    if sum(x.size for x in texts) > INLINE_TEXTS:
        return INLINE_TEXT + 1
    return sum(len(text) for x in texts for text in x.ravel().tolist())


def _learn(batch: Batch, run_ns: int) -> None:
    """Keep a high estimate of the run time by size: it rises at once and falls slowly."""
    curve, key = batch.entries[0].servable.stats.curve, _size(batch.entries[0], batch.rows)
    known = curve.get(key, 0.0)
    if not known and len(curve) >= SIZES_MAX:
        curve.clear()
    curve[key] = max(float(run_ns), known * 0.95 + run_ns * 0.05)


def _as_error(error: Exception) -> MserveError:
    if isinstance(error, MserveError):
        return error
    return ExecutionFailed("the model failed on these inputs", found=repr(error)[:200])


def _timed_run(batch: Batch, clock: Callable[[], int]) -> tuple[Outputs, Exception | None, int]:
    start = clock()
    try:
        return run_batch(batch), None, clock() - start
    except Exception as error:
        return [], error, clock() - start


def run_batch(batch: Batch) -> Outputs:
    """Join the entries' inputs along axis 0, run once, split the outputs: one list for each entry.

    Raises ExecutionFailed when the model does not return a row for each row it was given.
    """
    entries = batch.entries
    first = entries[0]
    if len(entries) == 1:
        return [list(first.servable.compute(first.signature, first.inputs, batch.options))]
    import numpy as np

    joined = {alias: np.concatenate([e.inputs[alias] for e in entries]) for alias in first.inputs}
    outputs = first.servable.compute(first.signature, joined, batch.options)
    for alias, output in zip(first.servable.signatures[first.signature].outputs, outputs, strict=True):
        if output.ndim == 0 or len(output) != batch.rows:
            raise ExecutionFailed(
                f"output {alias!r} does not have a row for each input row",
                expected=batch.rows,
                found=list(output.shape),
            )
    results: Outputs = []
    at = 0
    for entry in entries:
        results.append([output[at : at + entry.rows] for output in outputs])
        at += entry.rows
    return results
