"""Padding: rows give the same answers when they are lengthened to a bucket as when they are not.

The batches are put together by the code that a server runs, one request in each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from ..batching.assembly import run_batch
from ..batching.batcher import Batch, Entry
from ..batching.form import Form
from ..batching.times import Times
from ..defaults import fill_defaults
from ..errors import ExecutionFailed, MserveError, RequestError
from ..examples import generate, generated_bytes
from ..format.golden import Golden
from ..loader.servable import MADE_UP_BYTES, Servable
from ..numerics import compare
from ..rows import first
from ..tensors import Array, Signature
from .findings import Finding, Tolerance

BUCKETS_TRIED = 4


def padding(servable: Servable, name: str, golden: Golden | None, tolerance: Tolerance) -> Iterator[Finding]:
    """One finding for each output of a signature that padding changes, or if nothing could be tried."""
    signature = servable.signatures[name]
    pads = [s.pad for s in signature.inputs.values() if s.pad is not None]
    if not pads or signature.batch_axis is None:
        return
    tried, guilty = 0, set()
    for inputs, bucket in _samples(signature, sorted({b for pad in pads for b in pad.buckets}), golden):
        try:
            alone = servable.compute(name, inputs)
        except ExecutionFailed:
            continue  # a length that the model does not take
        tried += 1
        try:
            padded = _padded(servable, name, inputs, bucket)
        except ExecutionFailed as error:
            yield Finding("padding", name, f"{_lengths(signature, inputs)} padded to {bucket}: {error}")
            return
        for alias, one, other in zip(signature.outputs, alone, padded, strict=True):
            scale = float(abs(one).max()) if one.size and one.dtype.kind == "f" else 0.0
            same = compare(one, other, tolerance.rtol, max(tolerance.atol, tolerance.rtol * scale))
            if not same.equal and alias not in guilty:
                guilty.add(alias)
                text = f"{_lengths(signature, inputs)} padded to {bucket}: {same.reason}"
                yield Finding("padding", f"{name}.{alias}", text)
    if not tried:
        yield Finding("padding", name, "the model took none of the inputs that were tried")


def _samples(
    signature: Signature, sizes: list[int], golden: Golden | None
) -> Iterator[tuple[Mapping[str, Array], int]]:
    """Inputs of one row, and the bucket to lengthen them to."""
    buckets = sizes[: BUCKETS_TRIED - 1] + sizes[BUCKETS_TRIED - 1 :][-1:]
    if golden is not None:
        inputs = first(signature, golden.inputs)
        longest = max(inputs[a].shape[s.pad.axis] for a, s in signature.inputs.items() if s.pad)
        larger = [b for b in buckets if b > longest]
        yield from ((inputs, bucket) for bucket in larger[:1] + larger[1:][-1:])
    for bucket in buckets:
        for length in sorted({max(1, bucket // 2), bucket - 1} - {0, bucket}):
            if generated_bytes(signature, free=bucket) <= MADE_UP_BYTES:
                yield _made_up(signature, length), bucket


def _made_up(signature: Signature, length: int) -> Mapping[str, Array]:
    """Inputs of some length; what a request may leave out has its default, such as a mask of ones."""
    made = generate(signature, 1, seed=length, free=length)
    try:
        return fill_defaults(signature, {a: x for a, x in made.items() if not signature.inputs[a].optional})
    except RequestError:
        return made


def _padded(servable: Servable, name: str, inputs: Mapping[str, Array], bucket: int) -> list[Array]:
    """The outputs for one request, lengthened to a bucket and cut back. Raises ExecutionFailed."""
    signature = servable.signatures[name]
    ports = {
        a: replace(s, pad=replace(s.pad, buckets=(bucket,)) if s.pad else None)
        for a, s in signature.inputs.items()
    }
    form = Form(name, replace(signature, inputs=ports))
    entry = Entry(servable, name, inputs, 1, False, lambda _: None, 0)
    try:
        return run_batch(Batch(0, "", [entry], 1, 0, form, Times()))[0]
    except MserveError:
        raise
    except Exception as error:  # an output has fewer axes than were declared
        raise ExecutionFailed("the outputs cannot be cut back", found=repr(error)[:200]) from error


def _lengths(signature: Signature, inputs: Mapping[str, Array]) -> str:
    """The lengths of the padded inputs."""
    lengths = {a: inputs[a].shape[s.pad.axis] for a, s in signature.inputs.items() if s.pad}
    return ", ".join(f"{alias} of {length}" for alias, length in lengths.items())
