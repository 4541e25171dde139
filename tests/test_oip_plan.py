"""A plan answers as the long way does, or there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mserve.errors import RequestError
from mserve.tensors import Signature, TensorSpec, check_inputs
from mserve.wire import oip_json
from mserve.wire.oip import datatype_name, to_raw
from mserve.wire.oip_plan import JSON_BYTES_MAX, PLANS_MAX, Plans


def signature(**inputs: tuple[str, tuple[int | str, ...]]) -> Signature:
    ports = {alias: TensorSpec(alias, dtype, shape) for alias, (dtype, shape) in inputs.items()}
    return Signature("predict", ports, {"y": TensorSpec("y", "float32", ("batch", 2))}, 0)


def body_of(arrays: dict[str, Any], **extra: Any) -> tuple[bytes, int]:
    """A binary request, and the length of its JSON."""
    inputs, tail = [], b""
    for alias, array in arrays.items():
        raw = to_raw(array)
        tail += raw
        dtype = "string" if array.dtype.hasobject else array.dtype.name
        size = {"binary_data_size": len(raw)}
        inputs.append(
            {"name": alias, "datatype": datatype_name(dtype), "shape": array.shape, "parameters": size}
        )
    head = orjson.dumps({"inputs": inputs, **extra})
    return head + tail, len(head)


def learned(plans: Plans, body: bytes, length: int, spec: Signature) -> None:
    message = oip_json.parse(body, str(length).encode())
    plans.learn(body, length, message, "serving_default", spec)


TWO = signature(x=("float32", ("batch", 3)), n=("int64", ("batch",)))


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 5), seed=st.integers(0, 9), odd=st.integers(0, 7))
def test_a_plan_gives_the_arrays_of_the_long_way(rows: int, seed: int, odd: int) -> None:
    rng, plans = np.random.default_rng(seed), Plans()
    for _ in range(2):
        arrays = {"x": rng.random((rows, 3), np.float32), "n": rng.integers(0, 9, rows)}
        # However the JSON is padded, the tensors may lie at an odd place.
        body, length = body_of(arrays, parameters={"pad": "-" * odd})
        learned(plans, body, length, TWO)
        plan = plans.find(body, length)
        assert plan is not None
        given_back = plan.inputs(body, length)
        slow = oip_json.parse(body, str(length).encode()).arrays(TWO)
        for alias, array in arrays.items():
            np.testing.assert_array_equal(given_back[alias], array)
            np.testing.assert_array_equal(slow[alias], array)
            assert given_back[alias].flags.aligned
        assert plan.rows == check_inputs(TWO, slow) == rows


BYTES = signature(x=("int8", ("batch",)))
NONE = {
    "text has to be read": (signature(x=("string", ("batch",))), {"x": np.array(["a"], object)}, {}),
    "a bool has to be 0 or 1": (signature(x=("bool", ("batch",))), {"x": np.array([True])}, {}),
    "an id does not come again": (
        signature(x=("int8", ("batch",))),
        {"x": np.zeros(1, np.int8)},
        {"id": "7"},
    ),
    "no elements": (signature(x=("int8", ("batch",))), {"x": np.zeros(0, np.int8)}, {}),
    "a long JSON": (
        signature(x=("int8", ("batch",))),
        {"x": np.zeros(1, np.int8)},
        {"parameters": {"a": "x" * JSON_BYTES_MAX}},
    ),
}


@pytest.mark.parametrize(("spec", "arrays", "extra"), NONE.values(), ids=NONE)
def test_what_has_no_plan(spec: Signature, arrays: dict[str, Any], extra: dict[str, Any]) -> None:
    plans = Plans()
    body, length = body_of(arrays, **extra)
    learned(plans, body, length, spec)
    assert plans.find(body, length) is None


def test_a_request_that_is_wrong_is_refused_and_not_kept() -> None:
    plans = Plans()
    body, length = body_of({"x": np.zeros((2, 4), np.float32), "n": np.zeros(2, np.int64)})
    with pytest.raises(RequestError, match="wrong shape"):
        learned(plans, body, length, TWO)
    assert plans.find(body, length) is None


@pytest.mark.parametrize("change", [-1, 1, 12])
def test_tensors_of_another_size_do_not_fit_the_plan(change: int) -> None:
    plans = Plans()
    body, length = body_of({"x": np.zeros((1, 3), np.float32), "n": np.zeros(1, np.int64)})
    learned(plans, body, length, TWO)
    assert plans.find(body, length) is not None
    assert plans.find(body[:change] if change < 0 else body + b"x" * change, length) is None


def test_a_client_of_many_shapes_costs_no_memory() -> None:
    plans, spec, kept = Plans(), signature(x=("int8", ("batch",))), []
    for rows in range(1, PLANS_MAX + 20):
        body, length = body_of({"x": np.zeros(rows, np.int8)})
        learned(plans, body, length, spec)
        kept.append((body, length))
    assert sum(plans.find(*known) is not None for known in kept) <= PLANS_MAX
