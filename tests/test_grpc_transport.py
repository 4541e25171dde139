"""gRPC as our own transport carries it: a server on a real socket, grpcio's clients, and bare frames."""

from __future__ import annotations

import asyncio
import gzip
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import unquote

import grpc
import pytest
import uvloop
from hpack import Decoder
from http2_tools import FIELDS, HELLO, PREFACE, Frame, block, but, data, frames, headers, setting, window

from mserve.errors import NotFound, Overloaded, Unauthenticated
from mserve.server import grpc_connection, grpc_server
from mserve.server.grpc_server import GrpcServer, listen_grpc
from mserve.server.peers import Peers
from mserve.server.rpc import Methods, Rpc, RpcReply
from mserve.wire.grpc_wire import framed
from mserve.wire.http2_frames import WINDOW_MAX, Code, Kind, Setting, frame

LARGE = 3_000_000
ODD_TEXT = "100 % é\n\x01 日本 ~"


class Codec:
    """Methods of every kind; counts what its clients have left."""

    def __init__(self) -> None:
        self.left = 0
        self.seen: list[Rpc] = []
        self.waiting: list[RpcReply] = []

    def methods(self) -> Methods:
        unary = {
            "t/Echo": self._echo,
            "t/Large": lambda rpc, reply: reply(bytes(LARGE)),
            "t/Missing": self._missing,
            "t/Odd": self._odd,
            "t/Full": self._full,
            "t/Bug": self._bug,
            "t/Wait": self._wait,
        }
        streams = {"t/Chat": self._chat, "t/Count": self._count, "t/Burst": self._burst, "t/Fail": self._fail}
        return Methods(unary, streams)

    def _echo(self, rpc: Rpc, reply: RpcReply) -> None:
        self.seen.append(rpc)
        reply(rpc.message)

    def _missing(self, rpc: Rpc, reply: RpcReply) -> None:
        raise NotFound("no such thing", found="x" * 5000)

    def _odd(self, rpc: Rpc, reply: RpcReply) -> None:
        error = NotFound("")
        error.what = ODD_TEXT
        reply(error)

    def _full(self, rpc: Rpc, reply: RpcReply) -> None:
        error = Overloaded("full")
        error.retry_after_s = 7
        reply(error)

    def _bug(self, rpc: Rpc, reply: RpcReply) -> None:
        raise ZeroDivisionError

    def _wait(self, rpc: Rpc, reply: RpcReply) -> Callable[[], None]:
        self.waiting.append(reply)
        return self._leave

    def _leave(self) -> None:
        self.left += 1

    async def _chat(self, messages: AsyncIterator[bytes], rpc: Rpc) -> AsyncIterator[bytes]:
        try:
            async for message in messages:
                yield message.upper()
        finally:
            self.left += 1

    async def _count(self, messages: AsyncIterator[bytes], rpc: Rpc) -> AsyncIterator[bytes]:
        sizes = [len(message) async for message in messages]
        yield repr(sizes).encode()

    async def _burst(self, messages: AsyncIterator[bytes], rpc: Rpc) -> AsyncIterator[bytes]:
        async for _ in messages:
            for _ in range(100):
                yield bytes(100_000)

    async def _fail(self, messages: AsyncIterator[bytes], rpc: Rpc) -> AsyncIterator[bytes]:
        async for message in messages:
            yield message
            raise NotFound("enough")


class Rig:
    """A server, its codec, and ways to ask it."""

    def __init__(self, server: GrpcServer, codec: Codec, peers: Peers) -> None:
        self.server, self.codec, self.peers = server, codec, peers
        self.links: list[Link] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not holds():
                await asyncio.sleep(0.01)

    async def link(self, hello: bytes = HELLO) -> Link:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        writer.write(hello)
        self.links.append(Link(reader, writer))
        return self.links[-1]


