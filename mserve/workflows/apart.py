"""Apart: a step of a gate in a process of its own, so that a model which ends its process ends only that.

The parent writes a request as JSON on standard input; the child answers with one JSON document on
standard output, and speaks to people on standard error.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import MserveError
from .latency import measured

_PROGRAM = "from mserve.workflows.apart import main; main()"
ERROR, ENDED = "error", "ended"
Facts = dict[str, Any]


def apart(step: str, request: Mapping[str, Any], seconds: float) -> Facts:
    """What a step of `_STEPS` answers; `{"error": ...}` for an MserveError, `{"ended": how}` for none."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    asked = json.dumps({"step": step, **request}).encode()
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            input=asked,
            stdout=subprocess.PIPE,
            env=env,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {ENDED: f"no answer after {seconds:g} s: the process was ended"}
    if done.returncode:
        code = done.returncode
        return {ENDED: f"the process ended with {signal.Signals(-code).name if code < 0 else code}"}
    found: Facts = json.loads(done.stdout)
    return found


# --- in the child


def main() -> None:
    """Answer the request on standard input. What libraries print goes to standard error."""
    request = json.loads(sys.stdin.buffer.read())
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        try:
            found = _STEPS[request["step"]](request)
        except MserveError as error:
            found = {ERROR: {"code": error.code, "text": str(error)}}
        json.dump(found, out)


def _validated(request: Mapping[str, Any]) -> Facts:
    from ..checks import Tolerance, validate
    from ..format import open_bundle

    bundle = open_bundle(Path(request["path"]))
    findings = validate(bundle, Tolerance(request["rtol"], request["atol"]), full=True)
    return {"findings": [finding.to_json() for finding in findings]}


_STEPS: dict[str, Callable[[Mapping[str, Any]], Facts]] = {"validate": _validated, "latency": measured}
