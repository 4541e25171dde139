"""The signature level: whether what a client of OLD sends and reads still fits NEW.

Inputs may become wider and outputs narrower; the other way round somebody can fail. Ports are
matched by name; one that is gone and one that is new, of the same side, dtype and shape, are a
rename. What each change means stands in `change.TABLE`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..sparse import Sparse
from ..tensors import ANY_DIM, Dim, Shape, Signature, TensorSpec, show_shape
from .change import SIGNATURE, Change, Level
from .model import Model

Ports = Mapping[str, TensorSpec]


@dataclass(frozen=True, slots=True)
class Pair:
    """A signature of OLD and its counterpart: names in NEW by names in OLD."""

    old: str
    new: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


def compare(old: Model, new: Model) -> tuple[Level, list[Pair]]:
    """The changes of all signatures, and which belong together."""
    renamed = _renames(old.signatures, new.signatures)
    names = {name: name for name in old.signatures if name in new.signatures} | renamed
    changes = list(_presence(old.signatures, new.signatures, renamed))
    pairs = []
    for name, other in names.items():
        one, two = old.signatures[name], new.signatures[other]
        inputs, outputs = _matched(one.inputs, two.inputs), _matched(one.outputs, two.outputs)
        pairs.append(Pair(name, other, inputs, outputs))
        changes += _signature(one, two, pairs[-1], same_kind=old.batching == new.batching)
        if old.batching and new.batching and one.batch_axis != two.batch_axis:
            was, now = ("independent" if s.batch_axis == 0 else "together" for s in (one, two))
            text = "requests are joined in batches" if two.batch_axis == 0 else "requests run alone"
            changes.append(Change("batching-changed", name, text, f"rows {was}", f"rows {now}"))
    ports = sum(len(s.inputs) + len(s.outputs) for s in old.signatures.values())
    return Level(SIGNATURE, tuple(changes), f"{len(old.signatures)} signature(s), {ports} port(s)"), pairs


def _renames(old: Mapping[str, Signature], new: Mapping[str, Signature]) -> dict[str, str]:
    """Signatures that are gone by name, and have one new counterpart with the same ports."""
    found: dict[str, str] = {}
    for name in old.keys() - new.keys():
        same = [n for n in new.keys() - old.keys() if n not in found.values() and _alike(old[name], new[n])]
        if len(same) == 1:
            found[name] = same[0]
    return dict(sorted(found.items()))


def _alike(one: Signature, other: Signature) -> bool:
    def ports(side: Ports) -> dict[str, tuple[str, object]]:
        return {alias: (spec.dtype, _open(spec.shape)) for alias, spec in side.items()}

    return (one.method, ports(one.inputs), ports(one.outputs)) == (
        other.method,
        ports(other.inputs),
        ports(other.outputs),
    )


def _open(shape: Shape) -> object:
    """A shape without the names of its open dimensions."""
    return None if shape is None else tuple(d if isinstance(d, int) else ANY_DIM for d in shape)


def _presence(
    old: Mapping[str, Signature], new: Mapping[str, Signature], renamed: Mapping[str, str]
) -> Iterator[Change]:
    for name in old:
        if name in renamed:
            yield Change("signature-renamed", name, f"is called {renamed[name]!r}", name, renamed[name])
        elif name not in new:
            yield Change("signature-removed", name, "the signature is gone", _shown(old[name]))
    for name in new:
        if name not in old and name not in renamed.values():
            yield Change("signature-added", name, "a new signature", "", _shown(new[name]))


def _shown(one: Signature) -> str:
    sides = (", ".join(f"{a}: {spec}" for a, spec in side.items()) for side in (one.inputs, one.outputs))
    return f"{one.method} " + " -> ".join(f"({side})" for side in sides)


def _matched(old: Ports, new: Ports) -> dict[str, str]:
    """Ports that belong together: by name, by the graph's tensor, else the only ones, or in order, of one
    dtype and shape. (What a converter has made of a SavedModel has its tensors, and not its names.)"""
    found = {alias: alias for alias in old if alias in new}
    gone, come = [a for a in old if a not in new], [a for a in new if a not in old]
    tensors = {_tensor(new[alias]): alias for alias in come}
    same = {alias: tensors[key] for alias in gone if (key := _tensor(old[alias])) in tensors}
    if len(set(same.values())) == len(same):
        found |= same
        gone, come = [a for a in gone if a not in same], [a for a in come if a not in same.values()]
    for alias in gone:
        kind = (old[alias].dtype, _open(old[alias].shape))
        alike = [a for a in come if (new[a].dtype, _open(new[a].shape)) == kind]
        rivals = [a for a in gone if (old[a].dtype, _open(old[a].shape)) == kind]
        if len(alike) == len(rivals):
            found[alias] = alike[rivals.index(alias)]
    return found


def _tensor(port: TensorSpec | Sparse) -> object:
    """The graph's tensor of a dense port; what nothing equals for a sparse one."""
    return (port.name, port.dtype, _open(port.shape)) if isinstance(port, TensorSpec) else object()


