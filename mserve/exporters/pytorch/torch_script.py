"""TorchScript modules (`torch.jit.save`), from a file or live.

The file holds a program in a language of its own, no Python; but that language can map
and write files, so it runs only when asked to.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import InputError
from ..kinds import Converted, ConvertOptions, Kind, Seen
from . import torch_factory


def _matches(seen: Seen) -> bool:
    parts = [name.partition("/")[2] for name in seen.names]
    return "constants.pkl" in parts and any(part.startswith("code/") for part in parts)


def convert(source: str, options: ConvertOptions) -> Converted:
    """The module as ONNX, compared with itself. Raises InputError and UsageError."""
    import torch

    from . import torch_onnx

    try:
        script = torch.jit.load(source, map_location="cpu").eval()
    except Exception as error:  # whatever torch meets in the archive
        found = str(error).splitlines()[0][:500] if str(error) else type(error).__name__
        raise InputError("the TorchScript module cannot be read", where=source, found=found) from error
    names = [argument.name for argument in script.forward.schema.arguments][1:]
    given, arrays = torch_factory.inputs_of(names, None, options)
    traced = torch_factory.traced_with(given, arrays)
    converted = torch_onnx.script_to_onnx(script, traced, given, options)
    converted.draw = torch_factory.drawing(given, arrays)
    return converted


def _accepts(source: Any) -> bool:
    return any(one.__module__ == "torch.jit._script" for one in type(source).__mro__)


def _save(source: Any, directory: Path, options: ConvertOptions) -> tuple[str, ConvertOptions]:
    path = directory / "script.pt"
    source.save(str(path))
    names = [argument.name for argument in source.forward.schema.arguments][1:]
    return str(path), replace(options, example=torch_factory.as_arrays(names, options.example))


KIND = Kind(
    name="torchscript",
    what="a TorchScript module",
    matches=_matches,
    convert=convert,
    extra="torch",
    modules=("torch",),
    runs_code="a TorchScript program, which can read and write files",
    options=("input", "output", "opset", "labels"),
    accepts=_accepts,
    save=_save,
)
