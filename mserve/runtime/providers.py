"""Which engine is installed, and whether it can really use a GPU: facts for `mserve doctor`.

A provider that is listed need not work: the CUDA provider is a library of its own, which
needs others, a driver and a device. Only running something tells.
"""

from __future__ import annotations

import ctypes
import io
import re
import shutil
import subprocess
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from .tiny import doubling

CUDA = "CUDAExecutionProvider"
_CUDA_LIBRARY = "libonnxruntime_providers_cuda.so"
_LDD_S = 5.0


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """The version of ONNX Runtime as it reports itself, and the providers that it was built with."""

    version: str
    providers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CudaTrial:
    """What came of running a model on the GPU: `error` is "" if it worked; libraries that do not load."""

    error: str = ""
    missing: tuple[str, ...] = ()


def engine_facts() -> EngineFacts:
    """Import the engine and ask it. Raises ImportError."""
    import onnxruntime as ort

    return EngineFacts(str(ort.__version__), tuple(ort.get_available_providers()))


def try_cuda(device: int = 0) -> CudaTrial:
    """Run a model of one node on a GPU. Raises OSError or TimeoutExpired, of `ldd`, and nothing else."""
    import numpy as np
    import onnxruntime as ort

    with redirect_stdout(io.StringIO()):  # it prints what it does not find, which is told here
        ort.preload_dlls(msvc=False)  # those that pip has installed lie where no loader looks
    folder = Path(ort.__file__).parent / "capi"
    missing = missing_libraries(folder / _CUDA_LIBRARY)
    if missing:
        return CudaTrial("libraries do not load", missing)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        provider = (CUDA, {"device_id": device})
        session = ort.InferenceSession(doubling(), options, providers=[provider], enable_fallback=0)
        if CUDA not in session.get_providers():
            return CudaTrial("ONNX Runtime left the CUDA provider out")
        found = session.run(["y"], {"x": np.ones(2, np.float32)})[0]
    except Exception as error:  # ONNX Runtime's own exception types share no useful base
        return CudaTrial((str(error).strip().splitlines() or [type(error).__name__])[0][:300])
    return CudaTrial("" if found.tolist() == [2.0, 2.0] else f"1 + 1 gave {found.tolist()}")


def missing_libraries(path: Path) -> tuple[str, ...]:
    """What a shared library needs and the loader does not find; the library itself if it is absent.

    `ldd` tells all of them; where there is no `ldd`, the loader's message names the first.
    """
    if not path.exists():
        return (path.name,)
    ldd = shutil.which("ldd")
    if ldd is not None:
        done = subprocess.run([ldd, str(path)], capture_output=True, timeout=_LDD_S, check=False)
        names = re.findall(r"^\s*(\S+) => not found", done.stdout.decode("utf-8", "replace"), re.MULTILINE)
        return tuple(sorted({name for name in names if not _loads(name)}))
    try:
        ctypes.CDLL(str(path))
    except OSError as error:
        found = re.match(r"(\S+\.so[.\d]*): cannot open", str(error))
        return (found[1],) if found else ()
    return ()


def _loads(name: str) -> bool:
    """Whether the loader finds it after all: ONNX Runtime may have loaded it by its path."""
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
