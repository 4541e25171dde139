"""TensorProto to arrays and back: both ways of carrying values, repetition of the last one, hostile bytes."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mserve.errors import MserveError, PayloadTooLarge, RequestError
from mserve.server.tfs_grpc import address
from mserve.tensors import DTYPES, Signature, TensorSpec, dtype_of
from mserve.wire.messages import message
from mserve.wire.tfs_examples import to_inputs
from mserve.wire.tfs_proto import examples_of, from_array, read, signature_def, to_arrays

TensorProto = message("tensorflow.TensorProto")
LIMIT = 1 << 20
NUMBERS = {
    name: TensorProto.DESCRIPTOR.fields_by_name["dtype"].enum_type.values_by_name[dtype.tf].number
    for name, dtype in DTYPES.items()
}


def to_array(tensor: Any, limit: int = LIMIT) -> Any:
    return to_arrays({"x": tensor}, limit)["x"]


def tensor(dtype: str, shape: list[int], **values: Any) -> Any:
    made = TensorProto(dtype=NUMBERS[dtype], **values)
    for size in shape:
        made.tensor_shape.dim.add(size=size)
    return made


def some_array(dtype: str, elements: int) -> Any:
    """Values of every kind that a dtype has, NaN's bits included."""
    if dtype == "string":
        return np.array([f"ä{i}" for i in range(elements)], object)
    target = DTYPES[dtype].to_numpy()
    if dtype == "bool":
        return np.arange(elements) % 2 == 1
    if DTYPES[dtype].bits == 4:
        return (np.arange(elements) % 8).astype(np.int8).astype(target)
    data = np.random.default_rng(elements).integers(0, 256, elements * target.itemsize, np.uint8)
    return data.view(target)


