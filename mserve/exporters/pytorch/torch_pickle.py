"""Whole modules as `torch.save` writes them: pickles of their classes.

The names of the classes in a pickle can be read without running it; a file that names nothing
but tensors is weights, whose module is elsewhere (`torch_weights.py`). Anything else is code.
"""

from __future__ import annotations

import pickletools
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

from ...errors import InputError
from ..kinds import Converted, ConvertOptions, Kind, Seen
from . import torch_factory

MAX_PICKLE_BYTES = 64 << 20


def member_of(seen: Seen) -> str:
    """The member that torch.save writes; "" where there is none."""
    if any(name.partition("/")[2].startswith("code/") for name in seen.names):
        return ""
    stores = any(name.endswith(("/version", "/byteorder")) for name in seen.names)
    found = (name for name in seen.names if name.partition("/")[2] == "data.pkl")
    return next(found, "") if stores else ""


def classes(path: Path, member: str) -> list[str]:
    """The classes and functions that a pickle names, none of them imported. Raises InputError."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            data = file.read(MAX_PICKLE_BYTES)
        found, texts = [], []
        with warnings.catch_warnings():  # of odd escapes in its texts
            warnings.simplefilter("ignore")
            for code, argument, _ in pickletools.genops(data):
                if isinstance(argument, str):
                    texts.append(argument)
                if code.name in ("GLOBAL", "INST"):
                    found.append(str(argument))
                elif code.name == "STACK_GLOBAL":
                    found.append(" ".join(texts[-2:]))
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, RuntimeError, EOFError) as error:
        raise InputError("the pickle cannot be read", where=path, found=error) from error
    return sorted(set(found))


def _holds_module(seen: Seen) -> bool:
    return bool(member_of(seen))


def convert(source: str, options: ConvertOptions) -> Converted:
    """A whole module, unpickled, as ONNX. Raises InputError and UsageError."""
    import sys

    import torch

    from . import torch_onnx

    sys.path.insert(0, options.cwd)
    try:
        module: Any = torch.load(source, map_location="cpu", weights_only=False)
    except Exception as error:  # whatever the pickle's classes raise
        raise InputError(
            "the pickled module cannot be read",
            where=source,
            expected="classes that can be imported from here",
            found=f"{type(error).__name__}: {error}"[:500],
            hint="write a function that makes the module: package.module:function --weights F.pt",
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise InputError("the file holds no module", where=source, found=type(module).__name__)
    given, arrays = torch_factory.inputs_of(torch_factory.argument_names(module.forward), None, options)
    traced = torch_factory.traced_with(given, arrays)
    converted = torch_onnx.module_to_onnx(module, traced, given, options)
    converted.draw = torch_factory.drawing(given, arrays)
    return converted


KIND = Kind(
    name="torch-module",
    what="a pickled PyTorch module",
    matches=_holds_module,
    convert=convert,
    extra="torch",
    modules=("torch", "onnxscript"),
    runs_code="the classes and functions that its pickle names",
    options=("input", "output", "opset", "labels"),
)
