"""The command line: what it prints where, its exit codes, its errors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import mserve

SAMPLES = Path(__file__).parent.parent / "samples" / "digits"
DIGITS = SAMPLES / "digits.onnx"


def run(
    *arguments: object, stdin: bytes = b"", env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """`mserve ARGUMENTS` as a process; its output must never hold a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "mserve", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, **(env or {})},
        cwd=cwd,
    )
    text = subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())
    assert "Traceback" not in text.stderr, text.stderr
    return text


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("commands") / "digits"
    for _ in range(2):
        mserve.export(DIGITS, base)
    return base


@pytest.fixture
def version(exported: Path, tmp_path: Path) -> Path:
    """A copy of one version whose files may be changed."""
    copy = tmp_path / "digits" / "00000001"
    shutil.copytree(exported / "00000001", copy)
    for path in copy.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return copy


def test_version_and_help() -> None:
    assert run("--version").stdout == f"mserve {mserve.__version__}\n"
    text = run("--help").stdout
    for command in ("export", "inspect", "validate", "run", "list", "bench", "serve", "top", "doctor"):
        assert command in text
        assert run(command, "--help").returncode == 0


def test_help_imports_nothing_heavy() -> None:
    code = "import sys\nfrom mserve.cli import build\nbuild()\nprint(*sorted(sys.modules))"
    names = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"numpy", "onnx", "onnxruntime", "h5py", "uvloop", "prometheus_client"} & set(names)


