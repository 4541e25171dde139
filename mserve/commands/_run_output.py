"""What `mserve run` prints and writes: answers in the form of the request, arrays in files, verdicts."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, UsageError
from . import _output

if TYPE_CHECKING:
    from ..readers.arrays import Request
    from ..tensors import Array
    from ..workflows.bisect import Found
    from ..workflows.parting import Verdict

SUFFIXES = (".npz", ".npy", ".json", ".jsonl")
ROWS_SHOWN = 5
VALUES_SHOWN = 8
REQUESTS_SHOWN = 5
Outputs = Mapping[str, "Array"]


def check_suffix(path: Path | None) -> None:
    """Refuse a file for outputs of a kind that is not written. Raises UsageError."""
    if path is not None and path.suffix not in SUFFIXES:
        raise UsageError("--output does not say what to write", expected=", ".join(SUFFIXES), found=path.name)


def answer(request: Request, outputs: Outputs) -> bytes:
    """The JSON answer to a request, in the protocol and form of it."""
    from ..wire import oip_json, tfs_json
    from ..wire.oip import Output

    if request.form == "oip":
        return oip_json.encode({}, [Output(alias, x) for alias, x in outputs.items()])[0]
    rows = request.form == "rows"
    return tfs_json.encode(outputs, rows=rows and len({x.shape[:1] for x in outputs.values()}) == 1)


def encoded(path: Path, requests: Sequence[Request], answers: Sequence[Outputs]) -> bytes:
    """Outputs as the content of a file of this name. Raises InputError, UsageError."""
    if path.suffix in (".npz", ".npy"):
        return _arrays(path, answers)
    if path.suffix == ".json" and len(requests) > 1:
        raise UsageError(
            "a .json file holds one answer", found=f"{len(requests)} requests", hint="write a .jsonl file"
        )
    lines = [answer(request, outputs) for request, outputs in zip(requests, answers, strict=True)]
    return b"".join(line + b"\n" for line in lines)


def _arrays(path: Path, answers: Sequence[Outputs]) -> bytes:
    import numpy as np

    from ..format.golden import storable

    joined = {alias: storable(_joined(alias, [a[alias] for a in answers])) for alias in answers[0]}
    buffer = io.BytesIO()
    if path.suffix == ".npz":
        np.savez(buffer, allow_pickle=False, **joined)
    elif len(joined) == 1:
        np.save(buffer, next(iter(joined.values())), allow_pickle=False)
    else:
        raise UsageError("a .npy file holds one output", found=", ".join(joined), hint="write a .npz file")
    return buffer.getvalue()


def _joined(alias: str, arrays: Sequence[Array]) -> Array:
    """The answers to all requests, one below the other."""
    import numpy as np

    if len(arrays) == 1:
        return arrays[0]
    try:
        return np.concatenate(arrays)
    except ValueError as error:
        raise InputError(
            f"the answers for {alias!r} cannot be joined", found=error, hint="write a .jsonl file"
        ) from error


def show(requests: Sequence[Request], answers: Sequence[Outputs]) -> None:
    """Answers on stdout: JSON to programs that sent JSON, shapes and first rows for everybody else."""
    if requests[0].form != "arrays" and not _output.on_terminal():
        for request, outputs in zip(requests, answers, strict=True):
            _output.line(answer(request, outputs).decode())
        return
    rows = [
        (alias, f"{_dtype(x)} {list(x.shape)}", number, text)
        for outputs in answers[:REQUESTS_SHOWN]
        for alias, x in outputs.items()
        for number, text in _first_rows(x)
    ]
    _output.table(("output", "type", "row", "values"), rows)
    if len(answers) > REQUESTS_SHOWN:
        _output.note(f"and {len(answers) - REQUESTS_SHOWN} more requests, which --output F.jsonl keeps")


def _dtype(array: Array) -> str:
    from ..tensors import dtype_of

    return dtype_of(array)


def _first_rows(array: Array) -> list[tuple[str, str]]:
    """The first rows as text; what is left out is said."""
    if not array.ndim:
        return [("", _value(array.item()))]
    rows = [(str(i), _values(row)) for i, row in enumerate(array[:ROWS_SHOWN])]
    if len(array) > ROWS_SHOWN:
        rows.append(("...", f"{len(array) - ROWS_SHOWN} more rows"))
    return rows or [("", "no rows")]


def _values(row: Any) -> str:
    if not hasattr(row, "ravel") or isinstance(row, str):
        return _value(row)
    flat = row.ravel()
    shown = ", ".join(_value(x) for x in flat[:VALUES_SHOWN].tolist())
    more = f", ... {flat.size} values" if flat.size > VALUES_SHOWN else ""
    return f"{shown}{more}"


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return repr(value[:60]) if isinstance(value, str) else str(value)


def ports(outputs: Outputs) -> dict[str, Any]:
    """Outputs as `--json` prints them."""
    return {a: {"dtype": _dtype(x), "shape": list(x.shape), "data": x.tolist()} for a, x in outputs.items()}


def show_verdicts(
    labels: tuple[str, str], verdicts: Sequence[Verdict], found: Found | None, sought: bool
) -> None:
    """Whether two subjects agree, output by output, and where they part."""
    _output.table(
        ("output", "verdict", "how far"),
        [(v.name, "equal" if v.equal else "PARTED", v.sentence()) for v in verdicts],
    )
    parted = [v.name for v in verdicts if not v.equal]
    _output.line(
        _output.printable(
            f"PARTED: {', '.join(parted)} of {labels[0]} and {labels[1]}" if parted
            else f"equal: {labels[0]} and {labels[1]}"
        )
    )  # fmt: skip
    if found is not None:
        name = f" {found.op.node.name!r}" if found.op.node.name else ""
        _output.line(
            _output.printable(f"first at node {found.number} of {found.nodes}: {found.op.node.op}{name}")
        )
        _output.line(_output.printable(f"  makes {found.verdict.name}: {found.verdict.sentence()}"))
        for text in found.inputs:
            _output.line(_output.printable(f"  takes {text}"))
    elif sought and parted:
        _output.line("the node was not found: they agree as soon as tensors inside the graph are looked at")
