"""Base paths that a directory holds: what `mserve serve DIRECTORY` and `[server] models` serve."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from ..errors import BundleError, UsageError
from ..format import META_FILE, open_bundle
from ..format.layout import versions
from .settings import model_name_problem


def is_directory_of_models(path: Path, name: str) -> bool:
    """Whether a path holds base paths, and is not one itself, or may become one.

    Raises UsageError for a path that can never be served, and for a name given to many models.
    """
    if path.is_file():
        hint = f"export it first: mserve export {path} BASE_PATH, then: mserve serve BASE_PATH"
        raise UsageError("serve takes a base path, not a file", where=path, hint=hint)
    if (path / META_FILE).exists():
        raise UsageError(
            "this is one version, not a base path", where=path, hint=f"mserve serve {path.resolve().parent}"
        )
    if not path.is_dir() or versions(path):
        return False
    inner = models_in(path)[0]
    if inner and name:
        raise UsageError("--name is for one model", where=path, found=", ".join(inner))
    return bool(inner)


def models_in(directory: Path, known: Collection[Path] = ()) -> tuple[dict[str, Path], list[str]]:
    """The base paths in a directory by name, and a sentence for each that cannot be served.

    Of the base paths that are known from before one stays as long as its directory does, and
    all stay while nothing at all is found: a disk that is not mounted must not take every
    model away.
    """
    before = {path.name: path for path in known if path.parent == directory}
    try:
        inner = sorted(d for d in directory.iterdir() if os.path.isdir(d) and not d.name.startswith("."))
    except OSError as error:
        found: list[Path] = []
        problems = [f"cannot list {directory}: {error.strerror}"]
    else:
        found, problems = [d for d in inner if d.name in before or _holds_versions(d)], []
    models = {d.name: d for d in found if not model_name_problem(d.name)}
    problems += [
        f"{d} is not served: its name cannot be a model's: {problem}"
        for d in found
        if (problem := model_name_problem(d.name))
    ]
    return models or before, problems


def _holds_versions(path: Path) -> bool:
    try:
        return bool(versions(path))
    except OSError:
        return False


def recorded_name(base: Path) -> str:
    """The name recorded at export in the newest version that can be read, else the directory's."""
    try:
        for path in reversed(list(versions(base).values())):
            try:
                if name := open_bundle(path).metagraph.name:
                    return name
            except BundleError:
                continue
    except OSError:
        pass
    return base.resolve().name
