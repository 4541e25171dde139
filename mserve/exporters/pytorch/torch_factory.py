"""PyTorch modules from a function: `package.module:function`, with weights of a file beside it.

The function takes no arguments and returns a `torch.nn.Module`, or a module and its example
inputs (a tensor, a tuple, or a dict by argument). The weights are a state dict, a `.pt`
file that is read with `weights_only` or `.safetensors`, and must fit exactly.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import InputError, UsageError
from ...format.golden import read_npz
from ...tensors import Array
from .. import ports
from ..kinds import Converted, ConvertOptions, Kind, Seen
from ..ports import Port

SOURCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
GENERATED_ROWS = 13


def _matches(seen: Seen) -> bool:
    return bool(SOURCE.fullmatch(seen.text)) and not (seen.is_file or seen.is_dir)


def convert(source: str, options: ConvertOptions) -> Converted:
    """The module as ONNX. Raises InputError and UsageError."""
    from . import torch_onnx

    module, example = _made(source, options)
    if options.weights is not None:
        load_weights(module, Path(options.weights))
    given, arrays = inputs_of(argument_names(module.forward), example, options)
    traced = traced_with(given, arrays)
    converted = torch_onnx.module_to_onnx(module, traced, given, options)
    converted.draw = drawing(given, arrays)
    return converted


def _made(source: str, options: ConvertOptions) -> tuple[Any, Any]:
    """What the function returns: the module, and example inputs or None."""
    import torch

    name, _, attribute = source.partition(":")
    if not SOURCE.fullmatch(source):
        raise UsageError("not the name of a function", expected="package.module:function", found=source[:80])
    sys.path.insert(0, options.cwd)  # as `python -m` has it
    found: Any = importlib.import_module(name)
    for word in attribute.split("."):
        if not hasattr(found, word):
            raise InputError("the module has no such function", where=name, found=word)
        found = getattr(found, word)
    made = found() if callable(found) and not isinstance(found, torch.nn.Module) else found
    module, example = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, torch.nn.Module):
        expected = "a torch.nn.Module, or one and its example inputs"
        raise InputError(
            "the function made no module", where=source, expected=expected, found=type(module).__name__
        )
    return module, example


def load_weights(module: Any, path: Path) -> None:
    """Fill a module with a state dict; nothing in the file is run. Raises InputError."""
    import torch

    try:
        if path.read_bytes()[:2] in (b"PK", b"\x80\x02") or path.suffix in (".pt", ".pth", ".bin"):
            state = torch.load(path, map_location="cpu", weights_only=True)
        else:
            from safetensors.torch import load_file

            state = load_file(path)
    except Exception as error:  # the readers raise what they like
        raise InputError(
            "the weights cannot be read",
            where=path,
            expected="a state dict: a .pt file without classes, or .safetensors",
            found=str(error).splitlines()[0][:300] if str(error) else type(error).__name__,
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(x, torch.Tensor) for x in state.values()):
        raise InputError("the weights are not a state dict", where=path, found=type(state).__name__)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise InputError(
            "the weights do not fit the module", where=path, found=" ".join(lines)[:1000]
        ) from error


def argument_names(forward: Any) -> list[str]:
    """The arguments of a `forward` that take inputs, in their order; required ones first to last."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in inspect.signature(forward).parameters.values() if p.kind in kinds]


def inputs_of(
    names: list[str], example: Any, options: ConvertOptions
) -> tuple[tuple[Port, ...], dict[str, Array] | None]:
    """The inputs as `--input`, else as examples have them; and the examples, if there are any.

    Raises UsageError when neither tells.
    """
    arrays = as_arrays(names, options.example if options.example is not None else example)
    given = ports.parse_inputs(options.input)
    if given and arrays is not None and {p.name for p in given} != set(arrays):
        raise UsageError(
            "the example inputs are not those of --input",
            expected=", ".join(p.name for p in given),
            found=", ".join(arrays),
        )
    if not given and arrays is None:
        raise UsageError(
            "PyTorch modules do not say what their inputs are",
            expected="--input NAME:DTYPE[DIMS] for each, or --example F.npz",
            found=f"arguments {', '.join(names)}",
            hint=f"such as --input '{names[0] if names else 'x'}:float32[batch,28,28]'",
        )
    given = given or ports.described(arrays or {})
    unknown = [p.name for p in given if names and p.name not in names]
    if unknown:
        raise UsageError("no such argument of forward", expected=", ".join(names), found=", ".join(unknown))
    ordered = sorted(given, key=lambda p: names.index(p.name)) if names else list(given)
    if names and [p.name for p in ordered] != names[: len(ordered)]:
        raise UsageError(
            "an argument of forward before the others has no input",
            expected=", ".join(names[: len(ordered)]),
            found=", ".join(p.name for p in ordered),
        )
    return tuple(ordered), arrays


def as_arrays(names: list[str], example: Any) -> dict[str, Array] | None:
    """Example inputs by argument: from an npz file, a mapping, a tensor, or a tuple in order."""
    import numpy as np

    if example is None:
        return None
    if isinstance(example, str | Path):
        return dict(read_npz(Path(example)))
    if not isinstance(example, Mapping):
        values = example if isinstance(example, tuple | list) else (example,)
        if len(values) > len(names):
            raise UsageError(
                "more example inputs than forward has arguments",
                expected=", ".join(names),
                found=f"{len(values)} inputs",
            )
        example = dict(zip(names, values, strict=False))
    return {
        str(name): np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
        for name, value in example.items()
    }


def traced_with(given: tuple[Port, ...], arrays: dict[str, Array] | None) -> dict[str, Array]:
    """Arrays to trace with: the example with at least two rows, or made up."""
    from .torch_onnx import TRACED_ROWS

    if arrays is None:
        return ports.drawn(given, TRACED_ROWS)
    rows = len(next(iter(arrays.values()))) if ports.has_batch(given) else 0
    return ports.repeated(arrays, max(rows, TRACED_ROWS)) if ports.has_batch(given) else arrays


def drawing(given: tuple[Port, ...], arrays: dict[str, Array] | None) -> Any:
    """Rows to compare with: the example's, or made up at other sizes than those traced."""

    def draw(signature: str, rows: int) -> dict[str, Array]:
        if arrays is None:
            return ports.drawn(given, rows, grown=2)
        return ports.repeated(arrays, rows) if ports.has_batch(given) else arrays

    return draw


KIND = Kind(
    name="torch",
    what="a PyTorch module from a function",
    matches=_matches,
    convert=convert,
    extra="torch",
    modules=("torch", "onnxscript"),
    runs_code="the named module and function, as Python",
    options=("input", "output", "opset", "labels", "weights"),
)