def test_inspect_needs_neither_onnx_nor_onnxruntime_nor_numpy(exported: Path) -> None:
    code = (
        "import sys; from mserve.format import open_bundle; from mserve.commands.inspect import describe\n"
        "describe(open_bundle(sys.argv[1])); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, exported], capture_output=True, text=True, check=True)
    assert not {"numpy", "onnx", "onnxruntime", "h5py"} & set(done.stdout.split())


def test_export_prints_the_path_and_what_is_next(tmp_path: Path) -> None:
    done = run("export", DIGITS, tmp_path / "base", "--version", 7, "--name", "d", "--meta", "a=b")
    assert done.returncode == 0
    assert done.stdout == f"{tmp_path / 'base' / '00000007'}\n"
    assert "mserve serve" in done.stderr


def test_export_json(tmp_path: Path) -> None:
    asset = tmp_path / "labels.txt"
    asset.write_text("zero\none\n")
    done = run(
        "export", DIGITS, tmp_path / "base", "--json", "--asset", asset, "--asset", f"{asset}=names.txt"
    )
    facts = json.loads(done.stdout)
    assert (facts["schema"], facts["kind"], facts["version"]) == (1, "export", 1)
    assert len(facts["identity"]) == 64
    inspected = json.loads(run("inspect", tmp_path / "base", "--json").stdout)
    assert [a["name"] for a in inspected["assets"]] == ["assets/labels.txt", "assets/names.txt"]
    assert inspected["identity"] == facts["identity"]


def test_inspect_shows_shapes_and_operators(exported: Path) -> None:
    text = run("inspect", exported, "--weights").stdout
    assert "[batch, 64]" in text
    assert "Gemm x2" in text
    rows = [line.split("\t") for line in text.splitlines()]
    assert ["W1", "float32", "[64, 64]", "16.4 kB", "export-00000-of-00001"] in [row[:5] for row in rows]
    assert ["serving_default (predict, batched)", "output", "label", "int64", "[batch]", "label"] in rows


def test_inspect_json_has_every_fact(exported: Path) -> None:
    facts = json.loads(run("inspect", exported / "00000001", "--json", "--weights").stdout)
    assert facts["graph"]["parameters"] == 64 * 64 + 64 + 640 + 10 + 1
    assert facts["graph"]["operators"] == {"Gemm": 2, "Div": 1, "Relu": 1, "Softmax": 1, "ArgMax": 1}
    assert facts["provenance"]["source"]["file"] == "digits.onnx"
    assert {w["name"] for w in facts["weights"]} == {"W1", "b1", "W2", "b2", "sixteen"}


def test_list_shows_versions_and_the_newest(exported: Path, tmp_path: Path) -> None:
    rows = [line.split("\t") for line in run("list", exported).stdout.splitlines()]
    assert [(r[0], r[4]) for r in rows] == [("1", "ok"), ("2", "newest")]
    assert rows[0][3] == rows[1][3]  # the same model has the same identity
    facts = json.loads(run("list", exported, "--json").stdout)
    assert [v["version"] for v in facts["versions"]] == [1, 2]


def test_list_says_what_is_wrong_with_a_version(version: Path) -> None:
    (version / "export-00000-of-00001").unlink()
    done = run("list", version.parent)
    assert done.returncode == 0
    assert "missing" in done.stdout


def test_validate_is_content(exported: Path) -> None:
    done = run("validate", exported)
    assert done.returncode == 0
    assert done.stdout.startswith("ok: ")


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(data)


def test_validate_names_the_tensor_with_a_flipped_byte(version: Path) -> None:
    """Exit 1, the tensor, its bytes, both digests; and the answers that it changes."""
    with h5py.File(version / "export-00000-of-00001") as shard:
        offset = shard["W1"].id.get_offset()
    flip(version / "export-00000-of-00001", offset + 1003)
    done = run("validate", version)
    assert done.returncode == 1
    rows = {line.split("\t")[1]: line.split("\t") for line in done.stdout.splitlines() if "\t" in line}
    assert rows["tensor-digest"][2] == "W1"
    assert f"bytes {offset} to {offset + 16384} of export-00000-of-00001" in rows["tensor-digest"][3]
    assert rows["file-digest"][2] == "export-00000-of-00001"
    findings = json.loads(run("validate", version, "--json").stdout)
    assert not findings["ok"]
    assert {f["code"] for f in findings["findings"]} >= {"tensor-digest", "file-digest"}


def test_validate_finds_a_byte_flipped_outside_the_tensors(version: Path) -> None:
    flip(version / "export-00000-of-00001", 0)
    done = run("validate", version)
    assert done.returncode == 1
    assert "shard-layout" in done.stdout


def test_validate_finds_answers_that_moved(version: Path) -> None:
    """The recorded outputs are replaced, and their digest with them: only running the model can tell."""
    from mserve.format.golden import Golden, pack, unpack
    from mserve.format.metagraph import METADATA_PROPS, parse, read_prop, seal
    from mserve.wire import protobuf

    meta = version / "export.meta"
    metagraph = parse(meta.read_bytes(), meta)
    golden = version / "assets/mserve/golden.npz"
    sample = unpack(golden, metagraph.signatures)["serving_default"]
    moved = {**sample.outputs, "probabilities": sample.outputs["probabilities"] + np.float32(0.01)}
    golden.write_bytes(pack({"serving_default": Golden(sample.inputs, moved)}))
    import hashlib

    record = metagraph.golden
    assert record is not None
    data = meta.read_bytes()
    own = ("mserve.content", "mserve.sha256")
    body = b"".join(
        data[f.record_start : f.end]
        for f in protobuf.fields(data)
        if f.number != METADATA_PROPS or read_prop(data, f)[0] not in own
    )
    digest = hashlib.sha256(golden.read_bytes()).hexdigest()
    assert golden.stat().st_size == record.size
    meta.write_bytes(seal(body.replace(record.sha256.encode(), digest.encode())))
    done = run("validate", version)
    assert done.returncode == 1
    assert "golden-outputs\tserving_default.probabilities\t" in done.stdout
    assert run("validate", version, "--atol", "0.1").returncode == 0


def damaged(version: Path, kind: str) -> str:
    """Damage a version; return a word that the message must hold."""
    shard, meta = version / "export-00000-of-00001", version / "export.meta"
    if kind == "a truncated shard":
        shard.write_bytes(shard.read_bytes()[:-1])
        return f"{shard.stat().st_size} bytes"
    if kind == "a missing shard":
        shard.unlink()
        return "missing"
    if kind == "a changed export.meta":
        meta.write_bytes(meta.read_bytes().replace(b"Softmax", b"Sigmoid"))
        return "changed after it was written"
    if kind == "a truncated export.meta":
        meta.write_bytes(meta.read_bytes()[:-5])
        return "does not end in its digest"
    meta.unlink()
    return "export.meta"


COMMANDS = {
    "inspect": ["{v}"],
    "validate": ["{v}"],
    "run": ["{v}", "--inputs", str(SAMPLES / "heldout.json")],
    "bench": ["{v}", "--duration", "1"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "kind",
    [
        "a truncated shard",
        "a missing shard",
        "a changed export.meta",
        "a truncated export.meta",
        "no export.meta",
    ],
)
def test_every_command_refuses_a_damaged_bundle(version: Path, command: str, kind: str) -> None:
    """Exit 3, and a message with the path, what was expected and the next step."""
    word = damaged(version, kind)
    done = run(command, *(a.format(v=version) for a in COMMANDS[command]))
    assert done.returncode == 3, done.stderr
    assert word in done.stderr
    assert str(version) in done.stderr
    assert "next: " in done.stderr
    assert done.stdout == ""


REFUSED = [
    ("export of nothing", ["export", "{t}/nope.onnx", "{t}/b"], 3, ["cannot read the file", "nope.onnx"]),
    ("export of text", ["export", str(SAMPLES / "README.md"), "{t}/b"], 3, ["not an ONNX file", "README.md"]),
    ("export of a directory", ["export", "{t}", "{t}/b"], 3, ["the directory is no known source", "next: "]),
    ("a bad version", ["export", str(DIGITS), "{t}/b", "--version", "v1"], 2, ["bad version", "v1"]),
    ("a bad meta", ["export", str(DIGITS), "{t}/b", "--meta", "x"], 2, ["KEY=VALUE", "x"]),
    ("a bad shard size", ["export", str(DIGITS), "{t}/b", "--shard-size", "1XB"], 2, ["bad size", "1XB"]),
    (
        "an absent asset",
        ["export", str(DIGITS), "{t}/b", "--asset", "{t}/a"],
        2,
        ["asset is not a file", "{t}/a"],
    ),
    (
        "golden inputs that do not fit",
        ["export", str(DIGITS), "{t}/b", "--golden", "{t}/x.npz"],
        3,
        ["golden", "pixels"],
    ),
    (
        "a version that exists",
        ["export", str(DIGITS), "{b}", "--version", "2"],
        2,
        ["version 2 exists already", "auto"],
    ),
    ("a base path that is a file", ["export", str(DIGITS), str(DIGITS)], 2, ["not a directory"]),
    ("a base path below a file", ["export", str(DIGITS), f"{DIGITS}/b"], 4, ["cannot write", "next: "]),
    ("inspect of nothing", ["inspect", "{t}/nope"], 3, ["no such bundle", "nope"]),
    ("inspect of text", ["inspect", str(SAMPLES / "README.md")], 3, ["not a model", "README.md"]),
    ("inspect of an empty directory", ["inspect", "{t}/empty"], 3, ["neither", "empty"]),
    ("list of nothing", ["list", "{t}/nope"], 3, ["no such bundle"]),
    ("run without inputs", ["run", "{b}"], 2, ["--inputs"]),
    ("run on an absent file", ["run", "{b}", "--inputs", "{t}/nope.json"], 3, ["cannot read", "nope.json"]),
    ("run on a wrong npz", ["run", "{b}", "--inputs", "{t}/x.npz"], 3, ["missing 'pixels'", "unknown 'x'"]),
    ("run on a pickle in an npz", ["run", "{b}", "--inputs", "{t}/p.npz"], 3, ["npz", "objects"]),
    (
        "run of an unknown signature",
        ["run", "{b}", "--inputs", str(SAMPLES / "heldout.json"), "--signature", "s"],
        3,
        ["serving_default", "'s'"],
    ),
    ("an unknown command", ["improve"], 2, ["improve"]),
    ("an unknown option", ["inspect", "{b}", "--colour"], 2, ["--colour"]),
]


@pytest.mark.parametrize(("what", "arguments", "code", "parts"), REFUSED, ids=[r[0] for r in REFUSED])
def test_refused(
    exported: Path, tmp_path: Path, what: str, arguments: list[str], code: int, parts: list[str]
) -> None:
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "x.npz", x=np.zeros(3))
    np.savez(tmp_path / "p.npz", pixels=np.array([{}], object))
    names = {"t": tmp_path, "b": exported}
    done = run(*(a.format(**names) for a in arguments))
    assert done.returncode == code, done.stderr
    for part in parts:
        assert part.format(**names) in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "b").exists() or not any((tmp_path / "b").iterdir())


