"""Remote: the pages of a running server, read over one connection that is kept open."""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from ..errors import EnvironmentProblem, InputError, Unauthenticated, UsageError
from ..files import read_input
from .rates import Reading, VersionStatus, not_mserve, read_metrics, read_statuses

TIMEOUT_S = 5.0
PAGE_BYTES_MAX = 64 << 20
_TOKEN_FILE_BYTES_MAX = 1 << 20
_TOKEN = re.compile(r"[!-~]+")


class Remote:
    """A server by its URL. Whatever fails, the next call connects again."""

    def __init__(self, url: str, token: str = "", ca: Path | None = None) -> None:
        """`token` goes along with every request. Raises UsageError, InputError."""
        self.url, self.scheme, self.host, self.port = _parse(url)
        if ca is not None and self.scheme != "https":
            raise UsageError("--ca is for https", found=url)
        self._context = _context(ca) if self.scheme == "https" else None
        self._headers = {"User-Agent": "mserve"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._connection: http.client.HTTPConnection | None = None

    def reading(self) -> Reading:
        """The server's counters now. Raises EnvironmentProblem, Unauthenticated."""
        return read_metrics(self._page("/metrics").decode("utf-8", "replace"), f"{self.url}/metrics")

    def statuses(self) -> list[VersionStatus]:
        """The versions of all models. Raises EnvironmentProblem, Unauthenticated."""
        return read_statuses(self._page("/v1/models"), f"{self.url}/v1/models")

    def explanation(self, request_id: str) -> dict[str, Any]:
        """What the server's flight recorder knows of a request.

        Raises EnvironmentProblem, Unauthenticated, InputError where it knows nothing.
        """
        path = f"/debug/requests/{quote(request_id, safe='')}"
        status, body = self._get(path)
        if status == 404:
            raise InputError(
                "the server does not remember such a request",
                where=self.url,
                found=repr(request_id[:128]),
                hint="it keeps the last few thousand that came with the header x-request-id",
            )
        try:
            page = json.loads(self._checked(status, body, path))
        except (ValueError, RecursionError) as error:
            raise not_mserve(f"{self.url}{path}", str(error)[:120]) from error
        if not isinstance(page, dict):
            raise not_mserve(f"{self.url}{path}", "no object")
        return page

    def unready(self) -> list[str]:
        """Why the server is not ready, a line for each reason; empty when it is."""
        status, body = self._get("/readyz")
        if status == 200:
            return []
        return body.decode("utf-8", "replace").splitlines() or [f"status {status}"]

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _page(self, path: str) -> bytes:
        return self._checked(*self._get(path), path)

    def _checked(self, status: int, body: bytes, path: str) -> bytes:
        if status == 401:
            raise Unauthenticated(
                "the server wants a token", where=self.url, hint="--token-file names a file that holds one"
            )
        if status != 200:
            raise not_mserve(f"{self.url}{path}", f"status {status}")
        return body

    def _get(self, path: str) -> tuple[int, bytes]:
        """Status and body; once more on a new connection when a kept one has been closed meanwhile."""
        kept = self._connection is not None
        try:
            return self._ask(path)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError) as error:
            self.close()
            if not kept:
                raise not_mserve(f"{self.url}{path}", "it closed the connection") from error
        except http.client.HTTPException as error:
            self.close()
            raise not_mserve(f"{self.url}{path}", f"{type(error).__name__}: {error}"[:120]) from error
        except OSError as error:
            self.close()
            raise self._unreachable(error) from error
        return self._get(path)

    def _ask(self, path: str) -> tuple[int, bytes]:
        if self._connection is None:
            self._connection = self._connect()
        self._connection.request("GET", path, headers=self._headers)
        with self._connection.getresponse() as response:
            body = response.read(PAGE_BYTES_MAX + 1)
            if len(body) > PAGE_BYTES_MAX:
                raise http.client.HTTPException(f"a page of more than {PAGE_BYTES_MAX} bytes")
            if response.length:  # a read of so many bytes does not mind getting fewer
                raise http.client.IncompleteRead(body, response.length)
            return response.status, body

    def _connect(self) -> http.client.HTTPConnection:
        if self._context is None:
            return http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT_S)
        return http.client.HTTPSConnection(self.host, self.port, timeout=TIMEOUT_S, context=self._context)

    def _unreachable(self, error: OSError) -> EnvironmentProblem:
        what, hint = "the server cannot be reached", "check the URL"
        if isinstance(error, ConnectionRefusedError):
            what = "nothing listens there"
            hint = f"start a server: mserve serve BASE_PATH --port {self.port}"
        elif isinstance(error, socket.gaierror):
            what = "no such host"
        elif isinstance(error, ssl.SSLCertVerificationError):
            what, hint = "the server's certificate is not trusted", "--ca CA.pem names whom to trust"
        elif isinstance(error, ssl.SSLError):
            what, hint = "the server does not speak TLS there", f"try http://{self.host}:{self.port}"
        elif isinstance(error, TimeoutError):
            what, hint = f"no answer within {TIMEOUT_S:g} s", "is it the right port, and is the server alive?"
        return EnvironmentProblem(what, where=self.url, found=_said(error), hint=hint)


def _said(error: OSError) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _parse(url: str) -> tuple[str, str, str, int]:
    """URL without a path, scheme, host and port. Raises UsageError."""
    expected = "http://HOST:PORT or https://HOST:PORT"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        host.encode("idna")
    except ValueError as error:
        raise UsageError("bad URL", expected=expected, found=f"{url[:200]!r}: {error}") from error
    if parts.scheme not in ("http", "https") or not host or not host.isprintable() or " " in host:
        hint = f"did you mean http://{url} ?" if re.fullmatch(r"[\w.-]+:\d{1,5}", url) else ""
        raise UsageError("bad URL", expected=expected, found=repr(url[:200]), hint=hint)
    if parts.path not in ("", "/") or parts.query or "@" in parts.netloc:
        raise UsageError("the URL is that of a server, without more", expected=expected, found=url[:200])
    return f"{parts.scheme}://{parts.netloc}", parts.scheme, host, port


def _context(ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=None if ca is None else str(ca))
    except OSError as error:  # ssl.SSLError is one
        raise InputError(
            "the certificates cannot be used", where=ca or "", expected="a PEM file", found=_said(error)
        ) from error


def read_token(path: Path) -> str:
    """The first token of a file: a line that is not empty and no `#` comment. Raises InputError."""
    lines = read_input(path, _TOKEN_FILE_BYTES_MAX).decode("latin-1").splitlines()
    tokens = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not tokens or not _TOKEN.fullmatch(tokens[0]):
        found = "no line" if not tokens else "other characters"
        raise InputError("the file holds no token", where=path, expected="a token of ASCII text", found=found)
    return tokens[0]
