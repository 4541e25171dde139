"""The core of HTTP/2, frame by frame: what RFC 9113 demands of a server, and what no client may do to it."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hpack import Decoder, Encoder
from http2_tools import (
    FIELDS,
    HELLO,
    SETTINGS,
    S,
    Talk,
    acked,
    block,
    but,
    data,
    ended,
    frames,
    headers,
    setting,
    window,
)
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st

from mserve.wire import http2_streams
from mserve.wire.grpc_wire import HEAD, TRAILERS
from mserve.wire.http2 import DATA, RESET
from mserve.wire.http2_frames import (
    ACK,
    END_HEADERS,
    END_STREAM,
    FRAME_DEFAULT,
    PADDED,
    PREFACE,
    PRIORITIZED,
    WINDOW_MAX,
    Code,
    Kind,
    Setting,
    frame,
    number,
)
from mserve.wire.http2_streams import CONNECTION_WINDOW, FRAME_MAX, STREAM_WINDOW, STREAMS_MAX

GOES_ON = "goes on"
C_PROTOCOL, S_PROTOCOL = "connection PROTOCOL_ERROR", "stream 1 PROTOCOL_ERROR"
C_FLOW, S_FLOW = "connection FLOW_CONTROL_ERROR", "stream 1 FLOW_CONTROL_ERROR"
C_SIZE, C_HPACK = "connection FRAME_SIZE_ERROR", "connection COMPRESSION_ERROR"
BLOCK = block()
UNKNOWN = frame(77, 0, 0)  # type: ignore[arg-type]
HALF, REST = BLOCK[:9], BLOCK[9:]


def more(stream: int = 1, piece: bytes = REST, *, last: bool = True) -> bytes:
    return frame(Kind.CONTINUATION, END_HEADERS if last else 0, stream, piece)


def sized(kind: Kind, size: int, stream: int = 0) -> bytes:
    return frame(kind, 0, stream, bytes(size))


OPEN, CLOSED = headers(), headers(last=True)
ROWS: list[tuple[str, str, bytes, str]] = [
    ("4.1", "frames of unknown types are ignored", UNKNOWN, GOES_ON),
    ("4.1", "unknown flags are ignored", frame(Kind.PING, 0xFE, 0, bytes(8)), GOES_ON),
    ("4.1", "the reserved bit of a stream is ignored", frame(Kind.PING, 0, 1 << 31, bytes(8)), GOES_ON),
    ("4.2", "frames of the default size are taken", OPEN + data(payload=bytes(FRAME_DEFAULT)), GOES_ON),
    (
        "4.2",
        "one over the announced size is not",
        OPEN + data(payload=bytes(FRAME_MAX + 1)),
        C_SIZE,
    ),
    ("4.2", "too large a head is not", headers(1, bytes(FRAME_MAX + 1)), C_SIZE),
    (
        "4.3",
        "a block that is no HPACK",
        headers(1, b"\xff\xff\xff\xff\xff\xff"),
        C_HPACK,
    ),
    ("4.3", "an index of no entry", headers(1, b"\xff\x00"), C_HPACK),
    (
        "4.3",
        "a table larger than allowed",
        headers(1, b"\x3f\xe2\x1f" + BLOCK),
        C_HPACK,
    ),
    ("4.3", "a table's size behind a field", headers(1, BLOCK + b"\x20"), C_HPACK),
    ("4.3", "a block that ends inside a string", headers(1, BLOCK[:-1]), C_HPACK),
    (
        "4.3",
        "data between the pieces of a block",
        headers(1, HALF, flags=0) + data(),
        C_PROTOCOL,
    ),
    ("4.3", "another stream between them", headers(1, HALF, flags=0) + headers(3), C_PROTOCOL),
    (
        "4.3",
        "an unknown frame between them",
        headers(1, HALF, flags=0) + frame(20, 0, 0),
        C_PROTOCOL,
    ),
    ("5.1", "idle: data", data(), C_PROTOCOL),
    ("5.1", "idle: a reset", ended(1), C_PROTOCOL),
    ("5.1", "idle: a window", window(1, 1), C_PROTOCOL),
    ("5.1", "idle: a continuation", more(), C_PROTOCOL),
    ("5.1", "half-closed: data", CLOSED + data(), "stream 1 STREAM_CLOSED"),
    ("5.1", "half-closed: a head", CLOSED + headers(last=True), "stream 1 STREAM_CLOSED"),
    ("5.1", "half-closed: a window", CLOSED + window(1, 9), GOES_ON),
    ("5.1", "half-closed: a reset", CLOSED + ended(1), GOES_ON),
    ("5.1", "closed: data", OPEN + ended(1) + data(), "stream 1 STREAM_CLOSED"),
    ("5.1", "closed: a head", OPEN + ended(1) + headers(), "connection STREAM_CLOSED"),
    ("5.1", "closed: a window may be late", OPEN + ended(1) + window(1, 9), GOES_ON),
    ("5.1", "closed: a reset may be late", OPEN + ended(1) + ended(1), GOES_ON),
    ("5.1.1", "an even number", headers(2), C_PROTOCOL),
    ("5.1.1", "a number that was passed over", headers(5) + headers(3), C_PROTOCOL),
    ("5.1.1", "numbers may be passed over", headers(5) + headers(99), GOES_ON),
    (
        "5.1.2",
        "more streams than announced",
        b"".join(headers(n) for n in range(1, 2 * STREAMS_MAX + 2, 2)),
        f"stream {2 * STREAMS_MAX + 1} REFUSED_STREAM",
    ),
    ("6.1", "data of the connection", data(0), C_PROTOCOL),
    ("6.1", "padding is taken off", OPEN + data(payload=b"\x02ab\0\0", flags=PADDED), GOES_ON),
    (
        "6.1",
        "more padding than payload",
        OPEN + data(payload=b"\x05ab\0\0", flags=PADDED),
        C_PROTOCOL,
    ),
    ("6.1", "padded without a length", OPEN + data(payload=b"", flags=PADDED), C_PROTOCOL),
    ("6.2", "a head of the connection", headers(0), C_PROTOCOL),
    ("6.2", "a padded head", headers(1, b"\x01" + BLOCK + b"\0", flags=END_HEADERS | PADDED), GOES_ON),
    (
        "6.2",
        "more padding",
        headers(1, b"\xff" + BLOCK, flags=END_HEADERS | PADDED),
        C_PROTOCOL,
    ),
    ("6.2", "a head with a priority", headers(1, bytes(5) + BLOCK, flags=END_HEADERS | PRIORITIZED), GOES_ON),
    ("6.2", "half a priority", headers(1, bytes(4), flags=END_HEADERS | PRIORITIZED), C_SIZE),
    ("6.3", "a priority is ignored", sized(Kind.PRIORITY, 5, 1), GOES_ON),
    ("6.3", "one of the connection", sized(Kind.PRIORITY, 5), C_PROTOCOL),
    ("6.3", "one of another size", sized(Kind.PRIORITY, 4, 1), C_SIZE),
    ("6.4", "a reset of the connection", ended(0), C_PROTOCOL),
    ("6.4", "one of another size", OPEN + sized(Kind.RST_STREAM, 3, 1), C_SIZE),
    (
        "6.5",
        "an acknowledgement with a payload",
        frame(Kind.SETTINGS, ACK, 0, bytes(6)),
        C_SIZE,
    ),
    ("6.5", "settings of a stream", frame(Kind.SETTINGS, 0, 1), C_PROTOCOL),
    ("6.5", "half a setting", sized(Kind.SETTINGS, 3), C_SIZE),
    ("6.5.2", "push is 0 or 1", setting(Setting.ENABLE_PUSH, 2), C_PROTOCOL),
    ("6.5.2", "a window over the limit", setting(Setting.INITIAL_WINDOW_SIZE, 2**31), C_FLOW),
    ("6.5.2", "frames too small", setting(Setting.MAX_FRAME_SIZE, 2**14 - 1), C_PROTOCOL),
    ("6.5.2", "frames too large", setting(Setting.MAX_FRAME_SIZE, 2**24), C_PROTOCOL),
    ("6.5.2", "unknown settings are ignored", setting(99, 99), GOES_ON),
    (
        "6.6",
        "a client does not push",
        frame(Kind.PUSH_PROMISE, END_HEADERS, 1, bytes(4)),
        C_PROTOCOL,
    ),
    ("6.7", "a ping of a stream", sized(Kind.PING, 8, 1), C_PROTOCOL),
    ("6.7", "one of another size", sized(Kind.PING, 6), C_SIZE),
    ("6.8", "a stream is told to go away", sized(Kind.GOAWAY, 8, 1), C_PROTOCOL),
    ("6.8", "too short", sized(Kind.GOAWAY, 7), C_SIZE),
    ("6.8", "calls under way go on behind it", OPEN + sized(Kind.GOAWAY, 8) + data(), GOES_ON),
    ("6.9", "the connection's window does not grow by nothing", window(0, 0), C_PROTOCOL),
    ("6.9", "nor a stream's", OPEN + window(1, 0), S_PROTOCOL),
    ("6.9", "one of another size", sized(Kind.WINDOW_UPDATE, 3), C_SIZE),
    ("6.9.1", "the connection's grows too large", window(0, WINDOW_MAX), C_FLOW),
    ("6.9.1", "a stream's grows too large", OPEN + window(1, WINDOW_MAX), S_FLOW),
    (
        "6.9.2",
        "a stream's window grows too large by a setting",
        OPEN + window(1, WINDOW_MAX - 65535) + setting(Setting.INITIAL_WINDOW_SIZE, 65536),
        C_FLOW,
    ),
    (
        "6.9.1",
        "more than a stream's window",
        OPEN + b"".join(data(payload=bytes(FRAME_MAX)) for _ in range(STREAM_WINDOW // FRAME_MAX)) + data(),
        GOES_ON,  # it is filled up as it is used
    ),
    ("6.10", "a head in pieces", headers(1, HALF, flags=0) + more(), GOES_ON),
    ("6.10", "of the connection", headers(1, HALF, flags=0) + more(0), C_PROTOCOL),
    ("6.10", "of another stream", headers(1, HALF, flags=0) + more(3), C_PROTOCOL),
    ("6.10", "of a head that was complete", OPEN + more(), C_PROTOCOL),
    ("8.1", "trailers end a request", OPEN + data() + headers(1, block(("a", "b")), last=True), GOES_ON),
    ("8.1", "trailers without an end", OPEN + headers(1, block(("a", "b"))), S_PROTOCOL),
    ("8.1", "trailers with a pseudo-field", OPEN + headers(1, BLOCK, last=True), S_PROTOCOL),
    (
        "8.1.1",
        "less than content-length",
        headers(1, but(content_length="5")) + data(last=True),
        S_PROTOCOL,
    ),
    (
        "8.1.1",
        "more than content-length",
        headers(1, but(content_length="0")) + data(),
        S_PROTOCOL,
    ),
    ("8.1.1", "nothing of it", headers(1, but(content_length="1"), last=True), S_PROTOCOL),
    ("8.1.1", "as content-length says", headers(1, but(content_length="1")) + data(last=True), GOES_ON),
    (
        "8.1.1",
        "a content-length that is no number",
        headers(1, but(content_length="-1")),
        S_PROTOCOL,
    ),
    ("8.2", "upper case", headers(1, block(*FIELDS, ("X-A", "b"))), S_PROTOCOL),
    ("8.2.1", "a space in a name", headers(1, block(*FIELDS, ("a b", "c"))), S_PROTOCOL),
    ("8.2.1", "a line break in a value", headers(1, block(*FIELDS, ("a", "b\nc"))), S_PROTOCOL),
    ("8.2.1", "one in an id", headers(1, block(*FIELDS, ("x-request-id", "b\rc"))), S_PROTOCOL),
    ("8.2.2", "a field of HTTP/1.1", headers(1, but(connection="close")), S_PROTOCOL),
    ("8.2.2", "te other than trailers", headers(1, but(te="gzip")), S_PROTOCOL),
    (
        "8.3",
        "a pseudo-field behind the others",
        headers(1, block(*FIELDS[1:], FIELDS[0])),
        S_PROTOCOL,
    ),
    ("8.3", "behind an id", headers(1, block(("x-request-id", "1"), *FIELDS)), S_PROTOCOL),
    ("8.3", "one of an answer", headers(1, block((":status", "200"), *FIELDS)), S_PROTOCOL),
    ("8.3", "one twice", headers(1, block(FIELDS[0], *FIELDS)), S_PROTOCOL),
    ("8.3.1", "no method", headers(1, but(method=None)), S_PROTOCOL),
    ("8.3.1", "no scheme", headers(1, but(scheme=None)), S_PROTOCOL),
    ("8.3.1", "no path", headers(1, but(path=None)), S_PROTOCOL),
    ("8.3.1", "an empty path", headers(1, but(path="")), S_PROTOCOL),
]


@pytest.mark.parametrize(("section", "why", "said", "verdict"), ROWS, ids=[f"{r[0]} {r[1]}" for r in ROWS])
@pytest.mark.parametrize("step", [0, 1], ids=["whole", "in pieces"])
def test_what_the_rfc_demands(section: str, why: str, said: bytes, verdict: str, step: int) -> None:
    talk = Talk()
    size = len(said) if not step else 1 if len(said) < 4096 else 997
    pieces = [said[i : i + size] for i in range(0, len(said), size)]
    found = [talk.verdict(piece) for piece in pieces]
    assert next((f for f in found if f != GOES_ON), GOES_ON) == verdict, (section, why)
    assert talk.http2.ended == verdict.startswith("connection")
    if not talk.http2.ended and talk.http2._block is None and not talk.http2._partial:
        assert [f.kind for f in talk.say(frame(Kind.PING, 0, 0, b"12345678"))] == [Kind.PING]


@pytest.mark.parametrize(
    ("why", "hello", "verdict"),
    [
        ("3.4: settings come first", PREFACE + frame(Kind.PING, 0, 0, bytes(8)), "PROTOCOL_ERROR"),
        ("3.4: an HTTP/1.1 request", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "PROTOCOL_ERROR"),
        ("3.4: a preface with a slip", PREFACE[:-1] + b"\r" + SETTINGS, "PROTOCOL_ERROR"),
        ("3.4: TLS on a plain port", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "PROTOCOL_ERROR"),
    ],
)
def test_who_does_not_introduce_himself(why: str, hello: bytes, verdict: str) -> None:
    talk = Talk(hello)
    assert [(f.kind, f.payload[4:8]) for f in talk.greeting] == [(Kind.GOAWAY, number(Code[verdict]))], why
    assert talk.http2.ended


def test_the_server_introduces_itself() -> None:
    """3.4: its settings are the first frame, and the client's are acknowledged (6.5.3)."""
    talk = Talk()
    assert [f.kind for f in talk.opening] == [Kind.SETTINGS, Kind.WINDOW_UPDATE]
    assert acked(talk.greeting)
    assert talk.say(frame(Kind.PING, 0, 0, b"abcdefgh"))[0][1:] == (ACK, 0, b"abcdefgh")
    assert talk.say(frame(Kind.PING, ACK, 0, b"abcdefgh")) == []


