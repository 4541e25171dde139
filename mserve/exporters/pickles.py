"""Pickles, read without making anything that they name.

A pickle is a program for a small machine with a stack. This one knows all that builds numbers,
texts and containers; but where the program names a class or a function (GLOBAL) it puts the
name on the stack, and where it calls one (REDUCE, NEWOBJ, BUILD) it notes what would have been called
with what. So nothing is imported and nothing runs, whatever the file says: `os.system` is a text.

Arrays of numpy, and of Theano on a GPU, are notes too; `array` makes numbers of them.
"""

from __future__ import annotations

import codecs
import reprlib
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError
from ..tensors import Array

MAX_STEPS = 50_000_000
MAX_LINE = 1 << 28
MAX_AXES = 32
MAX_ARGUMENTS = 64
MAX_INTEGER_BYTES = 1 << 10
_MARK = object()


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a class or function."""

    name: str


@dataclass(eq=False, repr=False, slots=True)
class Made:
    """What a call would have made: whose, with what, and the state and items that it was given then.

    It is shown by its name: what it holds may hold the same thing a thousand times.
    """

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)
    pairs: dict[Any, Any] = field(default_factory=dict)

    @property
    def fields(self) -> dict[str, Any]:
        """The attributes of an object whose state is a dict, as usual, or a dict and slots."""
        state = self.state
        if isinstance(state, tuple):
            merged: dict[str, Any] = {}
            for part in state[:2]:
                merged.update(part if isinstance(part, dict) else {})
            return merged
        return state if isinstance(state, dict) else {}

    @property
    def kind(self) -> str:
        """The class without its module."""
        return self.name.rpartition(".")[2]

    def __repr__(self) -> str:
        return f"Made({self.name[:80]})"


def shown(value: Any) -> str:
    """The beginning of a value's text: a tuple of a pickle may hold itself twice, many levels deep."""
    return reprlib.repr(value)[:60]


def load(data: bytes, where: str) -> Any:
    """What a pickle makes: containers, numbers, texts (of Python 2 as latin-1) and notes of the rest.

    Raises InputError: truncated, malformed, an opcode that reaches outside the file.
    """
    machine = _Machine(data, where)
    try:
        return machine.run()
    except (IndexError, struct.error, ValueError, TypeError, KeyError, OverflowError) as error:
        raise InputError(
            "the pickle is truncated or malformed",
            where=f"{where}: byte {machine.at}",
            found=f"{type(error).__name__}: {error}"[:200],
        ) from error


