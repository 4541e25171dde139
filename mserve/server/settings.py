"""Settings: every key of a configuration, in one table.

The fields of the dataclasses below are that table. A field's metadata says which values
it takes, what it is for, which flag sets it and whether a running server can take a new
value; reading a file, the hints for unknown keys and `--print-config` all follow it.
Durations are seconds unless the key ends in `_ms`; sizes are bytes.
"""

# ruff: noqa: RUF009 - `_key` is `dataclasses.field`
from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import UsageError
from ..format.layout import MAX_VERSION
from ..numerics import parse_size
from ..padding import rising
from ..runtime import devices

Versions = int | tuple[int, ...] | Literal["all"]
"""Which versions to serve: so many of the newest, exactly these, or all."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Which values a key takes: in words, and as a function.

    `read(value, folder)` gives the value as the program uses it; relative paths start at
    `folder`. It raises ValueError for any other value, with a text if the value alone does
    not show what is wrong.
    """

    expected: str
    read: Callable[[Any, Path], Any]


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of one key. `table` is set where the key holds a table of keys of its own."""

    doc: str
    kind: Kind | None = None
    table: type | None = None
    flag: str = ""
    restart: bool = False


def _key(default: Any, kind: Kind, doc: str, *, flag: str = "", restart: bool = False) -> Any:
    about = Key(doc, kind, None, flag, restart)
    if isinstance(default, dict):
        return field(default_factory=dict, metadata={"key": about})
    return field(default=default, metadata={"key": about})


def _whole(low: int, high: int) -> Kind:
    def read(value: Any, folder: Path) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError
        return value

    return Kind(f"a whole number from {low} to {high}", read)


def _number(low: float, high: float) -> Kind:
    def read(value: Any, folder: Path) -> float:
        if type(value) not in (int, float) or not low <= value <= high or math.isnan(value):
            raise ValueError
        return float(value)

    return Kind(f"a number from {low:g} to {high:g}", read)


def _choice(*words: str) -> Kind:
    def read(value: Any, folder: Path) -> str:
        if not isinstance(value, str) or value not in words:
            raise ValueError
        return value

    return Kind(" or ".join(json.dumps(w) for w in words), read)


def _text(value: Any, folder: Path) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError
    return value


def _flag(value: Any, folder: Path) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _port_or_off(value: Any, folder: Path) -> int | None:
    return None if value == "off" or value is None else int(PORT.read(value, folder))


def _size(value: Any, folder: Path) -> int:
    if type(value) is int and 0 < value <= MAX_VERSION:
        return value
    if not isinstance(value, str):
        raise ValueError
    try:
        return parse_size(value)
    except UsageError as error:
        raise ValueError from error


def _device(value: Any, folder: Path) -> str:
    try:
        return devices.checked(_text(value, folder))
    except UsageError as error:
        raise ValueError from error


def _path(value: Any, folder: Path) -> Path:
    if isinstance(value, Path):
        return value
    text = _text(value, folder)
    if "://" in text:
        raise ValueError(f"{text[:60]}, an address")
    return folder / text


def _directory(value: Any, folder: Path) -> Path:
    path = _path(value, folder)
    if os.path.isfile(path):  # Path.is_file raises for a name that is too long
        raise ValueError(f"{path}, which is a file")
    return path


def _texts(value: Any, folder: Path) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError
    return tuple(_text(item, folder) for item in value)


def _sizes(value: Any, folder: Path) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or len(value) > SIZES_MAX or not rising(list(value)):
        raise ValueError
    return tuple(value)


def _versions(value: Any, folder: Path) -> Versions:
    if value in ("latest", "all"):
        return 1 if value == "latest" else "all"
    if isinstance(value, list) and value:
        return tuple(sorted({_VERSION.read(v, folder) for v in value}))
    if isinstance(value, dict) and value.keys() == {"latest"}:
        return int(_whole(1, MAX_VERSION).read(value["latest"], folder))
    raise ValueError


def _labels(value: Any, folder: Path) -> dict[str, int]:
    if not isinstance(value, dict):
        raise ValueError
    for label, version in value.items():
        if problem := name_problem(label):
            raise ValueError(f"the label {label[:60]!r}: {problem}")
        try:
            _VERSION.read(version, folder)
        except ValueError as error:
            raise ValueError(f"{label} = {show(version)}") from error
    return dict(value)


def _access(value: Any, folder: Path) -> bool | Path:
    return value if isinstance(value, bool) else _path(value, folder)


def name_problem(name: str) -> str:
    """What keeps a text from being a model's name or a label, which stand in URLs; "" if nothing."""
    if not name or not name.isprintable() or name in (".", ".."):
        return "expected printable characters" if name else "it is empty"
    return next((f"it holds {c!r}, which ends a name in URLs" for c in "/:" if c in name), "")


