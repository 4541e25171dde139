"""Tables of a configuration file as the dataclasses that describe them; every problem is collected."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import InputError, UsageError
from .settings import TABLES, Key, ModelTable, model_name_problem, show

PROBLEMS_SHOWN = 20


def dotted(*path: str) -> str:
    """A path of keys as TOML writes it."""
    return ".".join(p if re.fullmatch(r"[A-Za-z0-9_-]+", p) else show(p) for p in path)


def nearest(word: str, known: Collection[str]) -> str:
    """A hint for a word that is not one of those known."""
    if close := difflib.get_close_matches(word, known, n=1):
        return f'did you mean "{close[0]}"?'
    return f"known: {', '.join(list(known)[:20]) or 'none'}"


class TableReader:
    """Reads the tables of one configuration; collects problems, and origins by dotted key, as it goes.

    `flags` (by dotted key) come after the file. Raises UsageError for a flag's bad value.
    """

    def __init__(
        self, file: Path | None, lines: Mapping[tuple[str, ...], int], flags: Mapping[str, Any]
    ) -> None:
        self.problems: list[InputError] = []
        self.origins: dict[str, str] = {}
        self._file = file
        self._folder = file.parent if file else Path()
        self._lines = lines
        self._flags = flags

    def tables(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """All tables of a file by name; `models` is a dict of them."""
        for name in data:
            if name not in TABLES and name != "models":
                self._unknown((name,), (*TABLES, "models"))
        read = {name: self._table(cls, (name,), data.get(name, {})) for name, cls in TABLES.items()}
        return {**read, "models": self._models(data.get("models", {}))}

    def _models(self, data: Any) -> dict[str, ModelTable]:
        if not isinstance(data, dict):
            self._bad(("models",), "a table for each model, such as [models.ranker]", show(data))
            return {}
        for name in data:
            if problem := model_name_problem(name):
                what = "this cannot be a model's name"
                self._bad(("models", name), "printable characters without '/' and ':'", problem, what)
        return {name: self._table(ModelTable, ("models", name), value) for name, value in data.items()}

    def _table(self, cls: type, path: tuple[str, ...], data: Any) -> Any:
        """One table as an instance of its dataclass; what is wrong in it keeps its default."""
        if not isinstance(data, dict):
            self._bad(path, "a table", show(data))
            return cls()
        known: dict[str, Key] = {f.name: f.metadata["key"] for f in fields(cls)}
        for name in data:
            if name not in known:
                self._unknown((*path, name), known)
        if cls is ModelTable and "base_path" not in data:
            what = "the model has no base path"
            self._bad(path, "base_path, the directory of its versions", f"only {show(list(data))}", what)
        values: dict[str, Any] = {}
        for name, about in known.items():
            if name in data:
                values |= self._value(about, (*path, name), data[name])
            if (key := dotted(*path, name)) in self._flags:
                values[name] = _flag_value(about, self._flags[key])
                self.origins[key] = about.flag
        return cls(**values)

    def _value(self, about: Key, path: tuple[str, ...], data: Any) -> dict[str, Any]:
        """The value of one key under its name; nothing if it is wrong."""
        if about.kind is None:
            return {path[-1]: self._table(about.table or type(None), path, data)}
        try:
            value = about.kind.read(data, self._folder)
        except ValueError as error:
            self._bad(path, about.kind.expected, str(error) or show(data))
            return {}
        self.origins[dotted(*path)] = self._place(path)
        return {path[-1]: value}

    def _place(self, path: tuple[str, ...]) -> str:
        """File and line of a key; what stands in one line with its table has the table's."""
        tries = (path, path[:-1]) if len(path) > 2 else (path,)
        line = next((self._lines[p] for p in tries if p in self._lines), 0)
        return f"{self._file}:{line}" if line else str(self._file)

    def _bad(self, path: tuple[str, ...], expected: str, found: str, what: str = "") -> None:
        *table, key = path
        name = f"[{dotted(*table)}] {dotted(key)}" if table else f"[{dotted(key)}]"
        what = what or "the configuration has a wrong value"
        where = f"{self._place(path)}: {name}"
        self.problems.append(InputError(what, where=where, expected=expected, found=found))

    def _unknown(self, path: tuple[str, ...], known: Collection[str]) -> None:
        """Note a key or table that does not exist, with what may have been meant."""
        *table, key = path
        what = "the configuration has an unknown " + ("key" if table else "table")
        self._bad(path, "", "", what)
        homes = [name for name, cls in TABLES.items() if any(f.name == key for f in fields(cls))]
        self.problems[-1].hint = f"{key} belongs in [{homes[0]}]" if homes else nearest(key, known)


def raise_problems(problems: list[InputError]) -> None:
    """Raise the first of some problems, which tells of the others too."""
    if not problems:
        return
    first, *others = problems
    if others:
        shown = [_brief(p) for p in others[: PROBLEMS_SHOWN - 1]]
        more = len(others) - len(shown)
        shown += [f"and {more} more"] if more else []
        count = "another problem" if len(others) == 1 else f"{len(others)} more problems"
        first.hint = f"{first.hint + '; ' if first.hint else ''}{count}: {'; '.join(shown)}"
    raise first


def _brief(problem: InputError) -> str:
    if problem.expected:
        return f"{problem.where}: found {problem.found}, expected {problem.expected}"
    return f"{problem.where} is unknown, {problem.hint}"


def _flag_value(about: Key, value: Any) -> Any:
    if about.kind is None:
        raise TypeError("a table has no flag")
    try:
        return about.kind.read(value, Path())
    except ValueError as error:
        raise UsageError(
            f"bad {about.flag}", expected=about.kind.expected, found=str(error) or str(value)[:60]
        ) from error