def _signature(one: Signature, two: Signature, pair: Pair, *, same_kind: bool) -> Iterator[Change]:
    name = pair.old
    if one.method != two.method:
        yield Change("method-changed", name, "the method is another", one.method, two.method)
    if one.examples != two.examples:
        rule = "examples-removed" if one.examples else "examples-added"
        yield Change(rule, name, "another name for serialised examples", one.examples, two.examples)
    yield from _side(name, "input", (one.inputs, two.inputs), pair.inputs)
    yield from _side(name, "output", (one.outputs, two.outputs), pair.outputs)
    symbols: dict[str, set[Dim]] = {}
    for alias, other in pair.inputs.items():
        first, second = one.inputs[alias], two.inputs[other]
        yield from _input(f"{name}.{other}", first, second, symbols)
    yield from _sparse(name, one, two)
    yield from _tied(name, one, two, pair, 0 if same_kind else 1)
    for alias, other in pair.outputs.items():
        yield from _output(f"{name}.{other}", one.outputs[alias], two.outputs[other], symbols)
    named = {s: {str(d) for d in dims} for s, dims in symbols.items() if dims != {s}}
    if named:
        now = ", ".join(sorted({d for dims in named.values() for d in dims}))
        yield Change("symbols", name, "open dimensions have other names", ", ".join(sorted(named)), now)


def _sparse(name: str, one: Signature, two: Signature) -> Iterator[Change]:
    """Sparse inputs that take other ids, or rows of another number of entries."""
    for alias in [alias for alias in one.sparse if alias in two.sparse]:
        first, second = one.sparse[alias], two.sparse[alias]
        limits = {"ids": (first.size, second.size), "entries": (first.max_length, second.max_length)}
        for what, (was, now) in limits.items():
            if was != now:
                code = "input-narrowed" if now and (now < was or not was) else "input-widened"
                text = f"the {what} are others"
                yield Change(code, f"{name}.{alias}", text, _below(was), _below(now))
        if first.first_id != second.first_id:
            code = "input-narrowed" if second.first_id > first.first_id else "input-widened"
            text = "ids count from another number"
            yield Change(code, f"{name}.{alias}", text, str(first.first_id), str(second.first_id))


def _below(limit: int) -> str:
    return f"up to {limit}" if limit else "any"


def _side(name: str, side: str, ports: tuple[Ports, Ports], matched: Mapping[str, str]) -> Iterator[Change]:
    """Ports that were renamed, are gone, or are new."""
    old, new = ports
    for alias, spec in old.items():
        other = matched.get(alias)
        if other is None:
            yield Change(f"{side}-removed", f"{name}.{alias}", f"the {side} is gone", str(spec))
        elif other != alias:
            yield Change(f"{side}-renamed", f"{name}.{alias}", f"is called {other!r}", alias, other)
    added = {alias: spec for alias, spec in new.items() if alias not in matched.values()}
    for alias, spec in added.items():
        optional = "-optional" if side == "input" and spec.optional else ""
        text = f"a new {side}" + (" with a default" if optional else "")
        yield Change(f"{side}-added{optional}", f"{name}.{alias}", text, "", str(spec))
    if len(old) == 1 and len(new) > 1 and matched:
        yield Change(f"{side}-second", name, f"{len(new)} {side}s, where there was one", *_names(ports))
    if side == "output" and len(old) > 1 and len(new) == 1:
        yield Change("output-last", name, "one output is left", *_names(ports))


def _names(ports: tuple[Ports, Ports]) -> tuple[str, str]:
    return ", ".join(ports[0]), ", ".join(ports[1])


