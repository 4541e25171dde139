"""The table of the kinds of sources, and how a source finds its own."""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any

from ..errors import EnvironmentProblem, UsageError
from .kinds import Kind, Seen

GROUP = "mserve.exporters"
FALLBACK = "onnx"
# The modules of this package that hold a KIND, in the order in which they are asked.
MODULES = (
    "onnx_model",
    "tables.table",
    "trees.xgboost_model",
    "trees.lightgbm_model",
    "linear.liblinear",
    "linear.libsvm",
    "linear.libfm",
    "legacy.torch7_model",
    "legacy.caffe_model",
    "spark.spark_model",
    "legacy.theano_model",
    "legacy.mahout_model",
    "trees.catboost_model",
    "pytorch.torch_script",
    "pytorch.torch_program",
    "pytorch.torch_weights",
    "pytorch.torch_pickle",
    "pytorch.torch_factory",
    "sklearn.skops_model",
    "sklearn.sklearn_model",
    "tensorflow.saved_model",
    "tensorflow.session_bundle",
    "tensorflow.metagraph",
    "keras_model",
)


@dataclass(frozen=True, slots=True)
class Listed:
    """A kind as `export --list` shows it. `compares`: whether the framework is there to compare with;
    `problem` says why a third party's cannot be used.
    """

    name: str
    what: str
    installed: bool
    compares: bool
    pip: str
    runs_code: str
    problem: str = ""


@cache
def _own() -> tuple[Kind, ...]:
    return tuple(importlib.import_module(f"{__package__}.{name}").KIND for name in MODULES)


@cache
def _others() -> tuple[tuple[Kind, ...], tuple[tuple[str, str], ...]]:
    """The kinds of third parties, and the name and reason of each that cannot be used."""
    kinds: list[Kind] = []
    problems = []
    for entry in sorted(entry_points(group=GROUP), key=lambda e: e.name):
        try:
            kind = entry.load()
        except Exception as error:  # whatever another's module may raise
            problems.append((entry.name, f"{type(error).__name__}: {error}"))
            continue
        if not isinstance(kind, Kind):
            problems.append((entry.name, f"{entry.value} is not a mserve.exporters.kinds.Kind"))
        elif any(kind.name == known.name for known in (*_own(), *kinds)):
            problems.append((entry.name, f"the name {kind.name!r} is taken"))
        else:
            kinds.append(kind)
    return tuple(kinds), tuple(problems)


def kinds() -> tuple[Kind, ...]:
    """Every kind: mserve's own in the order of the table, then those of third parties by name."""
    return (*_own(), *_others()[0])


def named(name: str) -> Kind:
    """The kind that `--from NAME` means. Raises UsageError."""
    known = {kind.name: kind for kind in kinds()}
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else "mserve export --list says more on each"
        raise UsageError("no such kind of source", expected=", ".join(known), found=name, hint=hint)
    return known[name]


def kind_of(source: Any) -> Kind:
    """The first kind that knows the source by its content, or an object by its class.

    What nobody knows is ONNX's to refuse, which says what it looks like.
    """
    if isinstance(source, str | os.PathLike):
        seen = Seen(os.fspath(source))
        found = next((kind for kind in kinds() if kind.matches(seen)), None)
    else:
        found = next((kind for kind in kinds() if kind.accepts is not None and kind.accepts(source)), None)
    return found or named(FALLBACK)


def missing(kind: Kind) -> list[str]:
    """The modules that a conversion of this kind needs and that are not installed."""
    return [name for name in kind.modules if not _is_installed(name)]


def _is_installed(module: str) -> bool:
    try:
        spec = find_spec(module)
        return spec is not None and spec.origin is not None  # a bare directory is not the package
    except (ImportError, ValueError):
        return False


def pip_line(kind: Kind) -> str:
    """What installs what the kind needs, or is compared with; "" if that is nothing."""
    if not kind.extra:
        return ""
    own = kind in _own()
    return f"pip install 'mserve[{kind.extra}]'" if own else f"pip install {kind.extra}"


def check_ready(kind: Kind, *, where: object, trust: bool) -> None:
    """Refuse what would run code unasked (UsageError), then what lacks its extra (EnvironmentProblem)."""
    if kind.runs_code and not trust:
        raise UsageError(
            f"opening {kind.what} runs code that lies in it",
            where=where,
            expected="--trust, if you know who made it",
            found=kind.runs_code,
            hint="with --trust it runs in a process of its own, without network where the system allows",
        )
    if absent := missing(kind):
        raise EnvironmentProblem(
            f"to convert {kind.what}, more must be installed",
            where=where,
            expected=", ".join(kind.modules),
            found=f"not installed: {', '.join(absent)}",
            hint=pip_line(kind),
        )


def _compares(kind: Kind) -> bool:
    """Whether a conversion can be held to the framework's own answers here."""
    if kind.compares:
        return not missing(kind) and _is_installed(kind.compares)
    return kind.answers and bool(kind.modules) and not missing(kind)


def listing() -> Sequence[Listed]:
    """Every kind, and what is wrong with third parties' that cannot be used."""
    rows = [
        Listed(
            kind.name,
            kind.what,
            not missing(kind),
            _compares(kind),
            pip_line(kind),
            kind.runs_code,
        )
        for kind in kinds()
    ]
    return rows + [Listed(name, "", False, False, "", "", problem) for name, problem in _others()[1]]
