"""`mserve bench` as its users meet it: processes, sockets, argument orders, bad input."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import builders
import jsonschema
import numpy as np
import pytest
from bench_tools import bench_json, canned, command, eventually, refused, run_bench, running_bench
from server_tools import Running, serving

import mserve
import mserve.bench
from mserve.bench.targets.endpoint import parse_url
from mserve.bench.targets.tfs_target import signature_of
from mserve.cli import with_qps_value
from mserve.commands.bench import parse_qps
from mserve.errors import MserveError, UsageError

QUICK = ("--duration", 0.3, "--warmup", 0.1)
PREDICT = "POST /v1/models/m:predict"
READY = {"model_version_status": [{"version": "3", "state": "AVAILABLE"}]}


@pytest.fixture(scope="module")
def bundle(mlp_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mserve.export(mlp_file, tmp_path_factory.mktemp("bench") / "mnist", golden=4).path


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(bundle.parent, tmp_path_factory.mktemp("log") / "log.txt") as running:
        yield running


# arguments


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        ("bench B --qps", "bench B --qps auto"),
        ("bench --qps B", "bench --qps auto B"),
        ("bench B --qps --json", "bench B --qps auto --json"),
        ("bench --json B --qps", "bench --json B --qps auto"),
        ("bench --qps --json B", "bench --qps auto --json B"),
        ("--debug bench --qps B", "--debug bench --qps auto B"),
        ("bench B --qps 200", "bench B --qps 200"),
        ("bench --qps 200 B", "bench --qps 200 B"),
        ("bench --qps 1.5e3 B", "bench --qps 1.5e3 B"),
        ("bench --qps .5 B", "bench --qps .5 B"),
        ("bench --qps -5 B", "bench --qps -5 B"),
        ("bench B --qps=200", "bench B --qps=200"),
        ("bench --qps 1k B", "bench --qps 1k B"),
        ("bench B --qps auto", "bench B --qps auto"),
        ("bench B --qps 100:500:100", "bench B --qps 100:500:100"),
        ("bench --qps http://h:1 --seed 2", "bench --qps auto http://h:1 --seed 2"),
        ("bench -- --qps", "bench -- --qps"),
        ("bench B", "bench B"),
        ("run B --qps", "run B --qps"),
        ("", ""),
    ],
)
def test_a_bare_qps_gets_a_value(given: str, parsed: str) -> None:
    assert with_qps_value(given.split()) == parsed.split()


@pytest.mark.parametrize(
    ("text", "rates"),
    [
        (None, []),
        ("auto", []),
        ("200", [200.0]),
        ("0.5", [0.5]),
        ("100:500:200", [100.0, 300.0, 500.0]),
        ("100:450:200", [100.0, 300.0]),
        ("0.1:0.3:0.1", [0.1, 0.2, pytest.approx(0.3)]),
        ("5:5:1", [5.0]),
    ],
)
def test_rates_are_read(text: str | None, rates: list[float]) -> None:
    assert parse_qps(text) == rates


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "nan", "inf", "x", "1:2", "1:2:0", "2:1:1", "1:2:3:4", "1:9999:0.1", "a:b:c"]
)
def test_other_rates_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_qps(text)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["B", "--qps=abc"], "bad --qps"),
        (["B", "--qps", "-5"], "bad --qps"),
        (["B", "--qps", "10", "--slo", "p99"], "bad --slo"),
        (["B", "--qps", "10", "--concurrency", "2"], "exclude each other"),
        (["B", "--slo", "p99=1ms"], "closed loop says nothing"),
        (["B", "--qps", "10", "--arrivals", "regular"], "no such arrivals"),
        (["B", "--arrivals", "bursty:99:1"], "no such arrivals"),
        (["B", "--concurrency", "0"], "bad --concurrency"),
        (["B", "--concurrency", "4:2:1"], "bad --concurrency"),
        (["B", "--concurrency", "1:4"], "bad --concurrency"),
        (["B", "--qps", "10", "--replay", "log"], "--replay has a rate of its own"),
        (["B", "--replay", "log@fast"], "bad --replay"),
        (["B", "--generators", "2"], "one generator"),
        (["B", "--scenario", "interactive"], "no such scenario"),
        (["B", "--scenario", "server", "--qps", "10"], "one --slo"),
        (["B", "--scenario", "server", "--slo", "p99=1ms"], "a rate"),
        (["B", "--scenario", "offline", "--qps", "10"], "only the server scenario"),
        (["B", "--scenario", "server", "--qps", "--slo", "p99=1ms"], "at most one rate"),
        (["B", "--queries", "10"], "--queries is for a scenario"),
        (["B", "--loadgen"], "--loadgen is for a scenario"),
        (["B", "--publish", "D"], "--publish is for --during-reload"),
        (["B", "--qps", "--during-reload", "B"], "goes with a rate"),
        (["B", "--qps", "0.1", "--duration", "1"], "too few"),
        (["localhost:1"], "http://localhost:1"),
        (["http://127.0.0.1:1/x"], "not one of a model"),
        (["B", "--spawn", "--device", "cpu"], "--device is for"),
        (["http://127.0.0.1:1", "--spawn"], "--spawn is for"),
        (["grpc://127.0.0.1:1", "--ca", "f.pem"], "grpcs://"),
        (["B", "--ca", "f.pem"], "--ca is for"),
        (["B", "--spawn", "--token-file", "f"], "--token-file is for"),
        (["B", "--serve-flag", "--port=1"], "--serve-flag is for"),
        (["B", "--protocol", "grpc"], "--spawn starts a server"),
        (["http://127.0.0.1:1", "--protocol", "grpc"], "grpc://HOST:PORT"),
        (["grpc://127.0.0.1:1", "--protocol", "oip"], "http://HOST:PORT"),
        (["http://127.0.0.1:1", "--protocol", "soap"], "no such protocol"),
        (["B", "--duration", "0"], "duration"),
        ([], "TARGET"),
    ],
)
def test_wrong_usage_is_exit_2(arguments: list[str], text: str) -> None:
    done = refused(*arguments)
    assert done.returncode == 2
    assert text in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("url", "host", "port", "model", "rest"),
    [
        ("http://h", "h", 80, "", ""),
        ("http://h:8501/", "h", 8501, "", ""),
        ("https://h/v1/models", "h", 443, "", ""),
        ("http://h:1/v1/models/m", "h", 1, "m", ""),
        ("http://h:1/v1/models/m%20n:predict", "h", 1, "m n", ""),
        ("http://[::1]:1/v1/models/m/versions/3", "::1", 1, "m", "/versions/3"),
        ("http://h:1/v1/models/m/labels/stable:predict", "h", 1, "m", "/labels/stable"),
    ],
)
def test_urls_are_read(url: str, host: str, port: int, model: str, rest: str) -> None:
    endpoint, name, versions = parse_url(url)
    assert (endpoint.host, endpoint.port, name, versions) == (host, port, model, rest)


# what is measured


def test_closed_loop_of_a_server(server: Running) -> None:
    document = bench_json(server.url, *QUICK, "--concurrency", 4)
    assert set(document) == {
        *("schema", "kind", "environment", "search", "stopped", "scenario", "loadgen", "reports", "notes"),
        "assertions",
    }
    assert document["kind"] == "bench"
    assert document["search"] is None
    environment = document["environment"]
    assert {"cpu", "cpus", "python", "onnxruntime", "load_average", "command", "mserve"} <= set(environment)
    assert environment["command"].startswith("mserve bench http://")
    [report] = document["reports"]
    assert set(report) == {
        *("target", "load", "slo", "verdict", "requests", "rates", "latency", "uncorrected"),
        *("client", "little", "server", "busy", "versions", "warmup", "windows", "cold_start_ms", "swaps"),
        "notes",
    }
    assert report["load"]["loop"] == "closed"
    assert report["load"]["concurrency"] == 4
    assert "not valid for latency-SLO claims" in report["verdict"]["reason"]
    assert report["requests"]["ok"] == report["requests"]["total"] > 20
    assert report["requests"]["errors"] == []
    assert report["versions"] == {"1": report["requests"]["total"]}
    assert report["server"]["requests"] == report["requests"]["total"]
    assert report["server"]["mean_batch_rows"] >= 1.0
    assert report["warmup"]["requests"] > 0
    assert report["target"]["model"] == "mnist"
    assert any("share this machine" in note for note in report["notes"])


def test_open_loop_of_a_server(server: Running) -> None:
    done = run_bench(f"{server.url}/v1/models/mnist", *QUICK, "--qps", 100, "--arrivals", "constant")
    assert done.returncode == 0, done.stderr
    rows = dict(line.split("\t", 1) for line in done.stdout.splitlines() if "\t" in line)
    assert rows["requests"] == "30: 30 ok, 0 failed"
    assert rows["offered"] == "100.0/s"
    assert rows["load"] == "open loop, constant, 100/s for 0.3 s, seed 1"
    assert rows["answered by"] == "version 1: 30"
    assert "verdict: " in done.stdout
    assert "open loop" in done.stderr


@pytest.mark.slow
def test_search_on_a_server(server: Running) -> None:
    slow = ("--slo", "p50=2s")  # any machine meets it, up to its capacity
    document = bench_json(server.url, "--qps", *slow, "--duration", 0.3, "--warmup", 0.2)
    search = document["search"]
    assert search["rate"] > 1
    assert [p["rate"] for p in search["probes"]] == [r["load"]["rate"] for r in document["reports"]]
    confirmed = [p for p in search["probes"] if p["rate"] == search["rate"] and p["step"] == "confirm"]
    assert [p["outcome"] for p in confirmed] == ["pass"] * 3
    assert confirmed[0]["reason"] == "pass: p50=2s, errors=0"


def test_a_bundle_in_process(bundle: Path) -> None:
    [report] = bench_json(bundle.parent, *QUICK, "--qps", 100, "--rows", 3, "--slo", "p50=10s")["reports"]
    identity = mserve.load(bundle).bundle.metagraph.identity
    assert report["target"]["identity"] == identity
    assert report["target"]["rows"] == 3
    assert report["versions"] == {"1": report["requests"]["ok"]}
    assert report["server"]["requests"] == report["requests"]["total"]
    assert report["server"]["mean_batch_rows"] >= 3.0
    assert report["rates"]["rows"] == pytest.approx(3 * report["rates"]["ok"])
    assert report["verdict"]["code"] in ("pass", "unstable", "inconclusive")


def test_the_closed_loop_in_process(bundle: Path) -> None:
    [report] = bench_json(bundle, *QUICK)["reports"]
    assert report["requests"]["ok"] == report["requests"]["total"] > 100
    assert report["server"]["mean_queue_ms"] >= 0.0


@pytest.mark.slow
def test_the_search_in_process(bundle: Path) -> None:
    found = run_bench("--qps", bundle, "--slo", "p50=2s", "--duration", 0.3, "--warmup", 0.2)
    assert found.returncode == 0, found.stderr
    assert "highest rate: " in found.stdout.splitlines()[-2]


def test_a_sweep_of_connections_is_labelled_as_closed(bundle: Path) -> None:
    done = run_bench(bundle, "--concurrency", "1:3:2", *QUICK)
    assert done.returncode == 0, done.stderr
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["closed, 1", "closed, 3"]
    assert done.stdout.count("closed loop: not valid") == 2


def test_a_server_s_own_request_log_is_replayed(bundle: Path, tmp_path: Path) -> None:
    log, config = tmp_path / "requests.jsonl", tmp_path / "mserve.toml"
    config.write_text(
        f'[models.mnist]\nbase_path = "{bundle.parent}"\n[request_log]\npath = "{log}"\nsample = 1\n'
    )
    with serving(f"--config={config}", tmp_path / "log.txt") as running:
        bench_json(running.url, "--qps", 50, "--arrivals", "constant", "--duration", 1, "--warmup", 0)
        eventually(lambda: log.exists() and log.read_bytes().count(b"\n") >= 51)
        recorded = tmp_path / "recorded.jsonl"  # the replay is logged too
        recorded.write_bytes(log.read_bytes())
        [report] = bench_json(running.url, "--replay", f"{recorded}@2", "--warmup", 0.2)["reports"]
    assert report["requests"]["ok"] == report["requests"]["total"] >= 51
    assert report["load"]["arrivals"].startswith("replay of ")
    assert 1 / report["load"]["duration_s"] * report["requests"]["total"] == pytest.approx(
        report["load"]["rate"], rel=0.01
    )


def test_warm_up_by_itself_is_reported(server: Running) -> None:
    [report] = bench_json(server.url, "--qps", 300, "--duration", 0.3, "--max-warmup", 1.5)["reports"]
    warmup = report["warmup"]
    assert 0.4 < warmup["seconds"] <= 1.5
    assert warmup["end"]
    assert report["cold_start_ms"] > 0


def test_a_sweep_has_a_row_for_each_rate(bundle: Path) -> None:
    done = run_bench(bundle, "--qps", "50:150:50", *QUICK)
    assert done.returncode == 0, done.stderr
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["50/s", "100/s", "150/s"]


@pytest.mark.parametrize("kind", ["npz", "json rows", "json columns"])
def test_given_inputs_are_sent(kind: str, server: Running, bundle: Path, tmp_path: Path) -> None:
    x = builders.floats(2, 784)
    path = tmp_path / ("inputs.npz" if kind == "npz" else "inputs.json")
    if kind == "npz":
        np.savez(path, x=x)
    else:
        path.write_text(json.dumps({"instances": x.tolist()} if "rows" in kind else {"inputs": x.tolist()}))
    for target in (server.url, bundle):
        done = bench_json(target, *QUICK, "--qps", 50, "--inputs", path, "--signature", "serving_default")
        [report] = done["reports"]
        assert report["requests"]["ok"] == report["requests"]["total"]
        assert report["server"]["mean_batch_rows"] >= 2.0


def test_rows_repeat_the_server_s_example(server: Running) -> None:
    [report] = bench_json(server.url, *QUICK, "--qps", 50, "--rows", 5)["reports"]
    assert report["target"]["rows"] == 5
    assert report["server"]["mean_batch_rows"] >= 5.0


# servers that are not ours

METADATA = {
    "metadata": {
        "signature_def": {
            "signature_def": {
                "serving_default": {
                    "inputs": {
                        "x": {
                            "dtype": "DT_FLOAT",
                            "tensor_shape": {"dim": [{"size": "-1"}, {"size": "3"}]},
                            "name": "x:0",
                        },
                        "word": {
                            "dtype": "DT_STRING",
                            "tensor_shape": {"dim": [{"size": "-1"}]},
                            "name": "w:0",
                        },
                    },
                    "method_name": "tensorflow/serving/predict",
                },
                "__saved_model_init_op": {"inputs": {}, "outputs": {}},
            }
        }
    }
}


def test_a_plain_tensorflow_serving_is_asked_from_its_metadata() -> None:
    posted: list[bytes] = []
    pages = {
        "GET /v1/models/m": (200, READY),
        "GET /v1/models/m/metadata": (200, METADATA),
        PREDICT: (200, {"predictions": [1, 2]}),
    }
    with canned(pages, posted) as url:
        [report] = bench_json(url, "--model", "m", "--qps", 50, *QUICK, "--rows", 2)["reports"]
    assert report["requests"]["ok"] == report["requests"]["total"]
    assert report["server"] is None
    assert report["versions"] == {}
    body = json.loads(posted[0])
    assert len(body["instances"]) == 2
    assert len(body["instances"][0]["x"]) == 3
    assert isinstance(body["instances"][0]["word"], str)
    assert len(set(posted)) > 1


@pytest.mark.parametrize(
    ("page", "name", "text"),
    [
        ({}, "", "not understood"),
        ({"metadata": {"signature_def": {"signature_def": {}}}}, "", "no such signature"),
        (METADATA, "other", "no such signature"),
    ],
)
def test_metadata_that_does_not_help_is_refused(page: dict[str, Any], name: str, text: str) -> None:
    with pytest.raises(MserveError, match=text):
        signature_of(page, name)


@pytest.mark.parametrize(
    ("pages", "arguments", "code", "text"),
    [
        ({"GET /v1/models": (200, b"<html>")}, [], 4, "speaks no protocol"),
        ({"GET /v1/models": (200, {"hello": 1})}, [], 4, "speaks no protocol"),
        ({}, [], 2, "--model NAME"),
        ({"GET /v1/models": (200, {"models": []})}, [], 4, "no models"),
        ({"GET /v1/models": (200, {"models": [{"name": "a"}, {"name": "b"}]})}, [], 2, "a, b"),
        ({"GET /v1/models": (200, {"models": [{"name": "a"}, {"name": "b"}]})}, ["--model", "c"], 3, "a, b"),
        ({}, ["--model", "c"], 3, "does not know"),
        (
            {"GET /v1/models/m": (200, {"model_version_status": [{"version": "1", "state": "LOADING"}]})},
            ["--model", "m"],
            4,
            "version 1: LOADING",
        ),
        ({"GET /v1/models/m": (200, READY)}, ["--model", "m"], 4, "--inputs F.json"),
    ],
)
def test_a_server_that_does_not_say_enough(
    pages: dict[str, Any], arguments: list[str], code: int, text: str
) -> None:
    with canned(pages) as url:
        done = refused(url, *arguments)
    assert done.returncode == code, done.stderr
    assert text in done.stderr
    assert done.stdout == ""


def test_something_that_is_not_http_is_named() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def greet() -> None:
            for _ in range(2):  # bench knocks once to learn the address, then asks
                peer, _ = listener.accept()
                with peer, suppress(OSError):
                    peer.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                    peer.recv(1000)

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        done = refused(f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread.join(10)
    assert done.returncode == 4
    assert "speaks no protocol" in done.stderr
    assert "SSH" in done.stderr


# bad luck


def test_nothing_listens() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    done = refused(f"http://127.0.0.1:{port}")
    assert done.returncode == 4
    assert "nothing listens" in done.stderr
    assert f"mserve serve BASE_PATH --port {port}" in done.stderr


def test_a_path_that_is_no_bundle(tmp_path: Path) -> None:
    done = refused(tmp_path / "nothing", "--qps", 10)
    assert done.returncode == 3
    assert "nothing" in done.stderr


def test_an_unknown_model_is_answered_with_the_known_ones(server: Running) -> None:
    done = refused(server.url, "--model", "nope")
    assert done.returncode == 3
    assert "mnist" in done.stderr


def test_a_model_that_is_not_ready(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with serving(tmp_path / "empty", tmp_path / "log.txt", ready=False) as running:
        done = refused(running.url)
    assert done.returncode == 4
    assert "not ready" in done.stderr


def test_all_answers_are_errors(server: Running, tmp_path: Path) -> None:
    inputs = tmp_path / "wrong.json"
    inputs.write_text('{"instances": [[1.0, 2.0]]}')
    for arguments in (["--qps", 50, *QUICK], QUICK, ["--qps", "--warmup", 0.2]):
        done = run_bench(server.url, "--inputs", inputs, *arguments)
        assert done.returncode == 1, done.stderr
        assert "failed: status 400" in done.stdout
        assert "wrong shape" in done.stdout
        assert "every request failed" in done.stdout


@pytest.mark.parametrize(
    ("name", "content"),
    [("missing.json", None), ("text.json", '"rows"'), ("other.json", '{"a": 1}'), ("bad.npz", "x")],
)
def test_bad_input_files_are_exit_3(
    name: str, content: str | None, server: Running, bundle: Path, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    for target in (server.url, bundle):
        done = run_bench(target, "--inputs", path)
        assert done.returncode == 3, done.stderr


def test_the_server_dies_in_the_middle(bundle: Path, tmp_path: Path) -> None:
    with (
        serving(bundle.parent, tmp_path / "log.txt") as running,
        running_bench(running.url, "--qps", 100, "--warmup", 0, "--duration", 20) as process,
    ):
        eventually(lambda: "mserve_requests_total" in running.get("/metrics").body.decode())
        time.sleep(0.5)
        running.process.kill()
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 4
    assert "verdict: stopped: the server is gone" in out
    assert "failed: connection" in out or "failed: unsent" in out
    assert not re.search(r"failed: \w+ +[\d,]+: *$", out, re.MULTILINE), "each failure has its reason"
    assert " ok, " in out


def test_ctrl_c_prints_the_report_so_far(server: Running) -> None:
    with running_bench(server.url, "--qps", 100, "--warmup", 0, "--duration", 60) as process:
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "verdict: stopped: interrupted" in out
    assert " 0 failed" in out


def test_a_client_that_was_held_up_says_that_the_run_is_invalid(server: Running) -> None:
    with running_bench(server.url, "--qps", 200, "--warmup", 0, "--duration", 2) as process:
        time.sleep(0.7)
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.4)
        process.send_signal(signal.SIGCONT)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "verdict: INVALID: the client itself was late" in out
    assert "p99\t" not in out


# what a run leaves behind, and what it demands


def test_a_run_leaves_its_files(bundle: Path, tmp_path: Path, root: Path) -> None:
    places = {name: tmp_path / f"run.{name}" for name in ("report", "csv", "hdr", "junit")}
    options = [x for name, path in places.items() for x in (f"--{name}", path)]
    demands = ("--assert", "p50<10s", "--assert", "qps>20")
    document = bench_json(bundle, "--qps", 100, "--slo", "p50=10s", *QUICK, *options, *demands)
    schema = json.loads((root / "tests" / "golden" / "bench.schema.json").read_text())
    jsonschema.validate(document, schema)
    assert [a["holds"] for a in document["assertions"]] == [True, True]
    assert document["environment"]["seed"] == 1
    assert document["environment"]["network"] == "in process"
    assert document["environment"]["interference"]["seconds"] > 0
    assert places["report"].read_text().startswith("<!doctype html>")
    assert len(places["csv"].read_text().splitlines()) == document["reports"][0]["requests"]["total"] + 1
    assert "Tag=corrected" in places["hdr"].read_text()
    assert "<testsuite" in places["junit"].read_text()
    assert len(list(tmp_path.iterdir())) == 4


def test_an_assertion_that_does_not_hold_is_exit_1(bundle: Path) -> None:
    done = run_bench(bundle, "--qps", 100, *QUICK, "--assert", "qps>1000000", "--assert", "p99.9<1s")
    assert done.returncode == 1
    assert "mserve: qps>1000000: does not hold: " in done.stderr
    assert "mserve: p99.9<1s: cannot be told: needs 10000 samples" in done.stderr
    assert "verdict: measured" in done.stdout


def test_a_result_that_proves_nothing_is_a_warning_and_strictly_a_failure(bundle: Path) -> None:
    few = ("--qps", 50, "--duration", 2, "--warmup", 0.1, "--slo", "p99.9=10s")
    lenient, strict = run_bench(bundle, *few), run_bench(bundle, *few, "--strict")
    assert (lenient.returncode, strict.returncode) == (0, 1)
    assert "verdict: INCONCLUSIVE" in lenient.stdout
    assert "warning: INCONCLUSIVE" in lenient.stderr


@pytest.mark.parametrize("place", ["missing/r.html", "."])
def test_a_file_that_cannot_be_written_is_refused_before_the_run(
    place: str, bundle: Path, tmp_path: Path
) -> None:
    done = refused(bundle, "--report", tmp_path / place)
    assert done.returncode == 4
    assert done.stdout == ""
    assert "loop" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_objective_that_nothing_can_meet(bundle: Path) -> None:
    done = run_bench(bundle, "--qps", "--slo", "p99=1us", "--warmup", 0.2)
    assert done.returncode == 1
    assert "highest rate: none" in done.stdout
    assert "the fastest of" in done.stdout


def test_a_terminal_shows_what_happens_while_it_runs(bundle: Path) -> None:
    """Numbers of the last seconds on stderr, when that is a terminal; the result stays on stdout."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(bundle, "--qps", 100, "--warmup", 0.2, "--duration", 1.5),
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # a terminal whose other end is closed is an error on Linux
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "open loop" in shown.decode()
    assert re.search(r"/s, p50 .* p99 .* answered, 0 failed", shown.decode())
    assert "answered, 0 failed" not in out
    assert "verdict: " in out


