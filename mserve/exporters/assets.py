"""Files that are shipped with a model: their places in the bundle, and label files that fit their outputs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import UnsafePath, UsageError
from ..files import read_text
from ..format.layout import OWN_ASSETS, safe_relative
from ..tensors import ANY_DIM, Signature


def asset_names(assets: Sequence[str | os.PathLike[str]]) -> dict[str, Path]:
    """Where each asset goes: `assets/<name>`. An asset is PATH or PATH=NAME. Raises UsageError."""
    named: dict[str, Path] = {}
    for asset in assets:
        text, _, name = os.fspath(asset).partition("=")
        path = Path(text)
        target = f"assets/{name or path.name}"
        if not path.is_file():
            raise UsageError("an asset is not a file", where=path)
        if reason := _unfit(target, named):
            raise UsageError("an asset cannot be stored", where=path, found=f"{target}: {reason}")
        named[target] = path
    return named


def _unfit(target: str, named: Mapping[str, Path]) -> str:
    """Why an asset cannot have this place, or "". A name may be neither a file nor a directory of others."""
    try:
        safe_relative(target, "")
    except UnsafePath:
        return "the name leads out of the bundle"
    if f"{target}/".startswith(f"{OWN_ASSETS}/"):
        return "the name is reserved"
    nested = any(f"{target}/".startswith(f"{n}/") or n.startswith(f"{target}/") for n in named)
    return "the name is taken" if nested else ""


def check_labels(proposed: Mapping[str, Signature], assets: Mapping[str, Path | bytes]) -> None:
    """The label files that outputs name are shipped, and have a line for each entry of the last axis.

    Raises UsageError.
    """
    for name, signature in proposed.items():
        for alias, spec in signature.outputs.items():
            if not spec.labels:
                continue
            where = f"signature {name}.outputs.{alias}"
            path = assets.get(f"assets/{spec.labels}")
            if path is None:
                known = ", ".join(n.removeprefix("assets/") for n in assets) or "no assets"
                hint = f"ship it: --asset PATH={spec.labels}"
                raise UsageError(
                    "no such label file", where=where, expected=known, found=spec.labels, hint=hint
                )
            text = path.decode() if isinstance(path, bytes) else read_text(path)
            lines, last = len(text.splitlines()), (spec.shape or (ANY_DIM,))[-1]
            if isinstance(last, int) and last != lines:
                raise UsageError(
                    "the label file does not fit",
                    where=where,
                    expected=f"{last} lines",
                    found=f"{lines} lines",
                )
