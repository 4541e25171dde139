"""From the text of a command line to a target."""

from __future__ import annotations

import re
from pathlib import Path

from ...errors import UsageError
from .target import Ask, Target

__all__ = ["Ask", "open_target"]


def open_target(target: str, ask: Ask) -> Target:
    """The target that a command line names: a URL, or the path of a bundle.

    Raises UsageError, EnvironmentProblem (nothing listens), InputError, BundleError or
    RequestError.
    """
    if re.match(r"(https?|grpcs?)://", target):
        _refuse(ask, "url")
        from ..requests.bundle_inputs import bundle_samples
        from .url_target import open_url

        given = None
        if ask.inputs is not None and ask.inputs.is_dir():
            given = bundle_samples(ask.inputs, _golden_of(ask))
        return open_url(target, ask, given)
    if not Path(target).exists() and re.fullmatch(r"[\w.-]+:\d{1,5}(/.*)?", target):
        raise UsageError(
            "the target is neither a bundle nor a URL", found=target, hint=f"did you mean http://{target} ?"
        )
    _refuse(ask, "spawn" if ask.spawn else "bundle")
    if ask.spawn:
        from .spawn import open_spawned

        return open_spawned(Path(target), ask)
    from .in_process import open_bundle_target

    return open_bundle_target(Path(target), ask)


def _golden_of(ask: Ask) -> Ask:
    from dataclasses import replace

    from ..requests.inputs import GOLDEN

    return replace(ask, inputs=GOLDEN)


# What makes no sense for each kind of target, and why.
_MISPLACED = {
    "url": (
        ("device", "--device is for a bundle", "a server has its own: mserve serve --device"),
        ("spawn", "--spawn is for a bundle", "what listens at a URL runs already"),
        ("serve_flags", "--serve-flag is for --spawn", "what listens at a URL runs already"),
    ),
    "spawn": (
        ("device", "--device is for a bundle in this process", "--serve-flag=--device=DEVICE"),
        ("ca", "--ca is for a URL", "a server that bench starts is asked without TLS"),
        ("token_file", "--token-file is for a URL", "a server that bench starts asks for none"),
        ("model", "--model is for a URL", "a bundle holds one model"),
    ),
    "bundle": (
        ("model", "--model is for a URL", "a bundle holds one model"),
        ("serve_flags", "--serve-flag is for --spawn", "without it the bundle runs in this process"),
        ("ca", "--ca is for a URL", "a bundle in this process has no connection"),
        ("token_file", "--token-file is for a URL", "a bundle in this process has no connection"),
    ),
}


def _refuse(ask: Ask, kind: str) -> None:
    """Refuse what makes no sense for a kind of target. Raises UsageError."""
    for name, what, hint in _MISPLACED[kind]:
        if getattr(ask, name):
            raise UsageError(what, hint=hint)
    if kind == "bundle" and ask.protocol != "auto":
        hint = "--spawn starts a server of the bundle and asks that"
        raise UsageError("--protocol is for a server", found=ask.protocol, hint=hint)
