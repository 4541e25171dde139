"""The outputs level: both versions answer the same requests, and the answers are held side by side.

Requests are OLD's golden samples, else NEW's, or those that the caller gives. Both versions run here and
now, each in a process of its own (see `child`), so that neither machine nor engine differs. Renamed
signatures and ports are asked under their new names: whether answers moved is a question of its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..checks.answers import fits
from ..defaults import fill_defaults
from ..errors import InputError, MserveError, UsageError
from ..files import open_input, read_input, read_text
from ..format.golden import read_npz, unpack
from ..numerics import ATOL, RTOL
from ..rows import row_count
from ..runtime.engines import RUN_S
from ..tensors import (
    DEFAULT_SIGNATURE,
    Array,
    Signature,
    check_inputs,
    dtype_of,
    plain_text,
    show_shape,
)
from .answers import measured, moved, spread
from .change import OUTPUTS, Change, Level
from .child import Answers, ask
from .converted import runnable
from .model import SAVED_MODEL, Model
from .signature import Pair

MAX_LABELS = 1 << 30
Requests = dict[str, Mapping[str, Array]]


@dataclass(frozen=True, slots=True)
class Options:
    """What to ask, and how to judge. `run`: True, False, or None for wherever requests are recorded.

    `inputs` (npz, or a JSON request) are for the signature `signature`, "" being the default one;
    `tolerances` are (rtol, atol) by `signature.output`, where they are not the common ones.
    `labels` (npy, npz, or text with a number a line) has one for each row. `seconds` is what one
    version may take to load and answer.
    """

    run: bool | None = None
    inputs: Path | None = None
    labels: Path | None = None
    signature: str = ""
    rtol: float = RTOL
    atol: float = ATOL
    tolerances: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    seconds: float = RUN_S


def compare(old: Model, new: Model, pairs: list[Pair], options: Options) -> Level:
    """Run both and compare. Raises InputError or UsageError for files and names that make no sense."""
    if SAVED_MODEL in (old.kind, new.kind) and not options.run:
        return Level(OUTPUTS, skipped="a SavedModel is converted and run only when outputs are asked for")
    with runnable(old) as one, runnable(new) as two:
        return _compared(one, two, pairs, options)


def _compared(old: Model, new: Model, pairs: list[Pair], options: Options) -> Level:
    requests = _requests(old, new, pairs, options)
    if not requests:
        text = f"no golden samples are recorded; {_how_to_record(new)}"
        if options.run is None:
            return Level(OUTPUTS, skipped=text)
        return Level(OUTPUTS, (Change("no-samples", "golden samples", text),), "nothing to ask")
    labels = _labels(options.labels) if options.labels else None
    by_new = {pair.new: _renamed(requests[pair.old], pair.inputs) for pair in pairs if pair.old in requests}
    sides = []
    for model, asked in ((old, requests), (new, by_new)):
        with tempfile.TemporaryDirectory(prefix="mserve-diff-") as directory:
            kept = {name: x for name, x in asked.items() if name in model.signatures}
            sides.append(ask(model, kept, Path(directory), options.seconds))
    answers = (sides[0], sides[1])
    changes = [c for pair in pairs if pair.old in requests for c in _judged(new, pair, answers, options)]
    unmatched = [name for name in requests if name not in {pair.old for pair in pairs}]
    changes += [Change("no-counterpart", name, "NEW has no such signature to ask") for name in unmatched]
    if labels is not None:
        changes += _metrics(pairs, answers, labels, options.signature)
    counts = [f"{name}: {_rows(old.signatures[name], x)} row(s)" for name, x in requests.items()]
    return Level(OUTPUTS, tuple(changes), ", ".join(counts))


def _renamed(inputs: Mapping[str, Array], names: Mapping[str, str]) -> dict[str, Array]:
    return {names.get(alias, alias): x for alias, x in inputs.items()}


def _rows(signature: Signature, inputs: Mapping[str, Array]) -> int:
    if signature.sparse:
        return row_count(signature, inputs)
    return len(next(iter(inputs.values()))) if inputs and all(x.ndim for x in inputs.values()) else 1


def _how_to_record(model: Model) -> str:
    base = model.path.parent if model.bundle is not None else "BASE_PATH"
    record = f"mserve export MODEL.onnx {base} --golden REQUESTS.npz"
    return f"record some: {record}; or give some: --inputs REQUESTS.npz"


# --- what is asked


def _requests(old: Model, new: Model, pairs: list[Pair], options: Options) -> Requests:
    """Inputs by OLD's signatures and aliases."""
    if options.inputs is not None:
        name = _chosen(old, options.signature)
        return {name: _read(options.inputs, old.signatures[name])}
    found: Requests = {}
    for pair in pairs:
        back = {b: a for a, b in pair.inputs.items()}
        for alias, x in _golden(new).items():
            if alias == pair.new:
                found[pair.old] = _renamed(x, back)
    return found | _golden(old)


def _chosen(model: Model, name: str) -> str:
    """A signature by name; "" is the default one, or the only one. Raises UsageError."""
    if not name:
        only = next(iter(model.signatures)) if len(model.signatures) == 1 else ""
        name = DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in model.signatures else only
    if name not in model.signatures:
        raise UsageError("OLD has no such signature", expected=", ".join(model.signatures), found=repr(name))
    return name


def _golden(model: Model) -> Requests:
    if model.bundle is None or model.bundle.metagraph.golden is None:
        return {}
    record = model.bundle.metagraph.golden
    return {name: g.inputs for name, g in unpack(model.bundle.file(record), model.signatures).items()}


