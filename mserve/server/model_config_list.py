"""TensorFlow Serving's `model_config_list`: as a file in protobuf's text format, or as a message.

Read as TensorFlow Serving reads it, with three differences: a relative base path in a
file starts at the file's directory, `logging_config` is passed over with a warning
instead of stopping the server, and a list of versions may not be empty.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..format.layout import MAX_VERSION
from ..wire.messages import message
from .settings import ModelTable, Versions, model_name_problem, name_problem, show

PLATFORMS = ("", "tensorflow", "onnx")

Models = dict[str, ModelTable]


def parse_text(text: str, file: Path) -> tuple[Models, tuple[str, ...]]:
    """The models of a file, and warnings. Raises InputError."""
    from google.protobuf import text_format

    config = message("tensorflow.serving.ModelServerConfig")()
    try:
        text_format.Parse(text, config)
    except (text_format.ParseError, ValueError, RecursionError) as error:
        raise InputError(
            "the configuration is not a model_config_list in protobuf's text format",
            where=file,
            expected="model_config_list { config { name: ... base_path: ... } }",
            found=" ".join(str(error).split())[:200],
        ) from error
    return from_message(config, str(file), file.parent)


def from_message(config: Any, where: str, folder: Path | None = None) -> tuple[Models, tuple[str, ...]]:
    """The models of a ModelServerConfig, and warnings.

    Relative base paths start at `folder`; without one they are refused. No models at all
    is fine: a later configuration may bring some. Raises InputError.
    """
    if config.WhichOneof("config") == "custom_model_config":
        raise InputError(
            "custom_model_config is not supported",
            where=where,
            expected="model_config_list",
            hint="list the models in model_config_list",
        )
    models: Models = {}
    warnings: list[str] = []
    for entry in config.model_config_list.config:
        place = f"{where}: model {show(entry.name)}"
        if entry.name in models:
            raise InputError("a model is listed twice", where=place, expected="each name once")
        models[entry.name] = _model(entry, place, folder)
        if entry.HasField("logging_config"):
            warnings.append(f"{place}: logging_config is passed over; use [request_log] of mserve.toml")
    return models, tuple(warnings)


def _model(entry: Any, place: str, folder: Path | None) -> ModelTable:
    if problem := model_name_problem(entry.name):
        expected = "printable characters without '/' and ':'"
        raise InputError("this cannot be a model's name", where=place, expected=expected, found=problem)
    _check_platform(entry, place)
    labels = dict(sorted(entry.version_labels.items()))
    for label, version in labels.items():
        if name_problem(label) or version < 0:
            expected = "printable names without '/' and ':', and versions from 0"
            raise InputError(
                "bad version_labels", where=place, expected=expected, found=show({label: version})
            )
    return ModelTable(_base_path(entry, place, folder), _versions(entry, place), labels)


def _check_platform(entry: Any, place: str) -> None:
    """`model_type` is the older word for `model_platform`; 1 is TensorFlow, 2 something else."""
    if entry.model_type and entry.model_platform:
        expected = "one of model_type, which is deprecated, and model_platform"
        raise InputError("the model's platform is given twice", where=place, expected=expected, found="both")
    if entry.model_type not in (0, 1) or entry.model_platform not in PLATFORMS:
        raise InputError(
            "the model's platform is not supported",
            where=place,
            expected=", ".join(p for p in PLATFORMS if p) + " or none",
            found=show(entry.model_platform or f"model_type {entry.model_type}"),
            hint="export the model with mserve export, and name the new base path",
        )


def _base_path(entry: Any, place: str, folder: Path | None) -> Path:
    text = entry.base_path
    path = Path(text)
    usable = text and text.isprintable() and "://" not in text
    if not usable or not (path.is_absolute() or folder):
        expected = "a local directory" if folder else "the absolute path of a local directory"
        raise InputError(
            "the model's base_path cannot be used", where=place, expected=expected, found=show(text)
        )
    path = folder / path if folder else path
    if os.path.isfile(path):  # Path.is_file raises for a name that is too long
        raise InputError("the model's base_path is a file", where=place, expected="a directory", found=path)
    return path


def _versions(entry: Any, place: str) -> Versions:
    """TensorFlow Serving's policies; the newest one is the default, and 0 of the newest means 1."""
    policy = entry.model_version_policy
    match policy.WhichOneof("policy_choice"):
        case "all":
            return "all"
        case "specific":
            listed = tuple(sorted(set(policy.specific.versions)))
            if not listed or listed[0] < 0 or listed[-1] > MAX_VERSION:
                expected = "at least one version, from 0"
                raise InputError("bad specific versions", where=place, expected=expected, found=show(listed))
            return listed
        case _:
            return int(policy.latest.num_versions) or 1