class Link:
    """A client of bare frames."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.decoder = Decoder()

    def say(self, said: bytes) -> None:
        self.writer.write(said)

    async def frame(self) -> Frame:
        async with asyncio.timeout(20):
            head = await self.reader.readexactly(9)
            return frames(head + await self.reader.readexactly(int.from_bytes(head[:3], "big")))[0]

    async def heard(self, kind: Kind) -> Frame:
        """The next frame of a kind."""
        while (found := await self.frame()).kind != kind:
            pass
        return found

    async def end(self) -> list[Frame]:
        """What comes until the connection ends."""
        async with asyncio.timeout(20):
            try:
                return frames(await self.reader.read())
            except ConnectionResetError:
                return []

    async def fields(self) -> dict[str, str]:
        """The fields of the next block."""
        return dict(self.decoder.decode((await self.heard(Kind.HEADERS)).payload))


@asynccontextmanager
async def rig(**limits: Any) -> AsyncIterator[Rig]:
    def admit(method: str, metadata: Mapping[str, str | bytes]) -> bool:
        if metadata.get("authorization") == "Bearer wrong":
            raise Unauthenticated("the server does not know this token")
        return metadata.get("authorization") == "Bearer admin"

    codec, peers = Codec(), Peers(**limits)
    server = GrpcServer(codec.methods(), admit, peers)
    await server.start(await listen_grpc("127.0.0.1", 0))
    made = Rig(server, codec, peers)
    try:
        yield made
    finally:
        await server.stop(0)
        for link in made.links:
            link.writer.close()
            with suppress(OSError):
                await link.writer.wait_closed()


def run(test: Callable[..., Awaitable[None]], **limits: Any) -> None:
    """Run a test of a rig on the loop that serves."""

    async def main() -> None:
        async with rig(**limits) as made:
            await test(made)
            await made.server.stop(0)
            await made.until(lambda: not made.server.open)
            assert (made.peers.received, made.peers.buffered, made.peers.streamed) == (0, 0, 0), (
                "nothing is held for nobody"
            )

    uvloop.run(main())


async def ask(r: Rig, method: str, message: bytes = b"m", **how: Any) -> tuple[str, Any, dict[str, Any]]:
    """One call of grpcio's: status, answer or details, trailers."""
    async with grpc.aio.insecure_channel(
        r.address, options=[("grpc.max_receive_message_length", -1)]
    ) as channel:
        call = channel.unary_unary("/" + method)(message, timeout=20, **how)
        try:
            answer = await call
            return "OK", answer, dict(await call.trailing_metadata())
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details(), dict(error.trailing_metadata())


def test_unary_calls_and_their_errors() -> None:
    async def test(r: Rig) -> None:
        assert await ask(r, "t/Echo", b"hello") == ("OK", b"hello", {})
        assert await ask(r, "t/Echo", b"") == ("OK", b"", {})
        status, text, _ = await ask(r, "t/Missing")
        assert status == "NOT_FOUND"
        assert text.startswith("no such thing (found: xxx")
        assert len(text) == 2000
        status, text, _ = await ask(r, "t/Odd")
        assert text == "100 % é\\n\\x01 日本 ~"
        status, text, trailers = await ask(r, "t/Full")
        assert (status, trailers["retry-after"]) == ("RESOURCE_EXHAUSTED", "7")
        assert (await ask(r, "t/Bug"))[:2] == ("INTERNAL", "internal error (found: ZeroDivisionError())")
        assert (await ask(r, "t/None"))[0] == "UNIMPLEMENTED"
        token = (("authorization", "Bearer wrong"),)
        assert (await ask(r, "t/Echo", metadata=token))[0] == "UNAUTHENTICATED"

    run(test)


def test_what_comes_along() -> None:
    async def test(r: Rig) -> None:
        trace = f"00-{'a' * 32}-{'b' * 16}-01"
        sent = (("x-request-id", "r1"), ("traceparent", trace), ("own-bin", b"\0\xff"), ("own", "text"))
        _, _, trailers = await ask(r, "t/Echo", metadata=(*sent, ("authorization", "Bearer admin")))
        assert trailers == {"x-request-id": "r1", "traceparent": trace}
        rpc = r.codec.seen[0]
        assert (rpc.metadata["own-bin"], rpc.metadata["own"]) == (b"\0\xff", "text")
        assert (rpc.context.request_id, rpc.context.traceparent, rpc.context.admin) == ("r1", trace, True)
        assert 19 * 10**9 < rpc.context.timeout_ns < 21 * 10**9  # clients round it
        _, _, trailers = await ask(r, "t/Echo", metadata=(("x-request-id", "a b"),))
        assert trailers == {}
        _, _, trailers = await ask(r, "t/Missing", metadata=(("x-request-id", "r2"),))
        assert trailers["x-request-id"] == "r2"

    run(test)


