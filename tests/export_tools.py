"""What the tests of converters share: an export without a child, and files that lie."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mserve
from mserve.loader.servable import Servable


def exported(source: Any, base: Path, **options: Any) -> tuple[dict[str, Any], Servable]:
    """Export in this process; what is known of the conversion, and the loaded bundle."""
    done = mserve.export(source, base, isolate=False, **options)
    return dict(done.metagraph.provenance["conversion"]), mserve.load(done.path)


def truncations(data: bytes, count: int = 40) -> Iterator[bytes]:
    """The first bytes of a file, cut at places all over it."""
    for index in range(count):
        yield data[: len(data) * index // count]