def model_name_problem(name: str) -> str:
    """What keeps a text from being a model's name; "" if nothing."""
    if name == "stats":
        return "the Open Inference Protocol answers /v2/models/stats with statistics of all models"
    return name_problem(name)


PORT = _whole(0, 65535)
_VERSION = _whole(0, MAX_VERSION)
_ROWS = _whole(1, 1 << 30)
_SECONDS = _number(0.001, 86_400)
_TRUTH = Kind("true or false", _flag)
_SIZE = Kind("bytes, as a number or as text such as 64MiB", _size)
_TEXT = Kind("a text of printable characters, not empty", _text)
SIZES_MAX = 64
_SIZES = Kind(f"a list of at most {SIZES_MAX} numbers of rows, each larger than the one before", _sizes)
_FILE = Kind("the path of a file", _path)
_DEVICE = Kind(devices.EXPECTED, _device)


@dataclass(frozen=True, slots=True)
class ServerTable:
    """`[server]`: where to listen, and how models are looked after."""

    host: str = _key("127.0.0.1", _TEXT, "address to listen on", flag="--host", restart=True)
    port: int = _key(8501, PORT, "HTTP port; 0 takes a free one", flag="--port", restart=True)
    grpc_port: int | None = _key(
        8500,
        Kind('a port, or "off"', _port_or_off),
        'gRPC port; 0 takes a free one, "off" listens on none',
        flag="--grpc-port",
        restart=True,
    )
    processes: int = _key(
        1, _whole(1, 1024), "processes that answer, behind the same ports", flag="--processes", restart=True
    )
    device: str = _key(
        "cpu",
        _DEVICE,
        "where models run: cpu, auto, or CUDA devices such as cuda:0,cuda:1",
        flag="--device",
        restart=True,
    )
    models: Path | None = _key(
        None,
        Kind("a directory of base paths", _directory),
        "directory of base paths; each becomes a model, new ones are found",
    )
    poll: float = _key(
        1.0, _number(0.05, 86_400), "seconds between looks at base paths and file", flag="--poll"
    )
    grace: float = _key(30.0, _number(0, 86_400), "seconds to finish accepted requests after SIGTERM")
    prefetch: bool = _key(
        False,
        _TRUTH,
        "read large weights into memory before a version answers",
        flag="--prefetch",
        restart=True,
    )
    admin: bool = _key(False, _TRUTH, "load, unload and reload over the network", flag="--admin")
    strict_json: bool = _key(
        False, _TRUTH, "neither take nor answer NaN and Infinity in JSON", flag="--strict-json"
    )


ALLOWED = "sizes that batches are filled up to with copies of a row; the largest is the most a batch has"
PREFERRED = "sizes at which a batch does not wait any longer"


@dataclass(frozen=True, slots=True)
class ModelBatching:
    """`[models.NAME] batching`: what differs from `[batching]`; None for what does not."""

    max_batch: int | None = _key(None, _ROWS, "rows of a batch, at most")
    delay_ms: float | None = _key(None, _number(0, 60_000), "milliseconds a request may wait for others")
    allowed_batch: tuple[int, ...] | None = _key(None, _SIZES, ALLOWED)
    preferred_batch: tuple[int, ...] | None = _key(None, _SIZES, PREFERRED)

    def over(self, table: BatchingTable) -> tuple[int, float, tuple[int, ...], tuple[int, ...]]:
        """What holds for a model: rows at most, delay in milliseconds, allowed and preferred sizes."""
        allowed = table.allowed_batch if self.allowed_batch is None else self.allowed_batch
        preferred = table.preferred_batch if self.preferred_batch is None else self.preferred_batch
        delay_ms = table.delay_ms if self.delay_ms is None else self.delay_ms
        most = table.max_batch if self.max_batch is None else self.max_batch
        # A model's own limit lets the server's larger sizes out.
        allowed = tuple(n for n in allowed if n <= most)
        most = allowed[-1] if allowed else most
        return most, delay_ms, allowed, tuple(n for n in preferred if n <= most)


