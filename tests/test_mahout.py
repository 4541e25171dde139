"""Mahout models, written byte by byte from the layout of its Writables."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import legacy_writers
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_commands import run

import mserve
from mserve.errors import MserveError
from mserve.exporters.sources import kind_of
from mserve.wire.protobuf import encode_varint

DENSE, RISING, NAMED, FLOATS = 1, 2, 4, 8
CLASS = "org.apache.mahout.classifier.sgd.OnlineLogisticRegression"
RNG = np.random.default_rng(7)
BETA = RNG.standard_normal((2, 4))
X = RNG.standard_normal((5, 4)).astype(np.float32)


def text(value: str) -> bytes:
    return struct.pack(">H", len(value.encode())) + value.encode()


def vector(values: Sequence[float] | Any, flags: int = DENSE | RISING) -> bytes:
    form = ">f" if flags & FLOATS else ">d"
    out = bytes([flags]) + encode_varint(len(values))
    if flags & DENSE:
        out += b"".join(struct.pack(form, v) for v in values)
    else:
        stored = [(i, v) for i, v in enumerate(values) if v]
        stored = stored if flags & RISING else stored[::-1]
        out += encode_varint(len(stored))
        last = 0
        for index, value in stored:
            out += encode_varint(index - last if flags & RISING else index) + struct.pack(form, value)
            last = index
    return out + (text("a name") if flags & NAMED else b"")


def logistic(
    rows: Any = BETA, flags: int = DENSE | RISING, *, prior: str = "L1", categories: int = 3, steps: int = 9
) -> bytes:
    out = text(CLASS) + struct.pack(">iddii", 1, 0.5, 0.999, 10, 9)
    out += struct.pack(">diiiii", -0.5, 20, categories, 1, len(rows), len(rows[0]))
    out += b"".join(vector(row, flags) for row in rows)
    out += text(f"org.apache.mahout.classifier.sgd.{prior}") + (b"\0" * 8 if prior == "L2" else b"")
    return out + vector([20.0] * len(rows[0])) + vector([float(steps)] * len(rows[0]))


BY_FEATURE, BY_LABEL = np.array([6.0, 3, 4, 2]), np.array([9.0, 6])
COUNTS = np.array([[4.0, 1, 3, 1], [2, 2, 1, 1]])


def bayes(*, complementary: bool = False, flags: int = RISING, alpha: float = 1.0) -> bytes:
    out = struct.pack(">f?", alpha, complementary) + vector(BY_FEATURE, flags) + vector(BY_LABEL)
    out += vector([-3.0, -2.5]) if complementary else b""
    return out + b"".join(vector(row, flags) for row in COUNTS)


def converted(data: bytes, tmp_path: Path, **options: Any) -> Any:
    (tmp_path / "m.bin").write_bytes(data)
    return legacy_writers.convert("mahout", tmp_path / "m.bin", **options)


FLAGS = [DENSE | RISING, DENSE | FLOATS, RISING, 0, NAMED, RISING | FLOATS | NAMED]


@pytest.mark.parametrize("flags", FLAGS)
def test_logistic_regression(flags: int, tmp_path: Path) -> None:
    """Every form of a vector; the first category is the one that the others are held against."""
    found = legacy_writers.answers(converted(logistic(flags=flags), tmp_path), {"features": X})
    powers = np.exp(np.concatenate([np.zeros((5, 1)), X @ BETA.T], 1))
    assert np.abs(found["probabilities"] - powers / powers.sum(1, keepdims=True)).max() < 1e-6
    assert np.array_equal(found["label"], powers.argmax(1))


def test_two_categories_are_a_sigmoid(tmp_path: Path) -> None:
    model = converted(logistic(BETA[:1], categories=2), tmp_path)
    found = legacy_writers.answers(model, {"features": X})["probabilities"]
    assert np.abs(found[:, 1] - 1 / (1 + np.exp(-X @ BETA[0]))).max() < 1e-6


def test_a_model_that_was_not_closed_is_said_to_be(tmp_path: Path) -> None:
    assert converted(logistic(), tmp_path).notes == ()
    assert converted(logistic(steps=5, prior="UniformPrior"), tmp_path).notes == ()
    assert converted(logistic(steps=9, prior="L2"), tmp_path).notes == ()
    assert "would still age 4 weights" in converted(logistic(steps=5, prior="L2"), tmp_path).notes[0]


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("complementary", [False, True])
def test_naive_bayes(complementary: bool, flags: int, tmp_path: Path) -> None:
    """The logarithm of smoothed shares, by label; or of the shares of all other labels, normalised."""
    x = np.array([[1, 0, 2, 0], [0, 3, 0, 1]], np.float32)
    data = bayes(complementary=complementary, flags=flags)
    found = legacy_writers.answers(converted(data, tmp_path), {"features": x})
    if complementary:
        rest = np.log((BY_FEATURE - COUNTS + 1) / (15 - BY_LABEL + 4)[:, None])
        weights = -rest / np.array([-3.0, -2.5])[:, None]
    else:
        weights = np.log((COUNTS + 1) / (BY_LABEL + 4)[:, None])
    assert np.abs(found["score"] - x @ weights.T).max() < 1e-5
    assert np.array_equal(found["label"], (x @ weights.T).argmax(1))


def test_through_the_whole_command(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    (tmp_path / "m").write_bytes(logistic())
    assert kind_of(tmp_path / "m").name == "mahout"
    done = run("export", tmp_path / "m", tmp_path / "base", "--labels", tmp_path / "names.txt")
    assert done.returncode == 0, done.stderr
    assert mserve.load(tmp_path / "base").run({"features": X})["probabilities"].shape == (5, 3)
    (tmp_path / "n").write_bytes(bayes())
    assert kind_of(tmp_path / "n").name == "mahout"


SIGNAL = struct.pack(">f", BETA[0, 0]), b"\x7f\xa0\0\0"
WIDE = struct.pack(">ii", 2, 4), struct.pack(">ii", 2, 1 << 27)
HOSTILE = [
    ("another class", text("org.apache.mahout.classifier.sgd.GradientMachine"), "cannot be converted"),
    ("another layout", logistic().replace(struct.pack(">id", 1, 0.5), struct.pack(">id", 2, 0.5)), "1 to 1"),
    ("NaN among weights", logistic(np.full((2, 4), np.nan)), "not a number"),
    ("weights too large", logistic(np.full((2, 4), 1e300)), "not a number that float32 holds"),
    ("rows for other categories", logistic(categories=7), "malformed"),
    ("a billion categories", logistic(categories=10**9), "malformed"),
    ("a NaN that signals", logistic(flags=DENSE | FLOATS).replace(*SIGNAL), "not a number"),
    ("more weights than are kept", logistic().replace(*WIDE), "at most 134217728 w"),
    ("a row of another size", logistic([[1.0, 2.0], [1.0]]), "malformed"),
    ("unknown flags", logistic(flags=DENSE | 64), "flags"),
    ("a huge vector", struct.pack(">f?B", 1, False, 0) + b"\xff\xff\xff\xff\x07" * 2, "malformed"),
    ("a huge dense vector", struct.pack(">f?B", 1, False, 1) + b"\xff\xff\xff\xff\x07", "malformed"),
    ("a size without end", struct.pack(">f?B", 1, False, 1) + b"\xff" * 9, "five bytes"),
    ("no smoothing", bayes(alpha=0), "positive"),
    ("smoothing by NaN", bayes(alpha=float("nan")), "positive"),
    ("an index too large", struct.pack(">f?B", 1, False, 2) + b"\x02\x01\x05" + b"\0" * 8, "below 2"),
]  # fmt: skip


@pytest.mark.parametrize(("why", "data", "said"), HOSTILE, ids=[h[0] for h in HOSTILE])
def test_a_bad_model_is_refused(why: str, data: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(MserveError) as caught:
        converted(data, tmp_path)
    assert said in str(caught.value)


@pytest.mark.parametrize("data", [logistic(), bayes(), bayes(complementary=True)], ids=["olr", "nb", "cnb"])
def test_every_truncation_is_refused(data: bytes, tmp_path: Path) -> None:
    for end in range(len(data) - 1):
        with pytest.raises(MserveError):
            converted(data[:end], tmp_path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
    which=st.sampled_from([logistic(), bayes(), bayes(complementary=True, flags=DENSE)]),
)
def test_any_bytes_convert_or_are_refused(
    changes: list[tuple[int, int]], which: bytes, tmp_path: Path
) -> None:
    data = bytearray(which)
    for place, value in changes:
        data[place % len(data)] = value
    try:
        converted(bytes(data), tmp_path)
    except MserveError:
        return
