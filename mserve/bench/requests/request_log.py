"""Recorded request logs, as `mserve serve --request-log` writes them: JSON lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson

from ...errors import InputError
from ...files import read_input
from ..load.schedule import REQUESTS_MAX, Times

TIME_MAX = 9e9  # in nanoseconds it is less than 2**63


def read_log(path: Path) -> tuple[Times, list[dict[str, Any]]]:
    """When each recorded request arrived, in nanoseconds after the first, and its line.

    Both in the order of arrival; lines are written when requests end, so in another.
    Raises InputError.
    """
    lines = [line for line in read_input(path).split(b"\n") if line.strip()]
    if not 1 <= len(lines) <= REQUESTS_MAX:
        raise InputError(
            "no request log", where=path, expected=f"1 to {REQUESTS_MAX:,} lines", found=len(lines)
        )
    requests = [_read(line, path, number) for number, line in enumerate(lines, 1)]
    times = np.array([request["time"] for request in requests], dtype=np.float64)
    order = np.argsort(times, kind="stable")
    offsets: Times = np.round((times[order] - times[order[0]]) * 1e9).astype(np.int64)
    return offsets, [requests[i] for i in order]


def _read(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise InputError("not a line of a request log", where=f"{path}:{number}", found=str(error)) from error
    time = value.get("time") if isinstance(value, dict) else None
    if not isinstance(time, int | float) or isinstance(time, bool) or not 0 <= time < TIME_MAX:
        raise InputError(
            "not a line of a request log",
            where=f"{path}:{number}",
            expected="a JSON object with a time in seconds since 1970",
            found=line[:60].decode("utf-8", "replace"),
        )
    return dict(value)
