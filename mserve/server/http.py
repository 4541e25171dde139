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

from ..errors import MserveError, RequestError
from ..wire.http1 import (
    MEMO_HEAD_BYTES,
    REQUEST_ID,
    TRACEPARENT,
    Head,
    HeadMemo,
    Response,
    declined,
    json_response,
)
from .exchange import Exchange, Handler, check_head, error_response, parse_error
from .peers import REST_BYTES, Peers
from .rest_express import RestExpress

log = logging.getLogger("mserve")

# Requests of one connection that are under way, and that begin in one tick of the loop.
PIPELINE_MAX = 16
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
        self._pending: deque[Exchange | RestExpress] = deque()
        self._parked: deque[Exchange] = deque()
        self._memo = HeadMemo()
        self._dispatching = self._paused = self._resting = False
        self._unread_since: float | None = None
        self._closing = self._lingering = False
        self._ended: float | None = None
        self._draining_since: float | None = None
        self._receiving = 0
        self._reset()
        self.client = ""
        self._parser = httptools.HttpRequestParser(self)
        self.quiet_ns = time.monotonic_ns()

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
        self.client = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else ""
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)  # type: ignore[union-attr]
        self._peers.open.add(self)
        if len(self._peers.open) > self._peers.connections_max:
            self._refuse(self._peers.full())

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
        if len(data) >= REST_BYTES:
            self._rest()
        if self._closing or self._lingering:
            return
        self.quiet_ns = time.monotonic_ns()
        if self._started is None:
            data = self._take_known(data)
            if not data:
                if self._paused or len(self._pending) >= PIPELINE_MAX or self._resting:
                    self._regulate()
                return
            self._started = self.quiet_ns / 1e9
            end = data.find(b"\r\n\r\n", 0, MEMO_HEAD_BYTES) + 4
            self._raw = data[:end] if end > 3 else b""
        self._began_here = False
        try:
            self._feed(data)
            if not self._began_here:
                self._unparsed += len(data)
                check_head(self._unparsed)
        except (httptools.HttpParserError, MserveError) as error:
            self._refuse(parse_error(error))
        self._dispatch()

    def _rest(self) -> None:
        """Read no more in this tick: the loop would go on for megabytes before it turns to others."""
        if not self._resting:
            self._resting = True
            asyncio.get_running_loop().call_soon(self._rested)
            self._regulate()

    def _rested(self) -> None:
        self._resting = False
        self._regulate()

    def _take_known(self, data: bytes) -> bytes:
        """Take whole requests whose heads are known, and return the rest."""
        at, peers, left = 0, self._peers, PIPELINE_MAX - len(self._pending)
        while at < len(data):
            end = data.find(b"\r\n\r\n", at, at + MEMO_HEAD_BYTES) + 4
            known = self._memo.find(data[at:end]) if end > 3 else None
            if known is None:
                break
            head, length, request_id, trace = known
            stop = end + length
            if stop > len(data) or length > peers.body_max or not peers.takes(length):
                break
            body, at = data[end:stop], stop
            now = left > 0 and not self._parked and self._unread_since is None
            left -= 1
            if now and head.lane is not None and (express := head.lane.take(self, known, body)):
                self._pending.append(express)
                continue
            exchange = Exchange(peers, head, body, time.monotonic_ns(), self.client)
            exchange.request_id, exchange.traceparent = request_id, trace
            self._pending.append(exchange)
            if now:
                self._hand_over(exchange)
                if self._closing:
                    return b""
            else:
                self._parked.append(exchange)
                self._dispatch_soon()
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
        again = declined(method, target, headers)
        self._reset()
        self._parser = httptools.HttpRequestParser(self)
        return again + rest

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
        check_head(self._parsed)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._parsed += len(name) + len(value)
        check_head(self._parsed)
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
            self._peers.check_body(int(length))
        asked = self._headers.get(b"expect", b"").lower() == b"100-continue"
        if asked and not self._pending and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body += body
        self._unparsed, self._began_here = 0, True
        self._peers.check_body(len(self._body))
        self._receiving += len(body)
        self._peers.receive(len(body))

    def on_message_complete(self) -> None:
        if self._parser.should_upgrade():
            return  # `_feed` reads the request again without the offer
        method, headers = self._parser.get_method().decode("latin-1"), self._headers
        head = Head(method, self._target, headers, self._parser.should_keep_alive())
        if self._raw:
            self._memo.learn(self._raw, head)
        exchange = Exchange(self._peers, head, self._body, time.monotonic_ns(), self.client)
        exchange.request_id = headers.get(REQUEST_ID, b"").decode("latin-1")
        exchange.traceparent = headers.get(TRACEPARENT, b"").decode("latin-1")
        self._reset()
        self._pending.append(exchange)
        self._parked.append(exchange)

    # requests and answers

    def _dispatch(self) -> None:
        """Hand over parsed requests, a tick's share, while the client reads its answers."""
        left = 0 if self._dispatching else PIPELINE_MAX - len(self._pending) + len(self._parked)
        while self._parked and left > 0 and self._unread_since is None:
            left -= 1
            self._hand_over(self._parked.popleft())
        if self._parked and len(self._pending) == len(self._parked):
            self._dispatch_soon()
        self._regulate()

    def _dispatch_soon(self) -> None:
        """Hand over what is parked in the next tick: who pipelines must not have all of this one."""
        if not self._dispatching:
            self._dispatching = True
            asyncio.get_running_loop().call_soon(self._dispatch_now)

    def _dispatch_now(self) -> None:
        self._dispatching = False
        self._dispatch()

    def _hand_over(self, exchange: Exchange) -> None:
        reply = partial(self.answer, exchange)
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

    def answer(self, exchange: Exchange | RestExpress, response: Response | bytes) -> None:
        """Note an answer, and write all that are next in line."""
        if self._transport is None or exchange.dropped or exchange.response is not None:
            return
        exchange.response = response
        exchange.release()
        alone = len(self._pending) == 1 and exchange.head.keep_alive
        if alone and self._draining_since is None and not self._closing:
            self._pending.popleft()
            self._peers.outbox.write(self._transport, exchange.encoded(keep_alive=True))
            if self._paused:
                self._regulate()
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
        elif self._parked:
            self._dispatch_soon()
        elif self._paused:
            self._regulate()

    def _refuse(self, error: MserveError) -> None:
        """Answer what cannot be parsed, behind what is still to be answered, and close."""
        self._reset()
        exchange = Exchange(self._peers, Head("", b"", {}, keep_alive=False), b"", 0, self.client)
        self._pending.append(exchange)
        self._lingering = True
        self.answer(exchange, error_response(error))

    def _regulate(self) -> None:
        """Read from the client only while it reads its answers, nothing is parked, and others had a turn."""
        full = len(self._pending) >= PIPELINE_MAX
        paused = full or self._resting or self._unread_since is not None
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
        elif self._started is None and now - self.quiet_ns / 1e9 > peers.idle_timeout_s:
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
        since = self._draining_since if self._in_head else max(self._draining_since, self.quiet_ns / 1e9)
        if self._started is None:
            if now - self.quiet_ns / 1e9 > LULL_S or now - self._draining_since > DRAIN_S:
                self._transport.close()
        elif now - since > DRAIN_S:
            self._give_up("the server is shutting down, and the request was not complete")
