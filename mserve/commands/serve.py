"""`mserve serve`: answer requests for the models of a base path or of a configuration."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import EnvironmentProblem
from . import _output

if TYPE_CHECKING:
    from ..server.config import Config


def _flag(text: str, default: str, **limits: Any) -> Any:
    """A flag that goes before the configuration file when it is given."""
    return typer.Option(help=text, show_default=default, **limits)


def command(
    base_path: Annotated[
        Path | None, typer.Argument(metavar="BASE_PATH", help="A base path, or a directory of base paths.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A configuration file; flags go before what it says.")
    ] = None,
    name: Annotated[str, typer.Option(help="The model's name in URLs; default: as exported.")] = "",
    host: Annotated[str | None, _flag("Address to listen on.", "127.0.0.1")] = None,
    port: Annotated[int | None, _flag("Port to listen on; 0 takes a free one.", "8501")] = None,
    grpc_port: Annotated[str | None, _flag("Port for gRPC; 0 takes a free one, off none.", "8500")] = None,
    processes: Annotated[int | None, _flag("Processes that answer, for many cores.", "1")] = None,
    device: Annotated[str | None, _flag("cpu, auto, or CUDA devices: cuda:0,cuda:1.", "cpu")] = None,
    latest: Annotated[int | None, _flag("How many of the newest versions to serve.", "1", min=1)] = None,
    max_batch: Annotated[int | None, _flag("Rows of a batch, at most.", "128")] = None,
    batch_delay: Annotated[float | None, _flag("Milliseconds a request may wait for others.", "0")] = None,
    max_queue: Annotated[int | None, _flag("Rows that may wait; more are answered 429.", "8192")] = None,
    max_body: Annotated[str | None, _flag("Largest request body.", "64MiB")] = None,
    timeout: Annotated[float | None, _flag("Seconds a request may take.", "30")] = None,
    poll: Annotated[float | None, _flag("Seconds between looks.", "1")] = None,
    prefetch: Annotated[
        bool, typer.Option("--prefetch", help="Read large weights into memory before a version answers.")
    ] = False,
    admin: Annotated[
        bool, typer.Option("--admin", help="Let clients load and unload models, and reload this.")
    ] = False,
    strict_json: Annotated[
        bool, typer.Option("--strict-json", help="Neither take nor answer NaN and Infinity in JSON.")
    ] = False,
    log_level: Annotated[str | None, _flag("debug, info, warning or error.", "info")] = None,
    log_format: Annotated[str | None, _flag("text or json.", "text")] = None,
    print_config: Annotated[
        bool,
        typer.Option("--print-config", help="Check and print the configuration, and exit."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --print-config: one JSON document.")] = False,
) -> None:
    """Serve the newest version over HTTP and gRPC; load new ones as they appear; SIGTERM drains."""
    _check_platform()
    if not print_config:
        _settle_allocator()
    from ..server.config import Source
    from ..server.watch import ConfigWatch

    flags = {
        "server.host": host,
        "server.port": port,
        "server.grpc_port": int(grpc_port) if grpc_port and grpc_port.isdecimal() else grpc_port,
        "server.processes": processes,
        "server.device": device,
        "server.poll": poll,
        "server.prefetch": prefetch or None,
        "server.admin": admin or None,
        "server.strict_json": strict_json or None,
        "batching.max_batch": max_batch,
        "batching.delay_ms": batch_delay,
        "batching.max_queue": max_queue,
        "limits.body": max_body,
        "limits.timeout": timeout,
        "log.level": log_level,
        "log.format": log_format,
    }
    watch = ConfigWatch(Source(config, base_path, _given(flags), name, latest))
    if print_config:
        _print(watch.config, as_json)
        return
    from ..server.run import run

    run(watch)


def _check_platform() -> None:
    if sys.platform == "win32":
        raise EnvironmentProblem("serve needs a POSIX system", hint="every other command runs here")


def _settle_allocator() -> None:
    from ..runtime.memory import settle_allocator
    from ..runtime.ort import cpu_budget

    settle_allocator(cpu_budget())


def _given(flags: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flags.items() if value is not None}


def _print(config: Config, as_json: bool) -> None:
    from ..server.bundle_defaults import with_bundles
    from ..server.config import settings

    for warning in config.warnings:
        _output.note(f"warning: {warning}")
    found = with_bundles(config, settings(config))
    if as_json:
        entries = [
            {
                "key": s.key,
                "value": s.value,
                "origin": s.origin,
                "restart": s.about.restart,
                "doc": s.about.doc,
            }
            for s in found
        ]
        _output.emit_json("config", {"settings": entries, "warnings": list(config.warnings)})
        return
    _output.table(("key", "value", "from"), [(s.key, _shown(s.value), s.origin) for s in found])


def _shown(value: Any) -> str:
    import json

    return (
        "-" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    )
