"""Weights: figures against plain numpy, tensors found again, and what cannot be read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import Array, holder, raw_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mserve.compare import values, weights
from mserve.compare.change import GRAPH, Change, Level
from mserve.compare.graph import Compared
from mserve.compare.model import Tensor, open_model
from mserve.errors import InputError
from mserve.tensors import DTYPES, dtype_of


def tensor(name: str, array: Array, directory: Path | None = None, **rest: Any) -> Tensor:
    """A tensor in memory, in odd pieces, or in a file, behind some other bytes."""
    data = np.ascontiguousarray(array).tobytes()

    def pieces() -> Iterator[bytes]:
        for at in range(0, len(data), 1000):
            yield data[at : at + 1000]

    if directory is not None:
        path = directory / f"{name}-{abs(hash(data))}.bin"
        path.write_bytes(b"before!" + data + b"behind")
        rest |= {"path": path, "offset": 7}
    return Tensor(name, dtype_of(array), array.shape, len(data), pieces, **rest)


def compared(
    old: dict[str, Array], new: dict[str, Array], placed: dict[str, str] | None = None
) -> list[Change]:
    sides = [{n: tensor(n, x) for n, x in side.items()} for side in (old, new)]
    return list(weights.compare(Compared(Level(GRAPH), sides[0], sides[1], placed or {})).changes)


def expected(a: Array, b: Array) -> dict[str, Any]:
    """The figures as a reader would write them down."""
    same = a.view(f"u{a.itemsize}") == b.view(f"u{b.itemsize}")
    rows = ~same.reshape(len(a), -1).all(axis=1)
    x, y = (v.astype(np.float64).ravel() for v in (a, b))
    finite = np.isfinite(x) & np.isfinite(y)
    gap = np.where(finite & ~same.ravel(), np.abs(np.where(finite, x, 0) - np.where(finite, y, 0)), 0)
    x0, y0 = np.where(finite, x, 0), np.where(finite, y, 0)
    return {
        "changed": int((~same).sum()),
        "changed_rows": int(rows.sum()),
        "first_changed_rows": np.flatnonzero(rows)[:5].tolist(),
        "max_abs": gap.max(initial=0.0),
        "mean_abs": gap.sum() / max(1, x.size),
        "sign_flips": int((x0 * y0 < 0).sum()),
        "nan": [int(np.isnan(v).sum()) for v in (x, y)],
        "inf": [int(np.isinf(v).sum()) for v in (x, y)],
        "squares": float((gap**2).sum()),
        "old_squares": float((np.where(finite, x, 0) ** 2).sum()),
    }


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 64 bytes, so that rows are cut in the middle."""
    monkeypatch.setattr(values, "BLOCK_BYTES", 64)


FLOATS = arrays.arrays(
    st.sampled_from([np.float32, np.float64, np.float16]),
    st.tuples(st.integers(1, 9), st.integers(1, 23)),
    elements=st.floats(-100, 100, width=16) | st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf]),
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_figures_are_those_of_numpy(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """From files and from pieces, with rows cut by blocks, whatever values there are."""
    a = data.draw(FLOATS)
    b = a.copy()
    for _ in range(data.draw(st.integers(0, 12))):
        b[data.draw(st.integers(0, len(a) - 1)), data.draw(st.integers(0, a.shape[1] - 1))] = data.draw(
            st.sampled_from([0.0, 1.5, -2.25, math.nan, math.inf])
        )
    want = expected(a, b)
    directory = tmp_path_factory.mktemp("w") if data.draw(st.booleans()) else None
    before, values.BLOCK_BYTES = values.BLOCK_BYTES, 64
    try:
        found = values.compare(tensor("old", a, directory), tensor("new", b, directory), a.size)
    finally:
        values.BLOCK_BYTES = before
    facts = json.loads(json.dumps(found.facts(), allow_nan=False))
    for key in ("changed", "changed_rows", "first_changed_rows", "sign_flips", "nan", "inf"):
        assert facts[key] == want[key], key
    assert found.maximum == pytest.approx(want["max_abs"])
    assert found.sum_abs / a.size == pytest.approx(want["mean_abs"])
    assert found.squares == pytest.approx(want["squares"])
    assert found.old_squares == pytest.approx(want["old_squares"], rel=1e-5)


def test_cosine_and_relative_norm() -> None:
    a, b = np.array([[3.0, 4.0]], np.float32), np.array([[4.0, 3.0]], np.float32)
    found = values.compare(tensor("a", a), tensor("b", b), 2)
    assert found.cosine == pytest.approx(24 / 25)
    assert found.relative == pytest.approx(math.sqrt(2) / 5)
    zero = np.zeros((1, 2), np.float32)
    assert values.compare(tensor("a", zero), tensor("b", b), 2).relative == math.inf
    assert values.compare(tensor("a", zero), tensor("b", zero), 2).cosine == 1.0


def test_sparsity_counts_zeros_of_both() -> None:
    a = np.zeros((100, 4), np.float32)
    b = a.copy()
    b[7] = 1
    facts = values.compare(tensor("a", a), tensor("b", b), a.size).facts()
    assert facts["sparsity"] == [1.0, 0.99]
    assert facts["changed_rows"] == 1


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != "string"])
def test_every_dtype_is_compared(tmp_path: Path, dtype: str) -> None:
    """A weight of any dtype, stored in a model: equal to itself, and one byte of it changed is noticed."""
    raw = raw_bytes(dtype, 64)
    changed = bytearray(raw)
    changed[3] ^= 0x11 if dtype != "bool" else 0x01
    sides = []
    for name, data in (("old", raw), ("new", bytes(changed))):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(holder(dtype, [8, 8], data).SerializeToString())
        sides.append(open_model(path).tensors["w"])
    assert values.compare(sides[0], sides[0], 64).changed == 0
    found = values.compare(sides[0], sides[1], 64)
    assert found.rows == 1
    assert 1 <= found.changed <= 2


