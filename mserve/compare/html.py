"""A comparison as one HTML page: no script, nothing loaded from elsewhere, every text escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ..errors import printable
from .change import Change, Diff
from .markdown import sentence

MAX_ROWS = 1000
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:72em;padding:0 1em;color:#1a1a1a}
table{border-collapse:collapse;width:100%;margin:.6em 0 1.6em}
th,td{text-align:left;vertical-align:top;padding:.3em .7em;border-bottom:1px solid #ddd}
td{overflow-wrap:anywhere}
th{font-weight:600;border-bottom:2px solid #999}
pre{background:#f6f6f6;padding:.6em;overflow-x:auto;margin:.4em 0}
.breaking,.fail{color:#b00020;font-weight:600}.unknown,.inconclusive,.warn{color:#8a5a00;font-weight:600}.changed,.compatible{color:#1f4e8c}
.equal,.none{color:#3a6b35}.add{color:#22662a}.del{color:#a01c1c}
"""


def render(diff: Diff) -> str:
    """The whole page."""
    return page(diff, f"mserve diff: {diff.verdict()}")


def page(diff: Diff, title: str, above: Sequence[Sequence[str]] = ()) -> str:
    """A page with another title, and above all rows of: severity, rule, where, reason."""
    sides = [(name, side["path"], side["kind"], side.get("identity", "")) for name, side in _sides(diff)]
    levels = [(level.name, level.verdict, level.shown) for level in diff.levels]
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body><h1>{_text(title)}</h1>",
        _reasons(above),
        _table(("", "path", "kind", "identity"), [[_text(x) for x in row] for row in sides]),
        _table(("level", "verdict", ""), [[_text(n), _marked(v, v), _text(s)] for n, v, s in levels]),
    ]
    for level in diff.levels:
        if level.changes:
            parts += [f"<h2>{_text(level.name)}</h2>", _changes(level.changes)]
    return "".join([*parts, "</body></html>\n"])


def _reasons(rows: Sequence[Sequence[str]]) -> str:
    shown = [[_marked(row[0], row[0]), *map(_text, row[1:])] for row in rows]
    return _table(("", "rule", "where", "reason"), shown) if rows else ""


def _sides(diff: Diff) -> list[tuple[str, dict[str, str]]]:
    return [("OLD", dict(diff.old)), ("NEW", dict(diff.new))]


def _changes(changes: Sequence[Change]) -> str:
    rows = []
    for change in changes[:MAX_ROWS]:
        text = _text(sentence(change)) + _patch(change) + _worst(change)
        rows.append(
            [_marked(change.severity, change.severity), _text(change.rule), _text(change.where), text]
        )
    if len(changes) > MAX_ROWS:
        rows.append(["", "", "", f"and {len(changes) - MAX_ROWS} more"])
    return _table(("class", "rule", "where", "change"), rows)


def _patch(change: Change) -> str:
    lines = change.facts.get("patch", ())
    kinds = {"+": "add", "-": "del"}
    shown = "\n".join(_marked(kinds.get(line[:1], ""), line) for line in lines)
    return f"<pre>{shown}</pre>" if lines else ""


def _worst(change: Change) -> str:
    rows = change.facts.get("worst_rows", ())
    if not rows:
        return ""
    return _table(
        ("row", "old", "new", "gap"), [[_text(r[k]) for k in ("row", "old", "new", "gap")] for r in rows]
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    top = "".join(f"<th>{_text(column)}</th>" for column in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def _marked(kind: str, text: str) -> str:
    return f'<span class="{escape(kind)}">{_text(text)}</span>'


def _text(value: object) -> str:
    return escape(printable(str(value)))
