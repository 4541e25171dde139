"""`mserve serve`: answer requests for the models of a base path or of a configuration."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import EnvironmentProblem
from . import _output

if TYPE_CHECKING:
    from ..server.config import Config


def command(
    base_path: Annotated[
        Path | None, typer.Argument(metavar="[BASE_PATH]", help="A base path, or a directory of base paths.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A configuration file; flags go before what it says.")
    ] = None,
    name: Annotated[str, typer.Option(help="The model's name in URLs; default: as exported.")] = "",
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on; 0 takes a free one.", show_default="8501")
    ] = None,
    grpc_port: Annotated[
        str | None, typer.Option(help="Port for gRPC; 0 takes a free one, off none.", show_default="8500")
    ] = None,
    latest: Annotated[
        int | None, typer.Option(help="How many of the newest versions to serve.", min=1, show_default="1")
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(help="Rows of a batch, at most.", show_default="128")
    ] = None,
    batch_delay: Annotated[
        float | None, typer.Option(help="Milliseconds a request may wait for others.", show_default="0")
    ] = None,
    max_queue: Annotated[
        int | None, typer.Option(help="Rows that may wait; more are answered 429.", show_default="8192")
    ] = None,
    max_body: Annotated[str | None, typer.Option(help="Largest request body.", show_default="64MiB")] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds a request may take.", show_default="30")
    ] = None,
    poll: Annotated[float | None, typer.Option(help="Seconds between looks.", show_default="1")] = None,
    prefetch: Annotated[
        bool, typer.Option("--prefetch", help="Read large weights into memory before a version answers.")
    ] = False,
    admin: Annotated[
        bool, typer.Option("--admin", help="Let clients load and unload models, and reload this.")
    ] = False,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning or error.", show_default="info")
    ] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json.", show_default="text")] = None,
    print_config: Annotated[
        bool,
        typer.Option("--print-config", help="Check and print the configuration, and exit."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --print-config: one JSON document.")] = False,
) -> None:
    """Serve the newest version over HTTP; load new versions as they appear; SIGTERM drains."""
    if sys.platform == "win32":
        raise EnvironmentProblem("serve needs a POSIX system", hint="every other command runs here")
    from ..server.config import Source
    from ..server.watch import ConfigWatch

    flags = {
        "server.host": host,
        "server.port": port,
        "server.grpc_port": int(grpc_port) if grpc_port and grpc_port.isdecimal() else grpc_port,
        "server.poll": poll,
        "server.prefetch": prefetch or None,
        "server.admin": admin or None,
        "batching.max_batch": max_batch,
        "batching.delay_ms": batch_delay,
        "batching.max_queue": max_queue,
        "limits.body": max_body,
        "limits.timeout": timeout,
        "log.level": log_level,
        "log.format": log_format,
    }
    given = {key: value for key, value in flags.items() if value is not None}
    watch = ConfigWatch(Source(config, base_path, given, name, latest))
    if print_config:
        _print(watch.config, as_json)
        return
    raise typer.Exit(_serve(watch.config))


def _print(config: Config, as_json: bool) -> None:
    from ..server.config import settings

    for warning in config.warnings:
        _output.note(f"warning: {warning}")
    found = settings(config)
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


def _serve(config: Config) -> int:
    import logging

    from ..batching.batcher import Limits
    from ..loader.reconciler import ModelConfig
    from ..server.app import Options, run

    logging.basicConfig(
        level=config.log.level.upper(), format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    batching, server = config.batching, config.server
    options = Options(
        server.host,
        server.port,
        Limits(batching.max_batch, int(batching.delay_ms * 1e6), batching.max_queue),
        config.limits.body,
        config.limits.timeout,
        server.poll,
        server.prefetch,
    )
    models = [
        ModelConfig(name, m.base_path, m.versions)
        for name, m in config.models.items()
        if isinstance(m.versions, int)
    ]
    return run(options, models)