def test_every_option_is_told_of_in_the_readme(root: Path) -> None:
    options = set(re.findall(r"^  (--[\w-]+)", refused("--help").stdout, re.MULTILINE)) - {"--help"}
    measure = (root / "README.md").read_text().split("**Measure.**")[1].split("## The commands")[0]
    assert len(options) > 40
    assert {option for option in options if not re.search(rf"{option}(?![\w-])", measure)} == set()


def test_every_module_is_told_of_in_the_package_s_docstring(root: Path) -> None:
    listed = re.findall(r"^    ([a-z_]+(?:, [a-z_]+)*)  *", mserve.bench.__doc__ or "", re.MULTILINE)
    names = [name for line in listed for name in line.split(", ")]
    modules = {path.stem for path in (root / "mserve" / "bench").rglob("*.py")} - {"__init__"}
    assert sorted(names) == sorted(modules)


@pytest.mark.parametrize(
    "options",
    [
        ("--scenario", "single-stream"),
        ("--during-reload", "load"),
        ("--generators", 2),
        ("--concurrency", "1:4:1"),
    ],
)
def test_a_comparison_has_rounds_of_its_own(options: tuple[object, ...]) -> None:
    done = refused("http://127.0.0.1:1", "--aa", *options)
    assert done.returncode == 2
    assert "rounds of its own" in done.stderr