def matrix(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape or (8, 6)).astype(np.float32)


A, B, C = matrix(0), matrix(1), matrix(2)
CASES = [
    ("nothing", {"a": A}, {"a": A}, {}, []),
    ("other values", {"a": A}, {"a": B}, {}, ["weight-values"]),
    ("another name, equal bytes", {"a": A}, {"z": A}, {}, ["weight-renamed"]),
    ("another name, in the same place", {"a": A}, {"z": B}, {"a": "z"}, ["weight-values"]),
    ("gone", {"a": A, "b": B}, {"a": A}, {}, ["weight-removed"]),
    ("new", {"a": A}, {"a": A, "b": B}, {}, ["weight-added"]),
    ("swapped", {"a": A, "b": B}, {"a": B, "b": A}, {}, ["weights-swapped"] * 2),
    ("swapped by three", {"a": A, "b": B, "c": C}, {"a": B, "b": C, "c": A}, {}, ["weights-swapped"] * 3),
    (
        "swapped by the graph",
        {"a": A, "b": B},
        {"a": A, "b": B},
        {"a": "b", "b": "a"},
        ["weights-swapped"] * 2,
    ),
    ("rows in another order", {"a": A}, {"a": A[::-1]}, {}, ["weight-permuted"]),
    ("columns in another order", {"a": A}, {"a": A[:, [1, 0, 2, 3, 5, 4]]}, {}, ["weight-permuted"]),
    ("rounded", {"a": A}, {"a": A.astype(np.float16).astype(np.float32)}, {}, ["weight-rounded"]),
    ("broken", {"a": A}, {"a": np.where(A > 1, np.nan, A)}, {}, ["weight-broken"]),
    ("another dtype", {"a": A}, {"a": A.astype(np.float64)}, {}, ["weight-dtype"]),
    ("more rows", {"a": A}, {"a": np.concatenate([A, B])}, {}, ["weight-shape"]),
    ("another width", {"a": A}, {"a": A[:, :3].copy()}, {}, ["weight-shape"]),
]


@pytest.mark.parametrize(("why", "old", "new", "placed", "rules"), CASES, ids=[c[0] for c in CASES])
def test_what_became_of_weights(
    why: str, old: dict[str, Array], new: dict[str, Array], placed: dict[str, str], rules: list[str]
) -> None:
    assert [c.rule for c in compared(old, new, placed)] == rules, why


def test_a_grown_table_says_what_of_its_old_rows_changed() -> None:
    new = np.concatenate([A, B])
    new[3] += 1
    (change,) = compared({"a": A}, {"a": new})
    assert change.text.endswith("of the first 8 rows 1 differ")


def test_another_dtype_is_compared_as_numbers() -> None:
    (change,) = compared({"a": A}, {"a": A.astype(np.float64)})
    assert change.facts["changed"] == 0
    (change,) = compared({"a": A}, {"a": A.astype(np.float16)})
    assert 0 < change.facts["relative_l2"] < 1e-3


def test_equal_digests_cost_no_reading() -> None:
    """Where both digests are recorded and equal, nobody asks for the bytes."""

    def never() -> Iterator[bytes]:
        raise AssertionError("read")

    same = Tensor("a", "float32", (4,), 16, never, sha256="ab")
    level = weights.compare(Compared(Level(GRAPH), {"a": same}, {"a": same}))
    assert level.changes == ()
    assert level.verdict == "equal"


def test_values_that_cannot_be_read_are_a_finding() -> None:
    def broken() -> Iterator[bytes]:
        raise InputError("the values are stored in a way that is not read")
        yield b""

    one, two = tensor("a", A), Tensor("a", "float32", (8, 6), 192, broken)
    level = weights.compare(Compared(Level(GRAPH), {"a": one}, {"a": two}))
    assert [c.rule for c in level.changes] == ["weight-unread"]
    assert level.verdict == "unknown"


def test_a_tensor_that_ends_early_is_a_finding() -> None:
    short = Tensor("a", "float32", (8, 6), 192, lambda: iter([b"\0" * 100]))
    level = weights.compare(Compared(Level(GRAPH), {"a": tensor("a", A)}, {"a": short}))
    assert [c.rule for c in level.changes] == ["weight-unread"]


def test_a_file_that_shrank_is_a_finding(tmp_path: Path) -> None:
    one, two = tensor("a", A, tmp_path), tensor("b", B, tmp_path)
    assert two.path is not None
    two.path.write_bytes(two.path.read_bytes()[:50])
    level = weights.compare(Compared(Level(GRAPH), {"a": one}, {"b": two}, {"a": "b"}))
    assert [c.rule for c in level.changes] == ["weight-unread"]


def test_text_weights_are_compared_whole(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    sides = []
    for last in ("b", "c"):
        words = helper.make_tensor("w", TensorProto.STRING, [2], [b"a", last.encode()])
        node = helper.make_node("Identity", ["w"], ["y"])
        from builders import STRING, model

        path = tmp_path / f"{last}.onnx"
        path.write_bytes(model([node], [], [("y", STRING, [2])], [words]).SerializeToString())
        sides.append(dict(open_model(path).tensors))
    assert weights.compare(Compared(Level(GRAPH), sides[0], sides[0])).changes == ()
    (change,) = weights.compare(Compared(Level(GRAPH), sides[0], sides[1])).changes
    assert (change.rule, change.text) == ("weight-values", "other bytes")