def test_large_messages_both_ways() -> None:
    async def test(r: Rig) -> None:
        message = bytes(range(256)) * (LARGE // 256)
        assert (await ask(r, "t/Echo", message))[1] == message
        answers = await asyncio.gather(*(ask(r, "t/Large") for _ in range(5)))
        assert all(answer == bytes(LARGE) for _, answer, _ in answers)

    run(test)


@pytest.mark.parametrize("size", [10, 100_000, 900_000])
@pytest.mark.parametrize("kind", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_messages(kind: grpc.Compression, size: int) -> None:
    async def test(r: Rig) -> None:
        assert (await ask(r, "t/Echo", b"a" * size, compression=kind))[:2] == ("OK", b"a" * size)
        status, text, _ = await ask(r, "t/Echo", b"a" * 1_100_000, compression=kind)
        assert (status, "at most 1000000 bytes" in text) == ("RESOURCE_EXHAUSTED", True)

    run(test, body_max=1_000_000)


PACKED = gzip.compress(b"hello" * 2000)
ENCODINGS: list[tuple[str, dict[str, str], bytes, dict[str, str]]] = [
    ("the answer to a compressed call is", {"grpc-encoding": "gzip", "grpc-accept-encoding": "identity,gzip"},
     b"\1" + struct.pack(">I", len(PACKED)) + PACKED, {"grpc-encoding": "gzip"}),
    ("not where the client does not take it", {"grpc-encoding": "gzip"},
     b"\1" + struct.pack(">I", len(PACKED)) + PACKED, {"content-type": "application/grpc"}),
    ("a message that is not compressed as it says", {"grpc-encoding": "gzip"},
     b"\1" + struct.pack(">I", 3) + b"abc", {"grpc-status": "3"}),
    ("one that ends too early", {"grpc-encoding": "deflate"},
     framed(zlib.compress(b"x" * 9000)[:-5], True), {"grpc-status": "3"}),
    ("one without a word on how", {}, b"\1" + struct.pack(">I", 3) + b"abc", {"grpc-status": "3"}),
    ("an encoding that is not known", {"grpc-encoding": "zstd"}, framed(b"x"),
     {"grpc-status": "12", "grpc-accept-encoding": "identity,deflate,gzip"}),
    ("half a message", {}, framed(b"abcdef")[:-1], {"grpc-status": "3"}),
    ("two messages", {}, framed(b"a") + framed(b"b"), {"grpc-status": "3"}),
    ("no message", {}, b"", {"grpc-status": "3"}),
    ("a length without a message", {}, b"\0\0", {"grpc-status": "3"}),
    ("one over the limit is refused by its first bytes", {}, b"\0\xff\xff\xff\xff", {"grpc-status": "8"}),
    ("a timeout that is none", {"grpc-timeout": "5x"}, framed(b"a"), {"grpc-status": "3"}),
    ("metadata that is no base64", {"a-bin": "!"}, framed(b"a"), {"grpc-status": "3"}),
    ("another kind of body", {"content-type": "application/json"}, b"{}", {":status": "415"}),
    ("gRPC of the web", {"content-type": "application/grpc-web"}, b"", {":status": "415"}),
    ("another method", {":method": "GET"}, b"", {":status": "405"}),
    ("a kind with parameters", {"content-type": "application/grpc+proto; a=b"}, framed(b"a"),
     {"grpc-status": "0"}),
]  # fmt: skip


@pytest.mark.parametrize(("why", "fields", "body", "expected"), ENCODINGS, ids=[e[0] for e in ENCODINGS])
def test_calls_by_their_bytes(
    why: str, fields: dict[str, str], body: bytes, expected: dict[str, str]
) -> None:
    path = {":path": "/t/Echo", **fields}
    made = [(n, path.pop(n, v)) for n, v in FIELDS]

    async def test(r: Rig) -> None:
        link = await r.link()
        link.say(headers(1, block(*made, *path.items())) + data(1, body, last=True))
        found = await link.fields()
        if ":status" in found and "grpc-status" not in found and found[":status"] == "200":
            found |= await link.fields()
        assert {name: found.get(name) for name in expected} == expected, why

    run(test)


def test_streams_both_ways() -> None:
    async def test(r: Rig) -> None:
        async with grpc.aio.insecure_channel(r.address) as channel:
            call = channel.stream_stream("/t/Chat")()
            for word in (b"one", b"two", b"", b"three" * 100_000):
                await call.write(word)
                assert await call.read() == word.upper()
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
            assert r.codec.left == 1

            async def many() -> AsyncIterator[bytes]:
                for size in (0, 1, 70_000, 3, 1_500_000):
                    yield bytes(size)

            sizes = await channel.stream_unary("/t/Count")(many(), compression=grpc.Compression.Gzip)
            assert sizes == b"[0, 1, 70000, 3, 1500000]"
            failing = channel.unary_stream("/t/Fail")(b"x")
            assert await failing.read() == b"x"
            assert (await failing.code()).name == "NOT_FOUND"
            assert await failing.details() == "enough"
            leaving = channel.stream_stream("/t/Chat")()
            await leaving.write(b"a")
            assert await leaving.read() == b"A"
            leaving.cancel()
            await r.until(lambda: r.codec.left == 2)
            late = channel.stream_stream("/t/Chat")(timeout=0.2)
            assert (await late.code()).name == "DEADLINE_EXCEEDED"

    run(test)


def test_a_slow_reader_holds_up_its_stream_only() -> None:
    """A codec does not make answers that nobody takes; other calls of the connection go on."""

    async def test(r: Rig) -> None:
        async with grpc.aio.insecure_channel(r.address) as channel:
            burst = channel.unary_stream("/t/Burst")(b"x")
            assert len(await burst.read()) == 100_000
            assert await channel.unary_unary("/t/Echo")(b"y", timeout=20) == b"y"
            connection = next(iter(r.server.open))
            assert connection.http2.waiting < 300_000
            total = 1
            while (await burst.read()) is not grpc.aio.EOF:
                total += 1
            assert total == 100

    run(test)


def test_a_client_that_leaves_cancels_what_it_asked_for() -> None:
    async def test(r: Rig) -> None:
        for end in (frame(Kind.RST_STREAM, 0, 1, bytes(4)), b""):
            link = await r.link()
            r.codec.waiting.clear()
            link.say(headers(1, but(path="/t/Wait")) + data(1, framed(b"x"), last=True))
            await r.until(lambda: bool(r.codec.waiting))
            before = r.codec.left
            link.say(end)
            if not end:
                link.writer.close()
            await r.until(lambda: r.codec.left == before + 1)  # noqa: B023
            r.codec.waiting[0](b"too late")

    run(test)


def test_a_call_that_is_reset_in_the_same_bytes_never_begins() -> None:
    async def test(r: Rig) -> None:
        link = await r.link()
        call = headers(1, but(path="/t/Wait")) + data(1, framed(b"x"), last=True)
        link.say(call + frame(Kind.RST_STREAM, 0, 1, bytes(4)) + frame(Kind.PING, 0, 0, bytes(8)))
        await link.heard(Kind.PING)
        assert not r.codec.waiting

    run(test)


def test_calls_of_one_read_are_spread_over_ticks() -> None:
    async def test(r: Rig) -> None:
        link = await r.link()
        one = but(path="/t/Echo")
        link.say(b"".join(headers(n, one) + data(n, framed(b"x"), last=True) for n in range(1, 401, 2)))
        ends = [await link.heard(Kind.DATA) for _ in range(200)]
        assert [f.stream for f in ends] == list(range(1, 401, 2))

    run(test)


# limits


def test_windows_that_never_open() -> None:
    """A client that takes nothing: what is made for it is limited, and it is cut off in the end."""

    async def test(r: Rig) -> None:
        grpc_connection.WAITING_BYTES, before = 4 * LARGE, grpc_connection.WAITING_BYTES
        try:
            link = await r.link(PREFACE + setting(Setting.INITIAL_WINDOW_SIZE, 0))
            one = but(path="/t/Large")
            link.say(b"".join(headers(n, one) + data(n, framed(b"x"), last=True) for n in range(1, 201, 2)))
            await link.heard(Kind.HEADERS)
            connection = next(iter(r.server.open))
            await r.until(lambda: connection.http2.waiting > 4 * LARGE)
            assert connection.http2.waiting <= 5 * LARGE + 100
            assert len(connection._ready) >= 90
            link.say(frame(Kind.PING, 0, 0, bytes(8)))
            await link.heard(Kind.PING)  # it is still read from
            assert Code(int.from_bytes((await link.heard(Kind.RST_STREAM)).payload, "big")) == Code.CANCEL
        finally:
            grpc_connection.WAITING_BYTES = before

    run(test, send_timeout_s=1.0)


def test_a_client_that_does_not_read_its_socket() -> None:
    async def test(r: Rig) -> None:
        link = await r.link(PREFACE + setting(Setting.INITIAL_WINDOW_SIZE, WINDOW_MAX) + window(0, 1 << 30))
        link.reader._transport.pause_reading()  # type: ignore[attr-defined]
        one = but(path="/t/Large")
        link.say(b"".join(headers(n, one) + data(n, framed(b"x"), last=True) for n in range(1, 101, 2)))
        await r.until(lambda: bool(r.server.open))
        connection = next(iter(r.server.open))
        await r.until(lambda: connection.http2.hold)
        assert connection.http2.waiting < grpc_connection.WAITING_BYTES + 20 * LARGE
        await r.until(lambda: not r.server.open)

    run(test, send_timeout_s=1.0)


def test_bodies_count_until_they_are_answered() -> None:
    async def test(r: Rig) -> None:
        link = await r.link()
        half = headers(1, but(path="/t/Wait")) + data(1, framed(bytes(60_000))[:50_000])
        link.say(half)
        await r.until(lambda: r.peers.received == 50_000)
        assert (await ask(r, "t/Echo", bytes(60_000)))[0] == "RESOURCE_EXHAUSTED"
        assert (await ask(r, "t/Echo", bytes(30_000)))[0] == "OK"
        link.writer.close()
        await r.until(lambda: r.peers.received == 0)
        assert (await ask(r, "t/Echo", bytes(60_000)))[0] == "OK"

    run(test, buffered_max=100_000)


def test_bytes_of_streams_have_a_budget() -> None:
    async def test(r: Rig) -> None:
        link = await r.link()
        start = headers(1, but(path="/t/Chat")) + data(1, framed(bytes(200_000))[:50_000])
        link.say(start)
        await r.until(lambda: r.peers.streamed == 50_000)
        link.say(data(1, bytes(60_000)))
        assert (await link.fields())["grpc-status"] == "8"
        await r.until(lambda: r.peers.streamed == 0)

    run(test, buffered_max=100_000)


ENDS: list[tuple[str, bytes, dict[str, Any], Any]] = [
    ("half a request", headers(1, but(path="/t/Echo")) + data(1, b"\0"), {"send_timeout_s": 0.5}, b""),
    ("an idle connection", b"", {"idle_timeout_s": 0.5}, Code.NO_ERROR),
    ("one too many", b"", {"connections_max": 0}, Code.ENHANCE_YOUR_CALM),
    ("a fault", data(0), {}, Code.PROTOCOL_ERROR),
]


@pytest.mark.parametrize(("why", "said", "limits", "ends"), ENDS, ids=[e[0] for e in ENDS])
def test_what_ends_a_connection_or_a_call(why: str, said: bytes, limits: Any, ends: Any) -> None:
    async def test(r: Rig) -> None:
        link = await r.link(HELLO + said)
        if ends == b"":
            assert (await link.fields())["grpc-status"] == "4", why
            return
        farewell = [f for f in await link.end() if f.kind == Kind.GOAWAY]
        assert [int.from_bytes(f.payload[4:8], "big") for f in farewell] == [ends]

    run(test, **limits)


def test_who_connects_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_connection, "HANDSHAKE_S", 0.2)
    monkeypatch.setattr(grpc_server, "SWEEP_S", 0.05)

    async def test(r: Rig) -> None:
        link = await r.link(PREFACE)
        await link.end()
        await r.until(lambda: not r.server.open)

    run(test)


def test_a_silent_client_is_asked_and_then_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_connection, "KEEPALIVE_S", 0.3)
    monkeypatch.setattr(grpc_connection, "KEEPALIVE_ANSWER_S", 0.5)
    monkeypatch.setattr(grpc_server, "SWEEP_S", 0.05)

    async def test(r: Rig) -> None:
        link = await r.link()
        link.say(headers(1, but(path="/t/Chat")))
        for _ in range(2):
            asked = await link.heard(Kind.PING)
            link.say(frame(Kind.PING, 1, 0, asked.payload))
        await link.end()
        await r.until(lambda: r.codec.left == 1)

    run(test)


