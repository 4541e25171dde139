"""HTTP/1.1 connections: bytes in, requests to a handler, responses out in order.

A connection parses with llhttp and hands each complete request to the handler, which
answers by a callback, at once or later. Requests of one connection may be answered out
of order by the batcher; a queue of pending answers puts them back in order. Everything
that a client can make grow is limited: the header section, the body, requests in flight
on one connection, and the time to send a request; a client that does not read its
answers is not read from either, and cut off in the end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from functools import partial

import httptools

from ..errors import HeadersTooLarge, MserveError, PayloadTooLarge, RequestError, Unavailable
from ..wire.http1 import (
    MEMO_HEAD_BYTES,
    REQUEST_ID,
    TRACEPARENT,
    Head,
    HeadMemo,
    Response,
    json_response,
)
from .exchange import Exchange, Handler, error_response
from .peers import Peers

log = logging.getLogger("mserve")

PIPELINE_MAX = 16
HEAD_BYTES_MAX = 32 << 10
LINGER_S = 2.0
DRAIN_S = 0.9
LULL_S = 0.3
WRITE_BUFFER_BYTES = 1 << 20


class Connection(asyncio.Protocol):
    """One client connection."""

    def __init__(self, handler: Handler, peers: Peers) -> None:
        self._handler = handler
        self._peers = peers
        self._transport: asyncio.Transport | None = None
        self._pending: deque[Exchange] = deque()
        self._parked: deque[Exchange] = deque()
        self._memo = HeadMemo()
        self._dispatching = False
        self._paused = False
        self._unread_since: float | None = None
        self._closing = False
        self._ended: float | None = None
        self._lingering = False
        self._draining_since: float | None = None
        self._receiving = 0
        self._reset()
        self._client = ""
        self._parser = httptools.HttpRequestParser(self)
        self.quiet_since = time.monotonic()

    def _reset(self) -> None:
        """Get ready for the next request's head."""
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._in_head = True
        # Bytes of this head, or of what follows the body's last byte: of complete lines, and of
        # whole reads. The read in which it began is not counted: most of that may be other things.
        self._parsed = self._unparsed = 0
        self._began_here = True
        self._body = bytearray()
        self._peers.received -= self._receiving
        self._receiving = 0
        self._raw = b""  # the head's bytes, where they came as one
        self._started: float | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        peer = transport.get_extra_info("peername")
        self._client = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else ""
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)  # type: ignore[union-attr]
        self._peers.open.add(self)
        if len(self._peers.open) > self._peers.connections_max:
            self._refuse(
                Unavailable(
                    "the server has too many connections",
                    expected=f"at most {self._peers.connections_max}",
                    hint="try again later",
                )
            )

    def connection_lost(self, exc: Exception | None) -> None:
        self._peers.open.discard(self)
        self._closing = True
        self._reset()
        self._drop_pending()
        self._transport = None
        del self._parser  # it holds us, and a reference cycle waits for the garbage collector

    def _drop_pending(self) -> None:
        """Forget the requests that will not be answered."""
        for exchange in self._pending:
            exchange.dropped = True
            if exchange.cancel is not None:
                exchange.cancel()
            exchange.release()
        self._pending.clear()
        self._parked.clear()

    def data_received(self, data: bytes) -> None:
        if self._closing or self._lingering:
            return
        self.quiet_since = time.monotonic()
        if self._started is None:
            data = self._take_known(data)
            if not data:
                if self._parked or len(self._pending) >= PIPELINE_MAX:
                    self._dispatch()
                return
            self._started = self.quiet_since
            end = data.find(b"\r\n\r\n", 0, MEMO_HEAD_BYTES) + 4
            self._raw = data[:end] if end > 3 else b""
        self._began_here = False
        try:
            self._feed(data)
            if not self._began_here:
                self._unparsed += len(data)
                self._check_head(self._unparsed)
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            wrong = MserveError("internal error", found=repr(cause))
            self._refuse(cause if isinstance(cause, MserveError) else wrong)
        except httptools.HttpParserError as error:
            self._refuse(RequestError("not a valid HTTP request", found=error))
        except MserveError as error:
            self._refuse(error)
        self._dispatch()

    def _take_known(self, data: bytes) -> bytes:
        """Take whole requests whose heads are known, and return the rest."""
        at, peers = 0, self._peers
        while at < len(data):
            end = data.find(b"\r\n\r\n", at, at + MEMO_HEAD_BYTES) + 4
            known = self._memo.find(data[at:end]) if end > 3 else None
            if known is None:
                break
            head, request_id, trace = known
            stop = end + head.length
            if stop > len(data) or head.length > peers.body_max or not peers.takes(head.length):
                break
            exchange = Exchange(peers, head, data[end:stop], time.monotonic_ns(), self._client)
            if request_id or trace:
                exchange.request_id, exchange.traceparent = request_id, trace
            at = stop
            self._pending.append(exchange)
            if self._parked or self._unread_since is not None or len(self._pending) > PIPELINE_MAX:
                self._parked.append(exchange)
            else:
                self._hand_over(exchange)
                if self._closing:
                    return b""
        return data[at:] if at else data

    def _feed(self, data: bytes) -> None:
        """Parse. An offer to upgrade (Java's client makes one on every first request) is declined
        by reading the request again without it, since llhttp would take no body behind it.
        """
        while True:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as offer:
                data = self._declined(data[offer.args[0] :], offer)

    def _declined(self, rest: bytes, offer: Exception) -> bytes:
        """The request that has just been read, without its offer, and what follows it."""
        method, target, headers = self._parser.get_method(), self._target, self._headers
        if method == b"CONNECT":
            raise RequestError("this server is no proxy", found="CONNECT") from offer
        offered = (b"upgrade", b"http2-settings")
        wishes = [w.strip() for w in headers.get(b"connection", b"").lower().split(b",")]
        headers[b"connection"] = b", ".join(w for w in wishes if w not in offered) or b"keep-alive"
        head = b"".join([b"%s: %s\r\n" % pair for pair in headers.items() if pair[0] not in offered])
        self._reset()
        self._parser = httptools.HttpRequestParser(self)
        return b"%s %s HTTP/1.1\r\n%s\r\n%s" % (method, target, head, rest)

    def eof_received(self) -> bool:
        """The client will send no more. Answers that are nearly there still go out; but most clients
        that end their side have left, so what takes longer is dropped.
        """
        self._closing = True
        self._ended = time.monotonic()
        return bool(self._pending)

    def pause_writing(self) -> None:
        self._unread_since = time.monotonic()
        self._regulate()

    def resume_writing(self) -> None:
        self._unread_since = None
        self._dispatch()

    # httptools' callbacks

    def on_url(self, url: bytes) -> None:
        self._target += url
        self._parsed += len(url)
        self._check_head(self._parsed)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._parsed += len(name) + len(value)
        self._check_head(self._parsed)
        if not self._in_head:
            return  # a trailer: whoever looked at the headers has not seen it, so it must not count
        name = name.lower()
        if name == b"authorization" and name in self._headers:
            raise RequestError("the request has more than one Authorization header")
        self._headers[name] = value

    def on_headers_complete(self) -> None:
        self._in_head, self._unparsed = False, 0
        length = self._headers.get(b"content-length", b"")
        if length.isdigit():
            self._check_body(int(length))
        asked = self._headers.get(b"expect", b"").lower() == b"100-continue"
        if asked and not self._pending and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body += body
        self._unparsed, self._began_here = 0, True
        self._check_body(len(self._body))
        self._receiving += len(body)
        self._peers.receive(len(body))

    def on_message_complete(self) -> None:
        if self._parser.should_upgrade():
            return  # `_feed` reads the request again without the offer
        method, headers = self._parser.get_method().decode("latin-1"), self._headers
        head = Head(method, self._target, headers, self._parser.should_keep_alive())
        if self._raw:
            self._memo.learn(self._raw, head)
        exchange = Exchange(self._peers, head, self._body, time.monotonic_ns(), self._client)
        exchange.request_id = headers.get(REQUEST_ID, b"").decode("latin-1")
        exchange.traceparent = headers.get(TRACEPARENT, b"").decode("latin-1")
        self._reset()
        self._pending.append(exchange)
        self._parked.append(exchange)

    # requests and answers

    def _dispatch(self) -> None:
        """Hand over parsed requests, while the client reads its answers and not too many are under way."""
        if self._dispatching:
            return
        self._dispatching = True
        while self._parked and self._unread_since is None:
            if len(self._pending) - len(self._parked) >= PIPELINE_MAX:
                break
            self._hand_over(self._parked.popleft())
        self._dispatching = False
        self._regulate()

    def _hand_over(self, exchange: Exchange) -> None:
        reply = partial(self._answer, exchange)
        try:
            cancel = self._handler(exchange, reply)
        except MserveError as error:
            reply(error_response(error))
        except Exception as error:  # a client must never be left without an answer
            log.exception("our bug while handling %s", exchange.target[:200])
            reply(error_response(MserveError("internal error", found=repr(error)[:200])))
        else:
            if exchange.response is None:
                exchange.cancel = cancel

    def _answer(self, exchange: Exchange, response: Response) -> None:
        """Note an answer, and write all that are next in line."""
        if self._transport is None or exchange.dropped or exchange.response is not None:
            return
        exchange.response = response
        exchange.release()
        alone = len(self._pending) == 1 and exchange.head.keep_alive
        if alone and self._draining_since is None and not self._closing:
            self._pending.popleft()
            self._transport.write(exchange.encoded(keep_alive=True))
            if self._parked or self._paused:
                self._dispatch()
            return
        self._answer_in_order()

    def _answer_in_order(self) -> None:
        """Write what is answered up to the first request that is not; close where that was the last."""
        assert self._transport is not None
        ready, over = [], False
        while self._pending and self._pending[0].response is not None:
            first = self._pending.popleft()
            keep = first.head.keep_alive and (self._draining_since is None or bool(self._pending))
            ready.append(first.encoded(keep_alive=keep))
            if not keep:
                self._closing = over = True
                break
        if ready:
            self._transport.write(ready[0] if len(ready) == 1 else b"".join(ready))
        if over:
            self._drop_pending()
        over = over or (self._closing and not self._pending)
        if over and self._lingering:
            # Closing now, with bytes of the client unread, would reset the connection and
            # could take the answer with it: end our side, and let the client end its own.
            self._started = time.monotonic() - self._peers.send_timeout_s + LINGER_S
            self._transport.write_eof()
        elif over:
            self._transport.close()
        elif self._parked or self._paused:
            self._dispatch()

    def _refuse(self, error: MserveError) -> None:
        """Answer what cannot be parsed, behind what is still to be answered, and close."""
        self._reset()
        exchange = Exchange(self._peers, Head("", b"", {}, keep_alive=False), b"", 0, self._client)
        self._pending.append(exchange)
        self._lingering = True
        self._answer(exchange, error_response(error))

    def _check_head(self, size: int) -> None:
        if size > HEAD_BYTES_MAX:
            raise HeadersTooLarge(
                "the header section is too large", expected=f"at most {HEAD_BYTES_MAX} bytes"
            )

    def _check_body(self, size: int) -> None:
        if size > self._peers.body_max:
            raise PayloadTooLarge(
                "the request body is too large", expected=f"at most {self._peers.body_max} bytes", found=size
            )

    def _regulate(self) -> None:
        """Read from the client only while it reads its answers and nothing is parked."""
        paused = self._unread_since is not None or len(self._pending) >= PIPELINE_MAX
        if paused == self._paused or self._transport is None or self._transport.is_closing():
            return
        self._paused = paused
        if paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    # called by the listener

    def sweep(self, now: float) -> None:
        """Close a connection that is idle too long, sends too slowly, or does not read its answers."""
        peers = self._peers
        if self._transport is None:
            return
        if self._unread_since is not None and now - self._unread_since > peers.send_timeout_s:
            self._transport.abort()
        elif self._pending:
            if self._ended is not None and now - self._ended > LINGER_S:
                self._transport.abort()
        elif self._started is not None and now - self._started > peers.send_timeout_s:
            self._give_up(f"the request was not complete after {peers.send_timeout_s:g} s")
        elif self._started is None and now - self.quiet_since > peers.idle_timeout_s:
            self._transport.close()

    def _give_up(self, why: str) -> None:
        """Close instead of waiting for the rest of a request."""
        if self._transport is None or self._transport.is_closing():
            return
        if not self._lingering:
            self._transport.write(json_response({"error": why}, 408).encode(keep_alive=False))
        self._closing = True
        self._transport.close()

    def drain(self) -> None:
        """Finish what was accepted, then close: an idle connection after a lull, since a request may be
        on its way and its answer tells the client to go; one with half a request
        when it has had a second and its head is not complete or its body does not go on.
        """
        now = time.monotonic()
        if self._draining_since is None:
            self._draining_since = now
        if self._transport is None or self._pending:
            return
        since = self._draining_since if self._in_head else max(self._draining_since, self.quiet_since)
        if self._started is None:
            if now - self.quiet_since > LULL_S or now - self._draining_since > DRAIN_S:
                self._transport.close()
        elif now - since > DRAIN_S:
            self._give_up("the server is shutting down, and the request was not complete")
