"""Validate: a bundle in, findings out.

A bundle that cannot be opened is not a finding but an error (exit 3). Everything here
looks at what an open bundle promises and whether it is so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

from ..format import Bundle
from .answers import answers
from .files import digests, shards
from .findings import CODES, ERROR, WARNING, Finding, Tolerance
from .graph import checker, divisions, inference, unused

DEFAULT_TOLERANCE = Tolerance()
__all__ = ["CODES", "ERROR", "WARNING", "Finding", "Tolerance", "validate"]


def validate(
    bundle: Bundle,
    tolerance: Tolerance = DEFAULT_TOLERANCE,
    *,
    full: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Finding]:
    """All findings about an open bundle; `full` adds the checks that run the model many times.

    `progress` is told which check begins.
    """
    steps: dict[str, Callable[[], Iterator[Finding]]] = {
        "digests": lambda: digests(bundle),
        "shard layout": lambda: shards(bundle),
        "graph": lambda: chain(checker(bundle), divisions(bundle)),
        "answers": lambda: answers(bundle, tolerance, full=full),
    }
    if full:
        steps |= {"shape inference": lambda: inference(bundle), "unused weights": lambda: unused(bundle)}
    findings: list[Finding] = []
    for name, step in steps.items():
        progress(name)
        findings += step()
    return findings