class _Machine:
    def __init__(self, data: bytes, where: str) -> None:
        self.data, self.where, self.at = data, where, 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(MAX_STEPS):
            code = self.take(1)
            if code == b".":
                return self.stack.pop()
            step = _STEPS.get(code)
            if step is None:
                raise ValueError(f"opcode {code!r} is not known here, or reaches outside the file")
            step(self)
        raise ValueError(f"more than {MAX_STEPS} steps")

    def take(self, count: int) -> bytes:
        if not 0 <= count <= len(self.data) - self.at:
            raise ValueError(f"the file ends {count} bytes too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def unpack(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> bytes:
        end = self.data.find(b"\n", self.at, self.at + MAX_LINE)
        if end < 0:
            raise ValueError("a line does not end")
        return self.take(end + 1 - self.at)[:-1]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def marked(self) -> list[Any]:
        """What lies above the last mark, which goes."""
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                found = self.stack[index + 1 :]
                del self.stack[index:]
                return found
        raise ValueError("no mark")

    def put(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def call(self, function: Any, arguments: Any) -> None:
        if not isinstance(arguments, tuple):
            raise TypeError("arguments are no tuple")
        name = function.name if isinstance(function, Global | Made) else type(function).__name__
        classes = ("copy_reg._reconstructor", "copyreg._reconstructor", "copyreg.__newobj__")
        if name in classes and arguments and isinstance(arguments[0], Global):
            if len(arguments) > MAX_ARGUMENTS:  # each call would copy them
                raise ValueError(f"more than {MAX_ARGUMENTS} arguments")
            name, arguments = arguments[0].name, arguments[1:]
        if name == "_codecs.encode" and arguments[1:] == ("latin1",) and isinstance(arguments[0], str):
            self.push(arguments[0].encode("latin-1"))  # how old protocols write the bytes of Python 3
            return
        self.push(Made(name, arguments))

    def made(self, arguments: tuple[Any, ...], function: Any) -> None:
        self.call(function, arguments)

    def build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if not isinstance(made, Made):
            raise TypeError(f"a {type(made).__name__} is given a state")
        made.state = state

    def extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Made):
            target.items.extend(values)
        elif isinstance(target, list):
            target.extend(values)
        elif isinstance(target, set):
            target.update(value for value in values if _may_be_key(value))
        else:
            raise TypeError(f"a {type(target).__name__} is given items")

    def update(self, values: list[Any]) -> None:
        target = self.stack[-1]
        pairs = target.pairs if isinstance(target, Made) else target
        if not isinstance(pairs, dict) or len(values) % 2:
            raise TypeError("pairs that do not fit")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if _may_be_key(key):
                pairs[key] = value


def _may_be_key(value: Any) -> bool:
    """Keys that are cheap to hash: nested tuples may be made to take for ever."""
    if isinstance(value, tuple):
        return len(value) < 100 and all(isinstance(x, str | bytes | int | float | None) for x in value)
    return isinstance(value, str | bytes | int | float | Made | Global | None)


def _string(machine: _Machine) -> None:
    text = machine.line().strip()
    if len(text) < 2 or text[:1] != text[-1:] or text[:1] not in (b"'", b'"'):
        raise ValueError("a string without quotes")
    with warnings.catch_warnings():  # of what no escape is, which stands for itself
        warnings.simplefilter("ignore")
        machine.push(codecs.escape_decode(text[1:-1])[0].decode("latin-1"))


def _integer(machine: _Machine) -> None:
    line = machine.line()
    machine.push({b"00": False, b"01": True}.get(line) if line in (b"00", b"01") else int(line))


def _sized(form: str, decode: Callable[[bytes], Any]) -> Callable[[_Machine], None]:
    return lambda m: m.push(decode(m.take(m.unpack(form))))


def _fixed(form: str) -> Callable[[_Machine], None]:
    return lambda m: m.push(m.unpack(form))


def _constant(value: Any) -> Callable[[_Machine], None]:
    return lambda m: m.push(value() if callable(value) else value)


def _latin(data: bytes) -> str:
    return data.decode("latin-1")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _long(data: bytes) -> int:
    if len(data) > MAX_INTEGER_BYTES:  # they are slow to compare and to write
        raise ValueError(f"an integer of more than {MAX_INTEGER_BYTES} bytes")
    return int.from_bytes(data, "little", signed=True)


def _global(machine: _Machine) -> None:
    module, name = machine.line().decode(), machine.line().decode()
    machine.push(Global(f"{module}.{name}"))


def _stack_global(machine: _Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise TypeError("the name of a class is no text")
    machine.push(Global(f"{module}.{name}"[:1000]))


def _instance(machine: _Machine) -> None:
    module, name = machine.line().decode(), machine.line().decode()
    machine.call(Global(f"{module}.{name}"), tuple(machine.marked()))


def _object(machine: _Machine) -> None:
    function, *arguments = machine.marked()
    machine.call(function, tuple(arguments))


def _reduce(machine: _Machine) -> None:
    arguments, function = machine.stack.pop(), machine.stack.pop()
    machine.call(function, arguments)


def _new_with_names(machine: _Machine) -> None:
    names, arguments, function = machine.stack.pop(), machine.stack.pop(), machine.stack.pop()
    machine.call(function, arguments)
    machine.stack[-1].pairs = names if isinstance(names, dict) else {}


def _tuple(count: int) -> Callable[[_Machine], None]:
    def step(machine: _Machine) -> None:
        if len(machine.stack) < count:
            raise ValueError("too little on the stack")
        found = tuple(machine.stack[len(machine.stack) - count :])
        del machine.stack[len(machine.stack) - count :]
        machine.push(found)

    return step


def _dict(machine: _Machine) -> None:
    values = machine.marked()
    machine.push({})
    machine.update(values)


def _pair(machine: _Machine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.update([key, value])


_STEPS: dict[bytes, Callable[[_Machine], Any]] = {
    b"\x80": lambda m: m.take(1),  # PROTO
    b"\x95": lambda m: m.take(8),  # FRAME
    b"(": lambda m: m.push(_MARK),
    b"0": lambda m: m.stack.pop(),
    b"1": lambda m: m.marked(),
    b"2": lambda m: m.push(m.stack[-1]),
    b"N": _constant(None), b"\x88": _constant(True), b"\x89": _constant(False),
    b")": _constant(()), b"]": _constant(list), b"}": _constant(dict), b"\x8f": _constant(set),
    b"I": _integer, b"L": lambda m: m.push(int(m.line().rstrip(b"L"))),
    b"F": lambda m: m.push(float(m.line())), b"G": _fixed(">d"),
    b"J": _fixed("<i"), b"K": _fixed("<B"), b"M": _fixed("<H"),
    b"\x8a": _sized("<B", _long), b"\x8b": _sized("<i", _long),
    b"S": _string, b"T": _sized("<i", _latin), b"U": _sized("<B", _latin),
    b"V": lambda m: m.push(m.line().decode("raw-unicode-escape")),
    b"X": _sized("<I", _text), b"\x8c": _sized("<B", _text), b"\x8d": _sized("<Q", _text),
    b"B": _sized("<I", bytes), b"C": _sized("<B", bytes), b"\x8e": _sized("<Q", bytes),
    b"\x96": _sized("<Q", bytes),
    b"t": lambda m: m.push(tuple(m.marked())), b"l": lambda m: m.push(m.marked()),
    b"\x85": _tuple(1), b"\x86": _tuple(2), b"\x87": _tuple(3),
    b"\x91": lambda m: m.push(frozenset(v for v in m.marked() if _may_be_key(v))),
    b"d": _dict, b"s": _pair, b"u": lambda m: m.update(m.marked()),
    b"a": lambda m: m.extend([m.stack.pop()]), b"e": lambda m: m.extend(m.marked()),
    b"\x90": lambda m: m.extend(m.marked()),
    b"p": lambda m: m.put(int(m.line())), b"q": lambda m: m.put(m.unpack("<B")),
    b"r": lambda m: m.put(m.unpack("<I")), b"\x94": lambda m: m.put(len(m.memo)),
    b"g": lambda m: m.push(m.memo[int(m.line())]), b"h": lambda m: m.push(m.memo[m.unpack("<B")]),
    b"j": lambda m: m.push(m.memo[m.unpack("<I")]),
    b"c": _global, b"\x93": _stack_global, b"i": _instance, b"o": _object, b"R": _reduce,
    b"\x81": _reduce, b"\x92": _new_with_names, b"b": lambda m: m.build(),
}  # fmt: skip


def array(value: Any, where: str) -> Array:
    """The numbers of a pickled array, of numpy or of Theano on a GPU, or a plain number.

    Raises InputError where it is none, or its bytes do not fit its shape.
    """
    import numpy as np

    if isinstance(value, bool | int | float):
        return np.array(value)
    if isinstance(value, Made) and value.kind.endswith(("CudaNdarray_unpickler", "GpuArray_unpickler")):
        value = value.arguments[0] if value.arguments else None
    if not isinstance(value, Made) or value.kind not in ("_reconstruct", "_frombuffer", "scalar"):
        raise InputError("not an array", where=where, found=getattr(value, "name", type(value).__name__))
    if value.kind == "scalar" and len(value.arguments) == 2:
        kind, raw = value.arguments
        shape, turned = (), False
    elif value.kind == "_frombuffer" and len(value.arguments) == 4:
        raw, kind, shape, order = value.arguments
        turned = order == "F"
    elif isinstance(value.state, tuple) and len(value.state) == 5:
        _, shape, kind, turned, raw = value.state
    else:
        raise InputError("an array without its state", where=where)
    data = raw.encode("latin-1") if isinstance(raw, str) else raw
    dtype = _dtype(kind, where)
    count = 1
    for side in shape if isinstance(shape, tuple) and len(shape) <= MAX_AXES else (-1,):
        count *= side if isinstance(side, int) and not isinstance(side, bool) and side >= 0 else -1
    if not isinstance(data, bytes) or count < 0 or count * dtype.itemsize != len(data):
        found = f"{len(data)} bytes" if isinstance(data, bytes) else type(data).__name__
        raise InputError("an array's bytes do not fit", where=where, expected=shown(shape), found=found)
    try:
        return np.frombuffer(data, dtype).reshape(shape, order="F" if turned else "C")
    except (ValueError, OverflowError) as error:  # no numbers, and sides that only Python can count
        raise InputError("an array's shape is too large", where=where, found=shown(shape)) from error


def _dtype(value: Any, where: str) -> Any:
    import numpy as np

    known = {
        f"{c}{s}" for c, sizes in (("f", "248"), ("i", "1248"), ("u", "1248"), ("b", "1")) for s in sizes
    }
    code = value.arguments[0] if isinstance(value, Made) and value.arguments else None
    if not isinstance(code, str) or code.lstrip("<>|=") not in known:
        raise InputError("an array of no numbers", where=where, found=shown(code))
    order = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "<"
    return np.dtype((order if order in ("<", ">") else "<") + code.lstrip("<>|="))
