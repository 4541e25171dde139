"""Converting sources that are not ONNX: found by content, trusted or not, isolated, held to their answers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_exporter
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mserve
from mserve.exporters import conversion, isolation, sources
from mserve.exporters.kinds import ConvertOptions, Seen
from mserve.exporters.verify import difference

Export = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of installed distributions, with the fake exporter in it."""
    path = tmp_path_factory.mktemp("site") / "packages"
    fake_exporter.install(path)
    return path


@pytest.fixture
def export(site: Path, tmp_path: Path) -> Export:
    """Run `mserve export` on a file of the given text, with the fake exporter installed."""

    def run(text: str | bytes, *arguments: object) -> subprocess.CompletedProcess[str]:
        source = tmp_path / "source.bin"
        source.write_bytes(text if isinstance(text, bytes) else text.encode())
        path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH", "")])])
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "mserve",
                "export",
                str(source),
                str(tmp_path / "base"),
                *map(str, arguments),
            ],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": path, "SECRET": "of the parent"},
            check=False,
        )

    return run


def nothing_published(tmp_path: Path) -> bool:
    return not list((tmp_path / "base").glob("*")) if (tmp_path / "base").exists() else True


def test_a_third_partys_source_is_found_converted_and_compared(export: Export, tmp_path: Path) -> None:
    done = export("FAKE fine")
    assert done.returncode == 0, done.stderr
    assert "answers equal those of fake 1.0 within 0 (14 rows)" in done.stderr
    bundle = tmp_path / "base" / "00000001"
    assert (bundle / "assets" / "words.txt").read_bytes() == b"zero\none\n"
    x = np.array([[1.5, -2.0]], np.float32)
    assert mserve.load(bundle).run({"x": x})["doubled"].tolist() == [[3.0, -4.0]]
    facts = json.loads(run("inspect", bundle, "--json").stdout)
    assert facts["provenance"]["source"]["kind"] == "fake"
    written = facts["provenance"]["conversion"]
    assert written.pop("network") is (isolation.without_network() == ())
    assert written == {
        "converter": f"mserve {mserve.__version__}",
        "versions": {"fake": "1.0"},
        "compared_with": "fake 1.0",
        "max_error": 0.0,
        "tolerance": 1e-5,
        "rows": 14,
    }
    assert facts["signatures"]["serving_default"]["batch_axis"] == 0
    assert run("validate", bundle).returncode == 0


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mserve", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_the_same_source_gives_the_same_bytes(export: Export, tmp_path: Path) -> None:
    identities = {json.loads(export("FAKE fine", "--json").stdout)["identity"] for _ in range(2)}
    assert len(identities) == 1


BAD = [
    ("unlike", (), 1, ["does not answer as its source", "output doubled", "by up to 0.0001"]),
    ("frozen", (), 1, ["lost the batch axis", "each independent"]),
    ("summed", (), 1, ["lost the batch axis"]),
    ("unknown", (), 3, ["found: ParseExampleV2, StringSplitV2, acme.Odd", "convert again"]),
    ("crash", (), 3, ["died", "SIGSEGV", "--no-isolate"]),
    ("exit", (), 3, ["died", "exit status 7"]),
    ("raise", (), 3, ["converting a fake model failed", "RuntimeError: the framework is unhappy"]),
    ("raise", ("--no-isolate",), 3, ["RuntimeError: the framework is unhappy"]),
    ("hungry", (), 3, ["ran out of memory"]),
    ("link", (), 3, ["source.bin"]),
    ("fine", ("--clip", "0,1"), 2, ["clip says nothing about a fake model", "expected: task"]),
    ("fine", ("--clip", "1,0"), 2, ["bad --clip"]),
    ("fine", ("--from", "fale"), 2, ["no such kind of source", "did you mean fake?"]),
]


@pytest.mark.parametrize(("mode", "flags", "code", "said"), BAD)
def test_a_bad_conversion_publishes_nothing(
    mode: str, flags: tuple[str, ...], code: int, said: list[str], export: Export, tmp_path: Path
) -> None:
    done = export(f"FAKE {mode}", *flags)
    assert done.returncode == code, done.stderr
    assert all(text in done.stderr for text in said), done.stderr
    assert nothing_published(tmp_path)
    assert not (tmp_path / "escaped").exists()


def test_a_tolerance_accepts_what_the_default_refuses(export: Export) -> None:
    done = export("FAKE unlike", "--tol", "1e-3")
    assert done.returncode == 0, done.stderr
    assert "within 0.0001" in done.stderr


def test_without_the_framework_nothing_is_claimed(export: Export, tmp_path: Path) -> None:
    done = export("FAKE alone", "--json")
    assert done.returncode == 0
    assert "not compared with its source's own answers" in done.stderr
    facts = json.loads(run("inspect", tmp_path / "base", "--json").stdout)["provenance"]["conversion"]
    assert (facts["max_error"], facts["compared_with"], facts["rows"]) == (None, "", 0)


