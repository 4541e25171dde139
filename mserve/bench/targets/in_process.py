"""A bundle in this process: the Front and Executor that a server has, without sockets and JSON."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...batching.batcher import Entry, Limits
from ...batching.executor import Executor
from ...errors import MserveError, UsageError
from ...front import Front, Query
from ...loader.batching_defaults import resolved
from ...loader.plan import ModelConfig
from ...loader.reconciler import Model
from ...loader.servable import BATCH_BUCKETS, Batching, Servable, load
from ...readers.requests import Samples
from ...runtime.devices import CPU, checked, settled
from ...runtime.ort import cpu_budget
from ...tensors import Array, check_inputs
from ..load.client import SEEN_ANSWER_BYTES, SEEN_VARIANTS, Connection, Done
from ..load.recorder import OK, WRONG
from ..load.server_view import Counters
from ..requests.bundle_inputs import bundle_samples
from ..requests.verify import Outputs, difference
from .target import Ask, Connector, Target


def open_bundle_target(path: Path, ask: Ask) -> Target:
    """Load a bundle as a server does.

    Raises what `load` and `bundle_samples` raise.
    """
    samples = bundle_samples(path, ask).mixed(ask.seed)
    device = settled(checked(ask.device or CPU))
    target = InProcess(load(path, device), ask.signature, samples, verify=ask.verify)
    target.device = device
    return target


class InProcess:
    """A servable behind a Front, asked by this process."""

    shares_loop = True
    endpoint = None
    connections_max = 1 << 16
    device = CPU

    def __init__(
        self,
        servable: Servable,
        signature: str,
        samples: Samples,
        *,
        verify: bool,
        settings: Batching | None = None,
    ) -> None:
        """`settings` say how batches close; without them the bundle itself, or else the defaults."""
        if settings is None and servable.serving:
            settings = resolved(servable.serving)
        servable.batching = settings
        self.servable = servable
        self.samples = samples
        names = [servable.signature(s.signature or signature)[0] for s in samples.requests]
        inputs = [sample.arrays for sample in samples.requests]
        self.queries = [Query(name, arrays) for name, arrays in zip(names, inputs, strict=True)]
        self.expected: list[Outputs] | None = self._expected() if verify else None
        # For each request the latest outputs that were right, as bytes: the same are right again.
        self.known: list[list[list[bytes]]] = [[] for _ in self.queries]
        self.versions: dict[bytes, int] = {}
        self.answered = 0
        metagraph = servable.bundle.metagraph
        self.name = metagraph.name or servable.bundle.path.resolve().parent.name
        self.front: Front

    def _expected(self) -> list[Outputs]:
        """Recorded outputs, or what the model computes of a request alone."""
        return [
            sample.outputs if sample.outputs is not None else self.servable.run(q.inputs, q.signature)
            for sample, q in zip(self.samples.requests, self.queries, strict=True)
        ]

    def describe(self) -> dict[str, Any]:
        """Facts for the report."""
        bundle, queries = self.servable.bundle, self.queries
        rows = {check_inputs(self.servable.signatures[q.signature], q.inputs) for q in queries}
        sizes = [sum(x.nbytes for x in q.inputs.values()) for q in queries]
        golden = all(sample.outputs is not None for sample in self.samples.requests)
        return {
            "kind": "in process",
            "device": self.device,
            "path": str(bundle.path),
            "model": self.name,
            "version": self.servable.version,
            "identity": bundle.metagraph.identity,
            "signature": queries[0].signature,
            "rows": rows.pop() if len(rows) == 1 else None,
            "request_bytes": round(sum(sizes) / len(sizes)),
            "inputs": self.samples.source,
            "distinct": len(queries),
            "verified": None if self.expected is None else "golden outputs" if golden else "the model alone",
        }

    async def start(self) -> None:
        """Start the executor, as a server would: as many workers as CPUs."""
        model = Model(ModelConfig(self.name, self.servable.bundle.path))
        model.available, model.default = {self.servable.version: self.servable}, self.servable
        self.front = Front({self.name: model}, Executor(Limits(soft=True), workers=cpu_budget()))

    def description(self) -> Connector:
        """Refused: the model is in this process."""
        raise UsageError("a bundle in this process has one generator", hint="measure a server: --spawn")

    async def connect(self) -> Connection:
        """One more caller."""
        return Caller(self)

    async def counters(self) -> Counters | None:
        """The servable's own statistics."""
        s = self.servable.stats
        sizes = dict(zip((*map(float, BATCH_BUCKETS), math.inf), map(float, s.batch_rows), strict=True))
        seconds = s.run_ns / 1e9, s.queue_ns / 1e9
        return Counters(self.answered, s.batches, s.rows, s.inline, *seconds, batch_rows=sizes)

    async def close(self) -> None:
        """Stop the workers and free the model."""
        self.front.executor.close()
        self.servable.close()


class Caller:
    """Asks the Front for one answer at a time."""

    def __init__(self, target: InProcess) -> None:
        self.index = -1
        self.usable = True
        self.first_ns = 0
        self._target = target
        self._number = 0
        self._done: Done | None = None
        self._entry: Entry | None = None
        self._later = asyncio.get_running_loop().call_soon

    def send(self, index: int, done: Done) -> None:
        """Ask; `done` is called on a later turn of the loop."""
        self.index, self._done = index, done
        target = self._target
        self._number = index % len(target.queries)
        query = target.queries[self._number]
        try:
            servable = target.front.resolve(target.name)
            self._entry = target.front.predict(servable, query, self._reply)
        except MserveError as error:
            self._later(self._reply, error)

    def abort(self) -> None:
        """Give up on the answer."""
        self.usable = False
        self._done = None
        if self._entry is not None:
            self._entry.cancelled = True

    def _reply(self, result: Sequence[Array] | MserveError) -> None:
        done, self._done = self._done, None
        if done is None:
            return
        self.first_ns = time.perf_counter_ns()  # the answer comes in one piece
        self._target.answered += 1
        if isinstance(result, MserveError):
            done(self, result.http_status, str(result))
            return
        version = b"%d" % self._target.servable.version
        self._target.versions[version] = self._target.versions.get(version, 0) + 1
        wrong = self._wrong(result) if self._target.expected is not None else ""
        done(self, WRONG if wrong else OK, wrong)

    def _wrong(self, result: Sequence[Array]) -> str:
        """What is wrong with outputs, "" if nothing is."""
        target, number = self._target, self._number
        assert target.expected is not None
        found = [x.tobytes() for x in result if not x.dtype.hasobject]
        if len(found) == len(result) and found in target.known[number]:
            return ""
        names = target.servable.signatures[target.queries[number].signature].outputs
        wrong = difference(target.expected[number], dict(zip(names, result, strict=True)))
        if not wrong and sum(map(len, found)) <= SEEN_ANSWER_BYTES:
            target.known[number] = [found, *target.known[number][: SEEN_VARIANTS - 1]]
        return wrong
