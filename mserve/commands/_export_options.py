"""The flags of `mserve export`, and the table of kinds of sources."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from . import _output

Source = Annotated[
    str | None, typer.Argument(metavar="SOURCE", help="The model: a file or directory; see --list.")
]
BasePath = Annotated[Path | None, typer.Argument(metavar="BASE_PATH", help="Where the model's versions lie.")]
From = Annotated[
    str, typer.Option("--from", metavar="KIND", help="The kind of source; default: told by its content.")
]
Key = Annotated[
    str, typer.Option(help="The key column of a table; default: key, or the first column of a CSV file.")
]
Version = Annotated[str, typer.Option(help="A number, auto (the next) or time (Unix time).")]
Name = Annotated[str, typer.Option(help="The model's name; default: the base path's.")]
Signatures = Annotated[
    Path | None, typer.Option(help="A TOML file of signatures; default: derived from the model.")
]
Asset = Annotated[list[str] | None, typer.Option(help="PATH or PATH=NAME of a file to ship; repeatable.")]
Golden = Annotated[
    str | None,
    typer.Option(help="Inputs to record answers for: an npz file, or a number of rows to draw."),
]
Meta = Annotated[list[str] | None, typer.Option(help="KEY=VALUE for the provenance; repeatable.")]
Dedup = Annotated[
    bool, typer.Option("--dedup", help="Share equal shards with earlier versions by hard links.")
]
Partitioned = Annotated[
    list[str] | None, typer.Option(help="NAME=GLOB of npy or npz files with a weight's rows; repeatable.")
]
ShardSize = Annotated[str, typer.Option(help="Largest shard of small tensors: 512MiB, 1GB.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Input = Annotated[
    list[str] | None,
    typer.Option("--input", metavar="NAME:DTYPE[DIMS]", help="An input: x:float32[batch,28,28]; repeatable."),
]
Output = Annotated[
    list[str] | None,
    typer.Option("--output", metavar="NAME[=TENSOR]", help="An output and its tensor; repeatable."),
]
Opset = Annotated[int, typer.Option(help="The ONNX opset to convert to; default: the converter's.")]
Example = Annotated[
    Path | None, typer.Option(help="An npz file of inputs to convert, compare and record with.")
]
Check = Annotated[
    Path | None, typer.Option(help="An npz file of inputs and the outputs that the model must give.")
]
Tol = Annotated[float, typer.Option(help="The largest difference from the source's own answers.")]
Task = Annotated[str, typer.Option(help="What a model is for, where its file does not say.")]
Clip = Annotated[str, typer.Option(metavar="LO,HI", help="The range that regression answers are cut to.")]
Features = Annotated[int, typer.Option(help="The number of features, where the file does not say.")]
Sparse = Annotated[
    bool | None,
    typer.Option(
        "--sparse/--no-sparse",
        help="Take rows of ids and values, or of all features; default: linear models of many features do.",
    ),
]
Labels = Annotated[Path | None, typer.Option(help="A text file with the name of each class, one a line.")]
WeightsFile = Annotated[
    Path | None, typer.Option("--weights", help="The weights of a model given as code or text.")
]
AllowVersionMismatch = Annotated[
    bool,
    typer.Option(
        "--allow-version-mismatch", help="Read a model that another version of its framework has written."
    ),
]
Trust = Annotated[bool, typer.Option("--trust", help="Let a source run the code that it carries.")]
NoIsolate = Annotated[
    bool, typer.Option("--no-isolate", help="Convert in this process, without limits on time and memory.")
]
ListKinds = Annotated[
    bool, typer.Option("--list", help="Show the kinds of sources, and what installs what they need.")
]


def parse_clip(text: str) -> tuple[float, float] | None:
    """The bounds of `LO,HI`. Raises UsageError."""
    if not text:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = math.nan
    if not low < high:
        raise UsageError("bad --clip", expected="LO,HI with LO below HI", found=text)
    return low, high


def show_kinds(*, as_json: bool) -> None:
    """What can be exported, on stdout."""
    from dataclasses import asdict

    from ..exporters import sources

    rows = sources.listing()
    if as_json:
        _output.emit_json("exporters", {"exporters": [asdict(row) for row in rows]})
        return
    columns = ("source", "what", "installed", "compared", "to install", "what needs --trust")
    shown = [
        (
            row.name,
            row.problem or row.what,
            *("yes" if answer else "no" for answer in (row.installed, row.compares)),
            row.pip,
            row.runs_code,
        )
        for row in rows
    ]
    _output.table(columns, shown)
