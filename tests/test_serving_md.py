"""SERVING.md says what the schema says, and its configuration loads."""

from __future__ import annotations

import re
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from mserve.server.config import Source, parse, settings
from mserve.server.settings import TABLES, Key, ModelTable


def keys(prefix: str, table: type) -> dict[str, Field[Any]]:
    """The fields of a table and of those in it, by dotted key."""
    found: dict[str, Field[Any]] = {}
    for field in fields(table):
        about: Key = field.metadata["key"]
        inner = about.table
        found |= keys(f"{prefix}{field.name}.", inner) if inner else {prefix + field.name: field}
    return found


def shown(value: Any) -> str:
    """A default as the page has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value >= 1 << 20:
        return f"{value >> 30}GiB" if value >= 1 << 30 else f"{value >> 20}MiB"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else "" if value in ((), {}) else str(value)


def test_the_table_of_keys_is_the_schema(root: Path) -> None:
    text = (root / "SERVING.md").read_text()
    rows = {key: (star, default, doc) for key, star, default, doc in re.findall(
        r"^\| `([a-zA-Z_.]+)(\*?)` \| (.*?) ?\| (.*) \|$", text, re.MULTILINE
    )}  # fmt: skip
    known = {k: f for name, table in TABLES.items() for k, f in keys(f"{name}.", table).items()}
    known |= keys("models.NAME.", ModelTable)
    assert rows.keys() == known.keys()
    for key, field in known.items():
        about: Key = field.metadata["key"]
        default = field.default if field.default is not MISSING else field.default_factory()  # type: ignore[misc]
        words = {"models.NAME.base_path": "required", "models.NAME.versions": "latest"}
        assert rows[key] == ("*" if about.restart else "", words.get(key, shown(default)), about.doc), key


def test_the_configuration_loads(root: Path) -> None:
    toml = re.search(r"```toml\n(.*?)```", (root / "SERVING.md").read_text(), re.DOTALL)
    assert toml is not None
    config = parse(Source(root / "mserve.toml"), toml[1])
    values = {s.key: s.value for s in settings(config)}
    assert values["models.ranker.labels"] == {"stable": 3, "canary": 4}
    assert values["limits.timeout"] == 2.0
