"""The assets level: files beside the model, text by its lines, and what a model says of itself.

A vocabulary is a list whose line numbers are the model's input, or output: a line that is inserted gives
every later one another number. Lines that both files have, in one order, are the longest increasing run;
the others were moved. The work is that of sorting.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..files import read_input
from ..format.serving import read_serving
from ..numerics import show_bytes
from .change import ASSETS, Change, Level
from .model import Asset, Model

MAX_TEXT_BYTES = 64 << 20
SHOWN_LINES = 5
SHOWN_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Lines:
    """How two lists of lines differ; numbers count from 0. `shifted` lines of both have another number."""

    removed: list[int]
    inserted: list[int]
    moved: list[int]
    shifted: int


def compare(old: Model, new: Model) -> Level:
    """The changes of assets, golden samples and metadata. Raises OSError, InputError."""
    if old.assets is None or new.assets is None:
        return Level(ASSETS, skipped="an ONNX file has no assets")
    changes = list(_files(old.assets, new.assets, _labels(old) | _labels(new)))
    summary = f"{len(old.assets)} -> {len(new.assets)} file(s)"
    golden = [m.bundle.metagraph.golden if m.bundle else None for m in (old, new)]
    was, now = (record.sha256[:16] if record else "none" for record in golden)
    if old.bundle and new.bundle and was != now:
        changes.append(Change("golden-changed", "golden samples", "others are recorded", was, now))
    was, now = (_serving(m) for m in (old, new))
    if old.bundle and new.bundle and was != now:
        changes.append(Change("serving-changed", "serving defaults", "are others", was, now))
    for key in sorted({*old.metadata, *new.metadata}):
        was, now = old.metadata.get(key, ""), new.metadata.get(key, "")
        if was != now:
            was, now = (text[:SHOWN_CHARACTERS] or "(none)" for text in (was, now))
            changes.append(Change("metadata", key, "is another", was, now))
    return Level(ASSETS, tuple(changes), summary)


def _serving(model: Model) -> str:
    """What a bundle says of its batches."""
    said = read_serving(model.bundle).to_json() if model.bundle else {}
    return ", ".join(f"{key} {value}" for key, value in said.items()) or "none"


def _labels(model: Model) -> set[str]:
    """Assets whose lines name the entries of an output."""
    outputs = (spec for s in model.signatures.values() for spec in s.outputs.values())
    return {f"assets/{spec.labels}" for spec in outputs if spec.labels}


def _files(old: Mapping[str, Asset], new: Mapping[str, Asset], labels: set[str]) -> Iterator[Change]:
    for name in sorted({*old, *new}):
        was, now = old.get(name), new.get(name)
        if was is None and now is not None:
            yield Change("asset-added", name, f"a new file of {show_bytes(now.size)}")
        elif was is not None and now is None:
            yield Change("asset-removed", name, f"a file of {show_bytes(was.size)} is gone")
        elif was is not None and now is not None and not _equal(was, now):
            yield _changed(name, was, now, is_labels=name in labels)


def _equal(was: Asset, now: Asset) -> bool:
    return was.size == now.size and was.digest() == now.digest()


def _changed(name: str, was: Asset, now: Asset, *, is_labels: bool) -> Change:
    sizes = (show_bytes(was.size), show_bytes(now.size))
    lines = [_lines(asset) for asset in (was, now)]
    if lines[0] is None or lines[1] is None:
        return Change("asset-changed", name, "has other bytes", *sizes)
    found = differing(lines[0], lines[1])
    only_appended = not (found.removed or found.moved or found.shifted)
    rule = "lines-appended" if only_appended else "labels-moved" if is_labels else "lines-changed"
    parts = [
        f"{len(numbers):,} line(s) {what}"
        for what, numbers in (
            ("inserted", found.inserted),
            ("removed", found.removed),
            ("moved", found.moved),
        )
        if numbers
    ]
    text = ", ".join(parts) or "other line ends"
    if found.shifted:
        text += f"; {found.shifted:,} line(s) have another number"
    facts = {
        "removed": _shown(lines[0], found.removed),
        "inserted": _shown(lines[1], found.inserted),
        "moved": _shown(lines[1], found.moved),
        "shifted": found.shifted,
    }
    return Change(rule, name, text, f"{len(lines[0]):,} lines", f"{len(lines[1]):,} lines", facts)


def _shown(lines: list[str], numbers: list[int]) -> dict[str, Any]:
    return {
        "count": len(numbers),
        "first": [[n + 1, lines[n][:SHOWN_CHARACTERS]] for n in numbers[:SHOWN_LINES]],
    }


def _lines(asset: Asset) -> list[str] | None:
    """The lines of a text file of a bearable size; None for anything else."""
    if asset.size > MAX_TEXT_BYTES:
        return None
    data = read_input(asset.path, MAX_TEXT_BYTES)
    try:
        return None if b"\0" in data else data.decode().splitlines()
    except UnicodeDecodeError:
        return None


def differing(old: list[str], new: list[str]) -> Lines:
    """Which lines were removed, inserted and moved, and how many others have another number."""
    places: dict[str, deque[int]] = defaultdict(deque)
    for number, line in enumerate(old):
        places[line].append(number)
    pairs: list[tuple[int, int]] = []
    inserted: list[int] = []
    for number, line in enumerate(new):
        if places[line]:
            pairs.append((places[line].popleft(), number))
        else:
            inserted.append(number)
    removed = sorted(number for left in places.values() for number in left)
    kept = _longest_increasing([was for was, _ in pairs])
    moved = [now for i, (_, now) in enumerate(pairs) if i not in kept]
    shifted = sum(was != now for i, (was, now) in enumerate(pairs) if i in kept)
    return Lines(removed, inserted, moved, shifted)


def _longest_increasing(numbers: list[int]) -> set[int]:
    """The positions of a longest increasing run, by patience sorting."""
    ends: list[int] = []
    at: list[int] = []
    before: list[int] = []
    for position, number in enumerate(numbers):
        pile = bisect_left(ends, number)
        before.append(at[pile - 1] if pile else -1)
        if pile == len(ends):
            ends.append(number)
            at.append(position)
        else:
            ends[pile], at[pile] = number, position
    kept: set[int] = set()
    position = at[-1] if at else -1
    while position >= 0:
        kept.add(position)
        position = before[position]
    return kept
