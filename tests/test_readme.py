"""The README's commands, run in the order in which a reader would run them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_tools import serving

import mserve
from mserve.exporters.pipeline import Options, export

BLOCK = re.compile(r"```console\n\$ ([^\n]*)\n(.*?)```", re.DOTALL)
# What differs from one machine, or one run, to the next.
VARIES = re.compile(r"\d[\d,.]*|[0-9a-f]{12,}|─+")


def blocks(root: Path) -> Iterator[tuple[str, str]]:
    """Each command of the README and the output it shows."""
    for match in BLOCK.finditer((root / "README.md").read_text()):
        yield match[1], match[2]


@pytest.fixture
def place(root: Path, tmp_path: Path) -> Path:
    shutil.copytree(root / "samples", tmp_path / "samples")
    return tmp_path


def words(text: str) -> set[str]:
    """Every word but table headers, which are drawn on terminals only; numbers and digests aside."""
    drawn = [line for line in text.splitlines() if not line.startswith((" fact ", " signature ", " file "))]
    return set(VARIES.sub("", "\n".join(drawn)).split())


def run(root: Path, place: Path, command: str) -> str:
    """Run one of the README's commands; all that it printed."""
    program, *arguments = shlex.split(command)
    prefix = [sys.executable, "-m", "mserve"] if program == "mserve" else [sys.executable]
    done = subprocess.run(
        [*prefix, *arguments],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout + done.stderr


def test_every_command_does_what_the_readme_shows(root: Path, place: Path) -> None:
    """Each word shown, numbers aside, is printed; `serve` is running while the others ask it."""
    shown = list(blocks(root))
    commands = [command.split()[1] for command, _ in shown if command.startswith("mserve")]
    assert commands == ["export", "inspect", "validate", "diff", "serve", "gate", "bench"]
    for command, output in shown[:4]:
        assert words(output) <= words(run(root, place, command)), command
    with serving(place / "models" / "digits", place / "log") as server:
        own, theirs = f"127.0.0.1:{server.port}", "127.0.0.1:8501"
        announced = shown[4][1].replace(theirs, own)
        server.wait_until(lambda: "curl" in server.log())
        assert words(announced) <= words(server.log())
        for command, output in shown[5:]:
            printed = run(root, place, command.replace(theirs, own).replace("--qps 1000", "--qps 200"))
            # What bench finds out about this machine may differ; what it reports does not.
            expected = output if "bench" not in command else "offered achieved requests client server p50 p99"
            assert words(expected) <= words(printed), command
        server.wait_until(lambda: "version 1: unloaded" in server.log())


def test_the_signatures_file_of_the_readme_exports(root: Path, tmp_path: Path) -> None:
    toml = re.search(r"```toml\n(.*?)```", (root / "README.md").read_text(), re.DOTALL)
    assert toml is not None
    (tmp_path / "s.toml").write_text(toml[1])
    (tmp_path / "names.txt").write_text(
        "\n".join("zero one two three four five six seven eight nine".split())
    )
    options = Options(signatures=tmp_path / "s.toml", assets=[tmp_path / "names.txt"])
    result = export(root / "samples/digits/digits.onnx", tmp_path / "digits", options)
    assert set(mserve.load(result.path).signatures) == {"serving_default", "digit"}


def test_the_readme_names_the_test_command_that_ci_runs(root: Path) -> None:
    last = (root / ".ci" / "run").read_text().strip().splitlines()[-1].removeprefix("exec ")
    assert f"\n{last}\n" in (root / "README.md").read_text()
    assert "\nsh samples/quickstart.sh\n" in (root / "README.md").read_text()


def test_every_command_is_in_the_readme(root: Path) -> None:
    from mserve.cli import COMMANDS

    text = (root / "README.md").read_text()
    for name in COMMANDS:
        assert f"`mserve {name} " in text
