"""A side that is a SavedModel, converted so that it can be asked."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .model import SAVED_MODEL, Model, open_model


@contextmanager
def runnable(model: Model) -> Iterator[Model]:
    """The model itself, or a bundle of it that goes with the context.

    Raises EnvironmentProblem where what converts it is not installed, and what the conversion raises.
    """
    if model.kind != SAVED_MODEL:
        yield model
        return
    from ..exporters.pipeline import Options, export

    with tempfile.TemporaryDirectory(prefix="mserve-diff-") as directory:
        done = export(str(model.path), Path(directory) / "model", Options())
        yield open_model(done.path)
