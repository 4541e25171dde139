"""The memo of heads knows what llhttp knows, and never more."""

from __future__ import annotations

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mserve.wire.http1 import CONTENT_LENGTH, MEMO_HEAD_BYTES, REQUEST_ID, TRACEPARENT, Head, HeadMemo

PLAIN = (
    b"POST /v1/models/m:predict?x=1 HTTP/1.1\r\nHost: a\r\nX-Request-Id: first\r\n"
    b"Content-Type: application/json\r\nContent-Length: 12\r\n\r\n"
)
TRACED = PLAIN.replace(b"Host: a\r\n", b"Host: a\r\ntraceparent: 00-ab-cd-01\r\n")
TRACED_BEHIND = PLAIN.replace(b"\r\nContent-Type", b"\r\ntraceparent: 00-ab-cd-01\r\nContent-Type")


class Reader:
    """What llhttp makes of a request."""

    def __init__(self, raw: bytes) -> None:
        self.target, self.headers, self.complete = b"", {}, False
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(raw)

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self.complete = True

    def head(self) -> Head:
        assert self.complete
        method = self.parser.get_method().decode()
        return Head(method, self.target, self.headers, self.parser.should_keep_alive())


def taught(*heads: bytes) -> HeadMemo:
    memo = HeadMemo()
    for raw in heads:
        memo.learn(raw, Reader(raw).head())
    return memo


def test_a_known_head_is_found_with_the_values_that_change() -> None:
    for raw in (PLAIN, TRACED, TRACED_BEHIND):
        memo = taught(raw)
        for value in (b"first", b"another one", b"~" * 128):
            found = memo.find(raw.replace(b"first", value))
            assert found is not None
            head, length, request_id, trace = found
            assert (request_id, trace) == (value.decode(), "" if raw is PLAIN else "00-ab-cd-01")
            assert (head.method, head.path, length) == ("POST", b"/v1/models/m:predict", 12)
            assert CONTENT_LENGTH not in head.headers
            assert REQUEST_ID not in head.headers
            assert TRACEPARENT not in head.headers


@pytest.mark.parametrize("space", [b"", b" "])
def test_requests_of_all_lengths_have_one_head(space: bytes) -> None:
    """Bodies of text are hardly ever of one length; who sends them would never be known."""
    raw = PLAIN.replace(b"Length: 12", b"Length:%b12" % space)
    memo = taught(raw)
    heads = set()
    for length in (0, 7, 12, 130, 10**17):
        found = memo.find(raw.replace(b"Length:%b12" % space, b"Length:%b%d" % (space, length)))
        assert found is not None
        assert found[1] == length
        heads.add(id(found[0]))
    assert len(heads) == 1


REFUSED = {
    "no length": PLAIN.replace(b"Content-Length: 12\r\n", b""),
    "a body in chunks": PLAIN.replace(b"Content-Length: 12", b"Transfer-Encoding: chunked"),
    "a client that waits for 100": PLAIN.replace(b"Host: a", b"Host: a\r\nExpect: 100-continue"),
    "an offer to upgrade": PLAIN.replace(b"Host: a", b"Host: a\r\nUpgrade: h2c"),
    "a connection that will close": PLAIN.replace(b"Host: a", b"Host: a\r\nConnection: close"),
    "HTTP/1.0": PLAIN.replace(b"HTTP/1.1", b"HTTP/1.0"),
    "an empty line before it": b"\r\n" + PLAIN,
    "too long": PLAIN.replace(b"Host: a", b"Host: " + b"a" * MEMO_HEAD_BYTES),
    "two ids": PLAIN.replace(b"Host: a", b"Host: a\r\nx-request-id: zero"),
    "an id behind two spaces": PLAIN.replace(b"Id: first", b"Id:  first"),
    "an id with a tab in it": PLAIN.replace(b"first", b"a\tb"),
    "an id that is empty": PLAIN.replace(b"first", b""),
    "an id that is not ASCII": PLAIN.replace(b"first", b"\xe4"),
}


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED)
def test_what_is_not_plain_is_not_kept(raw: bytes) -> None:
    memo = taught(raw)
    assert memo.find(raw) is None
    assert memo.find(raw.replace(b"first", b"other")) is None


def test_lines_that_proxies_change_are_not_looked_at() -> None:
    raw = PLAIN.replace(b"Host: a", b"Host: a\r\nX-Forwarded-For: 1.2.3.4\r\nX-B3-TraceId: ab\r\nb3: 1-2")
    memo = taught(raw)
    other = raw.replace(b"1.2.3.4", b"5.6.7.8, 9.9.9.9").replace(b"ab", b"cdef").replace(b"1-2", b"0")
    found, same = memo.find(other), memo.find(raw)
    assert found is not None
    assert same is not None
    assert found[0] is same[0]
    assert not {b"x-forwarded-for", b"x-b3-traceid", b"b3"} & set(found[0].headers)
    assert memo.find(raw.replace(b"1.2.3.4", b"1\r\nExpect: 100-continue")) is None
    assert memo.find(raw.replace(b"1.2.3.4", b"1\r\n x")) is None


