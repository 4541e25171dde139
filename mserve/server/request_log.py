"""The request log: a sample of requests with inputs and answers, as JSON lines in a file.

    {"time": ..., "model": "ranker", "version": 7, "signature": "serving_default",
     "protocol": "oip-grpc", "code": "OK", "ms": {"parse": ..., "queue": ..., ...},
     "inputs": {"x": [[...]]}, "outputs": {"y": [[...]]}}

Values of ports that are to be kept out are replaced by {"redacted": true}. A thread of
its own turns arrays into text and writes; when it cannot keep up, lines are dropped and
counted, never requests delayed. The file is opened for each write, so it may be moved
away at any time; when it reaches its limit it becomes `PATH.1` and a new one begins.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import random
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Any, BinaryIO

import orjson

from ..errors import EnvironmentProblem, MserveError
from ..tensors import Array
from .calls import Call
from .metrics import PHASES

log = logging.getLogger("mserve")

WAITING_MAX = 1000
LINES_A_WRITE = 100
CLOSE_S = 5.0


@dataclass(frozen=True, slots=True)
class Sampling:
    """Where to log, which share of the requests, the ports whose values are left out, the file's limit."""

    path: Path
    sample: float = 1.0
    redact: frozenset[str] = frozenset()
    max_bytes: int = 1 << 30


@dataclass(slots=True)
class _Record:
    facts: dict[str, Any]
    inputs: Sequence[Mapping[str, Array]]
    outputs: Sequence[Mapping[str, Array]]


class RequestLog:
    """Takes answered calls, writes a sample of them. `dropped` counts lines that were not written."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.dropped = 0
        self._complained = False
        self._queue: Queue[_Record | None] = Queue(WAITING_MAX)
        try:
            _open(sampling.path).close()
        except OSError as error:
            raise EnvironmentProblem(
                "cannot write the request log", where=sampling.path, found=error.strerror or error
            ) from error
        self._thread = threading.Thread(target=self._work, name="mserve-request-log", daemon=True)
        self._thread.start()

    def observe(self, call: Call, error: MserveError | None, now_ns: int) -> None:
        """Note a call that was answered, if it is one of the sample."""
        if self.sampling.sample < 1 and random.random() >= self.sampling.sample:
            return
        try:
            self._queue.put_nowait(_record(call, error, now_ns))
        except Full:
            self.dropped += 1

    def close(self) -> None:
        """Write what waits, as far as CLOSE_S allow: a disk that hangs must not hold up the end."""
        with suppress(Full):
            self._queue.put(None, timeout=CLOSE_S)
            self._thread.join(timeout=CLOSE_S)

    def _work(self) -> None:
        going = True
        while going:
            records = [self._queue.get()]
            try:
                while len(records) < LINES_A_WRITE:
                    records.append(self._queue.get_nowait())
            except Empty:
                pass
            going = None not in records
            try:
                self._write(b"".join(self._line(r) for r in records if r is not None))
                self._complained = False
            except (OSError, TypeError, ValueError) as error:
                self.dropped += len(records)
                if not self._complained:
                    log.warning("the request log loses lines: %s: %s", self.sampling.path, error)
                self._complained = True

    def _write(self, data: bytes) -> None:
        """Add whole lines; several processes may do so at a time, and one of them begins the new file."""
        path, written = self.sampling.path, False
        while not written:
            with _open(path) as file:
                with suppress(OSError):  # a file system without locks
                    fcntl.flock(file, fcntl.LOCK_EX)
                if not _is(path, file):
                    continue  # it was moved away in between
                file.write(data)
                written = True
                if file.tell() >= self.sampling.max_bytes:
                    file.flush()
                    os.replace(path, path.with_name(path.name + ".1"))

    def _line(self, record: _Record) -> bytes:
        for side, ports in (("inputs", record.inputs), ("outputs", record.outputs)):
            values = [{a: self._value(a, x) for a, x in arrays.items()} for arrays in ports]
            if values:
                record.facts[side] = values[0] if len(values) == 1 else values
        return orjson.dumps(record.facts, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n"

    def _value(self, alias: str, array: Array) -> Any:
        # A sparse input's parts are called like it, and a word for the part.
        if not self.sampling.redact.isdisjoint((alias, alias.rpartition(".")[0])):
            return {"redacted": True}
        import numpy as np

        if array.dtype.kind in "OU":
            return array.tolist()
        if array.dtype.kind not in "fiub" or array.dtype == np.float16:
            array = array.astype(np.float32)
        return np.ascontiguousarray(array) if array.ndim else array.item()


def _is(path: Path, file: BinaryIO) -> bool:
    """Whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _open(path: Path) -> BinaryIO:
    """The file, to write at its end; only its owner may read what clients sent."""
    return open(path, "ab", opener=lambda name, flags: os.open(name, flags, 0o600))


def _record(call: Call, error: MserveError | None, now_ns: int) -> _Record:
    servable = getattr(call, "servable", None)
    start = call.context.start_ns
    facts: dict[str, Any] = {
        "time": time.time() - (now_ns - start) / 1e9,
        "model": call.model,
        "version": servable.version if servable else None,
        "signature": call.signature,
        "protocol": call.protocol,
        "code": call.code(error),
        "ms": {"total": (now_ns - start) / 1e6},
    }
    facts |= {k: v for k in ("request_id", "traceparent") if (v := getattr(call.context, k))}
    if error is not None:
        facts["error"] = error.what  # not what was found: that may be a value to be kept out
        return _Record(facts, [q.inputs for q in call.queried], [])
    entry = call.entries[-1]
    times = (start, call.parsed_ns, entry.started_ns, entry.ended_ns, now_ns)
    facts["ms"] |= {p: (b - a) / 1e6 for p, a, b in zip(PHASES, times, times[1:], strict=False)}
    assert servable is not None
    outputs = [
        dict(zip(servable.signatures[q.signature].outputs, r, strict=True))
        for q, r in zip(call.queried, call.results, strict=True)
    ]
    return _Record(facts, [q.inputs for q in call.queried], outputs)


def _plain(value: Any) -> Any:
    """What orjson has no word for: bytes, as text where they are, and numbers that JSON lacks."""
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    raise TypeError(type(value).__name__)
