"""Theano's pickles, written here by pickling classes of the same names; and what pickles may hold to harm.

No module of Theano is there: the classes are made for the time of the writing.
"""

from __future__ import annotations

import io
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import legacy_writers
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_commands import run

from mserve.errors import MserveError, UsageError
from mserve.exporters import pickles
from mserve.exporters.sources import kind_of

RNG = np.random.default_rng(5)
PROTOCOLS = (0, 1, 2, 3, 4, 5)


class Library:
    """Classes by module and name, made when they are asked for."""

    def __init__(self) -> None:
        self.modules: dict[str, ModuleType] = {}

    def __call__(self, path: str, **fields: Any) -> Any:
        module, _, name = path.rpartition(".")
        module = f"theano.{module}"
        kept = self.modules.setdefault(module, ModuleType(module))
        if not hasattr(kept, name):
            setattr(kept, name, type(name, (), {"__module__": module}))
        made = getattr(kept, name)()
        made.__dict__.update(fields)
        return made

    @contextmanager
    def importable(self) -> Iterator[None]:
        parents = {".".join(name.split(".")[:i]) for name in self.modules for i in range(1, 5)}
        modules = {name: ModuleType(name) for name in parents} | self.modules
        sys.modules.update(modules)
        try:
            yield
        finally:
            for name in modules:
                del sys.modules[name]

    def type(self, rank: int) -> Any:
        return self("tensor.type.TensorType", dtype="float32", broadcastable=(False,) * rank)

    def shared(self, values: Any) -> Any:
        container = self("gof.link.Container", storage=[values])
        return self(
            "tensor.sharedvar.TensorSharedVariable",
            container=container,
            owner=None,
            name=None,
            type=self.type(values.ndim),
        )

    def constant(self, values: Any) -> Any:
        values = np.asarray(values)
        return self(
            "tensor.var.TensorConstant", data=values, owner=None, name=None, type=self.type(values.ndim)
        )

    def variable(self, rank: int, name: str | None = None) -> Any:
        return self("tensor.var.TensorVariable", owner=None, index=None, name=name, type=self.type(rank))

    def apply(self, op: Any, *inputs: Any, rank: int = 2) -> Any:
        made = self.variable(rank)
        made.owner = self("gof.graph.Apply", op=op, inputs=list(inputs), outputs=[made])
        made.index = 0
        return made

    def elementwise(self, scalar: str, *inputs: Any, rank: int = 2, **fields: Any) -> Any:
        op = self("tensor.elemwise.Elemwise", scalar_op=self(f"scalar.basic.{scalar}", **fields))
        return self.apply(op, *inputs, rank=rank)

    def row(self, vector: Any) -> Any:
        op = self("tensor.elemwise.DimShuffle", new_order=("x", 0), input_broadcastable=(False,))
        return self.apply(op, vector)

    def dump(self, value: Any, path: Path, protocol: int = 2) -> Path:
        with self.importable():
            path.write_bytes(pickle.dumps(value, protocol))
        return path


W1, B1 = RNG.standard_normal((4, 5)), RNG.standard_normal(5)
W2, B2 = RNG.standard_normal((5, 3)), RNG.standard_normal(3)
X = RNG.standard_normal((6, 4)).astype(np.float32)


def perceptron(lib: Library) -> Any:
    """softmax(tanh(x W1 + b1) W2 + b2), in single precision and partly as a GPU would hold it."""
    x = lib.variable(2, "x")
    dot = lib("tensor.basic.Dot")
    first = lib.apply(dot, x, lib.shared(W1.astype(np.float32)))
    hidden = lib.elementwise(
        "Tanh", lib.elementwise("Add", first, lib.row(lib.shared(B1.astype(np.float32))))
    )
    moved = lib.apply(lib("sandbox.cuda.basic_ops.HostFromGpu"), lib.shared(W2.astype(np.float32)))
    second = lib.elementwise("Add", lib.apply(dot, hidden, moved), lib.row(lib.shared(B2)))
    return lib.apply(lib("tensor.nnet.nnet.Softmax"), second)


def expected() -> Any:
    scores = np.exp(np.tanh(X @ W1 + B1) @ W2 + B2)
    return scores / scores.sum(1, keepdims=True)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_object_with_a_graph(protocol: int, tmp_path: Path) -> None:
    lib = Library()
    model = lib("model.Net", p_y_given_x=perceptron(lib), params=[lib.shared(W1)], n=3)
    path = lib.dump(model, tmp_path / "m.pkl", protocol)
    assert kind_of(path).name == "theano"
    found = legacy_writers.answers(legacy_writers.convert("theano", path), {"x": X})
    assert np.abs(found["probabilities"] - expected()).max() < 1e-6
    assert np.array_equal(found["label"], expected().argmax(1))


