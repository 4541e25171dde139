"""Moving a label to another version, by an edit of the configuration file.

The file is the only place where labels stand, so that a restart changes nothing. An edit
keeps comments and order, is made under a lock of the file's directory, and replaces the
file by a rename: whoever reads it sees the old or the new one.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import EnvironmentProblem, InputError, UsageError
from ..format.layout import versions
from ..format.locks import held
from .config import Source, is_model_config_list, parse, read_text
from .settings import ModelTable
from .tables import nearest

VERSIONS_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Edit:
    """What an edit made of a model's labels."""

    old: Mapping[str, int]
    new: Mapping[str, int]


def read_model(file: Path, name: str) -> ModelTable:
    """One model of a configuration file. Raises InputError, UsageError."""
    return _model(file, read_text(file), name)


def edit_labels(
    file: Path, name: str, moved: Mapping[str, int], removed: Collection[str] = (), *, force: bool = False
) -> Edit:
    """Point labels of a model at versions, and remove others.

    A version that is not there is refused unless `force`. Raises InputError, UsageError,
    EnvironmentProblem; the file is then as it was.
    """
    file = file.resolve()
    try:
        with held(file.parent):
            text = read_text(file)
            model = _model(file, text, name)
            if not force:
                _check_versions(model.base_path, moved)
            for label in removed:
                if label not in model.labels:
                    hint = nearest(label, model.labels)
                    raise UsageError("the model has no such label", where=name, found=label, hint=hint)
            labels = {n: v for n, v in {**model.labels, **moved}.items() if n not in removed}
            if labels != model.labels:
                changed = _edited(text, name, labels)
                parse(Source(file), changed)
                _replace(file, changed.encode())
    except OSError as error:
        raise EnvironmentProblem(
            "cannot change the configuration", where=error.filename or file, found=error.strerror
        ) from error
    return Edit(model.labels, labels)


def _model(file: Path, text: str, name: str) -> ModelTable:
    if is_model_config_list(file, text):
        raise UsageError(
            "labels of a model_config_list are not edited",
            where=file,
            expected="a configuration in TOML",
            hint="change version_labels by hand, or turn the file into mserve.toml",
        )
    models = parse(Source(file), text).models
    if name not in tomllib.loads(text).get("models", {}):
        hint = f'give it a table [models."{name}"] of its own' if name in models else nearest(name, models)
        raise UsageError("the configuration has no such model", where=file, found=name[:60], hint=hint)
    return models[name]


def _check_versions(base: Path, labels: Mapping[str, int]) -> None:
    try:
        there = list(versions(base))
    except OSError as error:
        raise InputError("cannot list the base path", where=base, found=error.strerror) from error
    for label, version in labels.items():
        if version not in there:
            shown = ("..., " if len(there) > VERSIONS_SHOWN else "") + ", ".join(
                map(str, there[-VERSIONS_SHOWN:])
            )
            raise UsageError(
                f"the model has no version {version}",
                where=base,
                expected=f"one of {shown}" if there else "a version; there is none yet",
                found=f"{label}={version}",
                hint="--force sets the label in advance; it answers once the version is available",
            )


def _edited(text: str, name: str, labels: Mapping[str, int]) -> str:
    """The text with other labels for a model, and nothing else changed."""
    import tomlkit

    expected = tomllib.loads(text)
    expected["models"][name]["labels"] = dict(labels)
    for change in (_one_by_one, _anew):
        document = tomlkit.parse(text)
        try:
            change(document["models"][name], labels)
            changed = tomlkit.dumps(document)
            if tomllib.loads(changed) == expected:
                return changed
        except (tomlkit.exceptions.TOMLKitError, LookupError, ValueError):
            continue  # tomlkit is not sure of tables that stand in several places
    raise UsageError(
        "the labels are written in a way that cannot be edited",
        where=name,
        hint="write them as labels = { ... } in one line",
    )


def _one_by_one(model: Any, labels: Mapping[str, int]) -> None:
    """Change the labels that differ, where they stand."""
    import tomlkit

    if "labels" not in model:
        model["labels"] = tomlkit.inline_table()
    table = model["labels"]
    for label in [label for label in table if label not in labels]:
        del table[label]
    for label, version in labels.items():
        if table.get(label) != version:
            table[label] = version


def _anew(model: Any, labels: Mapping[str, int]) -> None:
    """Write all labels in one line."""
    import tomlkit

    del model["labels"]
    model["labels"] = tomlkit.inline_table()
    model["labels"].update(labels)


def _replace(file: Path, data: bytes) -> None:
    """Replace a file's bytes by a rename, keeping its mode. The caller holds the directory's lock."""
    status = file.stat()
    # One name for all runs: what a killed run left behind is in nobody's way.
    sibling = file.with_name(f".{file.name}.new")
    sibling.unlink(missing_ok=True)
    fd = os.open(sibling, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(fd, "wb") as out:
        out.write(data)
        out.flush()
        os.chmod(sibling, status.st_mode & 0o7777)
        os.fsync(fd)
    os.replace(sibling, file)
    directory = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
