"""Configuration: defaults, then the file, then the command line's flags, as one checked whole.

`load` reads everything or raises one error that tells every problem it found, so that a
running server can keep what it has. Which values a key takes stands in `settings`; here
is what is read, and which values do not go together.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..errors import InputError, UsageError
from ..files import read_input
from .access import TokenFile
from .base_paths import is_directory_of_models, models_in, recorded_name
from .settings import (
    TABLES,
    AuthTable,
    BatchingTable,
    Key,
    LimitsTable,
    LogTable,
    ModelTable,
    RequestLogTable,
    ServerTable,
    TlsTable,
    model_name_problem,
    show,
)
from .tables import TableReader, dotted, raise_problems
from .tls import Files, Tls
from .toml_lines import key_lines

FILE_BYTES_MAX = 1 << 20
DOTS_MAX = 1000
SHOWN_CHARS = 200
DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a configuration comes from: a file, BASE_PATH, and flags ("server.port": 8501).

    `name` and `latest` go with BASE_PATH only.
    """

    file: Path | None = None
    base_path: Path | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    latest: int | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """One configuration, checked. `origins` says where each key that is not a default comes from."""

    server: ServerTable = ServerTable()  # noqa: RUF009 - these are frozen
    batching: BatchingTable = BatchingTable()  # noqa: RUF009
    limits: LimitsTable = LimitsTable()  # noqa: RUF009
    tls: TlsTable = TlsTable()  # noqa: RUF009
    auth: AuthTable = AuthTable()  # noqa: RUF009
    log: LogTable = LogTable()  # noqa: RUF009
    request_log: RequestLogTable = RequestLogTable()  # noqa: RUF009
    models: Mapping[str, ModelTable] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of a configuration as `--print-config` shows it."""

    key: str
    value: Any
    origin: str
    about: Key


def load(source: Source, known: Collection[Path] = ()) -> Config:
    """Read and check a whole configuration, and that the files it names can be read.

    `known` are the base paths that an earlier reading found in `[server] models`. Raises
    InputError for what is wrong in a file, UsageError for the command line.
    """
    config = parse(source, read_text(source.file) if source.file else "", known)
    raise_problems(list(_unreadable(config)))
    if not names_models(config):
        none = f"{source.file} names no models: nothing is served until it does"
        config = replace(config, warnings=(*config.warnings, none))
    return config


def names_models(config: Config) -> bool:
    """Whether a configuration names models, or the directory where they lie."""
    return bool(config.models) or config.server.models is not None


def read_text(file: Path) -> str:
    """The text of a configuration file. Raises InputError."""
    try:
        return read_input(file, FILE_BYTES_MAX).decode()
    except UnicodeDecodeError as error:
        raise InputError("the configuration is not UTF-8 text", where=file, found=error) from error


def parse(source: Source, text: str, known: Collection[Path] = ()) -> Config:
    """A configuration from the text of its file, without a look at the files that it names."""
    _check_usage(source)
    if source.file is not None and is_model_config_list(source.file, text):
        from .model_config_list import parse_text

        reader = TableReader(source.file, {}, source.flags)
        config = Config(**reader.tables({}), origins=reader.origins)
        models, warnings = parse_text(text, source.file)
        config = replace(config, models=models, warnings=warnings)
        reader.origins |= {key: str(source.file) for key in _set_keys(models)}
    else:
        data = _toml(source, text)
        reader = TableReader(source.file, key_lines(text, data), source.flags)
        config = Config(**reader.tables(data), origins=reader.origins)
    config = _with_room(config)
    raise_problems([*reader.problems, *_contradictions(config)])
    return _with_found_models(config, source, known)


def _set_keys(models: Mapping[str, ModelTable]) -> Iterator[str]:
    """The dotted keys of models that are not defaults."""
    for name, model in models.items():
        for item in fields(model):
            if getattr(model, item.name) != getattr(ModelTable(), item.name):
                yield f"models.{dotted(name)}.{item.name}"


def is_model_config_list(file: Path, text: str) -> bool:
    """Whether a configuration is one of TensorFlow Serving, in protobuf's text format."""
    opening = re.match(r"(?:\s|#[^\n]*(?:\n|$))*(?:model_config_list|custom_model_config)\b", text)
    return file.suffix != ".toml" and opening is not None


