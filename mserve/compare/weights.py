"""The weights level: which tensor is which, and how the values of those that differ moved.

Tensors belong together when they stand in the same place of the graph (see `matching`); else by name;
else by equal bytes. Digests come first: where both are recorded and equal, nothing is read. Tensors
that changed are also asked whether one holds what another held, and whether slices changed their order:
both leave every shape valid and every answer wrong.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping

from ..errors import BundleIncomplete, InputError
from ..numerics import show_bytes
from ..tensors import DTYPES, show_shape
from . import values
from .change import WEIGHTS, Change, Level
from .graph import Compared
from .model import Tensor
from .values import Delta

FEW_VALUES = 4
Pairs = dict[str, str]


def compare(graphs: Compared) -> Level:
    """The changes of all weights, worst first within each kind. Raises OSError."""
    old, new = graphs.old, graphs.new
    pairs = _paired(old, new, graphs.weights)
    changes: list[Change] = []
    differing: Pairs = {}
    renamed = 0
    for name, other in pairs.items():
        if _kind(old[name]) != _kind(new[other]):
            changes += _reshaped(old[name], new[other])
        elif old[name].sha256 and old[name].sha256 == new[other].sha256:
            renamed += name != other
            changes += _renamed(name, other)
        else:
            differing[name] = other
    moved = list(_values(old, new, differing))
    equal = len(pairs) - len([c for c in (*changes, *moved) if c.rule != "weight-renamed"])
    taken = set(pairs.values())
    for name, tensor in old.items():
        if name not in pairs:
            changes.append(Change("weight-removed", name, "has no counterpart", _shown(tensor)))
    for name, tensor in new.items():
        if name not in taken:
            changes.append(Change("weight-added", name, "has no counterpart", "", _shown(tensor)))
    order = sorted([*changes, *moved], key=lambda c: -_relative(c))
    size = show_bytes(sum(t.length for t in new.values()))
    return Level(WEIGHTS, tuple(order), f"{len(new)} weights, {size}; {equal} equal")


def _relative(change: Change) -> float:
    value = change.facts.get("relative_l2", 0.0)
    return float(value)


def _kind(tensor: Tensor) -> tuple[str, tuple[int, ...]]:
    return tensor.dtype, tensor.shape


def _shown(tensor: Tensor) -> str:
    return f"{tensor.dtype} {show_shape(tensor.shape)}"


# --- which is which


def _paired(old: Mapping[str, Tensor], new: Mapping[str, Tensor], placed: Mapping[str, str]) -> Pairs:
    """NEW's names by OLD's, each used once."""
    found: Pairs = {a: b for a, b in placed.items() if a in old and b in new}
    taken = set(found.values())
    for name in old:
        if name not in found and name in new and name not in taken:
            found[name] = name
            taken.add(name)
    left: dict[tuple[str, tuple[int, ...]], tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for name, tensor in old.items():
        if name not in found:
            left[_kind(tensor)][0].append(name)
    for name, tensor in new.items():
        if name not in taken:
            left[_kind(tensor)][1].append(name)
    for ours, theirs in left.values():
        if ours and theirs:
            found |= _by_digest({n: old[n] for n in ours}, {n: new[n] for n in theirs})
    return found


def _by_digest(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> Pairs:
    """Tensors with equal bytes, in order."""
    places: dict[str, list[str]] = defaultdict(list)
    for name, tensor in new.items():
        if (digest := _digest(tensor)) is not None:
            places[digest].append(name)
    found: Pairs = {}
    for name, tensor in old.items():
        if (digest := _digest(tensor)) is not None and places.get(digest):
            found[name] = places[digest].pop(0)
    return found


def _digest(tensor: Tensor) -> str | None:
    """None where the bytes cannot be read, which is reported when they are compared."""
    try:
        return tensor.digest()
    except (InputError, BundleIncomplete):
        return None


def _renamed(name: str, other: str) -> Iterator[Change]:
    if name != other:
        yield Change("weight-renamed", other, f"was called {name!r}, the same bytes", name, other)


# --- how they differ


def _values(old: Mapping[str, Tensor], new: Mapping[str, Tensor], pairs: Pairs) -> Iterator[Change]:
    """Changes of tensors of one dtype and shape whose digests are not known to be equal."""
    deltas: dict[str, Delta | None] = {}
    for name, other in pairs.items():
        try:
            delta = _difference(old[name], new[other])
        except (InputError, BundleIncomplete) as error:
            yield Change("weight-unread", other, str(error))
            continue
        if delta is not None and not delta.changed:
            yield from _renamed(name, other)
        else:
            deltas[name] = delta
    holders = _holders(old, new, {name: pairs[name] for name in deltas})
    for name, delta in deltas.items():
        yield _changed(old[name], new[pairs[name]], delta, holders.get(name, ""))


def _readable(tensor: Tensor) -> bool:
    return DTYPES[tensor.dtype].bits > 0 if tensor.dtype in DTYPES else False


def _difference(old: Tensor, new: Tensor) -> Delta | None:
    """How two tensors of one shape differ; for values that are not read, None if they do."""
    if _readable(old):
        return values.compare(old, new, math.prod(old.shape))
    return Delta() if old.digest() == new.digest() else None


def _holders(old: Mapping[str, Tensor], new: Mapping[str, Tensor], pairs: Pairs) -> dict[str, str]:
    """For tensors that hold now what another one held, the name of that one."""
    groups: dict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    for name in pairs:
        groups[_kind(old[name])].append(name)
    found: dict[str, str] = {}
    for names in groups.values():
        if len(names) > 1:
            held = {old[name].digest(): name for name in names}
            found |= {n: held[d] for n in names if (d := new[pairs[n]].digest()) in held}
    return found


def _changed(old: Tensor, new: Tensor, delta: Delta | None, holder: str) -> Change:
    was, now = _shown(old), _shown(new)
    name = new.name if new.name == old.name else f"{new.name} (was {old.name})"
    if delta is None:
        return Change("weight-values", name, "other bytes", was, now)
    rule, text = "weight-values", _described(old, delta)
    if holder:
        rule, text = "weights-swapped", f"holds what {holder!r} held; {text}"
    elif delta.nan[1] > delta.nan[0] or delta.inf[1] > delta.inf[0]:
        text = f"{delta.nan[0]} -> {delta.nan[1]} NaN, {delta.inf[0]} -> {delta.inf[1]} infinite; {text}"
        rule = "weight-broken"
    elif delta.rounded and old.dtype in values.FAST:
        rule, text = "weight-rounded", f"rounded to {delta.rounded} and back; {text}"
    elif (axis := values.permuted_axis(old, new)) is not None:
        rule, text = "weight-permuted", f"slices along axis {axis} in another order; {text}"
    if math.prod(old.shape) <= FEW_VALUES:
        was, now = (_few(t) for t in (old, new))
    return Change(rule, name, text, was, now, delta.facts())


def _few(tensor: Tensor) -> str:
    from ..numerics import from_stored

    numbers = from_stored(tensor.dtype, b"".join(tensor.pieces()))[: math.prod(tensor.shape)]
    return ", ".join(f"{x:g}" for x in numbers.astype(float).tolist())


def _described(old: Tensor, delta: Delta) -> str:
    rows = f"{delta.rows:,} of {old.shape[0]:,} rows, " if len(old.shape) > 1 else ""
    text = f"{rows}{delta.changed:,} of {delta.elements:,} values, max |d| {delta.maximum:.3g}, "
    text += f"relative L2 {delta.relative:.3g}, cosine {delta.cosine:.6f}"
    return text + (f", {delta.flips:,} sign flips" if delta.flips else "")


def _reshaped(old: Tensor, new: Tensor) -> Iterator[Change]:
    """Another dtype, or another shape; values are compared where they have a counterpart."""
    was, now = _shown(old), _shown(new)
    name = new.name if new.name == old.name else f"{new.name} (was {old.name})"
    rule = "weight-shape" if old.shape != new.shape else "weight-dtype"
    common = _common(old, new)
    if common is None or not (_readable(old) and _readable(new)):
        yield Change(rule, name, f"{was} -> {now}", was, now)
        return
    try:
        delta = values.compare(old, new, common)
    except (InputError, BundleIncomplete) as error:
        yield Change("weight-unread", name, str(error))
        return
    text = f"{was} -> {now}"
    if old.shape != new.shape:
        rows = min(old.shape[0], new.shape[0])
        text += f"; of the first {rows:,} rows {delta.rows:,} differ"
    else:
        text += f"; as numbers: {_described(old, delta)}"
    yield Change(rule, name, text, was, now, delta.facts())


def _common(old: Tensor, new: Tensor) -> int | None:
    """How many values at the start of both have the same place in both; None if shapes tell nothing."""
    if old.shape == new.shape:
        return math.prod(old.shape)
    if old.shape and new.shape and old.shape[1:] == new.shape[1:] and old.dtype == new.dtype:
        return math.prod(old.shape[1:]) * min(old.shape[0], new.shape[0])
    return None
