"""Line numbers of a TOML file's keys, which the standard library's reader does not tell."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Any

Path = tuple[str, ...]

_BARE = re.compile(r"\s*([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)\s*=")
_QUOTED = re.compile(r"""\s*((?:[^=#'"]|"(?:[^"\\]|\\.)*"|'[^']*')+?)=""")
_HEADER = re.compile(r"\s*\[[^\[]")


def key_lines(text: str, data: Mapping[str, Any]) -> dict[Path, int]:
    """The line on which each table and key of `data` stands in `text`, from 1.

    Each line is read by itself, so that a line inside of a text or list of many lines can
    look like a key. TOML allows a key once: what is seen twice, or is not in `data`, is
    left out, and no line is better than a wrong one.
    """
    found: dict[Path, list[int]] = {}
    table: Path = ()
    for number, line in enumerate(text.split("\n"), 1):
        if _HEADER.match(line):
            table = _only_path(line)
            found.setdefault(table, []).append(number)
        elif bare := _BARE.match(line):
            found.setdefault((*table, *bare[1].split(".")), []).append(number)
        elif quoted := _QUOTED.match(line):
            found.setdefault((*table, *_only_path(f"{quoted[1]}= 0")), []).append(number)
    return {path: numbers[0] for path, numbers in found.items() if len(numbers) == 1 and _holds(data, path)}


def _only_path(line: str) -> Path:
    """The path of the one table or key that a line makes; () if the line is not TOML."""
    try:
        data: Any = tomllib.loads(line)
    except (ValueError, RecursionError):
        return ()
    path = []
    while isinstance(data, dict) and data:
        name, data = next(iter(data.items()))
        path.append(name)
    return tuple(path)


def _holds(data: Any, path: Path) -> bool:
    for name in path:
        if not isinstance(data, dict) or name not in data:
            return False
        data = data[name]
    return bool(path)
