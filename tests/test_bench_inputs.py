"""What bench sends: files of every kind, golden samples, and what is made up from signatures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
from bench_targets_tools import drive, opened
from bench_tools import bench_json, canned, refused
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from server_tools import serving

import mserve
from mserve.bench.load.recorder import OK
from mserve.bench.requests.bundle_inputs import bundle_samples
from mserve.bench.requests.codecs import CODECS, Asked
from mserve.bench.requests.inputs import GOLDEN, made_up, pools
from mserve.bench.targets.endpoint import Endpoint
from mserve.bench.targets.target import Ask
from mserve.errors import InputError, MserveError, UsageError
from mserve.readers.requests import Sample, Samples, arrays_of, read_inputs
from mserve.tensors import Signature, TensorSpec, check_inputs
from mserve.wire import oip_json, tfs_json

X = Signature("predict", {"x": TensorSpec("x", "float32", ("batch", 3))}, {}, 0)


@pytest.fixture(scope="module")
def bundle(mlp_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mserve.export(mlp_file, tmp_path_factory.mktemp("inputs") / "mnist", golden=5).path


def texts(base: Path, **options: Any) -> Path:
    """A bundle that repeats text and ids."""
    kinds = {"word": TensorProto.STRING, "id": TensorProto.INT64}
    ports = [
        [helper.make_tensor_value_info(n + end, kind, ["batch"]) for end in ("", "_out")]
        for n, kind in kinds.items()
    ]
    nodes = [helper.make_node("Identity", [a.name], [b.name]) for a, b in ports]
    graph = helper.make_graph(nodes, "texts", [a for a, _ in ports], [b for _, b in ports])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return mserve.export(builders.save(model, base.parent / "texts.onnx"), base, **options).path


# files


def test_an_archive_is_one_request_or_is_cut_into_rows(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.arange(21, dtype=np.float32).reshape(7, 3))
    whole = read_inputs(tmp_path / "x.npz")
    assert [s.arrays["x"].shape for s in whole.requests] == [(7, 3)]
    cut = read_inputs(tmp_path / "x.npz", 2)
    assert [s.arrays["x"][0, 0] for s in cut.requests] == [0, 6, 12]
    with pytest.raises(InputError, match="8 rows or more"):
        read_inputs(tmp_path / "x.npz", 8)


ROW = {"instances": [[1.0, 2.0, 3.0]]}
OIP = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}


@pytest.mark.parametrize(
    ("name", "text", "forms"),
    [
        ("one.json", json.dumps(ROW), ["tfs"]),
        ("spread.json", json.dumps(ROW, indent=2), ["tfs"]),
        ("oip.json", json.dumps(OIP), ["oip"]),
        ("lines.jsonl", f"{json.dumps(ROW)}\n\n{json.dumps(OIP)}\n", ["tfs", "oip"]),
        ("lines.json", f"{json.dumps(ROW)}\n{json.dumps(ROW)}\n", ["tfs", "tfs"]),
        ("one.ndjson", json.dumps(ROW), ["tfs"]),
    ],
)
def test_json_is_read_in_both_forms(name: str, text: str, forms: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    samples = read_inputs(tmp_path / name)
    assert [s.form for s in samples.requests] == forms
    for sample in samples.requests:
        np.testing.assert_array_equal(arrays_of(sample, X)["x"], np.array([[1, 2, 3]], np.float32))


def line(time: Any, x: Any, **others: Any) -> str:
    return json.dumps({"time": time, "model": "m", "signature": "s", "inputs": {"x": x}} | others)


def test_a_request_log_is_sent_in_the_order_of_its_times(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join([line(3.5, [[3, 3, 3]]), line(1.0, [[1, 1, 1]]), line(2.25, [[2, 2, 2]])]))
    samples = read_inputs(path).mixed(seed=1)
    assert [arrays_of(s, X)["x"][0, 0] for s in samples.requests] == [1, 2, 3]
    assert {s.signature for s in samples.requests} == {"s"}
    assert "request log" in samples.source


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.jsonl", "", "no requests|not valid JSON|empty"),
        ("a.jsonl", "[1]", "not a JSON object"),
        ("a.jsonl", '{"instances": [1], "inputs": [1]}', "exactly one"),
        ("a.jsonl", '{"a": 1}', "exactly one"),
        ("a.jsonl", '{"instances": [1]}\n{"b": 1}', "a.jsonl:2"),
        ("a.json", "{", "not valid JSON"),
        ("log.jsonl", line("soon", [[1]]), "not a line of a request log"),
        ("log.jsonl", line(1, [[1]]) + "\n" + line(1, [[1]], model="n"), "several models"),
        ("log.jsonl", line(1, {"redacted": True}), "was redacted"),
        ("log.jsonl", line(1, [[1]]) + "\nnonsense", "log.jsonl:2"),
        ("bad.npz", "PK", "cannot read the npz archive"),
    ],
)
def test_files_that_hold_no_requests(name: str, text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(MserveError, match=expected):
        read_inputs(tmp_path / name)


@given(st.binary(max_size=200) | st.text(max_size=60).map(str.encode))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_read_or_refused_in_words(data: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f.jsonl"
        path.write_bytes(data)
        try:
            samples = read_inputs(path)
        except MserveError:
            return
        assert samples.requests


def test_rows_do_not_cut_json(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text(json.dumps(ROW))
    with pytest.raises(UsageError, match="--rows"):
        read_inputs(tmp_path / "f.json", 2)


def test_a_log_that_our_server_recorded_is_sent_again(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "mserve.toml").write_text(
        f'[models.mnist]\nbase_path = "{bundle.parent}"\n'
        f'[request_log]\nsample = 1.0\npath = "{tmp_path / "requests.jsonl"}"\n'
    )
    with serving(f"--config={tmp_path / 'mserve.toml'}", tmp_path / "log.txt") as running:
        for i in range(5):
            running.predict("mnist", {"instances": [[float(i)] * 784]})
        running.wait_until(lambda: (tmp_path / "requests.jsonl").read_bytes().count(b"\n") == 5)
        recorded = (tmp_path / "requests.jsonl").rename(tmp_path / "recorded.jsonl")
        for protocol in ("tfs", "oip-binary", "grpc", "tfs-grpc"):
            at = f"grpc://127.0.0.1:{running.grpc_port}" if CODECS[protocol].method else running.url
            target = opened(at, protocol=protocol, inputs=recorded, verify=True)
            assert target.describe()["distinct"] == 5
            assert drive(target, 10).counts() == {OK: 10}


# golden samples


def test_golden_samples_go_with_their_outputs(bundle: Path) -> None:
    samples = bundle_samples(bundle, Ask(rows=2, distinct=3))
    golden = mserve.load(bundle).golden["serving_default"]
    assert samples.source == "golden samples"
    assert len(samples.requests) == 3
    rows = [0, 1, 2, 3, 4, 0]
    found = np.concatenate([s.arrays["x"] for s in samples.requests])
    np.testing.assert_array_equal(found, golden.inputs["x"][rows])
    outputs = np.concatenate([s.outputs["y"] for s in samples.requests if s.outputs])
    np.testing.assert_array_equal(outputs, golden.outputs["y"][rows])


def test_golden_samples_of_a_bundle_are_sent_to_a_server(bundle: Path, tmp_path: Path) -> None:
    with serving(bundle.parent, tmp_path / "log.txt") as running:
        target = opened(running.url, inputs=bundle, verify=True)
        assert target.describe()["verified"] == "golden outputs"
        assert drive(target, 20).counts() == {OK: 20}
        offered = opened(running.url, inputs=GOLDEN)
        assert offered.describe()["inputs"] == "the server's example"
        assert drive(offered, 4).counts() == {OK: 4}
        np.savez(tmp_path / "other.npz", images=np.zeros((1, 784), np.float32))
        with pytest.raises(InputError, match=r"no such input.*expected: x; found: images"):
            opened(running.url, inputs=tmp_path / "other.npz")
        with pytest.raises(UsageError, match="--inputs BUNDLE"):
            opened(f"grpc://127.0.0.1:{running.grpc_port}", inputs=GOLDEN)


def test_golden_samples_that_are_not_there(mlp_file: Path, tmp_path: Path) -> None:
    path = mserve.export(mlp_file, tmp_path / "bare", golden=0).path
    with pytest.raises(UsageError, match="--golden"):
        bundle_samples(path, Ask(inputs=GOLDEN))


# what is made up


def test_text_is_drawn_from_an_asset_and_ids_from_golden_samples(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("alpha\nbeta\ngamma\n")
    plain = texts(tmp_path / "plain", assets=[tmp_path / "words.txt"], golden=0)
    made = bundle_samples(plain, Ask(rows=8))
    words = {w for s in made.requests for w in s.arrays["word"]}
    assert words == {"alpha", "beta", "gamma"}
    signature = mserve.load(plain).signatures["serving_default"]
    known = pools(signature, {"word": np.array(["x", "y"], object), "id": np.array([7, 900])})
    samples = made_up(signature, 20, 4, 1, known)
    assert {i for s in samples for i in s.arrays["id"]} == {7, 900}
    assert {w for s in samples for w in s.arrays["word"]} == {"x", "y"}


@given(
    st.sampled_from(["float32", "float16", "int64", "uint8", "bool", "string"]),
    st.none() | st.tuples(st.integers(-5, 0), st.integers(1, 9)),
    st.integers(1, 5),
    st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_what_is_made_up_fits_its_signature(
    dtype: str, span: tuple[int, int] | None, rows: int, seed: int
) -> None:
    if dtype in ("uint8", "bool"):
        span = (0, 1) if span else None
    spec = TensorSpec("x", dtype, ("batch", 2, "?"), range=span)
    signature = Signature("predict", {"x": spec}, {}, 0)
    samples = made_up(signature, rows, 6, seed, {})
    again = made_up(signature, rows, 6, seed, {})
    for sample, same in zip(samples, again, strict=True):
        assert check_inputs(signature, sample.arrays) == rows
        np.testing.assert_array_equal(sample.arrays["x"], same.arrays["x"])
        if span and dtype != "string":
            assert span[0] <= sample.arrays["x"].min() <= sample.arrays["x"].max() <= span[1]
    if dtype.startswith("float"):
        assert len({s.arrays["x"].tobytes() for s in samples}) == 6


def test_floats_are_as_large_as_the_known_ones() -> None:
    samples = made_up(X, 4, 3, 1, {"x": np.array([100.0, 200.0], np.float32)})
    values = np.concatenate([s.arrays["x"] for s in samples])
    assert values.min() >= 100
    assert values.max() <= 200


def test_large_requests_are_fewer_and_too_large_ones_refused() -> None:
    wide = Signature("predict", {"x": TensorSpec("x", "float32", ("batch", 1 << 21))}, {}, 0)
    assert len(made_up(wide, 1, 16, 1, {})) == 8
    with pytest.raises(MserveError, match="too large to make some up"):
        made_up(wide, 100, 16, 1, {})


def test_the_order_is_drawn_from_the_seed() -> None:
    samples = Samples([Sample({"x": np.array([i])}) for i in range(20)], "here")

    def order(seed: int) -> list[int]:
        return [int(s.arrays["x"][0]) for s in samples.mixed(seed).requests]

    assert order(1) == order(1) != order(2)
    assert sorted(order(1)) == list(range(20))
    assert order(1) != list(range(20))


# every protocol carries every dtype that it has a name for


@pytest.mark.parametrize("protocol", CODECS)
@pytest.mark.parametrize(
    "array",
    [
        np.array([[1.5, -2.25]], np.float32),
        np.array([[1, -(2**40)]], np.int64),
        np.array([[True, False]]),
        np.array([["ü", ""]], object),
        np.array([[0, 255]], np.uint8),
        np.array([[0.5, 2]], np.float64),
    ],
    ids=lambda x: str(x.dtype),
)
def test_requests_are_what_our_own_readers_read(protocol: str, array: Any) -> None:
    endpoint, asked = Endpoint("http://h:1", "http", "h", 1), Asked("m n", "/versions/3", "s")
    data = CODECS[protocol].encode(endpoint, asked, {"x": array})
    dtype = "string" if array.dtype == object else array.dtype.name
    signature = Signature("predict", {"x": TensorSpec("x", dtype, ("batch", 2))}, {}, 0)
    head, _, body = data.partition(b"\r\n\r\n")
    if protocol == "tfs":
        assert head.startswith(b"POST /v1/models/m%20n/versions/3:predict ")
        found = tfs_json.inputs_of(tfs_json.parse(body), signature)[0]
    elif protocol.startswith("oip"):
        assert head.startswith(b"POST /v2/models/m%20n/versions/3/infer ")
        length = next((v.split()[1] for v in head.split(b"\r\n") if v.startswith(b"Inference")), None)
        request = oip_json.parse(body, length)
        assert request.signature == "s"
        found = request.arrays(signature)
    else:
        found = _grpc_arrays(protocol, data, signature)
    np.testing.assert_array_equal(found["x"], array)
    assert found["x"].dtype == array.dtype


def _grpc_arrays(protocol: str, data: bytes, signature: Signature) -> Any:
    from mserve.wire import oip_proto, tfs_proto

    if protocol == "grpc":
        asked = oip_proto.decode("ModelInferRequest", data)
        assert (asked.model_name, asked.model_version) == ("m n", "3")
        return oip_proto.request(asked).arrays(signature)
    asked = tfs_proto.read("tensorflow.serving.PredictRequest", data)
    assert (asked.model_spec.name, asked.model_spec.version.value) == ("m n", 3)
    return tfs_proto.to_arrays(asked.inputs, 1 << 20)


def test_a_log_is_replayed_with_its_own_requests(tmp_path: Path) -> None:
    """In the order of arrival, which is not that of the lines; --inputs sends others at the same times."""
    log, posted = tmp_path / "requests.log", list[bytes]()
    log.write_text("\n".join([line(20.02, [[2]]), line(20.0, [[1]]), line(20.05, [[3]])]))
    pages: dict[str, Any] = {
        "GET /v1/models": (200, {"models": [{"name": "m"}]}),
        "GET /v1/models/m": (200, {"model_version_status": [{"version": "1", "state": "AVAILABLE"}]}),
        "POST /v1/models/m:predict": (200, {"predictions": [1]}),
    }
    with canned(pages, posted) as url:
        document = bench_json(url, "--replay", f"{log}@0.5", "--warmup", 0)
        assert document["reports"][0]["load"]["rate"] == pytest.approx(3 / 0.1)
        asked = [json.loads(body)["inputs"]["x"] for body in posted]
        assert asked[-3:] == [[[1]], [[2]], [[3]]]
        posted.clear()
        (tmp_path / "other.json").write_text('{"instances": [7]}')
        bench_json(url, "--replay", log, "--inputs", tmp_path / "other.json", "--warmup", 0)
        assert set(posted) == {b'{"instances": [7]}'}
        done = refused(url, "--replay", log, "--generators", 2)
        assert (done.returncode, "by one generator" in done.stderr) == (2, True)
