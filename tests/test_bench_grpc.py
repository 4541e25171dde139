"""bench's gRPC client: the client's side of HTTP/2, against our own machine, grpcio and hostile bytes."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

import grpc
import pytest
import uvloop
from bench_targets_tools import Answers, ask_all, grpcio_server, tcp_server
from hpack import Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from mserve.bench.load.connectors import GrpcConnector
from mserve.bench.load.grpc_client import REFUSED_MAX, call
from mserve.bench.load.recorder import CONNECTION, GRPC, NOT_HTTP, OK, outcome_name
from mserve.bench.targets.endpoint import Endpoint
from mserve.wire import grpc_answer
from mserve.wire import http2_frames as h2
from mserve.wire.grpc_head import HeadReader
from mserve.wire.grpc_wire import HEAD, TRAILERS, framed, status
from mserve.wire.http2 import DATA, RESET, Http2
from mserve.wire.http2 import HEAD as HEADED
from mserve.wire.http2_client import ANSWER, Http2Client, Request
from mserve.wire.http2_frames import ACK, END_HEADERS, END_STREAM, Code, Kind, frame, number

METHOD = "/a.B/C"


def endpoint(port: int) -> Endpoint:
    return Endpoint(f"grpc://127.0.0.1:{port}", "grpc", "127.0.0.1", port, "127.0.0.1")


def source(port: int, *messages: bytes, streams: int = 4) -> GrpcConnector:
    return GrpcConnector(endpoint(port), METHOD, messages or (b"hello",), None, streams)


def asked(body: bytes = b"hello") -> Request:
    return call("x", METHOD, body)


def client() -> Http2Client:
    return Http2Client(grpc_answer.read, 0)


def answer(stream: int, body: bytes, head: bytes = HEAD, tail: bytes = TRAILERS) -> bytes:
    return b"".join(
        (
            frame(Kind.HEADERS, END_HEADERS, stream, head),
            frame(Kind.DATA, 0, stream, body),
            frame(Kind.HEADERS, END_HEADERS | END_STREAM, stream, tail),
        )
    )


def introduced() -> Http2Client:
    """A client that has heard the server's settings."""
    http2 = client()
    http2.take()
    assert http2.receive(h2.settings({}), 0) == []
    http2.take()
    return http2


# the machine


@given(st.integers(0, 200_000), st.integers(0, 200_000), st.data())
@settings(max_examples=40, deadline=None)
def test_a_request_and_its_answer_pass_between_our_two_sides_in_any_pieces(
    asked_bytes: int, answered_bytes: int, data: st.DataObject
) -> None:
    """Beyond the first window of 65,535 bytes, both ways, whatever the pieces."""
    ours, theirs = client(), Http2(HeadReader(), 0)
    request, reply = bytes(asked_bytes), bytes(answered_bytes)
    stream = ours.request(asked(request), None)
    got, came, over = 0, [], False
    for _ in range(10_000):
        sent = ours.take()
        while sent:
            cut = data.draw(st.integers(1, len(sent))) if len(sent) < 200 else len(sent)
            for kind, of, payload, last in theirs.receive(sent[:cut], 0):
                got += len(payload or b"") if kind == DATA else 0
                if last:
                    theirs.answer(of, HEAD, framed(reply), TRAILERS)
            sent = sent[cut:]
        back = theirs.take()
        for kind, of, payload, last in ours.receive(back, 0):
            assert kind in (HEADED, DATA)
            assert of is stream
            came.append(payload or b"")
            over = last
        if over:
            break
    assert got == asked_bytes + 5
    assert b"".join(came) == framed(reply)
    assert grpc_answer.outcome(stream.head, stream.tail) == (0, "")
    ours.over(stream)
    assert not ours.streams
    assert not ours.ended


def test_many_streams_share_a_connection_and_a_server_s_limit_is_kept() -> None:
    http2 = client()
    http2.receive(h2.settings({h2.Setting.MAX_CONCURRENT_STREAMS: 2}), 0)
    streams = [http2.request(asked(), None) for _ in range(2)]
    assert [s.id for s in streams] == [1, 3]
    assert http2.full
    events = http2.receive(answer(3, framed(b"b")) + answer(1, framed(b"a")), 0)
    assert [(e[0], e[1].id, e[3]) for e in events if e[3]] == [(DATA, 3, True), (DATA, 1, True)]
    http2.over(streams[0])
    assert not http2.full