def function(lib: Library, *outputs: Any) -> Any:
    """A compiled function, as it is pickled: calls of two constructors."""
    wrapped = [lib("compile.io.SymbolicOutput", variable=one) for one in outputs]
    module = lib.modules.setdefault(
        "theano.compile.function_module", ModuleType("theano.compile.function_module")
    )

    def named(name: str) -> Any:
        made = type(name, (), {"__module__": module.__name__, "__qualname__": name})
        setattr(module, name, made)
        return made

    class Call:
        def __init__(self, name: str, *arguments: Any) -> None:
            self.name, self.arguments = name, arguments

        def __reduce__(self) -> Any:
            return named(self.name), self.arguments

    maker = Call("_constructor_FunctionMaker", {"outputs": wrapped, "inputs": []})
    return Call("_constructor_Function", maker, [], [])


def test_a_compiled_function(tmp_path: Path) -> None:
    lib = Library()
    path = lib.dump(function(lib, perceptron(lib)), tmp_path / "f.pkl")
    found = legacy_writers.answers(legacy_writers.convert("theano", path), {"x": X})
    assert np.abs(found["probabilities"] - expected()).max() < 1e-6


def clipped(lib: Library, x: Any) -> Any:
    return lib.elementwise("Clip", x, lib.constant(-0.5), lib.constant(1))


def rectified(lib: Library, x: Any) -> Any:
    """As it was written before there was an operator for it."""
    above = lib.elementwise("GT", x, lib.constant(np.int8(0)))
    return lib.elementwise("Switch", above, x, lib.constant(0))


def with_bias(lib: Library, x: Any) -> Any:
    return lib.elementwise("Neg", lib.apply(lib("nnet.SoftmaxWithBias"), x, lib.constant(np.arange(4.0))))


def biased(x: Any) -> Any:
    powers = np.exp(x + np.arange(4))
    return -powers / powers.sum(1, keepdims=True)


def turned_twice(lib: Library, x: Any) -> Any:
    once = lib.apply(lib("t.DimShuffle", new_order=[1, 0]), x)
    return lib.apply(lib("t.DimShuffle", new_order=(1, 0)), once)


def gemm(lib: Library, x: Any) -> Any:
    """b z + a x y."""
    a, y, b = lib.constant(2.0), lib.constant(np.eye(4)), lib.constant(0.5)
    return lib.apply(lib("b.Gemm"), x, a, x, y, b)


def summed(lib: Library, x: Any) -> Any:
    return lib.apply(lib("tensor.elemwise.Sum", axis=(1,)), x, rank=1)


def mean(lib: Library, x: Any) -> Any:
    """A sum through the size of an axis, which is a whole number first."""
    size = lib.apply(lib("tensor.opt.Shape_i", i=1), x, rank=0)
    real = lib.elementwise("Cast", size, rank=0, o_type=lib("s.Scalar", dtype="float32"))
    return lib.elementwise("TrueDiv", summed(lib, x), real, rank=1)


def log1p(lib: Library, x: Any) -> Any:
    return lib.elementwise("Log1p", lib.elementwise("Abs", x))


OPS: list[tuple[str, Callable[[Library, Any], Any], Callable[[Any], Any]]] = [
    ("Sqr", lambda lib, x: lib.elementwise("Sqr", x), lambda x: x**2),
    ("Sigmoid", lambda lib, x: lib.elementwise("ScalarSigmoid", x), lambda x: 1 / (1 + np.exp(-x))),
    ("Softplus", lambda lib, x: lib.elementwise("ScalarSoftplus", x), lambda x: np.log1p(np.exp(x))),
    ("Log1p", log1p, lambda x: np.log1p(np.abs(x))),
    ("Clip", clipped, lambda x: x.clip(-0.5, 1)),
    ("Switch", rectified, lambda x: x.clip(0)),
    ("SoftmaxWithBias", with_bias, biased),
    ("Sum", summed, lambda x: x.sum(1)),
    ("DimShuffle", turned_twice, lambda x: x),
    ("Gemm", gemm, lambda x: 2.5 * x),
    ("Flatten", lambda lib, x: lib.apply(lib("t.Flatten", outdim=2), x), lambda x: x),
    ("mean", mean, lambda x: x.mean(1)),
    ("Argmax", lambda lib, x: lib.apply(lib("t.Argmax", axis=(1,)), x, rank=1), lambda x: x.argmax(1)),
]


