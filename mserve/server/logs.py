"""The server's log on standard error, as text or as one JSON object a line."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from .settings import LogTable

TEXT = "%(asctime)s %(levelname)s %(message)s"


class JsonLines(logging.Formatter):
    """A record as `{"time": ..., "level": ..., "message": ...}`, with `error` for a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The record on one line; the time is UTC, ISO 8601."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        entry = {"time": time, "level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def log_to_stderr(table: LogTable) -> None:
    """Begin to log as `[log]` says."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if table.format == "json" else logging.Formatter(TEXT))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    set_level(table)


def set_level(table: LogTable) -> None:
    """Take `level` for what mserve says; libraries may warn, and no more."""
    logging.getLogger("mserve").setLevel(table.level.upper())
