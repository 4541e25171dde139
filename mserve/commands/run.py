"""`mserve run`: answers from a bundle, without a server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import EnvironmentProblem, InputError
from ..files import MAX_INPUT_BYTES, read_input
from . import _output


def command(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A version directory or a base path.")],
    inputs: Annotated[
        str, typer.Option(help="An npz file, a JSON request, or - for JSON on standard input.")
    ],
    signature: Annotated[str, typer.Option(help="Which signature; default: serving_default.")] = "",
    device: Annotated[str, typer.Option(help="Where: cpu, auto, or a CUDA device: cuda:0.")] = "cpu",
    output: Annotated[Path | None, typer.Option(help="Write the outputs to this npz file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Run a bundle on the given inputs.

    JSON inputs are a predict request: {"instances": [...]} or {"inputs": {...}}.
    """
    from ..loader.servable import load
    from ..runtime.engines import RUN_S
    from ..wire import tfs_json

    servable = load(bundle, device)
    name, spec = servable.signature(signature)
    rows = False
    if inputs.endswith(".npz"):
        from ..format.golden import read_npz

        arrays = read_npz(Path(inputs))
    else:
        arrays, rows = tfs_json.inputs_of(tfs_json.parse(_read(inputs)), spec)
    outputs = servable.run(arrays, name, limit_s=RUN_S)
    if output is not None:
        _save(output, outputs)
    if as_json:
        ports = {
            a: {"dtype": spec.outputs[a].dtype, "shape": list(x.shape), "data": x.tolist()}
            for a, x in outputs.items()
        }
        _output.emit_json(
            "run",
            {
                "path": str(servable.bundle.path),
                "version": servable.version,
                "signature": name,
                "outputs": ports,
            },
        )
    elif output is None:
        _output.line(tfs_json.encode(outputs, rows=rows).decode())


def _read(source: str) -> bytes:
    if source == "-":
        data = sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)
        if len(data) > MAX_INPUT_BYTES:
            raise InputError("the input is too large", expected=f"at most {MAX_INPUT_BYTES} bytes")
        return data
    return read_input(Path(source))


def _save(path: Path, outputs: dict[str, Any]) -> None:
    import numpy as np

    plain = {a: x.astype(str) if x.dtype.kind == "O" else x for a, x in outputs.items()}
    try:
        with path.open("wb") as file:  # given a name, numpy would add ".npz" to it
            np.savez(file, **plain)
    except OSError as error:
        raise EnvironmentProblem(
            "cannot write the outputs", where=path, found=error.strerror or error
        ) from error