def test_an_answer_that_was_read_is_known_by_its_bytes_on_any_stream() -> None:
    http2, request = introduced(), asked()
    first = http2.request(request, None)
    assert [e[0] for e in http2.receive(answer(1, framed(b"a")), 0)] == [HEADED, DATA, DATA]
    http2.over(first)
    http2.learn(first, framed(b"a"), "told")
    third, fifth = http2.request(request, None), http2.request(request, None)
    events = http2.receive(answer(5, framed(b"a")) + answer(3, framed(b"a")), 0)
    assert events == [(ANSWER, fifth, "told", True), (ANSWER, third, "told", True)]
    other = http2.request(asked(), None)
    kinds = [e[0] for e in http2.receive(answer(other.id, framed(b"a")), 0)]
    assert kinds == [HEADED, DATA, DATA], "what is known of one request says nothing about another"


@given(st.binary(max_size=30), st.integers(0, 200), st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_bytes_that_differ_anywhere_are_never_taken_for_the_known_answer(
    body: bytes, at: int, value: int
) -> None:
    """The short way against the long way: the same events and the same bytes afterwards."""
    results = []
    for learns in (True, False):
        http2, request = introduced(), asked()
        first = http2.request(request, None)
        http2.receive(answer(1, framed(body)), 0)
        http2.over(first)
        if learns:
            http2.learn(first, framed(body), "told")
        second = http2.request(request, None)
        http2.take()
        mutated = bytearray(answer(second.id, framed(body)))
        mutated[at % len(mutated)] = value
        same = bytes(mutated) == answer(second.id, framed(body))
        events = http2.receive(bytes(mutated), 0)
        assert (events[:1] == [(ANSWER, second, "told", True)]) == (learns and same)
        if not same:
            seen = [(e[0], e[1] and e[1].id, e[2], e[3]) for e in events]
            results.append((seen, http2.ended, http2.take(), second.gone))
    assert len(results) in (0, 2)
    assert results[:1] == results[1:]


def test_known_answers_are_forgotten_when_the_table_of_fields_changes() -> None:
    """The same bytes mean something else then: indexes into the dynamic table shift."""
    encoder = Encoder()
    head = [(":status", "200"), ("content-type", "application/grpc")]
    tail = [("grpc-status", "0"), ("x-a", "1")]
    http2, request = introduced(), asked()
    for turn in range(3):
        stream = http2.request(request, None)
        sent = answer(stream.id, framed(b"a"), encoder.encode(head), encoder.encode(tail))
        events = http2.receive(sent, 0)
        if turn < 2:  # the first fills the table, the second only points into it
            assert events[-1][0] == DATA
            http2.over(stream)
            http2.learn(stream, framed(b"a"), turn)
        else:
            assert events == [(ANSWER, stream, 1, True)]
            http2.over(stream)
    stream = http2.request(request, None)
    began, changed = encoder.encode(head), encoder.encode([("grpc-status", "5"), ("x-b", "2")])
    events = http2.receive(answer(stream.id, framed(b"a"), began, changed), 0)
    assert events[-1][0] == DATA
    assert stream.tail.code == 5
    http2.over(stream)
    stream = http2.request(request, None)
    events = http2.receive(answer(stream.id, framed(b"a"), encoder.encode(head), encoder.encode(tail)), 0)
    assert events[-1][0] == DATA, "the bytes are others, or must be read anew"
    assert stream.tail.code == 0


@pytest.mark.parametrize(
    ("sent", "code", "why"),
    [
        (frame(Kind.PUSH_PROMISE, END_HEADERS, 1, number(2) + HEAD), Code.PROTOCOL_ERROR, "a push"),
        (frame(Kind.DATA, 0, 9, b"x"), Code.PROTOCOL_ERROR, "data of a stream that was never opened"),
        (frame(Kind.HEADERS, END_HEADERS, 2, HEAD), Code.PROTOCOL_ERROR, "a stream that the server opens"),
        (frame(Kind.HEADERS, END_HEADERS, 1, b"\xff\xff\xff"), Code.COMPRESSION_ERROR, "no header block"),
        (frame(Kind.WINDOW_UPDATE, 0, 0, number(0)), Code.PROTOCOL_ERROR, "a window that does not grow"),
        (frame(Kind.PING, 0, 0, b"x"), Code.FRAME_SIZE_ERROR, "a short ping"),
        (frame(Kind.PING, 0, 0, bytes(8)) * 2000, Code.ENHANCE_YOUR_CALM, "pings without end"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", Code.FRAME_SIZE_ERROR, "another protocol"),
    ],
)
def test_what_a_server_may_not_send_ends_the_connection(sent: bytes, code: Code, why: str) -> None:
    http2 = introduced()
    stream = http2.request(asked(), None)
    http2.take()
    events = http2.receive(sent, 0)
    assert http2.ended, why
    assert events == [(RESET, stream, None, True)]
    said = http2.take()
    at = said.rfind(b"\x07\x00\x00\x00\x00\x00")  # GOAWAY, no flags, no stream
    assert said[at + 6 : at + 14] == number(0) + number(code)


def test_pings_are_answered_and_settings_acknowledged() -> None:
    http2 = introduced()
    http2.receive(frame(Kind.PING, 0, 0, b"12345678") + h2.settings({}), 0)
    assert http2.take() == frame(Kind.PING, ACK, 0, b"12345678") + frame(Kind.SETTINGS, ACK, 0)


def test_streams_that_a_leaving_server_did_not_begin_are_given_back() -> None:
    http2 = introduced()
    first, second = http2.request(asked(), None), http2.request(asked(), None)
    events = http2.receive(frame(Kind.GOAWAY, 0, 0, number(1) + number(0) + b"bye"), 0)
    assert events == [(RESET, second, number(Code.REFUSED_STREAM), True)]
    assert http2.full
    assert http2.farewell == b"bye"
    assert [e[0] for e in http2.receive(answer(1, framed(b"a")), 0)] == [HEADED, DATA, DATA]
    assert not first.gone


# the connection, against servers


def run(port: int, count: int, connections: int, *messages: bytes, streams: int = 4) -> Answers:
    async def work() -> Answers:
        return await ask_all(source(port, *messages, streams=streams), count, connections)

    return uvloop.run(work())


def test_grpcio_s_answers_large_and_small() -> None:
    """8 MB both ways go through windows of both sides; small ones share a connection."""
    with grpcio_server({METHOD[1:]: lambda body, _: body}) as server:
        assert run(server.port, 3, 1, bytes(8 << 20)).counts() == {OK: 3}
        before = time.perf_counter_ns()
        answers = run(server.port, 200, 16, b"a", b"bc", b"")
        assert answers.counts() == {OK: 200}
        assert all(before < ns < time.perf_counter_ns() for ns in answers.first_ns.values())


def test_a_server_that_takes_few_streams_is_not_asked_for_more() -> None:
    limit = ("grpc.max_concurrent_streams", 2)
    with grpcio_server({METHOD[1:]: lambda body, _: body}, limit) as server:
        assert run(server.port, 50, 12, streams=12).counts() == {OK: 50}


CODES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]


def test_every_status_is_an_outcome_of_its_own() -> None:
    def refuse(body: bytes, context: Any) -> bytes:
        context.abort(CODES[int(body)], f"no: {body.decode()} ü")

    messages = [b"%d" % i for i in range(len(CODES))]
    with grpcio_server({METHOD[1:]: refuse}) as server:
        answers = run(server.port, len(CODES), 1, *messages)
    for i, code in enumerate(CODES):
        assert answers.outcomes[i] == GRPC + code.value[0]
        assert outcome_name(answers.outcomes[i]) == f"gRPC {code.name}"
        assert answers.messages[i] == f"no: {i} ü"


def test_a_method_that_is_not_there_and_a_handler_that_raises() -> None:
    with grpcio_server({"a.B/Other": lambda body, _: body}) as server:
        assert run(server.port, 2, 1).counts() == {GRPC + 12: 2}
    with grpcio_server({METHOD[1:]: lambda body, _: 1 / 0}) as server:  # type: ignore[arg-type, return-value]
        assert run(server.port, 2, 1).counts() == {GRPC + 2: 2}


def test_a_server_that_stops_ends_its_calls_and_connections() -> None:
    with grpcio_server({METHOD[1:]: lambda body, _: body}) as server:

        async def work() -> Answers:
            it = source(server.port)
            connection = await it.connect()
            server.server.stop(None)
            while connection.usable:
                await asyncio.sleep(0.01)
            ended = asyncio.get_running_loop().create_future()
            connection.send(0, lambda _, outcome, message: ended.set_result(outcome))
            assert await ended == CONNECTION
            with pytest.raises(ConnectionRefusedError):
                await it.connect()
            return Answers()

        uvloop.run(work())


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5])
def test_a_connection_that_nobody_waits_for_any_more_is_closed(turns: int) -> None:
    """A run may end while connections are being opened."""

    async def work() -> None:
        gone = asyncio.get_running_loop().create_future()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while await reader.read(4096):
                    pass
            except ConnectionResetError:
                pass
            writer.close()
            gone.set_result(None)

        async with tcp_server(talk) as port:
            it = source(port)
            opening = asyncio.create_task(it.connect())
            for _ in range(turns):
                await asyncio.sleep(0)
            opening.cancel()
            with suppress(asyncio.CancelledError):
                await opening
            if turns > 1:
                await asyncio.wait_for(gone, 10)

    uvloop.run(work())


