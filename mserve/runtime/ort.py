"""ONNX Runtime: the only module that imports it.

A session is made from the bytes of `export.meta` and from buffers that hold the shards.
ONNX Runtime uses those buffers in place (see `weights`), so they must outlive the
session, and the Session object holds both.

Threads: each session has its own, which sleep when there is nothing to do. ONNX Runtime's
pool that is shared by all sessions cannot be told so from Python: its threads spin for a
while after each run, and under load they burned a CPU that the event loop needed. It
would also forbid every session made outside mserve. A run with one thread is the cheapest:
several at once are better done side by side. Only a long run that has the machine to
itself is better with several threads; whoever loads a model measures, and makes a second
session for that. Its threads spin within a run, where they wait for each other dozens of
times and each wake-up is dear, and stop when it ends.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from ..errors import ExecutionFailed, InputsRefused, MetaGraphMalformed, ModelRefused
from ..format.graph import Graph
from ..format.prune import Parts
from ..tensors import DTYPES, SHORT_TYPES, Array, DType, Signature
from ..wire import protobuf
from .devices import unusable
from .providers import CUDA
from .weights import Weights

# Weights that every run reads, from which on a run is surely long, and a second session too large.
LONG_RUN_BYTES = 256 << 20
_threads_max = 0


def limit_threads(threads: int) -> None:
    """Let one run of a session that is made from now on use at most so many threads."""
    global _threads_max
    _threads_max = max(1, threads)


def threads_max() -> int:
    """How many threads one run may use at most: all CPUs, where nobody said less."""
    return _threads_max or cpu_budget()


def import_engine() -> None:
    """Import what loading a model needs, before any thread does.

    numpy and ONNX Runtime do not survive that several threads import them first, at the same
    time: from then on every import fails, for as long as the process lives.
    """
    import numpy  # noqa: F401
    import onnxruntime  # noqa: F401


def cpu_budget() -> int:
    """CPUs this process may use: its affinity, and the limit of its control group."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cpus = min(cpus, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return max(1, cpus)


@dataclass(slots=True)
class Session:
    """A loaded graph, and the memory it reads its weights from."""

    _session: Any
    _weights: Weights
    threads: int
    _short: bool = False

    on_cpu: ClassVar[bool] = True

    @property
    def inputs(self) -> list[str]:
        """The tensors that a run must be given."""
        return [port.name for port in self._session.get_inputs()]

    @property
    def private(self) -> bool:
        """Whether the weights lie in private memory, so that a run cannot wait for the disk."""
        return self._weights.private

    def release(self) -> None:
        """Let go of the weights' pages, before the session itself goes."""
        self._weights.release()

    def run_options(self) -> Any:
        """ONNX Runtime's options of one run: with `terminate` set it ends at the next operator."""
        import onnxruntime as ort

        options = ort.RunOptions()
        options.log_severity_level = 4  # it would print an error for each run that was ended
        return options

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array], options: Any = None) -> list[Array]:
        """Compute the named tensors. Raises ExecutionFailed with ONNX Runtime's message; where it
        blames the inputs (an index out of range, say), InputsRefused. `options`: see `run_options`.
        """
        try:
            if self._short:
                return _run_short(self._session, outputs, feeds, options)
            return self._session.run(outputs, feeds, options)  # type: ignore[no-any-return]
        except Exception as error:  # ONNX Runtime's own exception types share no useful base
            raise _failure(error) from error


def sessions_for(
    model: bytes,
    graph: Graph,
    signatures: Mapping[str, Signature],
    weights: Weights,
    threads: int = 0,
    *,
    cuda: int | None = None,
) -> dict[str, Session]:
    """A session for each signature of a serialised ModelProto, whose walk is `graph`.

    `threads` is how many a run uses; 0 leaves it to the size of the weights. Signatures whose
    outputs have the same ancestors share one session, and each session computes nothing that
    its signatures do not ask for. `cuda` is a CUDA device, whose operators go before the CPU's.
    Raises ModelRefused, MetaGraphMalformed, EnvironmentProblem where the device cannot be used.
    """
    nodes: dict[str, frozenset[int]] = {}
    outputs: dict[frozenset[int], set[str]] = {}
    try:
        parts = Parts(model)
        for name, signature in signatures.items():
            wanted = {spec.name for spec in signature.outputs.values()}
            nodes[name] = parts.ancestors(wanted)[0]
            outputs.setdefault(nodes[name], set()).update(wanted)
        models = {group: parts.cut(wanted) for group, wanted in outputs.items()}
        tables = parts.tables()
        if parts.accumulates():
            # ScatterND adds to one place from several threads without locking, and loses terms.
            threads = 1
    except protobuf.Malformed as error:
        raise MetaGraphMalformed(
            "the graph is not a protobuf message", where=weights.where, found=error
        ) from error
    # Read-ahead around each row of a table that is only looked up would read megabytes for a
    # few hundred bytes. Everything else is read from end to end.
    weights.expect_lookups(graph.weights, tables)
    if not threads:
        dense = sum(weight.length for weight in graph.weights if weight.name not in tables)
        threads = threads_max() if dense >= LONG_RUN_BYTES else 1
    sessions = {group: _session(part, weights, threads, cuda) for group, part in models.items()}
    return {name: sessions[group] for name, group in nodes.items()}


