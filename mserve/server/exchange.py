"""An exchange: a request of one connection on its way to its answer, which may be an error."""

from __future__ import annotations

from collections.abc import Callable

import httptools

from ..errors import HeadersTooLarge, MethodNotAllowed, MserveError, RequestError, Unauthenticated
from ..wire.http1 import Head, Request, Response, json_response
from .peers import Held, Peers

HEAD_BYTES_MAX = 32 << 10

Reply = Callable[[Response], None]
Cancel = Callable[[], None]
Handler = Callable[[Request, Reply], Cancel | None]


class Exchange(Request):
    """A request of a connection, what to cancel, and its answer once known."""

    response: Response | None = None
    cancel: Cancel | None = None
    dropped = False
    _held: Held | None = None

    def __init__(self, peers: Peers, head: Head, body: bytes | bytearray, now_ns: int, client: str) -> None:
        self.head = head
        self.body = body
        self.start_ns = now_ns
        self.client = client
        self._peers = peers
        self._size = size = len(body)
        peers.received += size
        if head.coded:
            self._held = Held(peers)

    def charge(self, size: int) -> None:
        if self._held is not None:
            self._held.take(size)

    def encoded(self, *, keep_alive: bool) -> bytes:
        """Its answer's bytes on the wire."""
        assert self.response is not None
        only_head = self.head.method == "HEAD"
        return self.response.encode(keep_alive=keep_alive, head_only=only_head, echo=self.echo)

    def release(self) -> None:
        """It is answered, or never will be: its bytes do not count any more."""
        self._peers.received -= self._size
        self._size = 0
        self.cancel = None  # it would hold the body
        if self._held is not None:
            self._held.release()


def check_head(size: int) -> None:
    """Whether a header section may have so many bytes. Raises HeadersTooLarge."""
    if size > HEAD_BYTES_MAX:
        raise HeadersTooLarge("the header section is too large", expected=f"at most {HEAD_BYTES_MAX} bytes")


def parse_error(error: Exception) -> MserveError:
    """Why a request could not be parsed: llhttp's word, or what was raised in a callback of its."""
    if isinstance(error, httptools.HttpParserCallbackError):
        cause = error.__context__
        return cause if isinstance(cause, MserveError) else MserveError("internal error", found=repr(cause))
    return error if isinstance(error, MserveError) else RequestError("not a valid HTTP request", found=error)


def error_response(error: MserveError) -> Response:
    """An error as clients of TensorFlow Serving know it: a status and `{"error": text}`."""
    headers: tuple[tuple[str, str], ...] = ()
    if isinstance(error, RequestError) and error.retry_after_s:
        headers = (("Retry-After", str(error.retry_after_s)),)
    if isinstance(error, MethodNotAllowed):
        headers = (("Allow", error.expected),)
    if isinstance(error, Unauthenticated):
        headers = (("WWW-Authenticate", "Bearer"),)
    return json_response({"error": str(error)}, error.http_status, headers)
