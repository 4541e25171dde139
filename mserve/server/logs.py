"""Logs: what the server says of itself, and a line for each request if that is asked for.

As text for people or as JSON lines for machines, on standard error; the access log also
into a file. A request's identity comes from its client (`x-request-id`, and W3C's
`traceparent`) and is echoed; where requests are logged, one that brings none gets one.
No header but these, no token and no body is ever logged here.
"""

from __future__ import annotations

import logging
import re
import secrets
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

import orjson

from ..errors import EnvironmentProblem, printable
from .settings import LogTable

log = logging.getLogger("mserve")
access = logging.getLogger("mserve.access")

TEXT = "%(asctime)s %(levelname)s %(message)s"
_ID = re.compile(r"[\x21-\x7e]{1,128}")
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class TextLines(logging.Formatter):
    """A log record as one line of text, whatever stands in the names that it tells."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record.message = printable(record.message)
        return super().formatMessage(record)


class JsonLines(logging.Formatter):
    """A log record as one line of JSON; what `extra={"fields": {...}}` holds becomes keys."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _iso(record.created),
            "level": record.levelname.lower(),
        }
        told = getattr(record, "fields", None) or {"message": record.getMessage()}
        line |= {key: printable(value) if isinstance(value, str) else value for key, value in told.items()}
        if record.exc_info:
            text = self.formatException(record.exc_info)
            line["exception"] = text.encode("utf-8", "backslashreplace").decode()
        return orjson.dumps(line, default=str).decode()


class _AccessFile(WatchedFileHandler):
    """A file that is opened again when it was moved away; what cannot be written is said once, and lost."""

    _losing = _failed = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; never raises."""
        self._failed = False
        try:
            super().emit(record)  # to open again is outside of its own care for errors
        except OSError:
            self.handleError(record)
        self._losing = self._failed

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        self._failed = True
        if not self._losing:
            log.warning("the access log loses lines: %s: %s", self.baseFilename, sys.exc_info()[1])


def begin(table: LogTable) -> None:
    """Begin to log as `[log]` says. Raises EnvironmentProblem when the access log cannot be written."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if table.format == "json" else TextLines(TEXT))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    set_level(table)
    access.setLevel(logging.INFO)
    access.propagate = table.access is True
    if isinstance(table.access, Path):
        try:
            # It is opened again when it was moved away, as logrotate does.
            to_file = _AccessFile(table.access)
        except OSError as error:
            raise EnvironmentProblem(
                "cannot write the access log", where=table.access, found=error.strerror or error
            ) from error
        to_file.setFormatter(JsonLines())
        access.addHandler(to_file)


def set_level(table: LogTable) -> None:
    """Take `level` for what mserve says; libraries may warn, and no more."""
    log.setLevel(table.level.upper())


@dataclass(slots=True)
class Identity:
    """What tells one request from others: its client's id, and its place in a trace; "" if absent."""

    request_id: str = ""
    traceparent: str = ""

    def headers(self) -> tuple[tuple[str, str], ...]:
        """What is echoed."""
        pairs = (("x-request-id", self.request_id), ("traceparent", self.traceparent))
        return tuple(pair for pair in pairs if pair[1])

    def lines(self) -> bytes:
        """The same, as lines of an HTTP head."""
        first = f"x-request-id: {self.request_id}\r\n" if self.request_id else ""
        second = f"traceparent: {self.traceparent}\r\n" if self.traceparent else ""
        return (first + second).encode()


def identity(request_id: str, traceparent: str) -> Identity:
    """A client's identity of a request; what is not well formed is dropped, so that it cannot spoil a log.

    Source of the second: https://www.w3.org/TR/trace-context/.
    """
    return Identity(
        request_id if _ID.fullmatch(request_id) else "",
        traceparent if _TRACEPARENT.fullmatch(traceparent) else "",
    )


def new_request_id() -> str:
    """An identity for a request that brought none."""
    return secrets.token_hex(8)


@dataclass(frozen=True, slots=True)
class Line:
    """One answered request. `method` is HTTP's, or "RPC"; `code` the status; sizes in bytes."""

    client: str
    method: str
    path: str
    code: str
    request_bytes: int
    response_bytes: int
    start_ns: int
    identity: Identity
    version: str = ""


def write_access(line: Line) -> None:
    """Log one answered request."""
    ms = (time.monotonic_ns() - line.start_ns) / 1e6
    fields: dict[str, Any] = {
        "client": line.client,
        "method": line.method,
        "path": line.path,
        "code": line.code,
        "request_bytes": line.request_bytes,
        "response_bytes": line.response_bytes,
        "ms": round(ms, 3),
    }
    fields |= _present({"version": line.version, "request_id": line.identity.request_id})
    if line.identity.traceparent:
        fields["trace_id"] = line.identity.traceparent.split("-")[1]
    access.info(
        "%s %s %s %s %d/%d bytes %.3f ms%s",
        line.client,
        line.method,
        line.path.encode("ascii", "backslashreplace").decode(),
        line.code,
        line.request_bytes,
        line.response_bytes,
        ms,
        f" id={line.identity.request_id}" if line.identity.request_id else "",
        extra={"fields": fields},
    )


def _present(fields: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in fields.items() if value}


def _iso(seconds: float) -> str:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{stamp}.{int(seconds % 1 * 1000):03d}Z"
