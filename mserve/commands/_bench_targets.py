"""Options of `mserve bench` that say what is measured, and with which requests."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import _output

if TYPE_CHECKING:
    from ..bench.targets.target import Ask

Inputs = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE|BUNDLE|golden",
        help="The requests: npz, JSON, JSON lines, a request log, or a bundle's golden samples.",
    ),
]
Model = Annotated[str, typer.Option(help="Which model of a server with several.")]
Signature = Annotated[str, typer.Option(help="Which signature; default: serving_default.")]
Device = Annotated[str, typer.Option(help="Where a bundle runs: cpu, auto or cuda:0,cuda:1.")]
Rows = Annotated[int | None, typer.Option(help="Rows of each request (1).", min=1, max=1_000_000)]
ProtocolName = Annotated[
    str, typer.Option("--protocol", help="auto, tfs, oip, oip-binary (http://); grpc, tfs-grpc (grpc://).")
]
Streams = Annotated[int, typer.Option(help="gRPC: requests that share a connection.", min=1, max=10_000)]
Ca = Annotated[Path | None, typer.Option(metavar="FILE", help="TLS: certificates to trust, as PEM.")]
TokenFile = Annotated[Path | None, typer.Option(metavar="FILE", help="A bearer token to send.")]
Distinct = Annotated[int, typer.Option(help="Different requests to make up.", min=1, max=1_000_000)]
Verify = Annotated[bool, typer.Option("--verify", help="Compare each answer with the one that is expected.")]
Spawn = Annotated[
    bool, typer.Option("--spawn", help="Measure the bundle in a server that is started for it.")
]
ServeFlags = Annotated[
    list[str] | None,
    typer.Option("--serve-flag", metavar="FLAG", help="With --spawn: a flag of mserve serve; repeatable."),
]


@dataclass(frozen=True)
class TargetOptions:
    """What is measured, and with which requests."""

    inputs: Inputs = None
    model: Model = ""
    signature: Signature = ""
    device: Device = ""
    rows: Rows = None
    protocol: ProtocolName = "auto"
    streams: Streams = 16
    ca: Ca = None
    token_file: TokenFile = None
    distinct: Distinct = 16
    verify: Verify = False
    spawn: Spawn = False
    serve_flag: ServeFlags = None

    def ask(self, seed: int) -> Ask:
        """The same for who opens the target."""
        from ..bench.targets.target import Ask

        given = {f.name: getattr(self, f.name) for f in fields(self)}
        given["rows"] = self.rows or 0
        given["serve_flags"] = tuple(given.pop("serve_flag") or ())
        return Ask(**given, seed=seed, note=_output.note)