def _input(where: str, one: TensorSpec, two: TensorSpec, symbols: dict[str, set[Dim]]) -> Iterator[Change]:
    if one.dtype != two.dtype:
        yield Change("input-dtype", where, "takes another dtype", one.dtype, two.dtype)
    yield from _shape("input", where, one.shape, two.shape, symbols)
    if one.optional and not two.optional:
        yield Change("default-removed", where, "has no default any more", str(one.default), "required")
    elif two.optional and not one.optional:
        yield Change("default-added", where, "has a default", "required", str(two.default))
    elif one.default != two.default:
        yield Change("default-changed", where, "has another default", str(one.default), str(two.default))
    if one.pad != two.pad:
        was, now = (str(s.pad.to_json()) if s.pad else "not padded" for s in (one, two))
        yield Change("padding-changed", where, "is padded otherwise", was, now)
    yield from _described(where, one, two)


def _output(where: str, one: TensorSpec, two: TensorSpec, symbols: dict[str, set[Dim]]) -> Iterator[Change]:
    if one.dtype != two.dtype:
        yield Change("output-dtype", where, "gives another dtype", one.dtype, two.dtype)
    yield from _shape("output", where, one.shape, two.shape, symbols)
    if one.labels != two.labels:
        rule = (
            "labels-file" if one.labels and two.labels else f"labels-{'added' if two.labels else 'removed'}"
        )
        yield Change(rule, where, "has other labels", one.labels or "none", two.labels or "none")
    yield from _described(where, one, two)


def _described(where: str, one: TensorSpec, two: TensorSpec) -> Iterator[Change]:
    for what in ("doc", "range"):
        was, now = getattr(one, what), getattr(two, what)
        if was != now:
            yield Change("described", where, f"has another {what}", str(was or "none"), str(now or "none"))


def _shape(side: str, where: str, old: Shape, new: Shape, symbols: dict[str, set[Dim]]) -> Iterator[Change]:
    """One change for the whole shape: the worst that happened to one of its dimensions."""
    shown = (show_shape(old), show_shape(new))
    if old is None or new is None:
        if old is not new:
            wider = new is None
            text = "takes any shape" if wider and side == "input" else "its shape is known otherwise"
            yield Change(f"{side}-{'widened' if wider else 'narrowed'}", where, text, *shown)
        return
    if len(old) != len(new):
        yield Change(f"{side}-rank", where, f"has {len(new)} axes, had {len(old)}", *shown)
        return
    kinds = {_dim(was, now) for was, now in zip(old, new, strict=True)}
    for was, now in zip(old, new, strict=True):
        if isinstance(was, str) and isinstance(now, str) and ANY_DIM not in (was, now):
            symbols.setdefault(was, set()).add(now)
    breaking = "narrowed" if side == "input" else "widened"
    harmless = "widened" if side == "input" else "narrowed"
    if kinds & {"other", breaking}:
        axes = [i for i, (a, b) in enumerate(zip(old, new, strict=True)) if _dim(a, b) in ("other", breaking)]
        text = f"axis {', '.join(map(str, axes))} " + ("takes less" if side == "input" else "may be anything")
        text = text if "other" not in kinds else f"axis {', '.join(map(str, axes))} has another size"
        yield Change(f"{side}-{breaking}", where, text, *shown)
    elif harmless in kinds:
        yield Change(f"{side}-{harmless}", where, "takes more" if side == "input" else "is fixed now", *shown)


def _dim(old: Dim, new: Dim) -> str:
    if isinstance(old, int) and isinstance(new, int):
        return "" if old == new else "other"
    if isinstance(old, int):
        return "widened"
    return "narrowed" if isinstance(new, int) else ""


def _tied(name: str, one: Signature, two: Signature, pair: Pair, first: int) -> Iterator[Change]:
    """Dimensions of NEW's inputs, from axis `first`, that have to be equal, and did not have to be in OLD."""
    places: dict[str, set[Dim]] = {}
    for alias, other in pair.inputs.items():
        old, new = one.inputs[alias].shape, two.inputs[other].shape
        if old is None or new is None or len(old) != len(new):
            continue
        for axis, (was, now) in list(enumerate(zip(old, new, strict=True)))[first:]:
            if isinstance(now, str) and now != ANY_DIM and isinstance(was, str):
                places.setdefault(now, set()).add(f"{alias} axis {axis}" if was == ANY_DIM else was)
    for symbol, were in places.items():
        if len(were) > 1:
            text = f"dimensions have to be equal now, all are {symbol!r}"
            yield Change("input-narrowed", name, text, ", ".join(sorted(map(str, were))), symbol)
