"""Servable: a loaded version of a model, and the states that a version goes through.

    waiting ──> loading ──> available ──> draining ──> ended
                   │  ▲
                   ▼  │ retry
                 failed / waiting (still arriving)

One thread owns a servable's state and its in-flight count (in a server, the event
loop); only `run` is called from others.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..defaults import fill_defaults
from ..errors import BundleIncomplete, InputError, ModelRefused, NotFound, RequestError
from ..examples import generate, generated_bytes
from ..files import read_text
from ..format import Bundle, open_bundle
from ..format.golden import Golden, unpack
from ..format.locks import Lock, acquire
from ..format.serving import Serving, read_serving
from ..rows import feeds, first
from ..runtime.devices import CPU, resolve
from ..runtime.engines import Engine, open_engines, time_limit
from ..runtime.ort import threads_max
from ..runtime.spread import apart
from ..tensors import DEFAULT_SIGNATURE, Array, Signature, check_inputs
from ..wire.oip_plan import Plans
from .cache import local_copy
from .given import arrays_of
from .warm_up import runs_long, warm_up


class State(enum.Enum):
    """Where a version is in its life."""

    WAITING = "waiting"
    LOADING = "loading"
    AVAILABLE = "available"
    DRAINING = "draining"
    ENDED = "ended"
    FAILED = "failed"


# What may follow what; everything else is a bug.
NEXT: dict[State, frozenset[State]] = {
    State.WAITING: frozenset({State.LOADING, State.ENDED}),
    State.LOADING: frozenset({State.AVAILABLE, State.FAILED, State.WAITING, State.ENDED}),
    State.AVAILABLE: frozenset({State.DRAINING}),
    State.DRAINING: frozenset({State.ENDED}),
    State.FAILED: frozenset({State.LOADING, State.ENDED}),
    State.ENDED: frozenset(),
}

LABELS_BYTES_MAX = 16 << 20
MADE_UP_BYTES = 64 << 20

# Upper bounds of the batch-size histogram, in rows.
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
# What an operator of these costs depends on values, not on sizes alone, or is hidden in
# inner graphs: a model with one is never run on the event loop.
COSTS_BY_VALUE = frozenset(
    """
    If Loop Scan SequenceMap Range Expand Tile ConstantOfShape EyeLike OneHot Pad Resize Upsample
    CenterCropPad AffineGrid Col2Im MaxUnpool TopK Multinomial RandomNormal RandomUniform
    DFT STFT HannWindow HammingWindow BlackmanWindow MelWeightMatrix
    """.split()
)

# The rate at which a queue drains is an average over about two seconds, used once it is
# known from a quarter of one.
DRAIN_WINDOW_NS = 2_000_000_000
DRAIN_KNOWN_NS = 250_000_000


@dataclass(frozen=True, slots=True)
class Batching:
    """How batches close: rows at most, and how long the first request may wait for others, in nanoseconds.

    With `allowed` (rising, the last is `max_batch_rows`) a batch is filled up to the next of
    these sizes. A batch that reaches one of the `preferred` sizes (rising) does not wait. Where the
    limit is `soft`, because nobody has set it, a larger request is not cut whose run is short.
    """

    max_batch_rows: int = 128
    delay_ns: int = 0
    allowed: tuple[int, ...] = field(default=(), kw_only=True)
    preferred: tuple[int, ...] = field(default=(), kw_only=True)
    soft: bool = field(default=False, kw_only=True)


@dataclass(slots=True)
class Stats:
    """Plain counters of one servable, written by the thread that owns it, read by anyone.

    `batch_ns` is the run time of the batches of each bucket of `batch_rows`; `padding` counts
    rows that were run only to fill batches up. `drain_rows` and `drain_ns` tell how fast
    rows went lately while others waited; see `expected_wait_ns`.
    """

    batches: int = 0
    rows: int = 0
    batch_rows: list[int] = field(default_factory=lambda: [0] * (len(BATCH_BUCKETS) + 1))
    batch_ns: list[int] = field(default_factory=lambda: [0] * (len(BATCH_BUCKETS) + 1))
    run_ns: int = 0
    queue_ns: int = 0
    inline: int = 0
    padding: int = 0
    drain_rows: float = 0.0
    drain_ns: float = 0.0
    drained_at_ns: int = 0

    def drained(self, rows: int, now_ns: int, *, more: bool) -> None:
        """Note that a batch ended. `more` tells whether others wait, so that the next end tells a rate."""
        if self.drained_at_ns:
            self.drain_rows += rows
            self.drain_ns += now_ns - self.drained_at_ns
            if self.drain_ns > DRAIN_WINDOW_NS:
                self.drain_rows, self.drain_ns = self.drain_rows / 2, self.drain_ns / 2
        self.drained_at_ns = now_ns if more else 0

    @property
    def knows_drain(self) -> bool:
        """Whether the rate at which rows go is known."""
        return self.drain_ns > DRAIN_KNOWN_NS

    def expected_wait_ns(self, rows: int) -> float:
        """How long so many waiting rows will take, as far as is known; 0 where it is not."""
        return rows * self.drain_ns / self.drain_rows if self.knows_drain else 0.0


class Servable:
    """A loaded version: signatures, and `run`.

    `in_flight` counts requests that were accepted and not yet answered; `batching`
    overrides the server's; `serving` is what the bundle itself says of it.
    """

    def __init__(self, bundle: Bundle, sessions: Mapping[str, Engine], golden: Mapping[str, Golden]) -> None:
        self.bundle = bundle
        self.version = bundle.version
        self.signatures: Mapping[str, Signature] = bundle.metagraph.signatures
        self.golden = golden
        self.in_flight = 0
        self.batching: Batching | None = None
        self.serving = Serving()
        self.stats = Stats()
        self.plans = Plans()
        graph = bundle.graph
        steady = not graph.functions and not COSTS_BY_VALUE.intersection(graph.operators)
        self.private_memory = all(s.private for s in sessions.values())
        self.on_cpu = all(s.on_cpu for s in sessions.values())
        self.predictable = self.on_cpu and self.private_memory and steady
        self._lock: Lock | None = None
        self._labels: Mapping[str, Sequence[str]] = {}
        self._sessions = sessions
        self._wide: Mapping[str, Engine] = {}
        # The graph's name of each input; None where sparse inputs are more than names.
        self._fed = {
            name: None if sig.sparse else {a: s.name for a, s in sig.inputs.items()}
            for name, sig in self.signatures.items()
        }
        self._plans = {
            name: ([s.name for s in sig.outputs.values()], tuple(sig.outputs))
            for name, sig in self.signatures.items()
        }

    @property
    def threads(self) -> int:
        """How many threads a run uses; 0 where that cannot be chosen."""
        return max((engine.threads for engine in self._sessions.values()), default=0)

    @property
    def in_thread(self) -> bool:
        """Whether a run that is not `wide` is the work of the thread that asks for it alone."""
        return self.on_cpu and self.threads <= 1

    def signature(self, name: str = "") -> tuple[str, Signature]:
        """A signature by name; "" stands for `serving_default`, or the only one. Raises NotFound."""
        if not name:
            name = DEFAULT_SIGNATURE
            if name not in self.signatures and len(self.signatures) == 1:
                name = next(iter(self.signatures))
        if name not in self.signatures:
            raise NotFound("no such signature", expected=", ".join(self.signatures), found=repr(name))
        return name, self.signatures[name]

    def run(
        self, inputs: Mapping[str, Any], signature: str = "", *, limit_s: float | None = None
    ) -> dict[str, Array]:
        """Check the inputs against a signature and compute its outputs, by alias.

        Inputs may be given as `arrays_of` says. Raises NotFound, RequestError or
        ExecutionFailed, and ModelRefused where it takes longer than `limit_s`.
        """
        name, spec = self.signature(signature)
        arrays = fill_defaults(spec, arrays_of(spec, inputs))
        check_inputs(spec, arrays)
        if limit_s is None:
            return dict(zip(self._plans[name][1], self.compute(name, arrays, wide=True), strict=True))
        options = self.run_options(name)
        with time_limit(options, limit_s, self.bundle.path):
            outputs = self.compute(name, arrays, options, wide=True)
        return dict(zip(self._plans[name][1], outputs, strict=True))

    def run_options(self, signature: str) -> Any:
        """What can end one run of a signature before its time, by `terminate`; None where nothing can."""
        return self._sessions[signature].run_options()

    def compute(
        self, signature: str, inputs: Mapping[str, Array], options: Any = None, *, wide: bool = False
    ) -> Sequence[Array]:
        """Outputs in the signature's order, for inputs that were checked already.

        `wide` asks for all CPUs, where that is worth its while.
        """
        if not self._sessions:
            raise RuntimeError("run on a closed servable")
        names = self._fed[signature]
        if names is None:
            fed = feeds(self.signatures[signature], inputs)
        else:
            fed = {names[alias]: x for alias, x in inputs.items()}
        engines = self._wide if wide and self._wide else self._sessions
        return engines[signature].run(self._plans[signature][0], fed, options)

    def made_up(self, spec: Signature) -> dict[str, Array]:
        """Made-up inputs of one row, at most MADE_UP_BYTES. Raises RequestError."""
        size = generated_bytes(spec)
        if size > MADE_UP_BYTES:
            raise RequestError(
                "the inputs are too large to make some up",
                where=self.bundle.path,
                expected=f"at most {MADE_UP_BYTES} bytes",
                found=f"{size} bytes",
                hint="export the model with recorded requests: --golden FILE.npz",
            )
        return generate(spec)

    def example(self, signature: str = "") -> dict[str, Array]:
        """Valid inputs of one row: recorded ones if there are any, else made up.

        Raises NotFound, RequestError where made-up ones would be too large.
        """
        name, spec = self.signature(signature)
        golden = self.golden.get(name)
        if golden is None:
            return self.made_up(spec)
        if spec.batch_axis is None:
            return dict(golden.inputs)
        return first(spec, golden.inputs)

    def labels(self, signature: str, output: str) -> Sequence[str]:
        """What the entries of an output's last axis are called: the lines of its labels asset, if any."""
        return self._labels.get(self.signatures[signature].outputs[output].labels, [])

    def read_labels(self) -> None:
        """Read the label files of all outputs. Raises ModelRefused for one that is no asset, or no text."""
        ports = [spec for signature in self.signatures.values() for spec in signature.outputs.values()]
        assets = {record.name: record for record in self.bundle.metagraph.assets}
        lines: dict[str, Sequence[str]] = {}
        for name in {spec.labels for spec in ports if spec.labels}:
            where, record = self.bundle.path, assets.get(f"assets/{name}")
            if record is None:
                raise ModelRefused("an output names a label file that is no asset", where=where, found=name)
            try:
                lines[name] = read_text(self.bundle.file(record), LABELS_BYTES_MAX).splitlines()
            except InputError as error:
                raise ModelRefused("a label file cannot be read", where=where, found=error) from error
        self._labels = lines

    def warm_up(self) -> None:
        """Answer recorded requests on every device. Raises ModelRefused where the answers are others."""
        for engines in apart(self._sessions):
            warm_up(Servable(self.bundle, engines, self.golden))

    def settle_threads(self) -> None:
        """Make engines for `wide` runs, with all CPUs, where one thread alone is long at work."""
        threads = threads_max()
        if threads > 1 and self.in_thread and self.threads == 1 and runs_long(self):
            self._wide = open_engines(self.bundle, threads=threads)
            runs_long(self, wide=True)

    @property
    def can_be_wide(self) -> bool:
        """Whether there are engines for `wide` runs."""
        return bool(self._wide)

    def close(self) -> None:
        """Free the session and its memory; nothing may be in flight."""
        for engine in (*self._sessions.values(), *self._wide.values()):
            engine.release()
        self._sessions = self._wide = {}
        if self._lock is not None:
            self._lock.release()

    def hold(self, lock: Lock) -> None:
        """Keep a lock on the version's directory until `close`, so that nobody removes it."""
        self._lock = lock


