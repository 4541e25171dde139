"""`mserve doctor`: what this machine gives mserve, and what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import _output


def command(
    base_paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="BASE_PATH", help="Base paths to look at: file system, space, locks."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check versions, engine, GPU, CPUs, memory, limits, ports, clock and file systems.

    Exit 0: no problem (warnings do not count); 1: there is one.
    """
    from ..checks.doctor import Ask, examine
    from ..checks.machine import PROBLEM, WARNING
    from ..server.settings import LimitsTable, ServerTable

    server = ServerTable()
    ports = tuple(p for p in (server.grpc_port, server.port) if p is not None)
    ask = Ask(tuple(str(p) for p in base_paths or ()), ports, LimitsTable().connections)
    lines = list(examine(ask))
    problems, warnings = (sum(line.status == s for line in lines) for s in (PROBLEM, WARNING))
    if as_json:
        _output.emit_json("doctor", {"ok": not problems, "checks": [line.to_json() for line in lines]})
    else:
        rows = [(line.status, line.check, line.text, line.next or "-") for line in lines]
        _output.table(("status", "check", "found", "next"), rows)
        state = "FAILED" if problems else "ok"
        _output.line(f"{state}: {problems} problem(s), {warnings} warning(s)")
    if problems:
        raise typer.Exit(1)