def same(a: Any, b: Any) -> bool:
    if a.dtype == object:
        return bool(a.shape == b.shape and (a == b).all())
    return bool(a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("elements", [0, 6, 300])
def test_every_dtype_round_trips_in_its_field_and_as_bytes(dtype: str, elements: int) -> None:
    array = some_array(dtype, elements).reshape(-1, 3)
    typed = TensorProto.FromString(from_array(array).SerializeToString())
    assert same(to_array(typed), array)
    if dtype != "string":
        assert not typed.tensor_content
        stored = array.astype(np.int8) if DTYPES[dtype].bits == 4 else array
        assert same(to_array(tensor(dtype, list(array.shape), tensor_content=stored.tobytes())), array)


@given(hnp.arrays(st.sampled_from(["f4", "f8", "i4", "i8", "u1", "u8", "b1"]), hnp.array_shapes(min_dims=0)))
def test_any_array_round_trips(array: Any) -> None:
    assert same(to_array(from_array(array)), array)


@given(st.lists(st.text(), max_size=5))
def test_any_text_round_trips(words: list[str]) -> None:
    array = np.array([*words, None], object)[:-1]
    assert same(to_array(from_array(array)), array)


@given(
    st.sampled_from(["float32", "int8", "int64", "bool", "float16", "string", "uint32"]),
    st.integers(1, 100),
    st.integers(0, 200),
)
def test_the_last_value_counts_for_those_that_follow(dtype: str, given_count: int, more: int) -> None:
    array = some_array(dtype, given_count)
    made = from_array(array)
    made.tensor_shape.dim[0].size = given_count + more
    assert same(to_array(made), np.concatenate([array, np.repeat(array[-1:], more)]))


@pytest.mark.parametrize(
    ("dtype", "zero"), [("float32", 0.0), ("bool", False), ("string", ""), ("float16", 0)]
)
def test_no_values_mean_zeros(dtype: str, zero: Any) -> None:
    found = to_array(tensor(dtype, [2, 2]))
    assert found.tolist() == [[zero, zero], [zero, zero]]
    assert dtype_of(found) == dtype


def test_a_scalar() -> None:
    assert to_array(tensor("float32", [], float_val=[1.5])) == np.float32(1.5)


def test_bfloat16_is_carried_as_bits() -> None:
    made = from_array(np.array([1.0, -2.0], ml_dtypes.bfloat16))
    assert list(made.half_val) == [0x3F80, 0xC000]


def test_fields_that_we_do_not_know_are_passed_over() -> None:
    data = from_array(np.array([1.5, -2.0], np.float32)).SerializeToString()
    group, resource = b"\xab\x01\x08\x05\xac\x01", b"\x72\x02\x0a\x00"
    assert to_array(TensorProto.FromString(group + data + resource + group)).tolist() == [1.5, -2.0]


BAD = [
    ("no dtype", lambda: TensorProto(float_val=[1]), "dtype that is not served"),
    ("a dtype that nobody has", lambda: TensorProto(dtype=99), "found: 99"),
    ("complex numbers", lambda: TensorProto(dtype=8), "DT_COMPLEX64"),
    ("an unknown size", lambda: tensor("float32", [-1], float_val=[1]), "no definite shape"),
    (
        "an unknown rank",
        lambda: TensorProto(dtype=1, tensor_shape={"unknown_rank": True}),
        "no definite shape",
    ),
    ("forty axes", lambda: tensor("float32", [1] * 40, float_val=[1]), "no definite shape"),
    ("too many values", lambda: tensor("int32", [2], int_val=[1, 2, 3]), "more values than its shape"),
    ("values in the wrong field", lambda: tensor("float32", [2], int_val=[1, 2]), "float_val for DT_FLOAT"),
    ("bytes of another length", lambda: tensor("float32", [2], tensor_content=b"12345"), "8 bytes"),
    ("text as bytes", lambda: tensor("string", [1], tensor_content=b"x"), "text in tensor_content"),
    ("a truth value of 2", lambda: tensor("bool", [1], tensor_content=b"\2"), "out of range"),
    ("300 as uint8", lambda: tensor("uint8", [1], int_val=[300]), "uint8: 0 to 255"),
    ("-129 as int8", lambda: tensor("int8", [1], int_val=[-129]), "int8: -128 to 127"),
    ("8 as int4", lambda: tensor("int4", [1], int_val=[8]), "int4: -8 to 7"),
    ("more bits than half has", lambda: tensor("float16", [1], half_val=[1 << 16]), "out of range"),
    ("text that is not UTF-8", lambda: tensor("string", [1], string_val=[b"\xff"]), "not UTF-8"),
]


@pytest.mark.parametrize(("why", "make", "part"), BAD, ids=[b[0] for b in BAD])
def test_bad_tensors_are_refused(why: str, make: Any, part: str) -> None:
    with pytest.raises(RequestError) as caught:
        to_array(make())
    assert part in str(caught.value), why
    assert "'x'" in str(caught.value)


LARGE = [
    ("a trillion elements of one value", tensor("float32", [10**12], float_val=[1])),
    ("a trillion elements of none", tensor("int8", [10**6, 10**6])),
    ("sizes whose product is beyond any integer", tensor("bool", [2**62] * 30, bool_val=[True])),
    ("no rows of endless width", tensor("float32", [0, 2**62, 2**62])),
    ("a long text for each element", tensor("string", [1000], string_val=[b"x" * 10_000])),
]


@pytest.mark.parametrize(("why", "made"), LARGE, ids=[x[0] for x in LARGE])
def test_a_few_bytes_cannot_ask_for_much_memory(why: str, made: Any) -> None:
    with pytest.raises(PayloadTooLarge, match="too large"):
        to_array(made)


def test_the_limit_is_for_all_inputs_together() -> None:
    one = tensor("float32", [1000], float_val=[1])
    assert len(to_arrays({"x": one, "y": one}, 8000)) == 2
    with pytest.raises(PayloadTooLarge, match="'y'"):
        to_arrays({"x": one, "y": one}, 7999)


SIGNATURE = Signature(
    "predict",
    {
        "x": TensorSpec("x", "float32", ("batch", 2), default=0.5),
        "s": TensorSpec("s", "string", None),
        "b": TensorSpec("b", "bool", ("batch",)),
    },
    {"y": TensorSpec("y", "int64", ("batch", "?"))},
    0,
)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_a_request_error(data: bytes) -> None:
    """Whatever the bytes are, only errors of ours come out."""
    with suppress(MserveError):
        request = read("tensorflow.serving.PredictRequest", data)
        address(request)
        to_arrays(request.inputs, LIMIT)


@given(
    st.integers(0, 35),
    st.lists(st.integers(-2, 2**62), max_size=5),
    st.sampled_from(
        ["float_val", "int_val", "half_val", "bool_val", "int64_val", "uint64_val", "string_val"]
    ),
    st.integers(0, 20),
    st.binary(max_size=20),
)
def test_any_tensor_is_an_array_of_its_shape_or_a_request_error(
    dtype: int, shape: list[int], field: str, count: int, content: bytes
) -> None:
    values = {field: [b"x" if field == "string_val" else 1] * count}
    made = TensorProto(dtype=dtype, tensor_content=content, **values)
    for size in shape:
        made.tensor_shape.dim.add(size=size)
    with suppress(MserveError):
        assert list(to_array(made).shape) == shape


FEATURES = st.dictionaries(
    st.sampled_from(["x", "s", "b", "z"]),
    st.one_of(
        st.lists(st.floats(width=32), max_size=4).map(lambda v: {"float_list": {"value": v}}),
        st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4).map(lambda v: {"int64_list": {"value": v}}),
        st.lists(st.binary(max_size=4), max_size=4).map(lambda v: {"bytes_list": {"value": v}}),
        st.just({}),
    ),
)


@given(st.lists(FEATURES, max_size=4), FEATURES)
def test_any_examples_are_inputs_or_a_request_error(
    examples: list[dict[str, Any]], context: dict[str, Any]
) -> None:
    made = message("tensorflow.serving.Input")()
    holder = made.example_list_with_context
    for features in [*examples, context]:
        example = holder.context if features is context else holder.examples.add()
        for name, feature in features.items():
            example.features.feature[name].CopyFrom(message("tensorflow.Feature")(**feature))
    try:
        inputs = to_inputs(*examples_of(made), SIGNATURE, LIMIT)
    except MserveError:
        return
    assert {len(x) for x in inputs.values()} == {len(examples)}


def test_a_signature_is_described() -> None:
    found = signature_def(SIGNATURE)
    assert found.method_name == "tensorflow/serving/predict"
    x = found.inputs["x"]
    assert (x.name, x.dtype, [(d.size, d.name) for d in x.tensor_shape.dim]) == (
        "x",
        1,
        [(-1, "batch"), (2, "")],
    )
    assert found.inputs["s"].tensor_shape.unknown_rank
    assert [d.name for d in found.outputs["y"].tensor_shape.dim] == ["batch", ""]
    assert to_array(found.defaults["x"]) == np.float32(0.5)
    assert set(found.defaults) == {"x"}
