"""Pages of a server over HTTP, asked one at a time before anything is measured."""

from __future__ import annotations

import http.client
import json
import ssl
from typing import Any

from ...errors import EnvironmentProblem
from .endpoint import ASK_TIMEOUT_S, Endpoint, refused_entry, unknown_protocol, unreachable

PAGE_BYTES_MAX = 256 << 20


def get(endpoint: Endpoint, path: str) -> tuple[int, bytes]:
    """Status and body of a page. Raises EnvironmentProblem; Unauthenticated, Forbidden."""
    return _ask(endpoint, "GET", path, None, ASK_TIMEOUT_S)


def post(endpoint: Endpoint, path: str, body: bytes, timeout_s: float) -> tuple[int, bytes]:
    """Status and body of the answer to some JSON. Raises what `get` raises."""
    return _ask(endpoint, "POST", path, body, timeout_s)


def _ask(
    endpoint: Endpoint, method: str, path: str, body: bytes | None, timeout_s: float
) -> tuple[int, bytes]:
    connection: http.client.HTTPConnection
    tls = endpoint.tls()
    if tls is not None:
        connection = http.client.HTTPSConnection(endpoint.host, endpoint.port, timeout=timeout_s, context=tls)
    else:
        connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=timeout_s)
    headers = {"User-Agent": "mserve-bench", **dict(endpoint.headers)}
    if body is not None:
        headers["Content-Type"] = "application/json"
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        status, answer = response.status, response.read(PAGE_BYTES_MAX)
    except ssl.SSLCertVerificationError as error:
        raise unreachable(endpoint, error) from error
    except (http.client.HTTPException, ConnectionResetError, ssl.SSLError, ValueError) as error:
        found = f"{type(error).__name__}: {str(error)[:60]!r}"
        raise unknown_protocol(endpoint, f"{method} {path}", found) from error
    except OSError as error:
        raise unreachable(endpoint, error) from error
    finally:
        connection.close()
    if status in (401, 403):
        raise refused_entry(endpoint, status == 403, f"status {status}")
    return status, answer


def page(endpoint: Endpoint, path: str) -> tuple[int, dict[str, Any] | None]:
    """A page as a JSON object, None where it is none. Raises what `get` raises."""
    status, body = get(endpoint, path)
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    return status, value if isinstance(value, dict) else None


def json_page(endpoint: Endpoint, path: str) -> tuple[int, dict[str, Any]]:
    """A page that must hold a JSON object, as every page of the protocols does. Raises EnvironmentProblem."""
    status, value = page(endpoint, path)
    if value is None:
        raise unknown_protocol(endpoint, f"GET {path}", f"status {status}, and no JSON object")
    return status, value


def text_page(endpoint: Endpoint, path: str) -> str | None:
    """A page of text, None where there is none."""
    try:
        status, body = get(endpoint, path)
    except EnvironmentProblem:
        return None
    return body.decode("utf-8", "replace") if status == 200 else None
