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
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import EnvironmentProblem
from . import _output

if TYPE_CHECKING:
    from rich.console import Group

    from ..server.rates import Quantile, Traffic, Version, View
    from ..server.remote import Remote

Rows = list[tuple[object, ...]]
Pause = Callable[[float], bool]

VERSIONS = "model,version,labels,state,in flight,rows/batch,inline,busy,size,reason".split(",")
REQUESTS = (
    "model,version,signature,protocol,requests/s,errors/s,p50,p95,p99,parse/queue/compute/encode".split(",")
)


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
            _output.line(_output.printable(f"{look.url}: {look.readiness()}"))
            for _, columns, rows in _tables(look):
                _output.table(columns, rows)
            _output.line(_summary(look.view))
        else:
            named = [(kind, *row) for kind, _, rows in _tables(look) for row in rows]
            total = _request_row(("", "", "", ""), look.view.total())
            _output.table((), [*named, ("total", *total), ("server", look.readiness())])
        sys.stdout.flush()
        if once:
            return


def _live(remote: Remote, interval: float) -> None:
    """One screen, drawn anew after each interval. A server that goes away may come back."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    first = remote.reading()  # what is wrong from the beginning is an error
    note = Group(Text(f"{remote.url}: {len(first.versions)} versions; the first interval runs"))
    with _keys() as pause, Live(note, screen=True, auto_refresh=False) as live:
        live.refresh()
        while True:
            try:
                for look in _looks(remote, interval, pause):
                    live.update(_screen(look, interval), refresh=True)
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


def _screen(look: Look, interval: float) -> Group:
    from rich.console import Group
    from rich.text import Text

    head = f"{look.url}: {look.readiness()}   every {interval:g} s, q quits"
    tables = [_output.drawn(columns, rows) for _, columns, rows in _tables(look)]
    return Group(Text(_output.printable(head)), *tables, Text(_summary(look.view)))


def _tables(look: Look) -> list[tuple[str, Sequence[str], Rows]]:
    """What a row is about, the columns, and the rows."""
    versions = [_version_row(v) for v in look.view.versions]
    requests = [_request_row(key, traffic) for key, traffic in look.view.traffic.items()]
    return [("version", VERSIONS, versions), ("requests", REQUESTS, requests)]


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

    errors = ", ".join(f"{rate:.1f} ({code})" for code, rate in traffic.errors.items())
    shares = traffic.shares()
    return (
        *(part or "-" for part in key),
        f"{traffic.rate:.1f}",
        errors or "0",
        *(_time(quantile(traffic.buckets, p)) for p in PERCENTILES),
        "/".join(f"{100 * s:.0f}" for s in shares.values()) + " %" if shares else "-",
    )


def _time(found: Quantile | None) -> str:
    """A latency for people; `<` and `>` where only a limit is known."""
    if found is None:
        return "-"
    ms = found.seconds * 1e3
    return f"{found.bound}{ms:.{0 if ms >= 100 else 1 if ms >= 10 else 3}f} ms"


def _summary(view: View) -> str:
    from ..server.rates import quantile

    total = view.total()
    flight = sum(v.in_flight for v in view.versions)
    facts: dict[str, Any] = {
        "requests/s": f"{total.rate:.1f}",
        "errors/s": f"{sum(total.errors.values()):.1f}",
        "in flight": flight,
        "p50": _time(quantile(total.buckets, 0.5)),
        "p99": _time(quantile(total.buckets, 0.99)),
    }
    return f"total in {view.seconds:.1f} s: " + ", ".join(f"{value} {name}" for name, value in facts.items())