def test_a_call_that_is_refused_unseen_is_asked_again_but_not_forever() -> None:
    refused = []

    async def work() -> Answers:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(HELLO)
            while piece := await reader.read(4096):
                for _ in range(piece.count(b"hello")):
                    refused.append(2 * len(refused) + 1)
                    code = number(Code.REFUSED_STREAM)
                    writer.write(frame(Kind.RST_STREAM, 0, refused[-1], code))
            writer.close()

        async with tcp_server(talk) as port:
            return await ask_all(source(port), 2)

    assert uvloop.run(work()).counts() == {GRPC + 14: 2}
    assert len(refused) == 2 * (1 + REFUSED_MAX)


HELLO = h2.settings({})
RAW = [
    (answer(1, framed(b"a"), tail=status("NOT_FOUND", "no")), GRPC + 5, "no", "a status in trailers"),
    (frame(Kind.HEADERS, END_HEADERS | END_STREAM, 1, HEAD + status("UNAVAILABLE", "later")), GRPC + 14,
     "later", "trailers alone"),
    (frame(Kind.HEADERS, END_HEADERS | END_STREAM, 1, b"\x8d"), GRPC + 12, "HTTP status 404", "plain HTTP/2"),
    (frame(Kind.HEADERS, END_HEADERS, 1, HEAD) + frame(Kind.DATA, END_STREAM, 1, framed(b"a")), GRPC + 2,
     "no grpc-status", "an end without trailers"),
    (frame(Kind.RST_STREAM, 0, 1, number(Code.ENHANCE_YOUR_CALM)), GRPC + 8, "reset", "a calmed stream"),
    (frame(Kind.RST_STREAM, 0, 1, number(Code.INTERNAL_ERROR)), GRPC + 13, "reset", "a broken stream"),
    (answer(1, framed(b"a")) + frame(Kind.RST_STREAM, 0, 1, number(0)), OK, "", "a reset behind the end"),
    (answer(1, b"xx"), NOT_HTTP, "not one plain message", "no message"),
    (answer(1, framed(b"a") * 2), NOT_HTTP, "not one plain message", "two messages"),
    (answer(1, framed(b"a", compressed=True)), NOT_HTTP, "not one plain message", "compressed unasked"),
    (frame(Kind.HEADERS, END_HEADERS, 1, b"\x08\x03103") + answer(1, framed(b"a")), OK, "", "early hints"),
    (b"", CONNECTION, "closed the connection", "nothing, and the end"),
    (frame(Kind.GOAWAY, 0, 0, number(0) + number(11) + b"too much"), GRPC + 14, "reset", "sent away"),
]  # fmt: skip


@pytest.mark.parametrize(("sent", "outcome", "text", "why"), RAW, ids=[row[3] for row in RAW])
def test_what_a_server_may_answer(sent: bytes, outcome: int, text: str, why: str) -> None:
    async def work() -> Answers:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(HELLO)
            seen = b""
            while b"hello" not in seen:
                seen += await reader.read(4096)
            writer.write(sent)
            await writer.drain()
            if not sent:
                writer.close()
            else:
                await reader.read()
                writer.close()

        async with tcp_server(talk) as port:
            connection = await source(port).connect()
            ended = asyncio.get_running_loop().create_future()
            connection.send(0, lambda _, *result: ended.set_result(result))
            answers = Answers()
            answers.outcomes[0], answers.messages[0] = await asyncio.wait_for(ended, 10)
            connection.abort()
            return answers

    answers = uvloop.run(work())
    assert answers.outcomes == {0: outcome}, why
    assert text in answers.messages[0]