def test_padding_counts_for_windows_and_is_not_passed_on() -> None:
    talk = Talk()
    talk.say(headers() + data(payload=b"\x02ab\0\0", flags=PADDED))
    assert talk.events[-1][2] == b"ab"
    assert talk.http2._room == CONNECTION_WINDOW - 5


# windows


def answered(talk: Talk, size: int, stream: int = 1) -> list[tuple[int, int]]:
    """Answer a stream with so many bytes; the kinds and sizes of the frames that go out at once."""
    talk.http2.answer(talk.http2.streams[stream], HEAD, bytes(size), TRAILERS)
    return shown(talk)


def shown(talk: Talk) -> list[tuple[int, int]]:
    return [(f.kind, len(f.payload) if f.kind == Kind.DATA else f.flags & END_STREAM) for f in talk.heard()]


def test_an_answer_waits_for_the_stream_and_then_for_the_connection() -> None:
    talk = Talk(PREFACE + setting(Setting.INITIAL_WINDOW_SIZE, 10))
    talk.say(headers(last=True))
    assert answered(talk, 70_000) == [(Kind.HEADERS, 0), (Kind.DATA, 10)]
    talk.say(setting(Setting.INITIAL_WINDOW_SIZE, 15))
    assert talk.say(setting(Setting.INITIAL_WINDOW_SIZE, 0))[0].kind == Kind.SETTINGS
    talk.say(window(1, 5))
    assert shown(talk) == []  # 15 less 15 is nothing, and five more than nothing less five is nothing
    sent = [len(f.payload) for f in talk.say(window(1, 100_000)) if f.kind == Kind.DATA]
    assert sum(sent) == 65_535 - 15
    assert max(sent) == FRAME_DEFAULT
    last = talk.say(window(0, 100_000))
    assert [f.kind for f in last] == [Kind.DATA, Kind.HEADERS]
    assert (len(last[0].payload), last[1].flags & END_STREAM) == (70_000 - 65_535, END_STREAM)
    assert not talk.http2.streams
    assert talk.http2.waiting == 0


