"""`mserve serve`: answer requests from a base path's newest version."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import EnvironmentProblem


def command(
    base_path: Annotated[
        Path, typer.Argument(metavar="BASE_PATH", help="A base path, or a directory of base paths.")
    ],
    name: Annotated[str, typer.Option(help="The model's name in URLs; default: as exported.")] = "",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)
    ] = 8501,
    grpc_port: Annotated[
        int, typer.Option(help="Port for gRPC; 0 takes a free one, -1 none.", min=-1, max=65535)
    ] = 8500,
    admin: Annotated[
        bool, typer.Option("--admin", help="Allow loading and unloading over the network.")
    ] = False,
    latest: Annotated[int, typer.Option(help="How many of the newest versions to serve.", min=1)] = 1,
    max_batch: Annotated[int, typer.Option(help="Rows of a batch, at most.", min=1)] = 128,
    batch_delay: Annotated[
        float,
        typer.Option(help="Milliseconds a request may wait for others.", min=0, max=60_000),
    ] = 0.0,
    max_queue: Annotated[int, typer.Option(help="Rows that may wait; more are answered 429.", min=1)] = 8192,
    max_body: Annotated[str, typer.Option(help="Largest request body.")] = "64MiB",
    timeout: Annotated[float, typer.Option(help="Seconds a request may take.", min=0.001, max=86_400)] = 30.0,
    poll: Annotated[float, typer.Option(help="Seconds between looks.", min=0.05, max=86_400)] = 1.0,
    prefetch: Annotated[
        bool, typer.Option("--prefetch", help="Read large weights into memory before a version answers.")
    ] = False,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Serve the newest version over HTTP; load new versions as they appear; SIGTERM drains."""
    if sys.platform == "win32":
        raise EnvironmentProblem("serve needs a POSIX system", hint="every other command runs here")
    import logging

    from ..batching.batcher import Limits
    from ..errors import UsageError
    from ..server.app import Options
    from ..server.run import run
    from .export import parse_size

    level = logging.getLevelNamesMapping().get(log_level.upper())
    if level is None:
        raise UsageError("bad --log-level", expected="debug, info, warning or error", found=log_level)
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    limits = Limits(max_batch, int(batch_delay * 1e6), max_queue)
    options = Options(
        base_path,
        name,
        host,
        port,
        grpc_port if grpc_port >= 0 else None,
        admin,
        limits,
        parse_size(max_body),
        timeout,
        poll,
        latest,
        prefetch,
    )
    raise typer.Exit(run(options))
