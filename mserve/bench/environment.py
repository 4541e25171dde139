"""The circumstances of a measurement: without them a number cannot be compared with another."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__
from ..runtime.ort import cpu_budget

_ENGINES = ("onnxruntime-gpu", "onnxruntime")


def stamp(arguments: Sequence[str]) -> dict[str, Any]:
    """Machine, versions, load and command line, taken before the run."""
    return {
        "mserve": __version__,
        "python": platform.python_version(),
        "onnxruntime": _engine_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cpus": cpu_budget(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "command": shlex.join(["mserve", *arguments]),
        "client_loop": "uvloop" if "uvloop" in sys.modules else "asyncio",
    }


def _engine_version() -> str | None:
    for name in _ENGINES:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
