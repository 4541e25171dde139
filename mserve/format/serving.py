"""Serving defaults: how a version is best served, where the configuration does not say otherwise.

They lie in `assets/mserve/serving.json`, which the entry `mserve.serving` names. Like the
golden samples they are no part of what the model computes, and so not of the content digest.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from ..errors import BundleIncomplete, DigestMismatch, MetaGraphMalformed
from ..padding import rising

if TYPE_CHECKING:
    from .reader import Bundle

BYTES_MAX = 64 << 10
ROWS_MAX = 1 << 30
DELAY_MS_MAX = 60_000.0
SIZES_MAX = 64


@dataclass(frozen=True, slots=True)
class Serving:
    """What is said of a model's batches; None for what is not.

    Rows of a batch at most, milliseconds a request may wait for others, the sizes that
    batches are filled up to, and those at which a batch does not wait (both rising).
    """

    max_batch: int | None = None
    delay_ms: float | None = None
    allowed_batch: tuple[int, ...] | None = None
    preferred_batch: tuple[int, ...] | None = None

    def __bool__(self) -> bool:
        return bool(self.to_json())

    def over(self, other: Serving) -> Serving:
        """This, and where it says nothing, the other."""
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        return Serving(**{name: b if a is None else a for name, (a, b) in pairs.items()})

    def to_json(self) -> dict[str, Any]:
        """What is said, as the file's table `batching` holds it."""
        said = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in said.items() if v is not None}

    @classmethod
    def from_json(cls, table: Any, where: object) -> Serving:
        """Read what `to_json` wrote; unknown keys are passed over. Raises MetaGraphMalformed."""
        if not isinstance(table, dict):
            raise _bad(where, "batching", "an object", table)
        said: dict[str, Any] = {}
        for name, (expected, fits) in _KEYS.items():
            value = table.get(name)
            if value is None:
                continue
            if not fits(value):
                raise _bad(where, name, expected, value)
            said[name] = tuple(value) if isinstance(value, list) else value
        return cls(**said)


def _is_rows(value: Any) -> bool:
    return type(value) is int and 1 <= value <= ROWS_MAX


def _is_delay(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and 0 <= value <= DELAY_MS_MAX


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= SIZES_MAX and rising(value)


_SIZES = f"a list of at most {SIZES_MAX} numbers of rows, each larger than the one before"
_KEYS = {
    "max_batch": (f"a whole number from 1 to {ROWS_MAX}", _is_rows),
    "delay_ms": (f"a number from 0 to {DELAY_MS_MAX:g}", _is_delay),
    "allowed_batch": (_SIZES, _are_sizes),
    "preferred_batch": (_SIZES, _are_sizes),
}


def pack(serving: Serving) -> bytes:
    """The bytes of a file of serving defaults."""
    return json.dumps({"batching": serving.to_json()}, indent=2).encode() + b"\n"


def unpack(data: bytes, where: object) -> Serving:
    """Read such a file; tables that are not known are passed over. Raises MetaGraphMalformed."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MetaGraphMalformed(
            "the serving defaults are not JSON", where=where, found=str(error)[:120]
        ) from error
    if not isinstance(value, dict):
        raise _bad(where, "the file", "an object", value)
    return Serving.from_json(value.get("batching", {}), where)


def read_serving(bundle: Bundle) -> Serving:
    """The serving defaults of a version; none where it has none.

    The file is small, so its digest is checked each time. Raises MetaGraphMalformed,
    DigestMismatch, BundleIncomplete.
    """
    record = bundle.metagraph.serving
    if record is None:
        return Serving()
    path = bundle.file(record)
    if record.size > BYTES_MAX:
        raise MetaGraphMalformed(
            "the serving defaults are too large",
            where=path,
            expected=f"at most {BYTES_MAX} bytes",
            found=f"{record.size} bytes",
        )
    try:
        with path.open("rb") as file:
            data = file.read(BYTES_MAX)
    except OSError as error:
        raise BundleIncomplete(
            "the serving defaults cannot be read", where=path, found=error.strerror or error
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != record.sha256:
        raise DigestMismatch(
            "the serving defaults were changed after they were written",
            where=path,
            expected=f"sha256 {record.sha256}",
            found=f"sha256 {found}",
            hint="copy the version again from where it was exported",
        )
    return unpack(data, path)


def _bad(where: object, key: str, expected: str, found: Any) -> MetaGraphMalformed:
    return MetaGraphMalformed(
        f"bad serving defaults: {key}", where=where, expected=expected, found=repr(found)[:60]
    )
