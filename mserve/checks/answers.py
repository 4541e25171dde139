"""Answers: the model is loaded and run on its golden samples.

Whether rows are independent is asked in two ways. A row is run among copies of itself
and then among other rows, in a batch of the same size: the same kernels run, so an
independent row keeps its value up to the tolerance; also beside rows of other magnitudes.
Then it is run alone: other kernels round otherwise, and a model can magnify that, so only
a gross difference counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..errors import MserveError
from ..examples import generate, swayed
from ..format import GOLDEN_FILE, Bundle
from ..format.golden import Golden, unpack
from ..loader.servable import Servable
from ..numerics import compare
from ..rows import join, row_count, take
from ..runtime.engines import RUN_S, open_engines
from ..sparse import entry_names
from ..tensors import Array, Signature, TensorSpec, dtype_of, show_shape
from .findings import CODES, Finding, Tolerance
from .padding import padding

BATCH_SIZES = (2, 3, 8, 17)
ROWS_TRIED = 4
ROWS_MIXED = 3
LOOSE = 0.05


def answers(bundle: Bundle, tolerance: Tolerance, *, full: bool) -> Iterator[Finding]:
    """Golden outputs within the tolerance, and answers that padding leaves alone; with `full`,
    declared shapes and independent rows.
    """
    try:
        sessions = open_engines(bundle)
    except MserveError as error:
        yield Finding("load", "export.meta", str(error))
        return
    record, golden = bundle.metagraph.golden, {}
    if record is None:
        yield Finding("golden-absent", GOLDEN_FILE, CODES["golden-absent"][1])
    try:
        if record is not None:
            golden = unpack(bundle.file(record), bundle.metagraph.signatures)
        servable = Servable(bundle, sessions, golden)
        for name, sample in golden.items():
            outputs = _run(servable, name, sample.inputs)
            yield from _recorded(name, sample, outputs, tolerance)
            if full:
                yield from _declared(name, servable.signatures[name], sample, outputs)
                yield from _independent(servable, name, sample, tolerance)
        for name in servable.signatures:
            yield from padding(servable, name, golden.get(name), tolerance)
    except MserveError as error:
        yield Finding("golden-run", GOLDEN_FILE, str(error))


def _run(servable: Servable, name: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
    return servable.run(inputs, name, limit_s=RUN_S)


def _recorded(
    name: str, sample: Golden, outputs: Mapping[str, Array], tolerance: Tolerance
) -> Iterator[Finding]:
    for alias, recorded in sample.outputs.items():
        difference = compare(recorded, outputs[alias], tolerance.rtol, tolerance.atol)
        if not difference.equal:
            yield Finding("golden-outputs", f"{name}.{alias}", difference.reason)


def _declared(
    name: str, signature: Signature, sample: Golden, outputs: Mapping[str, Array]
) -> Iterator[Finding]:
    """Dtype and shape of each output, and values that are no numbers."""
    import numpy as np

    rows = row_count(signature, sample.inputs) if signature.batch_axis is not None else None
    for alias, spec in signature.outputs.items():
        found = outputs[alias]
        if dtype_of(found) != spec.dtype or not fits(spec, found.shape, rows):
            text = f"declared {spec}, returned {dtype_of(found)} {show_shape(found.shape)}"
            yield Finding("output-shape", f"{name}.{alias}", text)
        if found.dtype.kind == "f" and not np.isfinite(found).all():
            count = int((~np.isfinite(found)).sum())
            yield Finding("not-a-number", f"{name}.{alias}", f"{count} of {found.size} values")


def fits(spec: TensorSpec, shape: tuple[int, ...], rows: int | None) -> bool:
    """Whether a shape is one that `spec` declares; `rows` is the size of the batch axis, if there is one."""
    if spec.shape is None:
        return True
    if len(spec.shape) != len(shape) or (rows is not None and shape[0] != rows):
        return False
    return all(
        not isinstance(want, int) or want == have for want, have in zip(spec.shape, shape, strict=True)
    )


def _independent(servable: Servable, name: str, sample: Golden, tolerance: Tolerance) -> Iterator[Finding]:
    """Golden rows keep their answers whatever stands beside them. One finding for each output."""
    import numpy as np

    signature = servable.signatures[name]
    if signature.batch_axis is None:
        return
    rng = np.random.default_rng(0)
    neighbours = _neighbours(signature, sample)
    guilty: set[tuple[str, str]] = set()
    count = row_count(signature, sample.inputs)
    for row in range(min(ROWS_TRIED, count)):
        alone = _run(servable, name, take(signature, sample.inputs, [row]))
        for size in BATCH_SIZES:
            place = int(rng.integers(0, size))
            beside = rng.integers(0, row_count(signature, neighbours), size)
            beside[place] = row  # the golden rows come first
            same = _run(servable, name, take(signature, sample.inputs, [row] * size))
            mixed = _run(servable, name, take(signature, neighbours, beside))
            for code, alias, text in _compared(alone, same, mixed, place, tolerance):
                if (code, alias) not in guilty:
                    guilty.add((code, alias))
                    yield Finding(code, f"{name}.{alias}", f"row {row} at place {place} of {size}: {text}")
    if not count:
        return
    rows = take(signature, sample.inputs, [row % count for row in range(ROWS_MIXED)])
    limits = (tolerance.rtol, tolerance.atol)
    for alias, text in swayed(signature, rows, lambda batch: _run(servable, name, batch), limits):
        if ("batch-neighbours", alias) not in guilty:
            guilty.add(("batch-neighbours", alias))
            yield Finding("batch-neighbours", f"{name}.{alias}", text)


def _neighbours(signature: Signature, sample: Golden) -> dict[str, Array]:
    """Rows to stand beside golden ones: the golden rows themselves, and made-up ones of their shape."""
    made_up, entries = generate(signature, 8, seed=7), entry_names(signature.sparse)
    for alias, x in sample.inputs.items():
        if made_up[alias].shape[1:] != x.shape[1:] and alias not in entries:
            # Rows of another shape cannot be joined: the golden ones stand in for the made-up ones.
            made_up[alias] = x[[row % len(x) for row in range(8)]] if len(x) else x
    return join([sample.inputs, made_up])


def _compared(
    alone: Mapping[str, Array],
    same: Mapping[str, Array],
    mixed: Mapping[str, Array],
    place: int,
    tolerance: Tolerance,
) -> Iterator[tuple[str, str, str]]:
    """Code, output and reason where the three runs of one row disagree."""
    for alias, value in alone.items():
        here, beside = same[alias][place : place + 1], mixed[alias][place : place + 1]
        neighbours = compare(here, beside, tolerance.rtol, tolerance.atol)
        if not neighbours.equal:
            yield "batch-neighbours", alias, neighbours.reason
        scale = float(abs(value).max()) if value.size and value.dtype.kind == "f" else 0.0
        number = compare(value, here, LOOSE, LOOSE * scale)
        if not number.equal:
            yield "batch-size", alias, number.reason
