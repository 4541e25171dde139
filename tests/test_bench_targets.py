"""What bench can be pointed at: five protocols, TLS, tokens, other people's servers, and wrong turns."""

from __future__ import annotations

import json
import pickle
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
import uvloop
from bench_targets_tools import ask_all, drive, grpcio_server, opened
from bench_tools import bench_json, canned, run_bench
from hypothesis import given, settings
from hypothesis import strategies as st
from server_tools import Running, serving

import mserve
from mserve.bench.load.recorder import GRPC, OK
from mserve.bench.load.server_view import server_view
from mserve.bench.load.statistics import of_statistics
from mserve.bench.requests.codecs import CODECS
from mserve.bench.targets import oip_target, tfs_target
from mserve.errors import EnvironmentProblem, MserveError, NotFound, Unauthenticated, UsageError
from mserve.wire.messages import message

TOKEN = "open-sesame-1234"
CONFIG = """
[models.mnist]
base_path = "{base}"
[auth]
tokens = "tokens"
[tls]
cert = "cert.pem"
key = "key.pem"
"""


@pytest.fixture(scope="module")
def bundle(mlp_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mserve.export(mlp_file, tmp_path_factory.mktemp("targets") / "mnist", golden=4).path


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(bundle.parent, tmp_path_factory.mktemp("log") / "log.txt") as running:
        yield running


def url(server: Running, protocol: str) -> str:
    return f"grpc://127.0.0.1:{server.grpc_port}" if CODECS[protocol].method else server.url


# five protocols


@pytest.mark.parametrize("protocol", CODECS)
def test_each_protocol_asks_our_server_and_its_answers_are_verified(protocol: str, server: Running) -> None:
    target = opened(url(server, protocol), protocol=protocol, verify=True, rows=2)
    answers = drive(target, 64, 8)
    assert answers.counts() == {OK: 64}
    assert target.versions == {b"1": 64}
    facts = target.describe()
    assert facts["protocol"] == CODECS[protocol].title
    assert (facts["rows"], facts["distinct"]) == (2, 16)
    assert facts["verified"] == "answers before the load"


@pytest.mark.parametrize("protocol", CODECS)
def test_what_another_process_needs_is_pickled(protocol: str, server: Running) -> None:
    target = opened(url(server, protocol), protocol=protocol, verify=True)

    async def work() -> tuple[dict[int, int], dict[bytes, int]]:
        await target.start()
        copy = pickle.loads(pickle.dumps(target.description()))
        answers = await ask_all(copy, 20, 2)
        await target.close()
        return answers.counts(), copy.versions

    assert uvloop.run(work()) == ({OK: 20}, {b"1": 20})
    assert target.versions == {}


@pytest.mark.parametrize(
    ("path", "grpc", "protocol"),
    [
        ("", False, "TensorFlow Serving REST"),
        ("/v1/models/mnist/versions/1", False, "TensorFlow Serving REST"),
        ("/v2/models/mnist", False, "Open Inference REST, binary tensors"),
        ("/v2/models/mnist/versions/1/infer", False, "Open Inference REST, binary tensors"),
        ("/v2", False, "Open Inference REST, binary tensors"),
        ("", True, "Open Inference gRPC"),
        ("/mnist", True, "Open Inference gRPC"),
        ("/mnist/versions/1", True, "Open Inference gRPC"),
    ],
)
def test_the_protocol_is_seen_from_the_url_and_the_answers(
    path: str, grpc: bool, protocol: str, server: Running
) -> None:
    target = opened((url(server, "grpc") if grpc else server.url) + path)
    assert target.describe()["protocol"] == protocol
    assert drive(target, 4).counts() == {OK: 4}


def test_many_requests_share_few_sockets(server: Running) -> None:
    target = opened(url(server, "grpc"), streams=50)

    async def work() -> int:
        places = [await target.connect() for _ in range(100)]
        sockets = {id(place._channel) for place in places}  # type: ignore[attr-defined]
        for place in places:
            place.abort()
        return len(sockets)

    assert uvloop.run(work()) == 2


def test_the_command_measures_grpc_and_splits_the_server_s_time(server: Running) -> None:
    [report] = bench_json(url(server, "grpc"), "--qps", 100, "--duration", 0.3, "--warmup", 0.1)["reports"]
    assert report["requests"]["ok"] == report["requests"]["total"]
    assert set(report["server"]["phases_ms"]) == {"parse", "queue", "compute", "encode"}
    assert sum(size["batches"] for size in report["server"]["batch_rows"]) == report["server"]["batches"]


# servers that are not ours


def oip_pages(extensions: list[str]) -> dict[str, tuple[int, Any]]:
    ports = [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
    answer = {"model_name": "m", "outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "data": [1.5]}]}
    return {
        "GET /v1/models": (404, b"Not Found"),
        "GET /v2": (200, {"name": "other", "version": "1", "extensions": extensions}),
        "GET /v2/models/m/ready": (200, b""),
        "GET /v2/models/m": (200, {"name": "m", "inputs": ports, "outputs": []}),
        "POST /v2/models/m/infer": (200, answer),
    }


@pytest.mark.parametrize(
    ("extensions", "protocol"),
    [([], "Open Inference REST, JSON"), (["binary_tensor_data"], "Open Inference REST, binary tensors")],
)
def test_a_foreign_server_of_open_inference(extensions: list[str], protocol: str) -> None:
    posted: list[bytes] = []
    with canned(oip_pages(extensions), posted) as at:
        target = opened(at, model="m", rows=2, verify=True, distinct=3)
        assert drive(target, 10).counts() == {OK: 10}
    assert target.describe()["protocol"] == protocol
    assert len(set(posted)) == 3
    head = json.JSONDecoder().raw_decode(posted[0].decode("latin-1"))[0]
    assert head["inputs"][0]["shape"] == [2, 3]


def test_a_foreign_server_of_tensorflow_serving_s_grpc() -> None:
    """grpcio with one of the two services: detected, described, asked."""

    def metadata(body: bytes, context: Any) -> bytes:
        asked = message("tensorflow.serving.GetModelMetadataRequest").FromString(body)
        if asked.model_spec.name != "m":
            context.abort(__import__("grpc").StatusCode.NOT_FOUND, "no such servable")
        defs = message("tensorflow.serving.SignatureDefMap")()
        port = defs.signature_def["serving_default"].inputs["x"]
        port.name, port.dtype = "x:0", 1
        port.tensor_shape.dim.add(size=-1)
        port.tensor_shape.dim.add(size=3)
        answer = message("tensorflow.serving.GetModelMetadataResponse")()
        answer.metadata["signature_def"].value = defs.SerializeToString()
        return bytes(answer.SerializeToString())

    def predict(body: bytes, _: Any) -> bytes:
        asked = message("tensorflow.serving.PredictRequest").FromString(body)
        answer = message("tensorflow.serving.PredictResponse")()
        answer.model_spec.version.value = 42
        answer.outputs["y"].CopyFrom(asked.inputs["x"])
        return bytes(answer.SerializeToString())

    service = "tensorflow.serving.PredictionService"
    with grpcio_server({f"{service}/GetModelMetadata": metadata, f"{service}/Predict": predict}) as server:
        target = opened(server.url, model="m", rows=4, verify=True)
        assert drive(target, 50, 5).counts() == {OK: 50}
        assert target.versions == {b"42": 50}
        assert target.describe()["protocol"] == "TensorFlow Serving gRPC"
        with pytest.raises(NotFound, match="no such servable"):
            opened(server.url, model="other")
        with pytest.raises(UsageError, match="--model NAME"):
            opened(server.url)


def test_a_foreign_server_of_open_inference_over_grpc_with_typed_contents() -> None:
    def infer(body: bytes, _: Any) -> bytes:
        asked = message("inference.ModelInferRequest").FromString(body)
        answer = message("inference.ModelInferResponse")(model_name="m", model_version="7")
        x = np.frombuffer(asked.raw_input_contents[0], np.float32)
        port = answer.outputs.add(name="y", datatype="FP32", shape=[len(x)])
        port.contents.fp32_contents.extend(x.tolist())
        return bytes(answer.SerializeToString())

    def described(body: bytes, _: Any) -> bytes:
        answer = message("inference.ModelMetadataResponse")(name="m")
        answer.inputs.add(name="x", datatype="FP32", shape=[-1, 3])
        return bytes(answer.SerializeToString())

    ready = {
        name: lambda body, _, name=name: message(f"inference.{name}Response")(ready=True).SerializeToString()
        for name in ("ServerReady", "ModelReady")
    }
    methods = {f"inference.GRPCInferenceService/{n}": h for n, h in ready.items()} | {
        "inference.GRPCInferenceService/ModelMetadata": described,
        "inference.GRPCInferenceService/ModelInfer": infer,
    }
    with grpcio_server(methods) as server:
        target = opened(f"{server.url}/m", verify=True)
        assert drive(target, 30).counts() == {OK: 30}
    assert target.versions == {b"7": 30}


def test_statistics_of_a_server_without_our_metrics() -> None:
    """Triton's page: nanoseconds and counts, batches by size."""
    step = {"count": 10, "ns": 10_000_000}
    page = {
        "model_stats": [
            {
                "inference_count": 40,
                "execution_count": 10,
                "inference_stats": {"success": step, "queue": step, "compute_infer": step},
                "batch_stats": [{"batch_size": 4, "compute_infer": {"count": 10, "ns": 5_000_000}}],
            }
        ]
    }
    counters = of_statistics(page)
    assert counters is not None
    assert (counters.requests, counters.batches, counters.rows) == (10, 10, 40)
    assert counters.run_s == pytest.approx(0.005)
    assert counters.phases["compute"] == (10, pytest.approx(0.01))
    assert counters.sizes() == [{"rows_max": 4, "batches": 10}]
    for odd in (
        {},
        {"model_stats": 3},
        {"model_stats": [3]},
        {"model_stats": [{"inference_stats": {"success": 1}}]},
    ):
        assert of_statistics(odd) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["inputs", "name", "datatype", "shape", "metadata", "signature_def", "x", "dtype"]
            )
            | st.sampled_from(
                ["tensor_shape", "dim", "size", "signatures", "unknown_rank", "FP32", "DT_FLOAT"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(JSON, st.sampled_from(["", "x"]))
@settings(max_examples=300, deadline=None)
def test_metadata_of_any_form_is_understood_or_refused_in_words(value: Any, name: str) -> None:
    for read in (oip_target.signature_of, tfs_target.signature_of):
        for page in (value, {"inputs": [value]}, {"metadata": {"signature_def": {"signature_def": value}}}):
            with suppress(MserveError):
                read(page, name)


def test_a_server_s_page_of_anything_is_not_taken_for_an_example() -> None:
    """A server that answers every page with the same text has no example."""
    pages = oip_pages([]) | {"GET /v1/models/m/example": (200, b"<html>hello</html>")}
    with canned(pages) as at:
        target = opened(at, model="m")
        assert target.describe()["inputs"] == "made up"
        assert drive(target, 3).counts() == {OK: 3}


def test_our_metrics_have_phases_and_sizes_of_batches(server: Running) -> None:
    target = opened(server.url, rows=3)

    async def work() -> tuple[Any, Any]:
        before = await target.counters()
        await ask_all(target, 20)
        return before, await target.counters()

    before, after = uvloop.run(work())
    view = server_view(before, after)
    assert view is not None
    assert view["requests"] == view["batches"] == 20
    assert view["batch_rows"] == [{"rows_max": 4, "batches": 20}]
    assert list(view["phases_ms"]) == ["parse", "queue", "compute", "encode"]
    assert all(ms >= 0 for ms in view["phases_ms"].values())


# TLS and tokens


@pytest.fixture(scope="module")
def guarded(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Path]]:
    """A server behind TLS with tokens, and the folder with its files."""
    folder = tmp_path_factory.mktemp("guarded")
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(folder / "cert.pem", append=True)
    (folder / "tokens").write_text(f"# clients\n{TOKEN}\n")
    (folder / "wrong").write_text("another-token-99\n")
    (folder / "none").write_text("# nobody\n")
    (folder / "mserve.toml").write_text(CONFIG.format(base=bundle.parent))
    with serving(f"--config={folder / 'mserve.toml'}", folder / "log.txt", ready=False) as running:
        running.wait_until(lambda: "available" in running.log())
        yield running, folder


@pytest.mark.parametrize("protocol", CODECS)
def test_tls_and_a_token(protocol: str, guarded: tuple[Running, Path]) -> None:
    server, folder = guarded
    at = url(server, protocol).replace("http://", "https://").replace("grpc://", "grpcs://")
    target = opened(at, protocol=protocol, ca=folder / "ca.pem", token_file=folder / "tokens")
    assert drive(target, 20, 2).counts() == {OK: 20}
    assert TOKEN not in repr(target.describe())
    assert TOKEN not in repr(target.endpoint)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("scheme", "files", "error", "text"),
    [
        ("https", {}, EnvironmentProblem, "not trusted.*--ca CA.pem"),
        ("grpcs", {}, EnvironmentProblem, "not trusted.*--ca CA.pem"),
        ("https", {"ca": "ca.pem"}, Unauthenticated, "asks for a token.*--token-file"),
        ("grpcs", {"ca": "ca.pem"}, Unauthenticated, "asks for a token.*--token-file"),
        ("https", {"ca": "ca.pem", "token_file": "wrong"}, Unauthenticated, "does not know the token"),
        ("grpcs", {"ca": "ca.pem", "token_file": "wrong"}, Unauthenticated, "does not know the token"),
        ("https", {"ca": "ca.pem", "token_file": "none"}, MserveError, "holds no token"),
        ("https", {"ca": "tokens"}, MserveError, "no certificates"),
        ("https", {"ca": "absent"}, MserveError, "no certificates"),
        ("http", {}, EnvironmentProblem, "did you mean https://"),
        ("grpc", {}, EnvironmentProblem, "did you mean grpcs://"),
    ],
)
def test_a_guarded_server_says_what_is_missing(
    scheme: str,
    files: dict[str, str],
    error: type[MserveError],
    text: str,
    guarded: tuple[Running, Path],
) -> None:
    server, folder = guarded
    port = server.grpc_port if scheme.startswith("grpc") else server.port
    with pytest.raises(error, match=f"(?s){text}") as caught:
        opened(f"{scheme}://localhost:{port}", **{key: folder / name for key, name in files.items()})
    assert TOKEN not in str(caught.value)


# wrong turns


@pytest.mark.parametrize(
    ("scheme", "grpc", "meant"),
    [
        ("http", True, "grpc"),
        ("grpc", False, "http"),
        ("https", False, "http"),
        ("grpcs", True, "grpc"),
        ("https", True, "grpc"),
        ("grpcs", False, "http"),
    ],
)
def test_the_wrong_scheme_is_told_the_right_one(scheme: str, grpc: bool, meant: str, server: Running) -> None:
    port = server.grpc_port if grpc else server.port
    with pytest.raises(EnvironmentProblem, match=f"did you mean {meant}://127.0.0.1:{port} \\?"):
        opened(f"{scheme}://127.0.0.1:{port}")


@pytest.mark.parametrize("protocol", CODECS)
@pytest.mark.parametrize(
    ("ask", "error", "text"),
    [
        ({"model": "nope"}, NotFound, "mnist"),
        ({"signature": "nope"}, MserveError, "nope|no such signature"),
    ],
)
def test_an_unknown_model_or_signature(
    protocol: str, ask: dict[str, str], error: type[MserveError], text: str, server: Running
) -> None:
    if protocol.startswith("oip") and "signature" in ask:
        answers = drive(opened(url(server, protocol), protocol=protocol, **ask), 4)  # our page has one only
        assert answers.counts() == {404: 4}
        assert "no such signature" in answers.messages[0]
        return
    with pytest.raises(error, match=text):
        opened(url(server, protocol), protocol=protocol, **ask)


@pytest.mark.parametrize("protocol", CODECS)
def test_a_model_that_is_not_ready(protocol: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with (
        serving(tmp_path / "empty", tmp_path / "log.txt", ready=False) as running,
        pytest.raises(MserveError, match=r"not ready|does not know|no models"),
    ):
        opened(url(running, protocol), protocol=protocol)


@pytest.mark.parametrize("scheme", ["grpc", "grpcs", "https"])
def test_nothing_listens_or_what_does_is_silent_or_strange(scheme: str) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]

        def greet() -> None:
            with suppress(OSError):
                while True:
                    peer, _ = listener.accept()
                    peer.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                    peer.close()

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        with pytest.raises(EnvironmentProblem, match="speaks no protocol"):
            opened(f"{scheme}://127.0.0.1:{port}")
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
    with pytest.raises(EnvironmentProblem, match="nothing listens"):
        opened(f"{scheme}://127.0.0.1:{port}")


def test_a_server_that_dies_in_the_middle_is_reported(bundle: Path, tmp_path: Path) -> None:
    with serving(bundle.parent, tmp_path / "log.txt") as running:
        threading.Timer(2.0, running.process.kill).start()
        done = run_bench(url(running, "grpc"), "--qps", 50, "--duration", 20, "--warmup", 0.1)
    assert done.returncode == 4, done.stdout + done.stderr
    assert "the server is gone" in done.stdout


def test_all_answers_are_errors_over_grpc(server: Running, tmp_path: Path) -> None:
    np.savez(tmp_path / "wrong.npz", x=np.zeros((1, 2), np.float32))
    answers = drive(opened(url(server, "grpc"), inputs=tmp_path / "wrong.npz"), 6)
    assert answers.counts() == {GRPC + 3: 6}
    assert "wrong shape" in answers.messages[0]


def test_a_tls_server_without_http2_is_no_target_of_grpcs(guarded: tuple[Running, Path]) -> None:
    server, folder = guarded
    with pytest.raises(EnvironmentProblem, match="did you mean https://"):
        opened(f"grpcs://localhost:{server.port}", ca=folder / "ca.pem")
    assert ssl.create_default_context().verify_mode == ssl.CERT_REQUIRED