UNKNOWN = {
    "a length with a sign": (b"Length: 12", b"Length: +12"),
    "a length below zero": (b"Length: 12", b"Length: -12"),
    "a length of another base": (b"Length: 12", b"Length: 0x12"),
    "a length with a line between digits": (b"Length: 12", b"Length: 1_2"),
    "two lengths in one line": (b"Length: 12", b"Length: 12, 12"),
    "no length in its line": (b"Length: 12", b"Length: "),
    "a length in digits that are not ASCII": (b"Length: 12", b"Length: \xb2"),
    "a length behind two spaces": (b"Length: 12", b"Length:  12"),
    "a length beyond all memory": (b"Length: 12", b"Length: " + b"1" * 19),
    "a length of a thousand digits": (b"Length: 12", b"Length: " + b"1" * 1000),
    "the same length twice": (b"Host: a", b"Host: a\r\nContent-Length: 12"),
    "no length": (b"Content-Length: 12\r\n", b""),
    "a body in chunks": (b"Content-Length: 12", b"Transfer-Encoding: chunked"),
    "a body in chunks, besides": (b"Host: a", b"Host: a\r\nTransfer-Encoding: chunked"),
    "another path": (b":predict", b":classify"),
    "a line more": (b"Host: a", b"Host: a\r\nX: y"),
    "the id's line before the request line": (b"POST", b"X-Request-Id: x\r\nPOST"),
    "a second length": (b"Host: a", b"Host: a\r\nContent-Length: 1"),
    "a line feed in the id": (b"first", b"a\nContent-Length: 1"),
    "a carriage return in the id": (b"first", b"a\rb"),
    "an id between spaces": (b"first", b" first "),
    "an id that goes on in the next line": (b"first", b"a\r\n b"),
}


@pytest.mark.parametrize(("old", "new"), UNKNOWN.values(), ids=UNKNOWN)
def test_a_head_that_differs_is_not_known(old: bytes, new: bytes) -> None:
    assert taught(PLAIN).find(PLAIN.replace(old, new, 1)) is None


def test_a_client_of_many_heads_costs_no_memory() -> None:
    memo = HeadMemo()
    for number in range(100):
        raw = PLAIN.replace(b"m:", b"m%d:" % number)
        memo.learn(raw, Reader(raw).head())
        assert memo.find(raw) is not None
    assert sum(memo.find(PLAIN.replace(b"m:", b"m%d:" % n)) is not None for n in range(100)) <= 4


PIECES = (
    *(b"\r\n", b"\r", b"\n", b" ", b"\t", b":", b"0", b"12", b"x", b"\x00", b"\xff"),
    *(b"X-Request-Id: ", b"x-request-id: b", b"traceparent: ", b"Content-Length: 3", b"Host: a"),
    *(b"X-Real-IP: 1", b"\r\nb3: 1"),
    *(b"Transfer-Encoding: chunked", b"Connection: close", b"Expect: 100-continue", b"first"),
)


@st.composite
def spoiled(draw: st.DrawFn) -> bytes:
    """A head in which a few places were changed."""
    raw = draw(st.sampled_from([PLAIN, TRACED]))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(raw)))
        end = at + draw(st.integers(0, 12))
        raw = raw[:at] + draw(st.sampled_from(PIECES)) * draw(st.integers(0, 1)) + raw[end:]
    return raw


@settings(max_examples=1500, deadline=None)
@given(first=spoiled(), second=spoiled())
def test_what_the_memo_finds_is_what_llhttp_reads(first: bytes, second: bytes) -> None:
    memo = HeadMemo()
    for raw in (PLAIN, first, TRACED):
        end = raw.find(b"\r\n\r\n") + 4
        try:
            memo.learn(raw[:end] if end > 3 else b"", Reader(raw).head())
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, AssertionError):
            continue
    end = second.find(b"\r\n\r\n") + 4
    found = memo.find(second[:end])
    if found is None:
        return
    head, length, request_id, trace = found
    read = Reader(second[:end]).head()
    assert length == int(read.headers.pop(CONTENT_LENGTH))
    ids = {REQUEST_ID: request_id.encode(), TRACEPARENT: trace.encode()}
    expected = {name: value for name, value in read.headers.items() if name not in (b"x-real-ip", b"b3")}
    assert {**head.headers, **{k: v for k, v in ids.items() if v}} == expected
    assert (head.method, head.target) == (read.method, read.target)
    assert read.keep_alive
