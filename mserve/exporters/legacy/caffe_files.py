"""Caffe's two files: a network as Protocol Buffers text (.prototxt), and its weights as
Protocol Buffers records (.caffemodel).

The text is a tree of `name: value` and `name { ... }`; a name that stands again adds a value
to a list. The weights are a network once more, whose layers have names and blobs; those of
the first version lie in field 2 (name 4, blobs 6), later ones in field 100 (name 1, blobs
7). A blob's numbers are field 5, or 8 as doubles, and its shape field 7, or of old the four
fields 1 to 4.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from dataclasses import dataclass, field

from ...errors import InputError
from ...tensors import Array
from ...wire import protobuf
from ...wire.protobuf import BYTES, FIXED32, FIXED64, Field, Malformed
from . import networks

MAX_DEPTH = 32
MAX_TOKENS = 5_000_000
# Fields of a network, of a layer of each version, and of a blob.
LAYERS = {2: (4, 6), 100: (1, 7)}
NUMBERS, DOUBLES, SHAPE = 5, 8, 7
_TOKEN = re.compile(r"""[ \t\r\n,;]+|\#[^\n]*|(?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')|"""
                    r"""(?P<mark>[{}<>:\[\]])|(?P<word>[-+.\w]+)""")  # fmt: skip
_CLOSING = {"{": "}", "<": ">"}


@dataclass(slots=True)
class Message:
    """A part of a text: values by name, in their order; `where` is for errors."""

    where: str
    values: dict[str, list[str | Message]] = field(default_factory=dict)

    def texts(self, name: str) -> list[str]:
        found = [value for value in self.values.get(name, []) if isinstance(value, str)]
        if len(found) != len(self.values.get(name, [])):
            raise InputError("not a value", where=f"{self.where}.{name}", found="a message")
        return found

    def text(self, name: str, default: str = "") -> str:
        return (self.texts(name) or [default])[-1]

    def messages(self, name: str) -> list[Message]:
        found = [value for value in self.values.get(name, []) if isinstance(value, Message)]
        if len(found) != len(self.values.get(name, [])):
            raise InputError("not a message", where=f"{self.where}.{name}", found="a value")
        return found

    def message(self, name: str) -> Message:
        """The part of a name; an empty one where there is none."""
        return (self.messages(name) or [Message(f"{self.where}.{name}")])[-1]

    def number(self, name: str, default: float) -> float:
        return (self.numbers(name) or [default])[-1]

    def numbers(self, name: str) -> list[float]:
        """Numbers that float32 holds, or infinite ones. Raises InputError."""
        found = []
        for text in self.texts(name):
            try:
                value = float(text.removesuffix("f").replace("_", "?"))  # Python takes 1_000 for a number
            except ValueError:
                value = float("nan")
            if value != value:
                raise InputError("not a number", where=f"{self.where}.{name}", found=text[:40])
            found.append(networks.parameter(value, f"{self.where}.{name}"))
        return found

    def integer(self, name: str, default: int) -> int:
        return self.integers(name, [default])[-1]

    def integers(self, name: str, default: list[int]) -> list[int]:
        """Whole numbers, of less than 10 digits. Raises InputError."""
        texts = self.texts(name)
        if not all(re.fullmatch(r"-?[0-9]+", text) and len(text) < 10 for text in texts):
            raise InputError("not a whole number", where=f"{self.where}.{name}", found=str(texts)[:60])
        return [int(text) for text in texts] or default

    def flag(self, name: str, *, default: bool) -> bool:
        text = self.text(name, str(default).lower())
        if text not in ("true", "false", "1", "0", "True", "False", "t", "f"):
            raise InputError("not true or false", where=f"{self.where}.{name}", found=text[:40])
        return text in ("true", "1", "True", "t")


def parse_text(text: str, where: str) -> Message:
    """The network of a prototxt. Raises InputError at the line that makes no sense."""
    root = Message(where)
    open_ones = [(root, "")]
    tokens = _tokens(text, where)
    for kind, token, line in tokens:
        message, closing = open_ones[-1]
        if token == closing and kind == "mark":
            open_ones.pop()
        elif kind == "word":
            if (inner := _value(message, token, tokens, line)) is not None:
                open_ones.append(inner)
                if len(open_ones) > MAX_DEPTH:
                    raise _bad(where, line, f"at most {MAX_DEPTH} messages inside each other", "more")
        else:
            raise _bad(where, line, "a name", token)
    if len(open_ones) > 1:
        raise _bad(where, text.count("\n") + 1, f"{open_ones[-1][1]!r}", "the end")
    return root


Token = tuple[str, str, int]


