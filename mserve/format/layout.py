"""Names and paths: where a base path keeps its versions, and a version its files."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from ..errors import NotABundle, UnsafePath

META_FILE = "export.meta"
ASSETS_DIR = "assets"
OWN_ASSETS = "assets/mserve"
GOLDEN_FILE = "assets/mserve/golden.npz"
SERVING_FILE = "assets/mserve/serving.json"
TEMP_PREFIX = ".tmp-"
MAX_VERSION = 2**63 - 1
_SHARD = re.compile(r"export-[0-9]{5}-of-[0-9]{5}")


def version_dir(version: int) -> str:
    """The directory name of a version: eight digits or more, zero-padded."""
    return f"{version:08d}"


def parse_version(name: str) -> int | None:
    """The version that a directory name stands for, or None: any name of ASCII digits up to 2^63-1."""
    if not (name.isascii() and name.isdigit()) or len(name) > 32:
        return None
    version = int(name)
    return version if version <= MAX_VERSION else None


def shard_name(index: int, count: int) -> str:
    """The file name of shard `index` (from 0) of `count`."""
    return f"export-{index:05d}-of-{count:05d}"


def is_shard_name(name: str) -> bool:
    """Whether a name has the form of a shard's file name."""
    return _SHARD.fullmatch(name) is not None


def versions(base: Path) -> dict[int, Path]:
    """The version directories of a base path, oldest first.

    Names that are not numbers (temporary directories among them) are passed over. Where
    two names stand for one number ("1" and "00000001") the canonical, longest one counts.
    Raises OSError when the base path cannot be listed.
    """
    found: dict[int, str] = {}
    with os.scandir(base) as entries:
        for entry in entries:
            version = parse_version(entry.name)
            if version is None or len(entry.name) <= len(found.get(version, "")):
                continue
            with suppress(OSError):  # a link to itself, say, is no directory
                if entry.is_dir():
                    found[version] = entry.name
    return {version: base / found[version] for version in sorted(found)}


def resolve(path: Path) -> Path:
    """The version directory that `path` names: itself, or the newest version of a base path.

    Raises NotABundle with what was found instead.
    """
    if not path.exists():
        raise NotABundle("no such bundle", where=path, hint="give a version directory or a base path")
    if not path.is_dir():
        hint = "give a version directory or a base path"
        if path.suffix == ".onnx":
            hint = f"export it first: mserve export {path} BASE_PATH"
        raise NotABundle("a bundle is a directory", where=path, found="a file", hint=hint)
    if (path / META_FILE).exists():
        return path
    found = versions(path)
    if not found and parse_version(path.resolve().name) is not None:
        raise NotABundle(
            "the version has no export.meta",
            where=path,
            found=_listing(path),
            hint=foreign_hint(path)
            or "finish the copy, or copy the version again from where it was exported",
        )
    if not found:
        inner = sorted(p for p in path.iterdir() if p.is_dir() and versions(p))
        hint = foreign_hint(path) or "mserve export MODEL.onnx BASE_PATH writes one"
        raise NotABundle(
            "neither a version directory nor a base path",
            where=path,
            expected=f"{META_FILE}, or directories named by version numbers",
            found=_listing(path),
            hint=f"did you mean {inner[0]}?" if inner else hint,
        )
    return found[max(found)]


def foreign_hint(path: Path) -> str:
    """What to do with a directory that holds a model in another form than a bundle; "" for none."""
    try:
        names = sorted(os.listdir(path))
    except OSError:
        return ""
    if source := next((name for name in names if name.endswith(".onnx")), ""):
        return f"{source} is a model to export: mserve export {path / source} BASE_PATH"
    if "saved_model.pb" in names:
        return (
            "it is a SavedModel: convert it (python -m tf2onnx.convert --saved-model "
            f"{path} --output MODEL.onnx), then: mserve export MODEL.onnx BASE_PATH"
        )
    return ""


def _listing(path: Path) -> str:
    names = sorted(entry.name for entry in os.scandir(path))
    return ("the directory is empty" if not names else ", ".join(names[:6])) + (
        ", ..." if len(names) > 6 else ""
    )


def safe_relative(name: str, where: object) -> str:
    """Return `name` if it stays inside the bundle in every spelling. Raises UnsafePath."""
    parts = name.split("/")
    unsafe = "\\" in name or "\0" in name or any(p in ("", ".", "..") for p in parts) or ":" in parts[0]
    if unsafe or any("\ud800" <= c <= "\udfff" for c in name):  # a lone surrogate has no UTF-8 form
        raise UnsafePath(
            "a file name leads out of the bundle",
            where=where,
            expected="a relative path of plain names",
            found=repr(name),
            hint="do not use this bundle; it was not written by mserve export",
        )
    return name
