"""The direction of imports inside mserve, and which parts may import which libraries."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# A module may import anything in the rows below its own, and itself; not its neighbours.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("commands",),
    ("workflows",),
    ("server", "bench", "compare"),
    ("exporters", "checks"),
    ("front",),
    ("batching",),
    ("loader",),
    ("runtime",),
    ("readers",),
    ("format", "foreign"),
    ("wire",),
    ("examples", "defaults"),
    ("numerics", "statistics", "rows"),
    ("tensors",),
    ("padding", "sparse", "dtypes"),
    ("files", "outfiles"),
    ("errors",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

# Library: the parts that may import it, as prefixes of paths below mserve/.
HOMES = {
    "typer": ("cli.py", "commands/"),
    "rich": ("cli.py", "commands/"),
    "PIL": ("readers/images.py",),
    # The exporter records the version of the runtime that tried the model, and only that.
    "onnxruntime": ("runtime/", "exporters/pipeline.py"),
}
HEAVY = ("numpy", "onnx", "onnxruntime", "h5py", "grpc", "prometheus_client", "uvloop")
LIGHT = (
    "mserve",
    "mserve.errors",
    "mserve.tensors",
    "mserve.format",
    "mserve.wire.protobuf",
    "mserve.commands._foreign",
    "mserve.server.labels",
    "mserve.server.watch",
)


def imports(source: str, path: str) -> Iterator[str]:
    """The absolute names that a file below mserve/ imports, wherever in the file."""
    package = ["mserve", *path.split("/")[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            head = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*head, *([node.module] if node.module else [])])
            yield from ([stem] if node.module else [f"{stem}.{alias.name}" for alias in node.names])
            if stem == "mserve":
                yield from (f"mserve.{alias.name}" for alias in node.names)


def problems(files: dict[str, str]) -> list[str]:
    """What is wrong with the imports of the given files (path below mserve/: source)."""
    found = []
    for path, source in files.items():
        own = path.split("/")[0].removesuffix(".py")
        if own != "__init__" and own not in LEVEL:
            found.append(f"{path}: {own} has no layer")
            continue
        for name in imports(source, path):
            library, _, rest = name.partition(".")
            if library in HOMES and not path.startswith(HOMES[library]):
                found.append(f"{path} imports {library}")
            other = rest.split(".")[0]
            if library != "mserve" or own in ("__init__", other) or other not in LEVEL:
                continue
            if LEVEL[other] <= LEVEL[own]:
                found.append(f"{path} imports {other}")
    return sorted(set(found))


def test_imports_point_downwards(root: Path) -> None:
    package = root / "mserve"
    files = {p.relative_to(package).as_posix(): p.read_text() for p in package.rglob("*.py")}
    assert len(files) > 10
    assert problems(files) == []


PLANTED = [
    ("format/reader.py", "from ..runtime import ort", "format/reader.py imports runtime"),
    ("format/reader.py", "from ..runtime.ort import Session", "format/reader.py imports runtime"),
    ("format/reader.py", "def f():\n    import mserve.loader.servable", "format/reader.py imports loader"),
    ("format/reader.py", "from .. import cli", "format/reader.py imports cli"),
    ("format/reader.py", "from mserve import cli", "format/reader.py imports cli"),
    ("format/reader.py", "from ..foreign import tf", "format/reader.py imports foreign"),
    ("bench/driver.py", "from ..server.http import x", "bench/driver.py imports server"),
    ("tensors.py", "from .examples import generate", "tensors.py imports examples"),
    ("numerics.py", "from .examples import generate", "numerics.py imports examples"),
    ("helpers.py", "", "helpers.py: helpers has no layer"),
    ("utils/text.py", "", "utils/text.py: utils has no layer"),
    ("loader/servable.py", "import rich.table", "loader/servable.py imports rich"),
    ("server/http.py", "from typer import Option", "server/http.py imports typer"),
    (
        "exporters/onnx_model.py",
        "def f():\n    import onnxruntime",
        "exporters/onnx_model.py imports onnxruntime",
    ),
]


@pytest.mark.parametrize(("path", "source", "problem"), PLANTED)
def test_a_planted_violation_is_found(path: str, source: str, problem: str) -> None:
    assert problems({path: source}) == [problem]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("__init__.py", "from .loader.servable import Servable"),
        ("cli.py", "import typer\nfrom .commands import export"),
        ("commands/export.py", "from rich.table import Table\nfrom ..exporters import pipeline"),
        ("exporters/pipeline.py", "from .. import __version__\nimport onnxruntime"),
        ("format/reader.py", "from . import layout\nfrom .. import errors\nfrom ..tensors import DTYPES"),
    ],
)
def test_allowed_imports_are_not_reported(path: str, source: str) -> None:
    assert problems({path: source}) == []


@pytest.mark.parametrize("module", LIGHT)
def test_a_light_module_loads_no_heavy_library(module: str) -> None:
    code = f"import sys, {module}; print(*(m for m in {HEAVY!r} if m in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
