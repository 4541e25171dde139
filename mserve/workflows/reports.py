"""The files that a gate can write, each by the name of its option."""

from __future__ import annotations

from collections.abc import Callable

from ..compare import html
from . import junit, markdown, sarif
from .gate import Gate


def page(gate: Gate) -> str:
    """The comparison as a page of HTML, below the reasons."""
    rows = [(r.severity, r.rule, r.where, r.text) for r in gate.reasons]
    return html.page(gate.diff, f"mserve gate: {gate.sentence()}", rows)


RENDERERS: dict[str, Callable[[Gate], str]] = {
    "junit": junit.render,
    "sarif": sarif.render,
    "html": page,
    "markdown": markdown.render,
}