def settings(config: Config) -> list[Setting]:
    """Every key of a configuration with its value and origin, in the order of the tables."""

    def walk(table: Any, path: str) -> Iterator[Setting]:
        for item in fields(table):
            key, about, value = f"{path}.{item.name}", item.metadata["key"], getattr(table, item.name)
            if about.table is None:
                yield Setting(key, _written(item.name, value), config.origins.get(key, DEFAULT), about)
            else:
                yield from walk(value, key)

    found = [s for name in TABLES for s in walk(getattr(config, name), name)]
    return found + [s for name, table in config.models.items() for s in walk(table, f"models.{dotted(name)}")]


def _written(name: str, value: Any) -> Any:
    """A value as JSON can hold it and the file would write it."""
    if name == "versions" and isinstance(value, int):
        return {"latest": value}
    if name == "grpc_port" and value is None:
        return "off"
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def to_tables(config: Config, started: Config) -> dict[str, dict[str, Any]]:
    """A configuration as a file could hold it, but for the models and for who may ask.

    Keys that take effect with a restart have the values that the server has `started` with. Those
    that nobody has set are left out, since some mean something else then (`batching.max_batch`).
    """
    found: dict[str, dict[str, Any]] = {}
    for name in TABLES.keys() - {"auth"}:
        now, before = getattr(config, name), getattr(started, name)
        values = {
            f.name: value
            for f in fields(now)
            if (value := getattr(before if f.metadata["key"].restart else now, f.name)) != f.default
            or f"{name}.{f.name}" in config.origins
        }
        # TOML has no word for nothing, which is the default where it is a value.
        told = {k: v for k, v in values.items() if v is not None or k == "grpc_port"}
        found[name] = {k: _written(k, v) for k, v in told.items()}
    return found


def from_tables(tables: Mapping[str, Any]) -> Config:
    """The configuration that `to_tables` was given. Raises InputError for what is none."""
    reader = TableReader(None, {}, {})
    config = Config(**reader.tables(tables), origins=reader.origins)
    raise_problems(reader.problems)
    return config


def changed(before: Config, now: Config) -> list[str]:
    """What differs, a line for each key: `limits.timeout: 30.0 -> 5.0`; - where there is no such key.

    Of a model that comes or goes only what its configuration says is named.
    """
    old, new = ({s.key: s for s in settings(config)} for config in (before, now))
    lines = []
    for key in [*new, *(k for k in old if k not in new)]:
        sides = [side.get(key) for side in (old, new)]
        values = [s.value if s else None for s in sides]
        told = values[0] != values[1] if all(sides) else any(s and s.origin != DEFAULT for s in sides)
        if told:
            lines.append(f"{key}: " + " -> ".join(show(s.value, SHOWN_CHARS) if s else "-" for s in sides))
    return lines


def needing_restart(started: Config, now: Config) -> list[str]:
    """The keys whose new value a running server cannot take."""
    before = {s.key: s.value for s in settings(started)}
    return [s.key for s in settings(now) if s.about.restart and before[s.key] != s.value]


def _check_usage(source: Source) -> None:
    if source.file is None and source.base_path is None:
        hint = "mserve serve BASE_PATH"
        raise UsageError("nothing to serve", expected="BASE_PATH or --config FILE", hint=hint)
    for flag, given in (("--name", source.name), ("--latest", source.latest)):
        if given and source.base_path is None:
            raise UsageError(f"{flag} goes with BASE_PATH", hint="set it in the model's own table")
    if source.name:
        _check_name(source.name, "bad --name")


def _check_name(name: str, what: str, hint: str = "") -> None:
    if problem := model_name_problem(name):
        expected = "printable characters without '/' and ':'"
        raise UsageError(what, expected=expected, found=f"{name[:60]!r}: {problem}", hint=hint)


def _toml(source: Source, text: str) -> dict[str, Any]:
    too_deep = InputError("the configuration is nested too deeply", where=source.file)
    # The standard library's time for a dotted key grows with the square of its parts.
    if any(line.count(".") > DOTS_MAX for line in text.split("\n")):
        raise too_deep
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise too_deep from error
    except ValueError as error:
        raise InputError(
            "the configuration is not TOML", where=source.file, found=str(error)[:200]
        ) from error