def test_a_check_file_stands_in_for_the_framework(export: Export, tmp_path: Path) -> None:
    x = np.ones((3, 2), np.float32)
    np.savez(tmp_path / "good.npz", x=x, doubled=x.astype(np.float64) * 2)
    np.savez(tmp_path / "bad.npz", **{"inputs/x": x, "outputs/doubled": x})
    np.savez(tmp_path / "other.npz", z=x)
    good = export("FAKE alone", "--check", tmp_path / "good.npz")
    assert "answers equal those of the check file within 0 (3 rows)" in good.stderr
    bad = export("FAKE alone", "--check", tmp_path / "bad.npz")
    assert (bad.returncode, "6 of 6 values, by up to 1: 2, not 1, at [0, 0]" in bad.stderr) == (1, True)
    other = export("FAKE alone", "--check", tmp_path / "other.npz")
    assert (other.returncode, "does not fit the model" in other.stderr) == (2, True)


def test_examples_are_compared_and_recorded(export: Export, tmp_path: Path) -> None:
    np.savez(tmp_path / "example.npz", x=np.arange(8, dtype=np.float32).reshape(4, 2))
    assert "(5 rows)" in export("FAKE fine", "--example", tmp_path / "example.npz").stderr
    with np.load(tmp_path / "base/00000001/assets/mserve/golden.npz") as golden:
        assert golden["serving_default/inputs/x"].ravel().tolist() == list(range(8))
    np.savez(tmp_path / "example.npz", y=np.zeros((4, 2), np.float32))
    done = export("FAKE fine", "--example", tmp_path / "example.npz")
    assert (done.returncode, "example inputs are not the model's" in done.stderr) == (3, True)


def test_a_signatures_file_still_meets_the_comparison(export: Export, tmp_path: Path) -> None:
    toml = tmp_path / "s.toml"
    toml.write_text(
        '[signatures.serving_default]\ninputs.a = { tensor = "x" }\noutputs.b = { tensor = "y" }\n'
    )
    assert export("FAKE fine", "--signatures", toml).returncode == 0
    assert export("FAKE unlike", "--signatures", toml).returncode == 1


def test_labels_and_options_reach_the_bundle(export: Export, tmp_path: Path) -> None:
    assert export("FAKE labels").returncode == 0
    facts = json.loads(run("inspect", tmp_path / "base", "--json").stdout)
    assert facts["signatures"]["serving_default"]["outputs"]["doubled"]["labels"] == "words.txt"
    assert "note: task sigmoid" in export("FAKE task", "--task", "sigmoid").stderr
    assert export("FAKE derived").returncode == 0


@pytest.mark.skipif(isolation.without_network() == (), reason="this system makes no user namespaces")
def test_the_child_has_no_network_and_little_environment(export: Export) -> None:
    said = export("FAKE reach").stderr
    assert "no network: Network is unreachable" in said
    assert "secret None" in said
    assert "home " in said
    assert str(Path.home()) + "\n" not in said


def test_without_isolation_it_runs_here(export: Export) -> None:
    assert "secret of the parent" in export("FAKE reach", "--no-isolate").stderr


PAYLOAD = "CODE \nopen({marker!r}, 'w').close()\n"


