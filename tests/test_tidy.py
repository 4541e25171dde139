"""Habits of the code base: size of files and functions, no leftovers, no paths of one machine."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import mserve

MAX_LINES = 400
MAX_FUNCTION_LINES = 70
MAX_POSITIONAL = 5
SKIPPED_DIRECTORIES = {"build", "dist", "__pycache__"}
# Spelled so that this file does not contain what it looks for.
LEFTOVERS = re.compile("|".join(rf"\b{a}{b}\b" for a, b in (("TO", "DO"), ("FIX", "ME"), ("XX", "X"))))
MACHINE_PATHS = re.compile(r"(?<![\w./])/" + r"(?:work|tmp|root|home|Users)" + r"/")


def python_files(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*.py"))


def functions(source: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def positional(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Parameters that may be given by position, without self and cls."""
    names = [a.arg for a in (*function.args.posonlyargs, *function.args.args)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def untidy(source: str, path: str = "") -> list[str]:
    found = [f"{len(source.splitlines())} lines"] if len(source.splitlines()) > MAX_LINES else []
    for function in functions(source):
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        if length > MAX_FUNCTION_LINES:
            found.append(f"{function.name}: {length} lines")
        # Typer makes a command's flags from its parameters; nobody calls it by position.
        flags = path.startswith("mserve/commands/") and function.name == "command"
        if positional(function) > MAX_POSITIONAL and not flags:
            found.append(f"{function.name}: {positional(function)} positional parameters")
    return found


def text_files(root: Path) -> Iterator[Path]:
    """Every text file of the repository; hidden directories other than .ci are not its own."""
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        hidden = any(p.startswith(".") and p != ".ci" for p in parts[:-1]) or parts[-1] == ".git"
        if hidden or SKIPPED_DIRECTORIES & set(parts) or "egg-info" in str(path) or not path.is_file():
            continue
        if b"\0" not in path.read_bytes():
            yield path


def test_files_and_functions_are_small(root: Path) -> None:
    paths = {p.relative_to(root).as_posix(): p for p in python_files(root / "mserve")}
    report = {name: untidy(path.read_text(), name) for name, path in paths.items()}
    assert {name: found for name, found in report.items() if found} == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("x = 1\n" * 401, ["401 lines"]),
        ("def f():\n" + "    x = 1\n" * 70, ["f: 71 lines"]),
        ("def f(a, b, c, d, e, g): ...", ["f: 6 positional parameters"]),
        ("class A:\n    def f(self, a, b, c, d, e, *, g): ...", []),
    ],
)
def test_untidy_code_is_found(source: str, found: list[str]) -> None:
    assert untidy(source) == found


def test_no_leftovers_and_no_machine_paths(root: Path) -> None:
    found = [
        f"{path.relative_to(root)}:{number}: {line.strip()}"
        for path in text_files(root)
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if LEFTOVERS.search(line) or MACHINE_PATHS.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("text", ["x = '/" + "work/a'", "see /" + "tmp/x", "# TO" + "DO: later"])
def test_leftovers_are_found(text: str) -> None:
    assert LEFTOVERS.search(text) or MACHINE_PATHS.search(text)


def test_versions_agree(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert project["version"] == mserve.__version__
    changelog = root / "CHANGELOG.md"
    if changelog.exists():
        newest = re.search(r"^## \[?(\d+\.\d+\.\d+)", changelog.read_text(), re.MULTILINE)
        assert newest is not None
        assert newest.group(1) == mserve.__version__
