"""PyTorch weights without a module (state dicts): told apart from code, and refused with the way out."""

from __future__ import annotations

from pathlib import Path

from ...errors import InputError, UsageError
from ..kinds import Converted, ConvertOptions, Kind, Seen
from .torch_pickle import classes, member_of

# What torch.save writes of a state dict.
PLAIN = ("collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter")


def _is_plain(name: str) -> bool:
    module, _, attribute = name.partition(" ")
    return name in PLAIN or (module == "torch" and attribute.endswith("Storage"))


def _holds_weights(seen: Seen) -> bool:
    """Whether a file holds tensors and nothing that could make a model of them."""
    if seen.is_file and seen.head[8:9] == b"{" and seen.path.suffix == ".safetensors":
        return True
    member = member_of(seen)
    try:
        return bool(member) and all(_is_plain(name) for name in classes(seen.path, member))
    except InputError:
        return False


def refuse(source: str, options: ConvertOptions) -> Converted:
    """Raises UsageError: weights alone are no model."""
    raise UsageError(
        "weights without a module cannot be exported",
        where=source,
        expected="a function that makes the module, and these as its weights",
        found="a state dict",
        hint=f"mserve export package.module:function BASE_PATH --weights {Path(source).name} --trust",
    )


KIND = Kind(
    name="torch-weights",
    what="PyTorch weights without a module",
    matches=_holds_weights,
    convert=refuse,
)
