"""`mserve explain`: where the time of one request went, from a running server's flight recorder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import _output

REASONS = {
    "full": "it was full",
    "due": "its first request had waited for the delay",
    "no-delay": "an executor was free",
    "deadline": "a deadline was near",
    "preferred": "it had a preferred size",
    "alone": "the request shares no batch",
    "split": "it was full with a part of a large request",
    "bisect": "it is a half of one that failed",
}


def command(
    url: Annotated[str, typer.Argument(metavar="URL", help="A server's URL (http://HOST:PORT).")],
    request_id: Annotated[
        str, typer.Argument(metavar="REQUEST_ID", help="What the client sent as x-request-id.")
    ],
    token_file: Annotated[
        Path | None, typer.Option(help="A file that holds the token which the server wants.")
    ] = None,
    ca: Annotated[Path | None, typer.Option(help="https: whom to trust, PEM; default: the system's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Tell where the time of one of the last requests went: phases, its batch, and what ran before it.

    Exit 3: the server does not remember such a request, or wants a token. Exit 4: nothing listens there,
    or not mserve.
    """
    from ..server.rates import not_mserve
    from ..server.remote import Remote, read_token

    remote = Remote(url, read_token(token_file) if token_file else "", ca)
    try:
        page = remote.explanation(request_id)
    finally:
        remote.close()
    try:
        title, phases = headline(page), rows(page)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise not_mserve(url, f"a page without {error}"[:120]) from error
    if as_json:
        _output.emit_json("explain", page)
        return
    _output.note(_output.printable(title))
    _output.table(("phase", "ms", "what"), phases)


def headline(page: dict[str, Any]) -> str:
    """One line: who answered, and how."""
    version = f" version {page['version']}" if page["version"] else ""
    error = f" ({page['error']})" if page.get("error") else ""
    who = f"{page['model'] or 'no model'}{version} {page['signature']}"
    return f"{who} over {page['protocol']}: {page['code']}{error}"


def rows(page: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Phases as rows: name, milliseconds, a sentence."""
    what = {"queue": _waited(page), "compute": "; ".join(_ran(b) for b in page["batches"])}
    names = ("parse", "queue", "compute", "encode", "total")
    return [(n, f"{page['ms'][n]:.3f}", what.get(n, "")) for n in names if n in page["ms"]]


def _waited(page: dict[str, Any]) -> str:
    meanwhile = page["ran_meanwhile"]
    if not any(meanwhile.values()):
        return ""
    return (
        f"meanwhile {meanwhile['same_version']} batches of this version ran, {meanwhile['others']} of others"
    )


def _ran(batch: dict[str, Any]) -> str:
    padded = f" and {batch['padding']} of padding" if batch["padding"] else ""
    size = f"{batch['requests']} requests, {batch['rows']} rows{padded}"
    thread = "on the event loop" if batch["thread"] == "event loop" else "on a worker"
    closed = REASONS.get(batch["closed"], batch["closed"])
    failed = f"; failed: {batch['error']}" if batch.get("error") else ""
    ran = f"ran {batch['run_ms']:.3f} ms {thread}"
    return f"batch {batch['batch']}: {size}; closed because {closed}; {ran}{failed}"