def load(path: str | os.PathLike[str], device: str = CPU, *, prefetch: bool = False) -> Servable:
    """Open, load and warm up a bundle. Raises a BundleError; the caller closes the servable.

    `device` says where it runs, as `--device` does; EnvironmentProblem where that is impossible.

    A bundle on a network file system is copied to this machine first, since a mapping
    would wait for the network, and end the process when the server goes away.
    `prefetch` reads large weights into memory before the version answers.
    """
    cuda = resolve(device)
    bundle, lock = _opened(path)
    servable = Servable(bundle, open_engines(bundle, prefetch=prefetch, cuda=cuda), _golden(bundle))
    servable.hold(lock)
    try:
        servable.serving = read_serving(bundle)
        servable.read_labels()
        servable.warm_up()
        servable.settle_threads()
    except BaseException:
        servable.close()
        raise
    return servable


Kind = TypeVar("Kind", bound=Servable)


def describe(path: str | os.PathLike[str], kind: type[Kind]) -> Kind:
    """Open a bundle as a servable that computes nothing: what it says of itself, and a hold on its files.

    Raises a BundleError; the caller closes the servable.
    """
    bundle, lock = _opened(path)
    servable = kind(bundle, {}, _golden(bundle))
    servable.hold(lock)
    try:
        servable.serving = read_serving(bundle)
        servable.read_labels()
    except BaseException:
        servable.close()
        raise
    return servable


def _opened(path: str | os.PathLike[str]) -> tuple[Bundle, Lock]:
    """A bundle on this machine, and a lock that keeps it there."""
    bundle = local_copy(open_bundle(path))
    try:
        return bundle, acquire(bundle.path, shared=True)
    except OSError as error:  # it is being removed, or is gone
        raise BundleIncomplete("the version is being removed", where=bundle.path, found=error) from error


def _golden(bundle: Bundle) -> Mapping[str, Golden]:
    if not bundle.metagraph.golden:
        return {}
    return unpack(bundle.file(bundle.metagraph.golden), bundle.metagraph.signatures)