def test_run_reads_json_npz_and_standard_input(exported: Path, tmp_path: Path) -> None:
    held_out = json.loads((SAMPLES / "heldout.json").read_bytes())
    np.savez(tmp_path / "x.npz", pixels=np.array(held_out["instances"], np.float32))
    from_file = run("run", exported, "--inputs", SAMPLES / "heldout.json")
    from_stdin = run("run", exported, "--inputs", "-", stdin=(SAMPLES / "heldout.json").read_bytes())
    from_npz = run("run", exported, "--inputs", tmp_path / "x.npz", "--json", "--output", tmp_path / "y.npz")
    assert from_file.stdout == from_stdin.stdout
    labels = [p["label"] for p in json.loads(from_file.stdout)["predictions"]]
    facts: dict[str, Any] = json.loads(from_npz.stdout)
    assert facts["outputs"]["label"] == {"dtype": "int64", "shape": [50], "data": labels}
    with np.load(tmp_path / "y.npz") as saved:
        assert saved["label"].tolist() == labels
        assert saved["probabilities"].shape == (50, 10)


def test_our_own_bug_is_exit_70_and_says_how_to_report_it(exported: Path) -> None:
    code = "import sys; from mserve import cli\ncli.build = lambda: 1 / 0; sys.argv = ['mserve']; cli.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 70
    assert "ZeroDivisionError" in done.stderr
    assert "--debug" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_closed_pipe_is_no_error_message(exported: Path) -> None:
    command = f"{sys.executable} -m mserve inspect {exported} --json --weights | head -c 10"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""