def test_a_planted_payload_stays_inert_without_trust(export: Export, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    for flags in ((), ("--no-isolate",), ("--from", "fake-code")):
        done = export(PAYLOAD.format(marker=str(marker)), *flags)
        assert done.returncode == 2
        assert "runs code that lies in it" in done.stderr
        assert "found: every line of the file, as Python" in done.stderr
        assert "--trust" in done.stderr
        assert not marker.exists()
    assert nothing_published(tmp_path)
    done = export(PAYLOAD.format(marker=str(marker)), "--trust")
    assert done.returncode == 0, done.stderr
    assert marker.exists()


@pytest.mark.parametrize(
    ("result", "why"),
    [
        ("[]", "an object"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("{}", "no sensible result"),
        ('{"model": "/etc/passwd"}', "no sensible result"),
        ('{"error": "SystemExit", "what": "boo"}', "boo"),
        ('{"error": "UsageError", "what": "say which"}', "say which"),
    ],
)
def test_what_trusted_code_leaves_behind_is_read_as_hostile(
    result: str, why: str, export: Export, tmp_path: Path
) -> None:
    code = f"CODE \nimport os\nopen('result.json', 'w').write({result!r})\nos._exit(0)\n"
    done = export(code, "--trust")
    assert done.returncode in (2, 3), done.stderr
    assert why in done.stderr
    assert nothing_published(tmp_path)


GOOD = {
    "model": "model.onnx",
    "signatures": {"serving_default": fake_exporter.SIGNATURE.to_json()},
    "assets": {},
    "notes": [],
    "versions": {},
    "compared_with": "",
    "trials": [],
    "seconds": 1.0,
    "memory_kib": 1,
}


@pytest.mark.parametrize(
    "change",
    [
        {"model": "../../model.onnx"},
        {"model": 5},
        {"signatures": {"serving_default": {}}},
        {"signatures": []},
        {"assets": {"a": "/etc/passwd"}},
        {"assets": ["a"]},
        {"trials": [{"file": "gone.npz", "signature": "serving_default", "outputs": []}]},
        {"trials": [{"file": "model.onnx", "signature": "other", "outputs": []}]},
        {"trials": 3},
        {"seconds": "long"},
        {"versions": None},
    ],
    ids=str,
)
def test_each_part_of_a_result_is_checked(change: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(fake_exporter.twice().SerializeToString())
    assert conversion._source("here", GOOD, tmp_path, network=False).signatures
    with pytest.raises(mserve.errors.MserveError):
        conversion._source("here", GOOD | change, tmp_path, network=False)


def test_a_conversion_that_takes_too_long_is_ended(site: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    (tmp_path / "m").write_bytes(b"FAKE sleep")
    job = {"kind": "fake", "source": str(tmp_path / "m"), "options": {}, "limits": {}}
    (tmp_path / "job.json").write_text(json.dumps(job))
    with pytest.raises(mserve.errors.InputError, match="takes too long"):
        isolation.run(tmp_path, seconds=3)


def test_a_missing_extra_names_the_pip_line(export: Export) -> None:
    done = export("MISSING one")
    assert done.returncode == 4
    assert "found: not installed: acme_frame" in done.stderr
    assert "next: pip install acme-frame" in done.stderr


def test_the_list_shows_every_source(export: Export, site: Path) -> None:
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH", "")])])
    words = [sys.executable, "-m", "mserve", "export", "--list"]
    environment = os.environ | {"PYTHONPATH": path}
    text = subprocess.run(words, capture_output=True, text=True, env=environment, check=True).stdout
    document = subprocess.run([*words, "--json"], capture_output=True, env=environment, check=True).stdout
    rows = {row["name"]: row for row in json.loads(document)["exporters"]}
    assert [name for name in rows if not name.startswith(("fake", "taken", "no-kind", "broken"))] == [
        kind.name for kind in sources._own()
    ]
    assert rows["fake-missing"]["installed"] is False
    assert rows["fake-missing"]["pip"] == "pip install acme-frame"
    assert rows["fake-code"]["runs_code"] == "every line of the file, as Python"
    assert "ModuleNotFoundError" in rows["broken"]["problem"]
    assert rows["taken"]["problem"] == "the name 'onnx' is taken"
    assert "is not a mserve.exporters.kinds.Kind" in rows["no-kind"]["problem"]
    assert all(f"{name}\t" in text for name in rows)


def test_an_object_of_an_unknown_class_is_refused(base: Path) -> None:
    with pytest.raises(mserve.errors.InputError, match="cannot be exported"):
        mserve.export(object(), base)
    with pytest.raises(mserve.errors.UsageError, match="no such keyword"):
        mserve.export(object(), base, trusted=True)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300), name=st.sampled_from(["m", "m.csv", "m.json", "m.zip"]))
def test_detection_bears_any_bytes(data: bytes, name: str, tmp_path: Path) -> None:
    for prefix in (b"", b"PK\x03\x04", b"{", b"tree\n", b"\x80\x04", b"\x08"):
        path = tmp_path / name
        path.write_bytes(prefix + data)
        assert sources.kind_of(path).name


def test_detection_looks_at_nothing_that_it_should_not(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        for name in ("fifo", "loop", "s", "gone", "nul\0", "x" * 5000):
            seen = Seen(str(tmp_path / name))
            assert (seen.head, seen.names, seen.is_file, seen.is_dir) == (b"", (), False, False)
            assert sources.kind_of(str(tmp_path / name)).name == "onnx"
    assert Seen(str(tmp_path)).names == ("fifo", "loop", "s")


@pytest.mark.parametrize(
    ("expected", "actual", "error", "why"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0, ""),
        ([1000.0], [1000.005], 5e-6, ""),
        ([0.0], [1e-4], 1e-4, "by up to 0.0001"),
        ([np.nan, np.inf], [np.nan, np.inf], 0.0, ""),
        ([np.inf], [1.0], np.inf, "inf"),
        ([1.0], [np.nan], np.inf, "inf"),
        ([], [], 0.0, ""),
        ([1, 2], [1, 3], np.inf, "1 of 2 values differ, such as 3, not 2, at [1]"),
        ([[1.0]], [1.0], np.inf, "shape [1], not [1, 1]"),
    ],
)
def test_errors_are_relative_above_one(expected: Any, actual: Any, error: float, why: str) -> None:
    found, reason = difference(np.array(expected), np.array(actual), 1e-5)
    assert found == pytest.approx(error, rel=1e-3)
    assert (why in reason) if why else not reason


def test_a_conversion_option_has_a_default() -> None:
    assert ConvertOptions().isolate
    assert not ConvertOptions().trust
