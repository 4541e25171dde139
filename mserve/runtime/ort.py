"""ONNX Runtime: the only module that imports it.

A session is made from the bytes of `export.meta` and from buffers that hold the shards.
ONNX Runtime uses those buffers in place (see `weights`), so they must outlive the
session, and the Session object holds both.

Threads: a server calls `share_threads` first, and all its sessions share one pool. In
other people's processes (a training job that exports) each session has its own, since
ONNX Runtime's shared pool would forbid every session made outside mserve. Either way
threads sleep when there is nothing to do.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import ExecutionFailed, InputsRefused, MetaGraphMalformed, ModelRefused
from ..format.graph import Graph
from ..format.prune import Parts
from ..tensors import DTYPES, SHORT_TYPES, Array, DType, Signature
from ..wire import protobuf
from .tiny import doubling
from .weights import Weights

_pool_threads = 0


def share_threads(threads: int) -> None:
    """Make all sessions of this process share one pool of `threads`; before the first session, once.

    A session is made at once, because the pool's threads are started then, with the
    priority of the thread that does it: not that of one which loads models.
    """
    global _pool_threads
    if _pool_threads == 0:
        import onnxruntime as ort

        _pool_threads = max(1, threads)
        ort.set_global_thread_pool_sizes(_pool_threads, 1)
        options = ort.SessionOptions()
        options.use_per_session_threads = False
        ort.InferenceSession(doubling(), options, providers=["CPUExecutionProvider"])


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
    _short: bool = False

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
    model: bytes, graph: Graph, signatures: Mapping[str, Signature], weights: Weights
) -> dict[str, Session]:
    """A session for each signature of a serialised ModelProto, whose walk is `graph`.

    Signatures whose outputs have the same ancestors share one, and each session computes
    nothing that its signatures do not ask for. Raises ModelRefused, MetaGraphMalformed.
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
    except protobuf.Malformed as error:
        raise MetaGraphMalformed(
            "the graph is not a protobuf message", where=weights.where, found=error
        ) from error
    # Read-ahead around each row of a table that is only looked up would read megabytes for a
    # few hundred bytes. Everything else is read from end to end.
    weights.expect_lookups(graph.weights, tables)
    sessions = {group: _session(part, weights) for group, part in models.items()}
    return {name: sessions[group] for name, group in nodes.items()}


def _session(model: bytes, weights: Weights) -> Session:
    """A session over one part of a graph."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    if _pool_threads:
        options.use_per_session_threads = False
    else:
        options.intra_op_num_threads = cpu_budget()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
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
        # Its fallback to the CPU provider, which is what was asked for, only prints noise.
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except MemoryError:  # not the model's fault, and it may pass
        raise
    except Exception as error:
        raise ModelRefused(
            "ONNX Runtime does not accept the model",
            where=weights.where,
            found=_first_line(error),
            hint="onnxruntime.InferenceSession reports the same for the model file",
        ) from error
    ports = [*session.get_inputs(), *session.get_outputs()]
    return Session(session, weights, any(port.type in _short_types() for port in ports))


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
    values = {name: x if x.dtype.hasobject else _to_value(x) for name, x in feeds.items()}
    if any(x.dtype.hasobject for x in feeds.values()):
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
