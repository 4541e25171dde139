"""`--input` and `--output`, and arrays made up for them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mserve.errors import UsageError
from mserve.exporters import ports
from mserve.exporters.ports import Port


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("x:float32[batch,28,28]", Port("x", "float32", ("batch", 28, 28))),
        ("x:float[ batch , 3 ]", Port("x", "float32", ("batch", 3))),
        ("a/b.c 0:long[n]", Port("a/b.c 0", "int64", ("n",))),
        ("x:bool[]", Port("x", "bool", ())),
    ],
)
def test_inputs_are_read(text: str, port: Port) -> None:
    assert ports.parse_inputs([text]) == (port,)
    assert ports.parse_inputs([str(port)]) == (port,)


BAD = ["", "x", "x:float32", "x:[1]", ":float32[1]", "x:float99[1]", "x:float32[1]]", "x:float32[-1]"]
BAD += [
    "x:float32[a b]",
    "x:float32[1.5]",
    "x=y:float32[1]",
    "x:float32[99999999999]",
    f"x:bool[{'1,' * 17}]",
]


@pytest.mark.parametrize("text", BAD)
def test_bad_inputs_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="bad --input"):
        ports.parse_inputs([text])


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        (port,) = ports.parse_inputs([text])
    except UsageError:
        return
    assert ports.parse_inputs([str(port)]) == (port,)


def test_names_stand_once() -> None:
    with pytest.raises(UsageError, match="twice"):
        ports.parse_inputs(["x:bool[1]", "x:bool[2]"])
    assert ports.parse_outputs(["a", "b=c:0"]) == {"a": "", "b": "c:0"}
    for bad in (["a", "a=b"], ["=x"], [""]):
        with pytest.raises(UsageError, match="bad --output"):
            ports.parse_outputs(bad)


def test_arrays_fit_their_ports() -> None:
    given = ports.parse_inputs(["x:float32[batch,t,u,3]", "ids:int64[batch,t]", "flag:bool[]"])
    made = ports.drawn(given, 5)
    assert {name: (x.shape, x.dtype.name) for name, x in made.items()} == {
        "x": ((5, 16, 24, 3), "float32"),
        "ids": ((5, 16), "int64"),
        "flag": ((), "bool"),
    }
    assert set(np.unique(made["ids"])) <= {0, 1}
    assert ports.drawn(given, 5, grown=2)["x"].shape == (5, 32, 48, 3)
    assert not ports.has_batch(given)
    assert ports.has_batch(given[:2])


def test_examples_say_what_the_batch_is() -> None:
    x, y = np.zeros((4, 2), np.float32), np.zeros((4,), np.int64)
    assert ports.described({"x": x, "y": y}) == (
        Port("x", "float32", ("batch", 2)),
        Port("y", "int64", ("batch",)),
    )
    assert ports.described({"x": x, "y": y[:3]}) == (Port("x", "float32", (4, 2)), Port("y", "int64", (3,)))
    assert ports.repeated({"y": np.array([1, 2, 3])}, 5)["y"].tolist() == [1, 2, 3, 1, 2]
