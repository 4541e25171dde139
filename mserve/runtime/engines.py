"""Which engine computes a bundle: its graph says so.

A graph of one operator of the domain `mserve` is a table, which is looked up in numpy;
every other graph is ONNX Runtime's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from ..errors import ModelRefused, MserveError
from ..format import Bundle
from ..format.graph import Graph
from ..tensors import Array, Signature
from . import ort, table
from .spread import spread
from .weights import Weights, open_weights

# One run of a model by a command: what takes longer mostly never ends, and nothing else can end it.
RUN_S = 300.0


class Engine(Protocol):
    """What computes the outputs of a signature: a session of ONNX Runtime, or a table."""

    @property
    def on_cpu(self) -> bool:
        """Whether a run is work of this machine's CPUs."""

    @property
    def private(self) -> bool:
        """Whether the weights lie in private memory, so that a run cannot wait for the disk."""

    @property
    def threads(self) -> int:
        """How many threads a run uses; 0 where that cannot be chosen."""

    def release(self) -> None:
        """Let go of the weights' pages; called when nothing will run any more."""

    def run_options(self) -> Any:
        """An object for one run that ends it when its `terminate` is set; None where runs are short."""

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array], options: Any = None) -> list[Array]:
        """Compute the named tensors from the named inputs. Raises ExecutionFailed."""


def open_engines(
    bundle: Bundle, *, prefetch: bool = False, threads: int = 0, cuda: Sequence[int] = ()
) -> Mapping[str, Engine]:
    """Load a bundle: an engine for each signature, all over the same memory.

    It runs on the given CUDA devices, or else on the CPU, where tables always are. `prefetch`
    reads mapped weights into the page cache before anything else; `threads` is how
    many a run uses, 0 leaves it to the size of the weights. Raises
    ModelRefused, MetaGraphMalformed or FormatUnsupported when the graph cannot be run,
    BundleIncomplete when a shard changes while it is opened, or is not the recorded one,
    EnvironmentProblem when a device cannot be used.
    """
    weights = open_weights(bundle)
    if prefetch:
        weights.prefetch()
    model, graph, signatures = bundle.meta, bundle.graph, bundle.metagraph.signatures
    if not cuda or table.is_table(graph):
        return engines_for(model, graph, signatures, weights, threads)
    return spread({d: ort.sessions_for(model, graph, signatures, weights, cuda=d) for d in cuda})


def engines_for(
    model: bytes, graph: Graph, signatures: Mapping[str, Signature], weights: Weights, threads: int = 0
) -> Mapping[str, Engine]:
    """An engine on the CPU for each signature of a serialised ModelProto, whose walk is `graph`.

    Raises ModelRefused, MetaGraphMalformed, FormatUnsupported.
    """
    if table.is_table(graph):
        return dict.fromkeys(signatures, table.open_table(model, graph, weights))
    return ort.sessions_for(model, graph, signatures, weights, threads)


@contextmanager
def time_limit(
    options: Any, limit_s: float, where: object, what: str = "a run of the model"
) -> Iterator[None]:
    """End the run that has these options after a while. Raises ModelRefused if that was necessary."""
    over = threading.Event()

    def end() -> None:
        over.set()
        if options is not None:
            options.terminate = True

    timer = threading.Timer(limit_s, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except MserveError:
        if not over.is_set():
            raise
    finally:
        timer.cancel()
    if over.is_set():
        raise ModelRefused(
            f"{what} takes too long",
            where=where,
            expected=f"at most {limit_s:.0f} s",
            hint="does it hold a loop that never ends, for these inputs?",
        )
