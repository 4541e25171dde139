"""Requests for a bundle that is at hand: its golden samples, or made up from what its files know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ...defaults import fill_defaults
from ...errors import InputError, NotFound, UsageError
from ...files import read_text
from ...format import open_bundle
from ...format.golden import Golden, unpack
from ...format.reader import Bundle
from ...readers.requests import Sample, Samples, arrays_of, read_inputs
from ...tensors import DEFAULT_SIGNATURE, Array, Signature, check_inputs
from ..targets.target import Ask
from .inputs import GOLDEN, golden_samples, made_up, pools

ASSET_BYTES_MAX = 64 << 20


def signature_of(bundle: Bundle, name: str) -> tuple[str, Signature]:
    """A signature by name; "" stands for the default, or the only one. Raises NotFound."""
    signatures = bundle.metagraph.signatures
    if not name:
        name = DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in signatures else next(iter(signatures))
        if name != DEFAULT_SIGNATURE and len(signatures) > 1:
            name = DEFAULT_SIGNATURE
    if name not in signatures:
        raise NotFound("no such signature", expected=", ".join(signatures), found=repr(name))
    return name, signatures[name]


def bundle_samples(path: Path, ask: Ask) -> Samples:
    """What to send to a bundle or a server of it; recorded samples where nothing else is asked for.

    Raises BundleError, NotFound, UsageError, InputError, RequestError.
    """
    bundle = open_bundle(path)
    name, signature = signature_of(bundle, ask.signature)
    if ask.inputs is not None and ask.inputs != GOLDEN:
        if ask.inputs.is_dir():
            return _recorded(open_bundle(ask.inputs), name, ask)
        return _typed(read_inputs(ask.inputs, ask.rows), bundle, ask)
    recorded = _golden(bundle).get(name)
    if recorded is not None or ask.inputs == GOLDEN:
        return _recorded(bundle, name, ask)
    rows = ask.rows or 1
    if rows > 1 and signature.batch_axis is None:
        raise UsageError("--rows needs a signature with a batch axis", where=name)
    known = pools(signature, {}, list(_words(bundle)))
    return Samples(made_up(signature, rows, ask.distinct, ask.seed, known), "made up")


def _recorded(bundle: Bundle, name: str, ask: Ask) -> Samples:
    """Golden samples of a signature. Raises UsageError where there are none."""
    signature, golden = bundle.metagraph.signatures.get(name), _golden(bundle).get(name)
    if golden is None or signature is None:
        raise UsageError(
            "the bundle has no golden samples of the signature", where=bundle.path, found=name,
            hint="record some: mserve export --golden N or --golden FILE.npz",
        )  # fmt: skip
    if ask.rows > 1 and signature.batch_axis is None:
        raise UsageError("--rows needs a signature with a batch axis", where=name)
    found = golden_samples(golden, signature, ask.rows or 1, ask.distinct)
    return Samples(found, "golden samples")


def _golden(bundle: Bundle) -> Mapping[str, Golden]:
    record = bundle.metagraph.golden
    return unpack(bundle.file(record), bundle.metagraph.signatures) if record else {}


def _words(bundle: Bundle) -> Iterator[str]:
    """Lines of the assets that are text: vocabularies first, then what only labels outputs."""
    signatures = bundle.metagraph.signatures.values()
    labels = {f"assets/{s.labels}" for sig in signatures for s in sig.outputs.values() if s.labels}
    for record in sorted(bundle.metagraph.assets, key=lambda record: record.name in labels):
        try:
            lines = read_text(bundle.file(record), ASSET_BYTES_MAX).splitlines()
        except InputError:  # not text, or not readable as such
            continue
        if lines and all(line.isprintable() for line in lines):
            yield from lines
            return


def _typed(samples: Samples, bundle: Bundle, ask: Ask) -> Samples:
    """Given requests as arrays that fit their signatures."""
    typed = []
    for sample in samples.requests:
        if sample.signature and ask.signature not in ("", sample.signature):
            raise UsageError("--signature differs from the inputs' signature_name", found=sample.signature)
        name, signature = signature_of(bundle, sample.signature or ask.signature)
        arrays = checked(signature, arrays_of(sample, signature))
        typed.append(Sample(arrays, outputs=sample.outputs, signature=name))
    return Samples(typed, samples.source, samples.ordered)


def checked(signature: Signature, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """A request's arrays, with defaults filled in. Raises RequestError."""
    filled = dict(fill_defaults(signature, arrays))
    check_inputs(signature, filled)
    return filled
