"""A process of its own for one conversion: limits, little environment, no network where possible.

What the child may use is limited by the child itself, before it imports anything of a
framework or opens a source. The network is taken away by a user namespace (`unshare
-rn`), which many systems let anyone make; where they do not, the conversion goes on with it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..errors import InputError

TIME_S = 1800.0
LEAST_MEMORY_BYTES = 8 << 30
LOG = "log.txt"
SHOWN_BYTES = 2000
# What a converter may know of its surroundings.
PASSED = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT", "SOURCE_DATE_EPOCH")
SET = {"CUDA_VISIBLE_DEVICES": "", "PYTHONDONTWRITEBYTECODE": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended: its exit status, and whether it had the network."""

    status: int
    network: bool


@cache
def without_network() -> tuple[str, ...]:
    """The words before a command that take the network from it; none where the system does not allow it."""
    tool = shutil.which("unshare")
    if tool is None:
        return ()
    words = (tool, "--map-root-user", "--net")
    done = subprocess.run([*words, "true"], capture_output=True, timeout=10, check=False)
    return words if done.returncode == 0 else ()


def limits() -> dict[str, int]:
    """The child's limits, by name in the module `resource`: address space in bytes, processor time in s."""
    if sys.platform == "win32":
        return {}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "RLIMIT_AS": max(memory, LEAST_MEMORY_BYTES),
        "RLIMIT_CPU": int(TIME_S) * (os.cpu_count() or 1),
        "RLIMIT_CORE": 0,
    }


def run(directory: Path, *, seconds: float = TIME_S) -> Ended:
    """Run the child on a job's directory to its end. Raises InputError when it takes too long."""
    before = without_network()
    command = [*before, sys.executable, "-P", "-m", "mserve.exporters.child", str(directory)]
    environment = {name: os.environ[name] for name in PASSED if name in os.environ}
    paths = [str(Path(entry or ".").absolute()) for entry in sys.path]
    environment |= SET | {"HOME": str(directory), "PYTHONPATH": os.pathsep.join(paths)}
    with (directory / LOG).open("wb") as log:
        child = subprocess.Popen(
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = child.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise InputError(
                "the conversion takes too long and was ended",
                expected=f"at most {seconds:.0f} s",
                hint="convert in this process, without limits: --no-isolate",
            ) from error
        finally:
            _end(child)
    return Ended(status, not before)


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child, and whatever it has started."""
    with suppress(ProcessLookupError, PermissionError):
        if sys.platform == "win32":
            child.kill()
        else:
            os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def last_words(directory: Path) -> str:
    """The end of what the child printed."""
    try:
        data = (directory / LOG).read_bytes()[-SHOWN_BYTES:]
    except OSError:
        return ""
    return "\n".join(data.decode(errors="replace").strip().splitlines()[-8:])


def cause(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"exit status {status}"
    with suppress(ValueError):
        name = signal.Signals(-status).name
        return f"{name}, perhaps for lack of memory" if name == "SIGKILL" else name
    return f"signal {-status}"
