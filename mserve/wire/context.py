"""What comes along with a request, whatever the protocol."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Context:
    """Who asks, and until when. Times are monotonic nanoseconds.

    `start_ns` is when the request's last byte arrived; `timeout_ns` how long its client
    will wait, 0 if it does not say; `admin` tells whether it may make administrative calls.
    """

    start_ns: int
    timeout_ns: int = 0
    request_id: str = ""
    traceparent: str = ""
    admin: bool = False