def _value(message: Message, name: str, tokens: Iterator[Token], line: int) -> tuple[Message, str] | None:
    """Take the value of a name; a message is returned, with what closes it, to be filled."""
    kind, token, line = _next(tokens, message.where, line)
    if token == ":" and kind == "mark":
        kind, token, line = _next(tokens, message.where, line)
    values = message.values.setdefault(name, [])
    if kind == "mark" and token in _CLOSING:
        inner = Message(f"{message.where}.{name}")
        values.append(inner)
        return inner, _CLOSING[token]
    if kind == "mark" and token == "[":
        while (step := _next(tokens, message.where, line))[:2] != ("mark", "]"):
            if step[0] == "mark":
                raise _bad(message.where, line, "values", step[1])
            values.append(step[1])
        return None
    if kind == "mark":
        raise _bad(message.where, line, "a value", token)
    values.append(token)
    return None


def _next(tokens: Iterator[Token], where: str, line: int) -> Token:
    found = next(tokens, None)
    if found is None:
        raise _bad(where, line, "a value", "the end")
    return found


def _tokens(text: str, where: str) -> Iterator[Token]:
    at, line, count = 0, 1, 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        count += 1
        if match is None or count > MAX_TOKENS:
            raise _bad(where, line, "Protocol Buffers text", text[at : at + 20])
        if match.lastgroup == "string":
            yield "string", _unquoted(match["string"]), line
        elif match.lastgroup is not None:
            yield match.lastgroup, match[0], line
        line += match[0].count("\n")
        at = match.end()


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1])


def _bad(where: str, line: int, expected: str, found: str) -> InputError:
    return InputError(
        "the network's text is malformed", where=f"{where}: line {line}", expected=expected, found=found[:40]
    )


def is_text(head: bytes) -> bool:
    """Whether bytes can be the beginning of a text."""
    return not head.translate(None, string.printable.encode()) or _is_utf8(head)


def _is_utf8(head: bytes) -> bool:
    try:
        head[: len(head) - 4].decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in head


def parse_weights(data: bytes, where: str) -> dict[str, list[Array]]:
    """The blobs of each layer that has some, float32 or float64. Raises InputError."""
    found: dict[str, list[Array]] = {}
    try:
        for record in protobuf.fields(data):
            if record.number in LAYERS:
                name, blobs = _layer(data, record, where)
                if blobs and name in found:
                    raise InputError("two layers have one name", where=where, found=name[:80])
                if blobs:
                    found[name] = blobs
    except Malformed as error:
        raise InputError("the weights are truncated or malformed", where=where, found=error) from error
    return found


def _layer(data: bytes, record: Field, where: str) -> tuple[str, list[Array]]:
    name_field, blob_field = LAYERS[record.number]
    name = ""
    blobs: list[Array] = []
    for one in protobuf.inside(data, record):
        if one.number == name_field:
            name = protobuf.text(data, one)
        elif one.number == blob_field:
            blobs.append(_blob(data, one, f"{where}: layer {name}, blob {len(blobs)}"))
    return name, blobs


def _blob(data: bytes, record: Field, where: str) -> Array:
    import numpy as np

    pieces: list[Array] = []
    single = bytearray()
    old = {1: 0, 2: 0, 3: 0, 4: 0}
    shape: list[int] = []
    for one in protobuf.inside(data, record):
        if one.number in (NUMBERS, DOUBLES):
            kind = "<f4" if one.number == NUMBERS else "<f8"
            if one.wire_type in (FIXED32, FIXED64):  # not packed: a record for each number
                single += data[one.start : one.end]
            elif one.wire_type == BYTES and (one.end - one.start) % int(kind[2]) == 0:
                pieces.append(np.frombuffer(data, kind, (one.end - one.start) // int(kind[2]), one.start))
            else:
                raise Malformed("a blob's numbers", one.record_start)
            last = kind
        elif one.number == SHAPE:
            for dim in protobuf.inside(data, one):
                shape += protobuf.packed_varints(data, dim) if dim.number == 1 else []
        elif one.number in old:
            old[one.number] = protobuf.signed(protobuf.integer(one))
    if single:
        if len(single) % int(last[2]):
            raise Malformed("a blob's numbers", record.record_start)
        pieces.append(np.frombuffer(bytes(single), last))
    values = np.concatenate(pieces) if pieces else np.empty(0, np.float32)
    shape = shape or [old[number] for number in sorted(old)]
    size = 1
    for side in shape:
        size *= side
    if len(shape) > 16 or any(side < 0 for side in shape) or size != values.size:
        expected = f"a shape of {values.size} numbers"
        raise InputError("a blob's shape does not fit", where=where, expected=expected, found=str(shape)[:60])
    return values.reshape(shape)
