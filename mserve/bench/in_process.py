"""A bundle in this process: the Front and Executor that a server has, without sockets and JSON."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..batching.batcher import Entry, Limits
from ..batching.executor import Executor
from ..defaults import fill_defaults
from ..errors import MserveError, UsageError
from ..format import open_bundle
from ..front import Front, Query
from ..loader.plan import ModelConfig
from ..loader.reconciler import Model
from ..loader.servable import Servable, load
from ..runtime.devices import CPU, checked, settled
from ..runtime.ort import cpu_budget
from ..tensors import Array, Signature, check_inputs
from ..wire import tfs_json
from .client import Connection, Done
from .recorder import OK
from .server_view import Counters
from .targets import Ask, Connector, Target, read_inputs


def open_bundle_target(path: Path, ask: Ask) -> Target:
    """Load a bundle as a server does.

    Raises what `load` and `bundle_request` raise.
    """
    open_bundle(path)
    device = settled(checked(ask.device or CPU))
    servable = load(path, device)
    target = InProcess(servable, *bundle_request(servable, ask))
    target.device = device
    return target


def bundle_request(servable: Servable, ask: Ask) -> tuple[str, dict[str, Array]]:
    """The signature's name and one request's arrays.

    Raises UsageError, NotFound, InputError or RequestError.
    """
    name, spec = servable.signature(ask.signature)
    if ask.inputs is None:
        arrays = servable.example(name)
        if ask.rows > 1:
            if spec.batch_axis is None:
                raise UsageError("--rows needs a signature with a batch axis", where=name)
            arrays = {alias: np.repeat(x[:1], ask.rows, axis=0) for alias, x in arrays.items()}
    else:
        given = read_inputs(ask.inputs)
        arrays = (
            tfs_json.inputs_of(tfs_json.parse(given), spec)[0] if isinstance(given, bytes) else dict(given)
        )
    arrays = dict(fill_defaults(spec, arrays))
    check_inputs(spec, arrays)
    return name, arrays


def _of_json(body: bytes, spec: Signature) -> dict[str, Array]:
    return tfs_json.inputs_of(tfs_json.parse(body), spec)[0]


class InProcess:
    """A servable behind a Front, asked by this process."""

    shares_loop = True
    connections_max = 1 << 16
    device = CPU

    def __init__(self, servable: Servable, signature: str, inputs: Mapping[str, Array]) -> None:
        self.servable = servable
        self.signature = signature
        self.inputs = inputs
        self.versions: dict[bytes, int] = {}
        self.answered = 0
        metagraph = servable.bundle.metagraph
        self.name = metagraph.name or servable.bundle.path.resolve().parent.name
        self.front: Front

    def describe(self) -> dict[str, Any]:
        """Facts for the report."""
        bundle = self.servable.bundle
        return {
            "kind": "in process",
            "device": self.device,
            "path": str(bundle.path),
            "model": self.name,
            "version": self.servable.version,
            "identity": bundle.metagraph.identity,
            "signature": self.signature,
            "rows": check_inputs(self.servable.signatures[self.signature], self.inputs),
            "request_bytes": sum(x.nbytes for x in self.inputs.values()),
        }

    async def start(self) -> None:
        """Start the executor, as a server would: as many workers as CPUs."""
        model = Model(ModelConfig(self.name, self.servable.bundle.path))
        model.available, model.default = {self.servable.version: self.servable}, self.servable
        self.front = Front({self.name: model}, Executor(Limits(), workers=cpu_budget()))

    def description(self) -> Connector:
        """Refused: the model is in this process."""
        raise UsageError(
            "a bundle in this process has one generator", hint="measure a server, or --spawn one"
        )

    async def connect(self) -> Connection:
        """One more caller."""
        return Caller(self)

    async def counters(self) -> Counters | None:
        """The servable's own statistics."""
        s = self.servable.stats
        return Counters(self.answered, s.batches, s.rows, s.inline, s.run_ns / 1e9, s.queue_ns / 1e9)

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
        self._done: Done | None = None
        self._entry: Entry | None = None
        self._later = asyncio.get_running_loop().call_soon

    def send(self, index: int, done: Done) -> None:
        """Ask; `done` is called on a later turn of the loop."""
        self.index, self._done = index, done
        target = self._target
        try:
            servable = target.front.resolve(target.name)
            self._entry = target.front.predict(servable, Query(target.signature, target.inputs), self._reply)
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
        done(self, OK, "")