def observer(model: bytes, weights: Weights, *, cuda: int | None = None, plain: bool = False) -> Session:
    """A session of all CPUs for a few runs, to look at what a graph computes.

    `plain` leaves out every optimisation of the graph. Raises as `sessions_for`.
    """
    return _session(model, weights, threads_max(), cuda, plain=plain)


def _session(
    model: bytes, weights: Weights, threads: int, cuda: int | None, *, plain: bool = False
) -> Session:
    """A session over one part of a graph."""
    import onnxruntime as ort
    from onnxruntime.capi.onnxruntime_pybind11_state import EPFail, RuntimeException

    providers: list[Any] = ["CPUExecutionProvider"]
    if cuda is not None:
        providers.insert(0, (CUDA, {"device_id": cuda}))
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    if plain:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if threads > 1 else "0")
    options.add_session_config_entry("session.force_spinning_stop", "1")  # when the run ends
    options.add_session_config_entry("session.use_external_initializer_file_buffers_directly", "1")
    # Only files that the buffers do not cover are looked for here, and ONNX Runtime
    # refuses paths that lead out of it; without it, it would look in the working directory.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(weights.where.parent)
    )
    options.log_severity_level = 3
    options.add_session_config_entry("session.prepack.enable_parallel", "1")
    if weights.buffers:
        names, buffers = list(weights.buffers), list(weights.buffers.values())
        options.add_external_initializers_from_files_in_memory(names, buffers, [len(b) for b in buffers])
    try:
        # Its fallback to the CPU provider is noise where that was asked for, and wrong where not.
        session = ort.InferenceSession(model, options, providers=providers, enable_fallback=0)
    except MemoryError:  # not the model's fault, and it may pass
        raise
    except Exception as error:
        if cuda is not None and isinstance(error, RuntimeException | EPFail | RuntimeError):
            # The GPU's fault, not the model's: its memory is full, say, which may pass.
            raise unusable(cuda, _first_line(error)) from error
        raise ModelRefused(
            "ONNX Runtime does not accept the model",
            where=weights.where,
            found=_first_line(error),
            hint="onnxruntime.InferenceSession reports the same for the model file",
        ) from error
    if cuda is not None and CUDA not in session.get_providers():
        raise unusable(cuda, "ONNX Runtime left the CUDA provider out")
    ports = [*session.get_inputs(), *session.get_outputs()]
    return Session(session, weights, threads, any(port.type in _short_types() for port in ports))


@cache
def _short_types() -> dict[str, DType]:
    """The types that ONNX Runtime knows and its Python face has no numpy type for, by ONNX Runtime's name."""
    return {f"tensor({d.name})": d for d in DTYPES.values() if d.numpy in SHORT_TYPES and d.bits >= 8}


def _run_short(session: Any, outputs: Sequence[str], feeds: Mapping[str, Array], options: Any) -> list[Array]:
    """Run a graph with short floats among its inputs and outputs.

    ONNX Runtime takes such values with a word on what they are, and gives them back as
    an address. It makes no such value of text, so that a graph which takes text may
    have short inputs, not short outputs.
    """
    values = {name: x if x.dtype.kind in "OU" else _to_value(x) for name, x in feeds.items()}
    if any(x.dtype.kind in "OU" for x in feeds.values()):
        return session.run(outputs, values, options)  # type: ignore[no-any-return]
    return [_from_value(value) for value in session.run_with_ort_values(outputs, values, options)]


def _to_value(array: Array) -> Any:
    import onnxruntime as ort

    array = array if array.flags.c_contiguous else array.copy()
    for dtype in _short_types().values():
        if dtype.numpy == array.dtype.name:
            return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, dtype.onnx)
    return ort.OrtValue.ortvalue_from_numpy(array)


def _from_value(value: Any) -> Array:
    import numpy as np

    dtype = _short_types().get(value.data_type())
    if dtype is None:
        return value.numpy()  # type: ignore[no-any-return]
    size = value.tensor_size_in_bytes()
    if size == 0:
        return np.empty(value.shape(), dtype.to_numpy())
    memory = (ctypes.c_char * size).from_address(value.data_ptr())
    return np.frombuffer(memory, dtype.to_numpy()).reshape(value.shape()).copy()


def _failure(error: Exception) -> ExecutionFailed:
    from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

    if isinstance(error, InvalidArgument):
        return InputsRefused("the model refuses these inputs", found=_first_line(error))
    return ExecutionFailed("the model failed on these inputs", found=_first_line(error))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]
