"""From the text of a command line to a target."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import UsageError
from .targets import Ask, Target

__all__ = ["Ask", "open_target"]


def open_target(target: str, ask: Ask) -> Target:
    """The target that a command line names: a URL, or the path of a bundle.

    Raises UsageError, EnvironmentProblem (nothing listens), InputError, BundleError or
    RequestError.
    """
    if re.match(r"https?://", target):
        if ask.device:
            raise UsageError("--device is for a bundle", hint="a server has its own: mserve serve --device")
        from .tfs_target import open_url

        return open_url(target, ask)
    if not Path(target).exists() and re.fullmatch(r"[\w.-]+:\d{1,5}(/.*)?", target):
        raise UsageError(
            "the target is neither a bundle nor a URL", found=target, hint=f"did you mean http://{target} ?"
        )
    if ask.model:
        raise UsageError("--model is for a URL", hint="a bundle holds one model")
    from .in_process import open_bundle_target

    return open_bundle_target(Path(target), ask)