def test_streams_take_turns() -> None:
    talk = Talk(PREFACE + setting(Setting.INITIAL_WINDOW_SIZE, 1 << 20) + window(0, 1 << 20))
    talk.say(headers(1, last=True) + headers(3, last=True))
    for stream in (1, 3):
        talk.http2.answer(talk.http2.streams[stream], HEAD, bytes(3 * FRAME_DEFAULT), TRAILERS)
    order = [f.stream for f in talk.heard() if f.kind == Kind.DATA]
    assert order == [1, 3] * 3


def test_what_is_taken_at_once_is_limited() -> None:
    """A socket that is full is not given more; the rest goes when it has taken some."""
    talk = Talk(PREFACE + setting(Setting.INITIAL_WINDOW_SIZE, WINDOW_MAX) + window(0, 1 << 30))
    talk.say(headers(last=True))
    talk.http2.answer(talk.http2.streams[1], HEAD, bytes(5 << 20), TRAILERS)
    assert len(talk.http2.take()) < 2 << 20
    talk.http2.hold = True
    assert talk.http2.take() == b""
    talk.http2.hold = False
    assert sum(len(f.payload) for f in talk.heard()) > 3 << 20


def test_a_paused_stream_is_given_no_more_window() -> None:
    talk = Talk()
    talk.say(headers())
    stream = talk.http2.streams[1]
    stream.paused = True
    whole = b"".join(data(payload=bytes(FRAME_MAX)) for _ in range(STREAM_WINDOW // FRAME_MAX))
    assert not [f for f in talk.say(whole) if f.kind == Kind.WINDOW_UPDATE and f.stream]
    assert talk.verdict(data()) == S_FLOW


def test_a_client_that_overruns_the_connection() -> None:
    talk = Talk()
    talk.http2._room = 3
    assert talk.verdict(headers() + data(payload=bytes(4))) == C_FLOW


def test_a_smaller_table_is_acknowledged_in_the_next_block() -> None:
    """RFC 7541, 4.2: who shrinks the table hears of it at the beginning of the next block, once."""
    talk = Talk(PREFACE + setting(Setting.HEADER_TABLE_SIZE, 100))
    decoder = Decoder()
    decoder.max_allowed_table_size = 100
    talk.say(headers(1, last=True) + headers(3, last=True))
    for stream in (1, 3):
        talk.http2.answer(talk.http2.streams[stream], HEAD, b"x", TRAILERS)
    found = [f for f in talk.heard() if f.kind == Kind.HEADERS]
    assert [f.payload[:1] == b"\x20" for f in found] == [True, False, False, False]
    read = [(f.stream, list(decoder.decode(f.payload))) for f in found]
    assert [fields for stream, fields in read if stream == 3] == [
        [(":status", "200"), ("content-type", "application/grpc")],
        [("grpc-status", "0")],
    ]


def test_an_answer_before_the_request_has_ended_tells_to_save_the_rest() -> None:
    """8.1: the stream is reset without an error, and what still comes is dropped."""
    talk = Talk()
    talk.say(headers())
    talk.http2.finish(talk.http2.streams[1], HEAD + TRAILERS)
    assert [(f.kind, f.payload) for f in talk.heard()][1:] == [(Kind.RST_STREAM, number(Code.NO_ERROR))]
    assert talk.verdict(data() + window(1, 5) + headers(1, block(("a", "b")), last=True)) == GOES_ON
    assert not talk.events


def test_going_away_takes_what_was_on_its_way() -> None:
    talk = Talk()
    talk.say(headers(1))
    talk.http2.shut(final=False)
    assert [f.kind for f in talk.heard()] == [Kind.GOAWAY, Kind.PING]
    talk.say(headers(3))
    assert 3 in talk.http2.streams
    talk.http2.shut(final=True)
    assert [f.payload[:4] for f in talk.heard()] == [number(3)]
    assert talk.verdict(headers(5) + data(5) + ended(5)) == GOES_ON
    assert 5 not in talk.http2.streams
    assert talk.http2.streams.keys() == {1, 3}


# floods: each of these is little for a client, and must be little for the server

FLOODS: list[tuple[str, Callable[[int], bytes]]] = [
    ("rapid resets", lambda n: headers(2 * n + 1) + ended(2 * n + 1)),
    ("requests that are errors", lambda n: headers(2 * n + 1, but(te="x"))),
    ("errors of streams that were taken", lambda n: headers(2 * n + 1) + window(2 * n + 1, 0)),
    ("pings", lambda n: frame(Kind.PING, 0, 0, bytes(8))),
    ("settings", lambda n: SETTINGS),
    ("priorities", lambda n: frame(Kind.PRIORITY, 0, 1, bytes(5))),
    ("empty data", lambda n: (headers() if not n else b"") + data(payload=b"")),
    ("padding without data", lambda n: (headers() if not n else b"") + data(payload=b"\0", flags=PADDED)),
    (
        "empty continuations",
        lambda n: (headers(1, HALF, flags=0) if not n else b"") + more(1, b"", last=False),
    ),
    ("unknown frames", lambda n: UNKNOWN),
    ("resets of streams that are closed", lambda n: (headers() if not n else b"") + ended(1)),
    ("farewells", lambda n: frame(Kind.GOAWAY, 0, 0, bytes(8))),
]


@pytest.mark.parametrize(("why", "make"), FLOODS, ids=[f[0] for f in FLOODS])
def test_a_flood_ends_the_connection(why: str, make: Callable[[int], bytes]) -> None:
    talk = Talk()
    found = {talk.verdict(make(n)) for n in range(3 * http2_streams.ALLOWANCE)}
    assert "connection ENHANCE_YOUR_CALM" in found, why
    assert len(talk.http2.streams) == 0
    assert len(talk.http2._cut) <= http2_streams.ALLOWANCE


def test_the_allowance_fills_up_with_time_and_answers() -> None:
    talk = Talk()
    for n in range(3 * http2_streams.ALLOWANCE):
        talk.now += S // http2_streams.ALLOWANCE_A_SECOND
        assert talk.verdict(headers(2 * n + 1) + ended(2 * n + 1)) == GOES_ON
    talk = Talk()
    for n in range(3 * http2_streams.ALLOWANCE):
        talk.say(headers(2 * n + 1, last=True) + frame(Kind.PING, 0, 0, bytes(8)))
        talk.http2.answer(talk.http2.streams[2 * n + 1], HEAD, b"x", TRAILERS)
        talk.heard()
    assert not talk.http2.ended


def test_a_block_in_endless_pieces() -> None:
    talk = Talk()
    talk.say(headers(1, HALF, flags=0))
    piece = more(1, bytes(4096), last=False)
    assert "connection ENHANCE_YOUR_CALM" in {talk.verdict(piece) for _ in range(9)}


def test_a_header_bomb_is_one_refused_call() -> None:
    """A block of few bytes that stands for many: the fields are not kept, and the table stays right.

    One that stands for many times more than that ends the connection.
    """
    talk = Talk()
    encoder = Encoder()
    talk.say(headers(1, encoder.encode([*FIELDS, ("a", "x" * 3900)]), last=True))
    bomb = encoder.encode([*FIELDS, *[("a", "x" * 3900)] * 60])
    assert len(bomb) < 4000
    assert talk.verdict(headers(3, bomb, last=True)) == GOES_ON
    assert type(talk.http2.streams[3].head).__name__ == "TooLarge"
    talk.say(headers(5, encoder.encode([*FIELDS, ("b", "c")]), last=True))
    assert talk.http2.streams[5].head.asked.metadata["b"] == "c"
    bomb = encoder.encode([*FIELDS, *[("a", "x" * 3000)] * 20_000])
    assert talk.verdict(headers(7, bomb, last=True)) == "connection ENHANCE_YOUR_CALM"


def test_a_head_of_one_frame_is_limited_like_one_of_many() -> None:
    many = block(*FIELDS, *[(f"n{i}", "v" * 100) for i in range(400)])
    assert Talk().verdict(headers(1, many)) == "connection ENHANCE_YOUR_CALM"


def test_many_windows_in_one_frame_of_settings_are_one_change() -> None:
    talk = Talk()
    talk.say(headers(last=True))
    many = b"".join(setting(Setting.INITIAL_WINDOW_SIZE, n)[9:] for n in (1, WINDOW_MAX, 5))
    assert acked(talk.say(frame(Kind.SETTINGS, 0, 0, many)))
    assert talk.http2.streams[1].out == 5


# anything at all

KINDS = st.integers(0, 11)
RANDOM = st.builds(
    frame,
    KINDS,
    st.integers(0, 255) | st.sampled_from((0, 1, 4, 5)),
    st.integers(0, 9) | st.integers(0, 2**32 - 1),
    st.binary(max_size=60),
)
GOOD = st.sampled_from(
    [
        *(headers(n) for n in (1, 3, 5, 7)),
        *(headers(n, last=True) for n in (1, 3, 5, 7)),
        *(data(n, b"abc") for n in (1, 3, 5)),
        *(data(n, b"abc", last=True) for n in (1, 3, 5)),
        *(ended(n) for n in (1, 3)),
        window(0, 100),
        window(1, 100),
        setting(Setting.INITIAL_WINDOW_SIZE, 3),
        setting(Setting.INITIAL_WINDOW_SIZE, WINDOW_MAX),
        setting(Setting.HEADER_TABLE_SIZE, 0),
        headers(9, HALF, flags=0),
        more(9),
        frame(Kind.PING, 0, 0, bytes(8)),
    ]
)


@given(
    st.lists(RANDOM | GOOD | GOOD | st.binary(max_size=20), max_size=30), st.randoms(use_true_random=False)
)
@how(max_examples=400, deadline=None)
def test_no_bytes_raise_or_are_kept(pieces: list[bytes], rng: random.Random) -> None:
    """Whatever comes in whatever portions: frames go out, and the connection goes on or has ended."""
    talk = Talk()
    said = bytearray(b"".join(pieces))
    for _ in range(rng.randint(0, 3)):
        if said:
            said[rng.randrange(len(said))] = rng.randrange(256)
    at = 0
    while at < len(said):
        size = rng.randint(1, 200)
        talk.say(bytes(said[at : at + size]))
        at += size
        for kind, stream, _, last in talk.events:
            if kind == DATA and last and not stream.gone:
                talk.http2.answer(stream, HEAD, bytes(rng.randint(0, 100)), TRAILERS)
            elif kind == RESET:
                assert stream.gone
        talk.heard()
        http2 = talk.http2
        assert len(http2._partial) <= FRAME_MAX + 9
        assert http2.waiting == sum(len(s.waiting or b"") for s in http2.streams.values())
        assert http2.ended or all(not s.gone for s in http2.streams.values())
    if talk.http2.ended:
        assert talk.say(HELLO) == []


def test_frames_of_answers_parse() -> None:
    """What goes out is whole frames within the client's limits."""
    talk = Talk()
    talk.say(headers(last=True))
    talk.http2.answer(talk.http2.streams[1], HEAD, bytes(200_000), TRAILERS)
    out = frames(talk.http2.take())
    assert max(len(f.payload) for f in out) == FRAME_DEFAULT
