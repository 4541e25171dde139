"""Messages of gRPC as they come in: their sizes, their encoding, and those of a stream one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..errors import PayloadTooLarge, RequestError, Unavailable
from ..wire.grpc_head import Head
from ..wire.grpc_wire import PREFIX, PREFIX_BYTES
from ..wire.http2_streams import STREAM_WINDOW
from ..wire.inflate import inflate
from .peers import Held, Peers


def check_size(size: int, peers: Peers) -> None:
    """Refuse a message by the size that it says it has. Raises PayloadTooLarge."""
    if size > peers.body_max:
        raise PayloadTooLarge(
            "the message is too large", expected=f"at most {peers.body_max} bytes", found=size
        )


def taken_out(head: Head, message: bytes, held: Held) -> bytes:
    """A compressed message as it was. Raises RequestError, PayloadTooLarge, Overloaded."""
    encoding = head.asked.encoding
    if encoding == b"identity":
        raise RequestError("a message is compressed, and the call does not say how", expected="grpc-encoding")
    return bytes(inflate(message, encoding, held.peers.body_max, held.take))


class Inbox:
    """The messages of a stream, cut from the bytes that came; an iterator for one reader."""

    def __init__(self, head: Head, peers: Peers, resume: Callable[[], None]) -> None:
        self.ended = False
        self.stopped = False
        self._head = head
        self._peers = peers
        self._resume = resume
        self._buffer = bytearray()
        self._waiter: asyncio.Future[None] | None = None

    def feed(self, data: bytes, last: bool) -> bool:
        """Take bytes; whether so much waits that no more should come. Raises PayloadTooLarge, Overloaded."""
        self._buffer += data
        peers = self._peers
        peers.streamed += len(data)
        self.ended = last
        whole = self._whole()
        # A message that is complete is asked for soon: it is enough that no more follows it.
        if peers.streamed > peers.buffered_max * (2 if whole else 1):
            raise peers.too_many()
        if whole or last:
            self.wake()
        return bool(whole) and len(self._buffer) > STREAM_WINDOW // 4

    def close(self) -> None:
        """Nobody will ask for what is left."""
        self._peers.streamed -= len(self._buffer)
        self._buffer = bytearray()

    def partial(self) -> bool:
        """Whether a message has begun and is not complete."""
        return bool(self._buffer) and not self._whole()

    def wake(self) -> None:
        """Let the reader look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _whole(self) -> int:
        """The size of the first message and its prefix, 0 until it is complete. Raises PayloadTooLarge."""
        if len(self._buffer) < PREFIX_BYTES:
            return 0
        size = PREFIX.unpack_from(self._buffer)[1]
        check_size(size, self._peers)
        return PREFIX_BYTES + size if len(self._buffer) >= PREFIX_BYTES + size else 0

    def __aiter__(self) -> Inbox:
        return self

    async def __anext__(self) -> bytes:
        while not (size := self._whole()):
            if self.ended:
                if self._buffer:
                    raise RequestError("the last message is not complete")
                raise StopAsyncIteration
            if self.stopped:
                raise Unavailable("the server is shutting down", hint="try again elsewhere")
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        compressed = self._buffer[0]
        message = bytes(memoryview(self._buffer)[PREFIX_BYTES:size])
        del self._buffer[:size]
        self._peers.streamed -= size
        self._resume()
        if compressed:
            held, loop = Held(self._peers), asyncio.get_running_loop()
            try:
                message = await loop.run_in_executor(None, taken_out, self._head, message, held)
            finally:
                held.release()
        return message
