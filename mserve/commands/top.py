"""`mserve top`: what a running server does, interval by interval."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import EnvironmentProblem
from . import _output

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from ..server.rates import Quantile, Traffic, Version, View
    from ..server.remote import Remote

Rows = list[tuple[object, ...]]
Pause = Callable[[float], bool]

# Narrow enough for the 80 columns of a terminal, with names of usual length.
VERSIONS = ("model", "ver", "labels", "state", "active", "rows/batch", "inline", "busy", "size", "reason")
REQUESTS = ("model", "ver", "signature", "protocol", "req/s", "err/s", "p50 ms", "p95 ms", "p99 ms")
TIME = ("model", "ver", "signature", "protocol", "parse", "queue", "compute", "encode", "errors")
RARE = {"labels", "reason"}


def command(
    url: Annotated[str, typer.Argument(metavar="URL", help="A server's URL (http://HOST:PORT).")],
    interval: Annotated[float, typer.Option(help="Seconds between looks.", min=0.1, max=3600)] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="One interval, then end.")] = False,
    token_file: Annotated[
        Path | None, typer.Option(help="A file that holds the token which the server wants.")
    ] = None,
    ca: Annotated[Path | None, typer.Option(help="https: whom to trust, PEM; default: the system's.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON document, one line, for each interval.")
    ] = False,
) -> None:
    """Show rates, latencies, batches and states of a running server; q or Ctrl-C ends it.

    Where no terminal is, rows for each interval. Exit 4: nothing listens, or not mserve.
    """
    from ..server.remote import Remote, read_token

    remote = Remote(url, read_token(token_file) if token_file else "", ca)
    try:
        if as_json or once or not _output.on_terminal():
            _print(remote, interval, once, as_json)
        else:
            _live(remote, interval)
    finally:
        remote.close()


@dataclass(frozen=True, slots=True)
class Look:
    """An interval, and why the server is not ready at its end."""

    url: str
    view: View
    unready: list[str]

    def readiness(self) -> str:
        """One line."""
        return "not ready: " + "; ".join(self.unready) if self.unready else "ready"


def _looks(remote: Remote, interval: float, pause: Pause) -> Iterator[Look]:
    """An endless row of intervals, until `pause` says to end."""
    from ..server.rates import view

    before, start = remote.reading(), time.monotonic()
    while pause(interval):
        after, end = remote.reading(), time.monotonic()
        yield Look(remote.url, view(before, after, remote.statuses(), end - start), remote.unready())
        before, start = after, end


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return True


def _print(remote: Remote, interval: float, once: bool, as_json: bool) -> None:
    """Rows, tables or documents, one interval after the other."""
    for look in _looks(remote, interval, _sleep):
        if as_json:
            ready = {"ready": not look.unready, "reasons": look.unready}
            _output.emit_json("top", {"url": look.url, **ready, **look.view.to_json()}, indent=None)
        elif _output.on_terminal():
            from rich.console import Console

            Console().print(_screen(look))
        else:
            named = [(kind, *row) for kind, _, rows in _tables(look) for row in rows]
            total = _request_row(("", "", "", ""), look.view.total())
            _output.table((), [*named, ("total", *total), ("server", look.readiness())])
        sys.stdout.flush()
        if once:
            return


def _live(remote: Remote, interval: float) -> None:
    """One screen, drawn anew after each interval. A server that goes away may come back."""
    from rich.live import Live
    from rich.text import Text

    first = remote.reading()  # what is wrong from the beginning is an error
    begin = Text(f"{remote.url}: {len(first.versions)} versions; the first interval runs")
    with _keys() as pause, Live(begin, screen=True, auto_refresh=False) as live:
        live.refresh()
        while True:
            try:
                for look in _looks(remote, interval, pause):
                    note = f"   every {interval:g} s, q quits"
                    live.update(_screen(look, note), refresh=True)
                return
            except EnvironmentProblem as error:
                live.update(Text(_output.printable(str(error))), refresh=True)
                if not pause(interval):
                    return


@contextmanager
def _keys() -> Iterator[Pause]:
    """A pause that the key q ends: it then returns False. Needs a terminal to read keys from."""
    if sys.platform == "win32" or sys.stdin is None or not sys.stdin.isatty():
        yield _sleep
        return
    import termios
    import tty

    fd = sys.stdin.fileno()

    def pause(seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([fd], [], [], left)[0]:
                break
            if os.read(fd, 1) in (b"q", b"Q", b""):
                return False
        return True

    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield pause
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _screen(look: Look, note: str = "") -> Group:
    """All of an interval, for a terminal; what matters most is on top, since the rest may not fit."""
    from rich.console import Group
    from rich.text import Text

    tables = [_drawn(columns, rows) for _, columns, rows in _tables(look) if rows]
    head = _output.printable(f"{look.url}: {look.readiness()}{note}")
    spaced = (part for table in tables for part in (Text(), table))
    return Group(Text(head), Text(_summary(look.view)), *spaced)


def _drawn(columns: Sequence[str], rows: Rows) -> Table:
    """A table set close, without the rare columns that are empty."""
    kept = [i for i, name in enumerate(columns) if name not in RARE or any(row[i] != "-" for row in rows)]
    table = _output.drawn([columns[i] for i in kept], [[row[i] for i in kept] for row in rows])
    table.padding, table.show_edge = (0, 1, 0, 0), False
    return table


def _tables(look: Look) -> list[tuple[str, Sequence[str], Rows]]:
    """What a row is about, the columns, and the rows."""
    traffic = look.view.traffic.items()
    return [
        ("version", VERSIONS, [_version_row(v) for v in look.view.versions]),
        ("requests", REQUESTS, [_request_row(key, t) for key, t in traffic]),
        ("time", TIME, [_time_row(key, t) for key, t in traffic]),
    ]


def _version_row(version: Version) -> tuple[object, ...]:
    status = version.status
    return (
        status.model or "-",
        status.version or "-",
        ",".join(status.labels) or "-",
        status.state,
        version.in_flight,
        "-" if version.mean_rows is None else f"{version.mean_rows:.2f}",
        "-" if version.inline_share is None else f"{version.inline_share:.0%}",
        f"{version.busy:.0%}",
        "-" if version.size is None else _output.size(version.size),
        status.reason or "-",
    )


def _request_row(key: tuple[str, ...], traffic: Traffic) -> tuple[object, ...]:
    from ..server.rates import PERCENTILES, quantile

    found = (quantile(traffic.buckets, p) for p in PERCENTILES)
    errors = sum(traffic.errors.values())
    return (*_named(key), f"{traffic.rate:.1f}", f"{errors:.1f}", *(_ms(q) for q in found))


def _time_row(key: tuple[str, ...], traffic: Traffic) -> tuple[object, ...]:
    from ..server.rates import PHASES

    shares = traffic.shares()
    errors = ", ".join(f"{code}: {rate:.1f}/s" for code, rate in traffic.errors.items())
    return (*_named(key), *(f"{shares[p]:.0%}" if shares else "-" for p in PHASES), errors or "-")


def _named(key: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part or "-" for part in key)


def _ms(found: Quantile | None) -> str:
    """A latency in milliseconds; `<` and `>` where only a limit is known."""
    if found is None:
        return "-"
    ms = found.seconds * 1e3
    return f"{found.bound}{ms:.{0 if ms >= 100 else 1 if ms >= 10 else 3}f}"


def _summary(view: View) -> str:
    from ..server.rates import quantile

    total, flight = view.total(), sum(v.in_flight for v in view.versions)
    p50, p99 = (_ms(quantile(total.buckets, p)) for p in (0.5, 0.99))
    return (
        f"total: {total.rate:.1f} req/s, {sum(total.errors.values()):.1f} err/s, {flight} active, "
        f"p50 {p50} ms, p99 {p99} ms"
    )