@pytest.mark.parametrize(("name", "made", "formula"), OPS, ids=[o[0] for o in OPS])
def test_an_operator_computes_its_formula(
    name: str, made: Callable[[Library, Any], Any], formula: Callable[[Any], Any], tmp_path: Path
) -> None:
    lib = Library()
    x = lib.variable(2, "x")
    path = lib.dump(lib("m.M", y=made(lib, x)), tmp_path / "m.pkl")
    converted = legacy_writers.convert("theano", path, input=("x:float32[batch,4]",))
    found = next(iter(legacy_writers.answers(converted, {"x": X}).values()))
    assert np.allclose(found, formula(X.astype(np.float64)), atol=1e-5)


class Payload:
    """Runs a command when it is unpickled as Python does."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def test_a_planted_payload_stays_inert(tmp_path: Path) -> None:
    """Beside a graph, inside it, and alone: the command never runs, with and without isolation."""
    marker = tmp_path / "ran"
    lib = Library()
    good = lib("model.Net", p_y_given_x=perceptron(lib), extra=Payload(marker))
    bad = lib("model.Net", p_y_given_x=lib.apply(Payload(marker), lib.variable(2, "x")))
    for number, (value, code) in enumerate([(good, 0), (bad, 3)]):
        path = lib.dump(value, tmp_path / f"{number}.pkl")
        for flags in ((), ("--no-isolate",))[number:]:
            done = run("export", path, tmp_path / f"base{number}", *flags)
            assert done.returncode == code, done.stderr
    lone = tmp_path / "lone.pkl"
    lone.write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(MserveError, match="no graph"):
        legacy_writers.convert("theano", lone)
    assert not marker.exists()
    found = pickles.load(lone.read_bytes(), "here")
    assert found.name.endswith(".system")
    assert found.arguments == (f"touch {marker}",)


NESTED = b")\x94" + b"".join(b"h%ch%c\x86\x94" % (i, i) for i in range(60))
HOSTILE = [
    ("nothing", b"", "truncated or malformed"),
    ("no end", b"]", "truncated or malformed"),
    ("nothing on the stack", b".", "truncated or malformed"),
    ("a text of four gigabytes", b"X\xff\xff\xff\xff.", "too early"),
    ("bytes of 16 exabytes", b"\x8e" + b"\xff" * 8 + b".", "too early"),
    ("a memo far away", b"]r\xff\xff\xff\xff.", "no graph"),
    ("a memo that is not there", b"h\x05.", "truncated or malformed"),
    ("a number without end", b"I" + b"9" * 10_000 + b"\n.", "truncated or malformed"),
    ("a persistent name", b"Pabc\n.", "reaches outside"),
    ("an extension", b"\x82\x01.", "reaches outside"),
    ("a buffer outside", b"\x97.", "reaches outside"),
    ("a state for a list", b"]}b.", "is given a state"),
    ("arguments that are a number", b"cos\nsystem\nK\x01R.", "arguments are no tuple"),
    ("no mark", b"K\x01t.", "no mark"),
    ("a tuple that holds itself twice, and so on, as a class", NESTED + b"\x8c\x01a\x93.", "no text"),
    ("an integer of a megabyte", b"\x8b\x00\x00\x10\x00" + bytes(1 << 20) + b".", "an integer of more than"),
    ("calls that copy what they get", b"ccopyreg\n__newobj__\n(cm\nA\n" + b"N" * 99 + b"tR.", "arguments"),
    ("deep tuples as a key", b"}" + b")" + b"\x85" * 50 + b"2\x86" * 60 + b"Ns.", "no graph"),
    ("parameters without a graph", pickle.dumps([1.5, 2.5]), "parameters alone"),
]


@pytest.mark.parametrize(("why", "data", "said"), HOSTILE, ids=[h[0] for h in HOSTILE])
def test_a_bad_pickle_is_refused(why: str, data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "m.pkl").write_bytes(data)
    with pytest.raises(MserveError) as caught:
        legacy_writers.convert("theano", tmp_path / "m.pkl")
    assert said in str(caught.value)


def cyclic(lib: Library) -> Any:
    made = lib.elementwise("Tanh", lib.variable(2, "x"))
    made.owner.inputs = [made]
    return made


def odd(lib: Library) -> Any:
    x = lib.apply(lib("tensor.nnet.ConvOp"), lib.variable(2, "x"))
    return lib.elementwise("Digamma", lib.apply(lib("scan.Scan"), x))


def with_nan(lib: Library) -> Any:
    return lib.apply(lib("tensor.basic.Dot"), lib.variable(2, "x"), lib.shared(np.full((2, 2), np.nan)))


def misfit(lib: Library) -> Any:
    dot = lib("tensor.basic.Dot")
    first = lib.apply(dot, lib.variable(2, "x"), lib.shared(W1))
    return lib.apply(dot, first, lib.shared(W1))


def one_sided(lib: Library) -> Any:
    return lib.apply(lib("tensor.basic.Dot"), lib.variable(2, "x"))


def many_axes(lib: Library) -> Any:
    shape = lib.constant(np.array([1, 1]))
    op = lib("tensor.basic.Reshape", ndim=1 << 60)
    return lib.row(lib.apply(op, lib.variable(2, "x"), shape))


def nested() -> Any:
    """A tuple whose text would be longer than any memory."""
    value: Any = ()
    for _ in range(60):
        value = (value, value)
    return value


def order_of_tuples(lib: Library) -> Any:
    return lib.apply(lib("tensor.elemwise.DimShuffle", new_order=nested()), lib.variable(2, "x"))


GRAPHS: list[tuple[str, Callable[[Library], Any], str]] = [
    ("a product of one matrix", one_sided, "an operator is malformed"),
    ("more axes than any array has", many_axes, "a shape is missing"),
    ("an order of nested tuples", order_of_tuples, "a bad order of axes"),
    ("a cycle", cyclic, "has a cycle"),
    ("unknown operators", odd, "found: ConvOp, Elemwise of Digamma, Scan"),
    ("NaN among weights", with_nan, "not a number that float32 holds"),
    ("matrices that do not fit", misfit, "do not fit each other"),
]


@pytest.mark.parametrize(("why", "made", "said"), GRAPHS, ids=[g[0] for g in GRAPHS])
def test_a_bad_graph_is_refused(why: str, made: Callable[[Library], Any], said: str, tmp_path: Path) -> None:
    lib = Library()
    path = lib.dump(lib("m.M", y=made(lib)), tmp_path / "m.pkl")
    with pytest.raises(MserveError) as caught:
        legacy_writers.convert("theano", path)
    assert said in str(caught.value)


def test_which_variable_answers_is_asked(tmp_path: Path) -> None:
    lib = Library()
    x = lib.variable(2, "x")
    model = lib("m.M", one=lib.elementwise("Tanh", x), two=lib.elementwise("Exp", x))
    path = lib.dump(model, tmp_path / "m.pkl")
    with pytest.raises(UsageError, match="--output one or two"):
        legacy_writers.convert("theano", path)
    with pytest.raises(UsageError, match="no such output"):
        legacy_writers.convert("theano", path, output=("three",))
    converted = legacy_writers.convert("theano", path, output=("two",), input=("x:float32[batch,4]",))
    assert np.allclose(next(iter(legacy_writers.answers(converted, {"x": X}).values())), np.exp(X), atol=1e-5)


SAMPLE = {"a": [1, -2, 3.5, None, True], ("t", 1): "text é", "b": b"\0bytes", "big": 1 << 80, "n": {1, 2}}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_come_as_they_are(protocol: int) -> None:
    value = dict(SAMPLE) if protocol >= 4 else {k: v for k, v in SAMPLE.items() if k not in ("b", "n")}
    assert pickles.load(pickle.dumps(value, protocol), "here") == value


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i8", "|u1", "|b1", "<f2"])
def test_arrays_come_as_they_are(dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    for one in (array, np.asfortranarray(array), array[0, 1]):
        found = pickles.array(pickles.load(pickle.dumps(one, 2), "here"), "here")
        assert np.array_equal(found, one)


def test_a_string_of_protocol_0_may_hold_what_no_escape_is() -> None:
    assert pickles.load(b"S'\\q'\n.", "here") == "\\q"


@pytest.mark.parametrize("shape", [(0, 10**30), nested()], ids=["a side without end", "nested tuples"])
def test_a_shape_that_no_array_has_is_refused(shape: Any) -> None:
    kind = pickles.Made("numpy.dtype", ("f4",))
    made = pickles.Made("numpy.core.multiarray._reconstruct", (), (1, shape, kind, False, b""))
    with pytest.raises(MserveError, match="an array's"):
        pickles.array(made, "here")


def test_a_state_in_many_parts_is_not_merged() -> None:
    """Each of 100,000 parts may be the same dict of 100,000 entries."""
    assert pickles.Made("m.A", state=({"a": 1}, {"b": 2}, {"c": 3})).fields == {"a": 1, "b": 2}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_pickle_converts_or_is_refused(changes: list[tuple[int, int]], tmp_path: Path) -> None:
    lib = Library()
    path = lib.dump(lib("m.M", y=perceptron(lib)), tmp_path / "m.pkl")
    data = bytearray(path.read_bytes())
    for place, value in changes:
        data[place % len(data)] = value
    path.write_bytes(bytes(data))
    try:
        legacy_writers.convert("theano", path)
    except MserveError:
        return


def test_every_truncation_is_refused() -> None:
    out = io.BytesIO()
    pickle.dump(SAMPLE, out, 4)
    data = out.getvalue()
    for end in range(len(data)):
        with pytest.raises(MserveError):
            pickles.load(data[:end], "here")