def test_the_end_of_the_server() -> None:
    """Calls under way are answered, streams that wait are told, half a message is not waited for."""

    async def test(r: Rig) -> None:
        async with grpc.aio.insecure_channel(r.address) as channel:
            slow = channel.unary_unary("/t/Wait")(b"x")
            chat = channel.stream_stream("/t/Chat")()
            await chat.write(b"a")
            assert await chat.read() == b"A"
            await r.until(lambda: bool(r.codec.waiting))
            link = await r.link()
            link.say(headers(1, but(path="/t/Echo")) + data(1, b"\0\0"))
            await link.heard(Kind.SETTINGS)
            stopping = asyncio.ensure_future(r.server.stop(30))
            assert (await chat.code()).name == "UNAVAILABLE"
            assert (await link.fields())["grpc-status"] == "14"
            with pytest.raises(OSError, match=r"Connect|refused"):
                await asyncio.open_connection("127.0.0.1", r.server.port)
            r.codec.waiting[0](b"done")
            assert await slow == b"done"
            await stopping

    run(test)


def test_percent_encoding_is_what_the_protocol_says() -> None:
    from mserve.wire import grpc_wire

    decoded = dict(Decoder().decode(grpc_wire.status("NOT_FOUND", ODD_TEXT)))
    assert decoded["grpc-status"] == "5"
    assert decoded["grpc-message"] == "100 %25 %C3%A9%0A%01 %E6%97%A5%E6%9C%AC ~"
    assert unquote(decoded["grpc-message"]) == ODD_TEXT