def made_up(old: Model, new: Model) -> bool:
    """Whether the golden samples that would be asked are those that an export makes up by itself."""
    golden, model = next(((g, m) for m in (old, new) if (g := _golden(m))), ({}, old))
    return bool(golden) and all(_generated(model.signatures[name], x) for name, x in golden.items())


def _generated(signature: Signature, inputs: Mapping[str, Array]) -> bool:
    import numpy as np

    from ..examples import generate
    from ..exporters.signatures import FREE_SIZES

    rows = _rows(signature, inputs)
    for free in FREE_SIZES:
        ours = generate(signature, rows, free=free)
        if ours.keys() == inputs.keys() and all(np.array_equal(x, inputs[a]) for a, x in ours.items()):
            return True
    return False


def _read(path: Path, signature: Signature) -> Mapping[str, Array]:
    """The requests of a file. Raises InputError where they are none of the signature."""
    from ..wire import tfs_json

    try:
        if path.suffix == ".npz":
            arrays = read_npz(path)
            check_inputs(signature, fill_defaults(signature, {a: plain_text(x) for a, x in arrays.items()}))
            return arrays
        return tfs_json.inputs_of(tfs_json.parse(read_input(path)), signature)[0]
    except InputError:
        raise
    except MserveError as error:
        raise InputError(
            "the inputs are neither an npz nor a JSON request of OLD's signature", where=path, found=error
        ) from error


def _labels(path: Path) -> Array:
    """A number for each row, from npy, npz with one array, or text with one a line. Raises InputError."""
    import numpy as np

    if path.suffix == ".npz":
        arrays = read_npz(path)
        if len(arrays) != 1:
            raise InputError("labels are one array", where=path, expected="one", found=", ".join(arrays))
        found: Array = next(iter(arrays.values()))
    elif path.suffix == ".npy":
        try:
            with open_input(path) as file:
                found = np.load(file, allow_pickle=False)
        except ValueError as error:
            raise InputError("cannot read the labels", where=path, found=error) from error
    else:
        try:
            found = np.array([float(line) for line in read_text(path, MAX_LABELS).split()])
        except ValueError as error:
            raise InputError("labels are numbers, one a line", where=path, found=error) from error
    if found.dtype.kind not in "biuf" or not np.isfinite(found.astype(np.float64)).all():
        raise InputError("labels are finite numbers", where=path, found=found.dtype)
    return found.ravel()


# --- what came back


def _judged(new: Model, pair: Pair, sides: tuple[Answers, Answers], options: Options) -> Iterator[Change]:
    """The changes of one signature's outputs."""
    one, two = sides
    if pair.old in one.errors:
        both = f"; nor does NEW: {two.errors[pair.new]}" if pair.new in two.errors else ""
        yield Change("old-fails", pair.old, one.errors[pair.old] + both)
        return
    if pair.new in two.errors:
        yield Change("new-fails", pair.new, two.errors[pair.new])
        return
    declared = new.signatures[pair.new].outputs
    for alias, other in pair.outputs.items():
        was, now = one.outputs[pair.old][alias], two.outputs[pair.new][other]
        where = f"{pair.new}.{other}"
        found = f"{dtype_of(now)} {show_shape(now.shape)}"
        if dtype_of(now) != declared[other].dtype or not fits(declared[other], now.shape, None):
            text = f"declared {declared[other]}, returned {found}"
            yield Change("not-as-declared", where, text, str(declared[other]), found)
        if (dtype_of(was), was.shape) != (dtype_of(now), now.shape):
            before = f"{dtype_of(was)} {show_shape(was.shape)}"
            yield Change("answer-shape", where, f"answers {found}, answered {before}", before, found)
        else:
            tolerance = options.tolerances.get(where, (options.rtol, options.atol))
            yield from moved(where, was, now, tolerance)
    for alias in one.outputs[pair.old]:
        if alias not in pair.outputs:
            yield Change("no-counterpart", f"{pair.old}.{alias}", "NEW has no such output")


# --- against labels


def _metrics(
    pairs: list[Pair], sides: tuple[Answers, Answers], labels: Array, signature: str
) -> Iterator[Change]:
    """How well both versions' outputs fit the labels, for every output that they can fit."""
    judged = asked = 0
    for pair in pairs:
        answered = pair.old in sides[0].outputs and pair.new in sides[1].outputs
        if signature not in ("", pair.old) or not answered:
            continue
        asked += 1
        for alias, other in pair.outputs.items():
            outputs = sides[0].outputs[pair.old][alias], sides[1].outputs[pair.new][other]
            was, now = (measured(output, labels) for output in outputs)
            judged += bool(was and now)
            between = spread(*outputs, labels) if was != now else {}
            for name in was.keys() & now.keys():
                text = f"{name} {was[name]:.5f} -> {now[name]:.5f}"
                facts = {"metric": name, "old": was[name], "new": now[name], "rows": len(labels)}
                facts["interval"] = list(between.get(name, (0.0, 0.0)))
                rule = "metric" if was[name] != now[name] else "metric-equal"
                where = f"{pair.new}.{other}"
                yield Change(rule, where, text, f"{was[name]:.5f}", f"{now[name]:.5f}", facts)
    if asked and not judged:
        raise InputError(
            f"{len(labels):,} labels fit no output: one for each row compared (--inputs F gives rows), "
            "0 and 1 for scores, 0 to K - 1 for K classes"
        )