def _with_room(config: Config) -> Config:
    """Room for two of the largest bodies, unless the room itself is set."""
    room = 2 * config.limits.body
    if "limits.buffered" in config.origins or config.limits.buffered >= room:
        return config
    origins = {**config.origins, "limits.buffered": "twice limits.body"}
    return replace(config, limits=replace(config.limits, buffered=room), origins=origins)


def _clash(config: Config, key: str, expected: str, found: object) -> InputError:
    where = f"{config.origins.get(key, DEFAULT)}: {key}"
    return InputError("the configuration contradicts itself", where=where, expected=expected, found=found)


def tls_files(config: Config) -> Files | None:
    """The files for TLS, or None for a server without it."""
    table = config.tls
    return Files(table.cert, table.key, table.client_ca) if table.cert and table.key else None


def _unreadable(config: Config) -> Iterator[InputError]:
    """Certificates and token files that cannot be used."""
    files, auth = tls_files(config), config.auth
    checks: dict[str, Callable[[], object]] = {}
    if files is not None:
        checks["tls.cert"] = lambda: Tls(files)
    for key, path in (("auth.tokens", auth.tokens), ("auth.admin_tokens", auth.admin_tokens)):
        if path is not None:
            checks[key] = TokenFile(path).read
    for key, check in checks.items():
        try:
            check()
        except InputError as error:
            where = f"{config.origins.get(key, DEFAULT)}: {key}, {error.where}"
            yield InputError(error.what, where=where, expected=error.expected, found=error.found)


def _contradictions(config: Config) -> Iterator[InputError]:
    """Values that are right by themselves and not together."""
    server, limits, tls = config.server, config.limits, config.tls
    if server.port and server.port == server.grpc_port:
        at = "server.grpc_port" if "server.grpc_port" in config.origins else "server.port"
        yield _clash(config, at, "two ports for HTTP and gRPC", server.port)
    if server.models and config.models:
        yield _clash(config, "server.models", "models in a directory, or [models.NAME] tables", "both")
    if limits.buffered < limits.body:
        yield _clash(config, "limits.buffered", f"at least limits.body, {limits.body}", limits.buffered)
    yield from _sizes_too_large(config, "batching", config.batching, config.batching.max_batch)
    for name, model in config.models.items():
        most = model.batching.max_batch or config.batching.max_batch
        yield from _sizes_too_large(config, f"models.{dotted(name)}.batching", model.batching, most)
    for one, other in (("cert", "key"), ("key", "cert"), ("client_ca", "cert")):
        if getattr(tls, one) and not getattr(tls, other):
            yield _clash(config, f"tls.{one}", f"tls.{other} besides it", "none")


def _sizes_too_large(config: Config, table: str, batching: Any, most: int) -> Iterator[InputError]:
    """Sizes of batches beyond the limit that goes with them."""
    for key in ("allowed_batch", "preferred_batch"):
        sizes = getattr(batching, key) or (0,)
        if sizes[-1] > most:
            yield _clash(config, f"{table}.{key}", f"sizes up to max_batch, {most}", sizes[-1])


def _with_found_models(config: Config, source: Source, known: Collection[Path]) -> Config:
    """The configuration with the models of BASE_PATH, or of the directory in `[server] models`."""
    base, latest = source.base_path, source.latest or 1
    if base is not None and (config.models or config.server.models):
        what = "both BASE_PATH and the configuration name models"
        raise UsageError(what, where=source.file or "", expected="one of them", found=f"BASE_PATH {base}")
    if base is not None and not known and not is_directory_of_models(base, source.name):
        name = source.name or recorded_name(base)
        _check_name(name, "the model needs another name", hint="set one with --name")
        return _with_models(config, {name: base}, latest, "BASE_PATH")
    if base is not None:
        server = replace(config.server, models=base)
        config = replace(config, server=server, origins={**config.origins, "server.models": "BASE_PATH"})
    if config.server.models is None:
        return config
    found, problems = models_in(config.server.models, known)
    config = replace(config, warnings=(*config.warnings, *problems))
    return _with_models(config, found, latest, "server.models")


def _with_models(config: Config, paths: Mapping[str, Path], latest: int, origin: str) -> Config:
    origins = dict(config.origins)
    for name in paths:
        origins[f"models.{dotted(name)}.base_path"] = origin
        if latest != 1:
            origins[f"models.{dotted(name)}.versions"] = "--latest"
    models = {name: ModelTable(path, latest) for name, path in paths.items()}
    return replace(config, models=models, origins=origins)
