"""`mserve run`: answers from a model, without a server; a look inside; a comparison with another."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from . import _output, _run_output

if TYPE_CHECKING:
    from ..readers.arrays import Options, Request
    from ..readers.images import ImageOptions
    from ..tensors import Array
    from ..workflows.bisect import Found
    from ..workflows.parting import Tolerance, Verdict
    from ..workflows.subject import Subject


def command(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="A version directory, a base path or an ONNX file.")
    ],
    inputs: Annotated[
        list[str],
        typer.Option(
            metavar="[NAME=]FILE",
            help="npz, npy, JSON request or list of rows, JSON lines, CSV, LIBSVM's or libFM's text, PNG, "
            "JPEG or raw values; - is standard input. NAME= says for which input; may be repeated.",
        ),
    ],
    signature: Annotated[str, typer.Option(help="Which signature; default: serving_default.")] = "",
    device: Annotated[str, typer.Option(help="Where: cpu, auto, or a CUDA device: cuda:0.")] = "cpu",
    output: Annotated[
        Path | None, typer.Option(help="Write the outputs to this file: .npz, .npy, .json or .jsonl.")
    ] = None,
    input_format: Annotated[
        str, typer.Option(help="What the files are: npz, npy, json, jsonl, csv, tsv, image, raw, lines.")
    ] = "",
    pixels: Annotated[str, typer.Option(help="What 0 and 255 of an image become: 0..1, -1..1, 0..255.")] = "",
    resize: Annotated[bool, typer.Option("--resize", help="Scale images to the input's size.")] = False,
    bgr: Annotated[bool, typer.Option("--bgr", help="Blue before red, for images.")] = False,
    intermediate: Annotated[
        list[str] | None,
        typer.Option(metavar="NODE", help="A node or tensor inside the graph to show; may be repeated."),
    ] = None,
    compare_with: Annotated[
        str,
        typer.Option(
            metavar="OTHER",
            help="Another model, plain (no graph optimisations), cpu or cuda:N: exit 1 if they part.",
        ),
    ] = "",
    bisect: Annotated[
        bool, typer.Option("--bisect", help="With --compare-with: find the first node that parts.")
    ] = False,
    rtol: Annotated[
        float, typer.Option(min=0, help="Tolerance, relative to the largest value of a row.")
    ] = 1e-3,
    atol: Annotated[float, typer.Option(min=0, help="Absolute tolerance.")] = 1e-5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Run a bundle or an ONNX file on the given inputs.

    JSON inputs are a predict request, TensorFlow Serving's or Open Inference's, and are answered as such;
    the answer to anything else is shown by its shapes and first rows.
    """
    from ..readers.images import ImageOptions, parse_pixels
    from ..workflows.parting import Tolerance

    if bisect and not compare_with:
        raise UsageError("--bisect needs something to compare with", hint="--compare-with OTHER")
    _run_output.check_suffix(output)
    images = ImageOptions(parse_pixels(pixels), resize, bgr)
    asked = _Asked(inputs, signature, intermediate or [], output, as_json)
    comparison = _Comparison(compare_with, Tolerance(rtol, atol), bisect) if compare_with else None
    if _run(bundle, device, asked, _options(input_format, images), comparison):
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class _Asked:
    inputs: list[str]
    signature: str
    intermediate: list[str]
    output: Path | None
    as_json: bool


@dataclass(frozen=True, slots=True)
class _Comparison:
    other: str
    tolerance: Tolerance
    bisect: bool


def _options(kind: str, images: ImageOptions) -> Options:
    from ..readers.arrays import KINDS, Options

    if kind not in ("", *KINDS):
        raise UsageError("bad --input-format", expected=", ".join(KINDS), found=repr(kind[:40]))
    return Options(kind, images, lambda: sys.stdin.buffer)


def _run(bundle: Path, device: str, asked: _Asked, options: Options, comparison: _Comparison | None) -> bool:
    """Run, write, compare and print; whether the two that were compared part."""
    from ..outfiles import OutFiles
    from ..readers.arrays import read_arrays
    from ..workflows.parting import open_other
    from ..workflows.subject import open_subject

    subject = open_subject(bundle, device)
    name, spec = subject.signature(asked.signature)
    tensors = list(dict.fromkeys(t for text in asked.intermediate for t in subject.inside(text)))
    other = open_other(comparison.other, subject) if comparison else None
    with OutFiles([asked.output] if asked.output else []) as files:
        requests = read_arrays(asked.inputs, name, spec, options)
        answers = [_answered(subject, request, name, tensors) for request in requests]
        if asked.output is not None:
            files.write(asked.output, _run_output.encoded(asked.output, requests, answers))
    bundle_of = subject.model.bundle
    facts: dict[str, Any] = {
        "path": str(subject.model.path),
        "version": bundle_of.version if bundle_of else None,
    }
    facts["signature"] = name
    parted = False
    if other is not None and comparison is not None:
        verdicts, found = _compared((subject, other), name, requests, comparison)
        parted = not all(verdict.equal for verdict in verdicts)
        facts |= {"compared_with": other.label, "verdicts": [verdict.to_json() for verdict in verdicts]}
        facts["first_parted"] = found.to_json() if found else None
        if not asked.as_json:
            _run_output.show_verdicts((subject.label, other.label), verdicts, found, comparison.bisect)
    if asked.as_json:
        several = [_run_output.ports(outputs) for outputs in answers]
        facts |= {"outputs": several[0]} if len(several) == 1 else {"answers": several}
        _output.emit_json("run", facts)
    elif asked.output is None and other is None:
        _run_output.show(requests, answers)
    return parted


def _answered(subject: Subject, request: Request, name: str, tensors: Sequence[str]) -> dict[str, Array]:
    """The outputs of a request, and behind them the tensors from inside that are no outputs."""
    outputs = subject.run(request.arrays, name)
    if not tensors:
        return outputs
    inside = subject.observe(request.arrays, name, tensors)
    return {**outputs, **{tensor: x for tensor, x in inside.items() if tensor not in outputs}}


def _compared(
    sides: tuple[Subject, Subject], name: str, requests: Sequence[Request], comparison: _Comparison
) -> tuple[list[Verdict], Found | None]:
    """A verdict for each output, the worst of all requests, and the node where the first of them parts."""
    from ..workflows import parting
    from ..workflows.bisect import bisect

    pair = parting.pair_of(parting.pairs_of(*sides), name, sides[1])
    worst: dict[str, Verdict] = {}
    found = None
    for request in requests:
        for verdict in parting.compared(sides, pair, request.arrays, comparison.tolerance):
            before = worst.get(verdict.name)
            if before is None or (verdict.equal, -verdict.worst) < (before.equal, -before.worst):
                worst[verdict.name] = verdict
        if comparison.bisect and found is None and not all(v.equal for v in worst.values()):
            found = bisect(sides, pair, request.arrays, comparison.tolerance)
    return list(worst.values()), found