@dataclass(frozen=True, slots=True)
class ModelTable:
    """`[models.NAME]`: one model."""

    base_path: Path = _key(Path(), Kind("a directory", _directory), "where the model's versions lie")
    versions: Versions = _key(
        1,
        Kind('"latest", "all", { latest = 2 }, or version numbers such as [3, 7]', _versions),
        "which versions to serve",
    )
    labels: Mapping[str, int] = _key(
        {},
        Kind("a table of labels with version numbers", _labels),
        'names for versions; "default" answers requests that name neither version nor label',
    )
    transition: str = _key(
        "load-first", _choice("load-first", "unload-first"), "what comes first when the version changes"
    )
    device: str | None = _key(
        None,
        _DEVICE,
        "where its versions run that are loaded from then on, if not on server.device",
    )
    batching: ModelBatching = field(
        default=ModelBatching(),
        metadata={"key": Key("what differs from [batching]", table=ModelBatching)},
    )


@dataclass(frozen=True, slots=True)
class BatchingTable:
    """`[batching]`: how requests are joined."""

    max_batch: int = _key(128, _ROWS, "rows of a batch, at most", flag="--max-batch")
    delay_ms: float = _key(
        0.0, _number(0, 60_000), "milliseconds a request may wait for others", flag="--batch-delay"
    )
    allowed_batch: tuple[int, ...] = _key((), _SIZES, ALLOWED)
    preferred_batch: tuple[int, ...] = _key((), _SIZES, PREFERRED)
    max_queue: int = _key(
        8192, _ROWS, "rows that may wait for one version; more are answered 429", flag="--max-queue"
    )
    max_queue_bytes: int = _key(256 << 20, _SIZE, "bytes of inputs that may wait for one version")


@dataclass(frozen=True, slots=True)
class LimitsTable:
    """`[limits]`: what a client may take."""

    body: int = _key(64 << 20, _SIZE, "one request body, also decompressed", flag="--max-body", restart=True)
    buffered: int = _key(512 << 20, _SIZE, "all request bodies together; by default at least two of `body`")
    timeout: float = _key(30.0, _SECONDS, "seconds a request may take", flag="--timeout")
    connections: int = _key(10_000, _whole(1, 1_000_000), "open connections")
    idle: float = _key(75.0, _SECONDS, "seconds a connection may be idle")
    send: float = _key(30.0, _SECONDS, "seconds to send a request, or to read an answer")


@dataclass(frozen=True, slots=True)
class TlsTable:
    """`[tls]`: certificates; with `cert` and `key` the server speaks TLS only."""

    cert: Path | None = _key(None, _FILE, "the server's certificate chain, PEM", restart=True)
    key: Path | None = _key(None, _FILE, "the certificate's private key, PEM", restart=True)
    client_ca: Path | None = _key(None, _FILE, "who signs the clients' certificates, PEM", restart=True)


@dataclass(frozen=True, slots=True)
class AuthTable:
    """`[auth]`: who may ask. Token files hold one bearer token a line, and `#` comments."""

    tokens: Path | None = _key(None, _FILE, "tokens of those who may ask for predictions")
    admin_tokens: Path | None = _key(None, _FILE, "tokens of those who may load, unload and reload")


@dataclass(frozen=True, slots=True)
class LogTable:
    """`[log]`: what the server says of itself."""

    level: str = _key(
        "info", _choice("debug", "info", "warning", "error"), "least severity", flag="--log-level"
    )
    format: str = _key("text", _choice("text", "json"), "form of a line", flag="--log-format", restart=True)
    access: bool | Path = _key(
        False,
        Kind("true, false or the path of a file", _access),
        "a line for each request, to the log or to a file of its own",
        restart=True,
    )


@dataclass(frozen=True, slots=True)
class RequestLogTable:
    """`[request_log]`: requests and answers, recorded for later; off without a path."""

    path: Path | None = _key(None, _FILE, "where to record, JSON lines", restart=True)
    sample: float = _key(0.01, _number(0, 1), "which share of the requests to record", restart=True)
    redact: tuple[str, ...] = _key((), Kind("a list of names", _texts), "values to leave out", restart=True)
    max_bytes: int = _key(1 << 30, _SIZE, "size at which recording goes on in a new file", restart=True)


TABLES: Mapping[str, type] = {
    "server": ServerTable,
    "batching": BatchingTable,
    "limits": LimitsTable,
    "tls": TlsTable,
    "auth": AuthTable,
    "log": LogTable,
    "request_log": RequestLogTable,
}


def show(value: Any, chars: int = 60) -> str:
    """A value on one line of at most so many characters."""
    try:
        text = json.dumps(value, default=str, ensure_ascii=False)
    except RecursionError:  # dotted keys nest without limit
        text = "something deeply nested"
    return text if len(text) <= chars else text[: chars - 3] + "..."
