"""Export: a trained model becomes one published version of a base path.

The steps, in order: take the source apart, in a process of its own where it must be
converted to ONNX first; stage a temporary directory; write the shards; load the
staged files with the runtime that will serve them; settle the signatures by running them;
hold a conversion to the answers of its source; record golden samples; write and seal
`export.meta`; publish by one rename. An error at any step leaves nothing behind.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..defaults import fill_defaults
from ..errors import InputError, ModelRefused, UsageError
from ..examples import generate
from ..format import GOLDEN_FILE, META_FILE, FileRecord, MetaGraph
from ..format import golden as golden_file
from ..format.golden import Golden
from ..format.graph import DIGEST_KEY, read_graph
from ..format.hazards import across_rows, integer_divisions
from ..format.layout import MAX_VERSION
from ..format.metagraph import parse, seal
from ..format.prune import Parts
from ..format.shards import DEFAULT_SHARD_BYTES, Placed
from ..format.writer import Staging, stage
from ..loader.given import arrays_of
from ..numerics import compare
from ..rows import feeds
from ..runtime.engines import RUN_S, Engine, engines_for, time_limit
from ..runtime.weights import Weights, map_file
from ..tensors import DEFAULT_SIGNATURE, Array, Signature, check_inputs
from . import conversion, signatures, signatures_file, sources, verify
from .assets import asset_names, check_labels
from .kinds import COMMON, ConvertOptions, Source

if TYPE_CHECKING:
    import onnx

SHOWN_NODES = 5


@dataclass(frozen=True, slots=True)
class Options(ConvertOptions):
    """How to export; the command line's flags and `mserve.export`'s keywords.

    `version` is a number, "auto" (the next) or "time" (the Unix time). `golden` is a
    number of rows to draw, or arrays by input alias for the default signature; None
    draws one row where the model runs on made-up inputs. `dedup` shares equal shards with
    earlier versions by hard links. `partitioned` names weights whose values lie in several
    npy or npz files: a glob for each. `kind` names one of `sources.kinds()`, "" to tell by the source; `key`
    names the key column of a table. The rest is how a source that is not ONNX is converted.
    """

    version: int | str = "auto"
    name: str = ""
    signatures: Mapping[str, Signature] | str | os.PathLike[str] | None = None
    assets: Sequence[str | os.PathLike[str]] = ()
    golden: int | str | os.PathLike[str] | Mapping[str, Array] | None = None
    meta: Mapping[str, str] = field(default_factory=dict)
    shard_bytes: int = DEFAULT_SHARD_BYTES
    dedup: bool = False
    partitioned: Mapping[str, str] = field(default_factory=dict)
    kind: str = ""
    key: str = ""


# Options that only some kinds take, and what they are when nobody sets them.
_BY_KIND = {
    f.name: f.default_factory() if callable(f.default_factory) else f.default
    for f in (*fields(ConvertOptions), *fields(Options))
    if f.name in ("partitioned", "key") or (f in fields(ConvertOptions) and f.name not in COMMON)
}


@dataclass(frozen=True, slots=True)
class Export:
    """What was published. `shared` are the shards that an earlier version holds too;
    `notes` are sentences that the user should read.
    """

    path: Path
    version: int
    metagraph: MetaGraph
    byte_size: int
    shared: tuple[str, ...]
    notes: tuple[str, ...]


def export(source: Any, base_path: str | os.PathLike[str], options: Options) -> Export:
    """Export a source of any kind that `sources` knows as a new version of `base_path`.

    Raises InputError (bad source), UsageError (bad options, version exists, code that
    nobody trusts), FindingError (a conversion that answers otherwise than its source),
    EnvironmentProblem (cannot write, disk full, missing extra).
    """
    version = parse_version(options.version)
    _check_text(options)
    base = Path(base_path)
    assets: dict[str, Path | bytes] = {**asset_names(options.assets)}
    with _taken(source, options) as parts, stage(base, version) as staging:
        assets = {**{f"assets/{name}": data for name, data in parts.assets.items()}, **assets}
        shards, placed = staging.write_shards(parts.tensors, options.shard_bytes)
        _refer(parts.graph, placed)
        where = str(source) if isinstance(source, str | os.PathLike) else "the model object"
        given = options.signatures
        if given is None and parts.signatures:
            given = {name: replace(s, batch_axis=None) for name, s in parts.signatures.items()}
        proposed = _proposed(parts.graph, given, where)
        check_labels(proposed, assets)
        engines = _open(parts.graph, proposed, staging, shards, where)
        chosen, sizes, notes = _settled(proposed, engines)
        if parts.conversion:
            if options.signatures is None:
                chosen = verify.keep_promises(parts.signatures or {}, chosen, sizes)
                kept = tuple(f"{name}: " for name, s in chosen.items() if s.batch_axis is not None)
                notes = [note for note in notes if not note.startswith(kept)]  # that requests run alone
                own, running = chosen, engines
            else:
                own = dict(parts.signatures or {})
                running = _open(parts.graph, own, staging, shards, where)
            notes += _verified(parts, own, running, options)
        notes += [*_hazards(parts.graph, proposed, chosen), *parts.notes]
        notes += signatures.left_out(parts.graph.graph) if given is None else []
        samples, note = _golden(options.golden, parts, chosen, sizes, engines)
        notes += [note] if note else []
        metagraph = MetaGraph(
            name=options.name,
            signatures=chosen,
            shards=shards,
            assets=tuple(staging.add_file(path, name) for name, path in sorted(assets.items())),
            golden=staging.add_file(golden_file.pack(samples), GOLDEN_FILE) if samples else None,
            provenance=_provenance(parts, options.meta),
        )
        meta = _serialise(parts.graph, metagraph)
        staging.add_file(meta, META_FILE)
        shared = staging.share(shards) if options.dedup else ()
        target = staging.publish(version)
    size = len(meta) + sum(record.size for record in metagraph.files())
    return Export(target, int(target.name), parse(meta, target / META_FILE), size, shared, tuple(notes))


@contextmanager
def _taken(source: Any, options: Options) -> Iterator[Source]:
    """The source, converted where it is not ONNX, and taken apart."""
    kind = sources.named(options.kind) if options.kind else sources.kind_of(source)
    given = {name: getattr(options, name) != default for name, default in _BY_KIND.items()}
    conversion.check_options(kind, given)
    if kind.read is not None:
        yield kind.read(source, options)
        return
    named = isinstance(source, str | os.PathLike)
    options = options if named else replace(options, trust=True)  # an object of this process has run already
    sources.check_ready(kind, where=source if named else type(source).__name__, trust=options.trust)
    asked = ConvertOptions(**{f.name: getattr(options, f.name) for f in fields(ConvertOptions)})
    with conversion.converted(kind, source, asked) as parts:
        yield parts


def _check_text(options: Options) -> None:
    """The name can stand in a URL's path, and everything can be stored as UTF-8. Raises UsageError."""
    for what, text in (("name", options.name), *((f"meta {k}", k + v) for k, v in options.meta.items())):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError("text is not UTF-8", where=what.encode("utf-8", "replace").decode()) from error
    if "/" in options.name or not options.name.isprintable():
        raise UsageError("bad name", expected="printable characters without '/'", found=repr(options.name))


def parse_version(version: int | str) -> int | None:
    """The number for --version N, "time" or "auto" (None). Raises UsageError."""
    if version == "auto":
        return None
    if version == "time":
        return int(time.time())
    text = str(version)
    if isinstance(version, bool) or not (text.isascii() and text.isdigit() and len(text) <= 32):
        raise UsageError("bad version", expected='a number, "auto" or "time"', found=text[:40])
    number = int(text)
    if number > MAX_VERSION:
        raise UsageError("bad version", expected=f"at most {MAX_VERSION}", found=number)
    return number


def _refer(model: onnx.ModelProto, placed: Mapping[str, Placed]) -> None:
    """Make the graph's initializers point to where their bytes lie."""
    from onnx import TensorProto

    for proto in model.graph.initializer:
        if (place := placed.get(proto.name)) is None:
            continue
        proto.data_location = TensorProto.EXTERNAL
        for key, value in (("location", place.shard), ("offset", place.offset), ("length", place.length)):
            proto.external_data.add(key=key, value=str(value))
        proto.metadata_props.add(key=DIGEST_KEY, value=place.sha256)


def _open(
    model: onnx.ModelProto,
    proposed: Mapping[str, Signature],
    staging: Staging,
    shards: Sequence[FileRecord],
    where: str,
) -> Mapping[str, Engine]:
    """Engines over the staged shards, made as a server would make them."""
    buffers = {r.name: map_file(staging.path / r.name, r.size, private=False) for r in shards}
    weights = Weights(staging.path / META_FILE, buffers, private=False)
    try:
        data = model.SerializeToString()
        return engines_for(data, read_graph(data, where), proposed, weights)
    except ModelRefused as error:
        raise InputError(error.what, where=where, found=error.found, hint=error.hint) from error


def _runner(engine: Engine) -> signatures.Run:
    def run(signature: Signature, inputs: Mapping[str, Array]) -> dict[str, Array]:
        fed = feeds(signature, inputs)
        names, options = [spec.name for spec in signature.outputs.values()], engine.run_options()
        with time_limit(options, RUN_S, "the model, run on inputs made up or given"):
            outputs = engine.run(names, fed, options)
        return dict(zip(signature.outputs, outputs, strict=True))

    return run


def _proposed(
    model: onnx.ModelProto, given: Mapping[str, Signature] | str | os.PathLike[str] | None, where: str
) -> dict[str, Signature]:
    """The given signatures, or the derived one; batch axes may still be open.

    Raises UsageError when a signature lacks an input that its outputs need.
    """
    if given is None:
        return {DEFAULT_SIGNATURE: signatures.derive(model.graph, where)}
    named = dict(given) if isinstance(given, Mapping) else signatures_file.read_toml(Path(given), model.graph)
    parts = Parts(model.SerializeToString())
    for name, signature in named.items():
        _, needed = parts.ancestors(spec.name for spec in signature.outputs.values())
        fed = {tensor for _, tensor in signature.tensors()}
        missing = [tensor for tensor in parts.inputs if tensor in needed and tensor not in fed]
        idle = [alias for alias, tensor in signature.tensors() if tensor not in needed]
        if missing or idle:
            raise UsageError(
                "a signature's inputs are not those that its outputs are computed from",
                where=f"signature {name}",
                expected=f"also {', '.join(missing)}" if missing else f"not {', '.join(idle)}",
                found=", ".join(signature.inputs) or "no inputs",
            )
    return named


def _settled(
    proposed: Mapping[str, Signature], engines: Mapping[str, Engine]
) -> tuple[dict[str, Signature], dict[str, int | None], list[str]]:
    """The signatures with their batch axes, the size at which each one ran, and notes."""
    chosen, sizes, notes = {}, {}, []
    for name, signature in proposed.items():
        chosen[name], sizes[name], note = signatures.settle_batch_axis(signature, _runner(engines[name]))
        notes += [f"{name}: {note}"] if note else []
        if chosen[name].batch_axis is None and any(s.pad for s in signature.inputs.values()):
            notes.append(f"{name}: requests run alone, so that nothing is padded")
    return chosen, sizes, notes


def _verified(
    parts: Source, own: Mapping[str, Signature], engines: Mapping[str, Engine], options: Options
) -> list[str]:
    """Hold the conversion to its source's answers, note the error in its facts, and say so."""
    trials = list(parts.trials)
    checked = verify.trials_of(Path(options.check), own) if options.check is not None else []
    runs = {name: _runner(engine) for name, engine in engines.items()}
    verdict = verify.verify([*trials, *checked], own, runs, options.tol)
    facts = parts.conversion["facts"]
    against = " and ".join(x for x in (facts["compared_with"], "the check file" if checked else "") if x)
    facts |= {
        "max_error": verdict.error,
        "tolerance": options.tol,
        "rows": verdict.rows,
        "compared_with": against,
    }
    if verdict.error is None:
        way = f"{pip}, or " if (pip := parts.conversion["pip"]) else ""
        return [f"not compared with its source's own answers: {way}give --check reference.npz"]
    return [f"answers equal those of {against} within {verdict.error:.2g} ({verdict.rows} rows)"]


def _hazards(
    model: onnx.ModelProto, proposed: Mapping[str, Signature], chosen: Mapping[str, Signature]
) -> list[str]:
    """Sentences on what the graph may do to requests, and no run has shown."""
    found = [n for n, s in chosen.items() if s.batch_axis == 0 and proposed[n].batch_axis is None]
    # What sparse inputs become is not made of rows: whether nodes read across them only a run tells.
    signed = [chosen[name] for name in found]
    inputs = {s.inputs[a].name for s in signed for a in s.ports() if a not in s.sparse}
    notes = []
    if inputs and (nodes := across_rows(model, inputs)):
        notes.append(
            f"{', '.join(nodes[:SHOWN_NODES])}: read across rows; these kept their answers in every trial, "
            "so requests are joined; if a row may change another's answer after all, say batch_axis = false "
            "in a signatures file"
        )
    if nodes := integer_divisions(model):
        notes.append(
            f"{', '.join(nodes[:SHOWN_NODES])}: the lowest whole number divided by -1 ends the process that "
            "serves the model: clamp the divisor in the graph, or serve it with --processes 2 or more"
        )
    return notes


def _golden(
    golden: int | str | os.PathLike[str] | Mapping[str, Array] | None,
    parts: Source,
    chosen: Mapping[str, Signature],
    sizes: Mapping[str, int | None],
    engines: Mapping[str, Engine],
) -> tuple[dict[str, Golden], str]:
    """Record outputs for given or drawn inputs; an unsteady model (random operators) records none."""
    inputs: Mapping[str, Array]
    name = DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in chosen else next(iter(chosen))
    signature, free, run = chosen[name], sizes[name], _runner(engines[name])
    if golden == 0 or (golden is None and free is None):
        return {}, ""
    if golden is None or isinstance(golden, int):
        inputs = _drawn(parts, signature, golden or parts.golden_rows, free)
    else:
        inputs = dict(golden) if isinstance(golden, Mapping) else golden_file.read_npz(Path(golden))
    try:
        inputs = fill_defaults(signature, arrays_of(signature, inputs))
        check_inputs(signature, inputs)
        first, second = run(signature, inputs), run(signature, inputs)
    except ModelRefused:
        raise
    except Exception as error:
        raise InputError(
            "the golden inputs do not fit the model", where=f"signature {name}", found=error
        ) from error
    if not all(compare(first[a], second[a], 0, 0).equal for a in first):
        return {}, "two runs of the same inputs differ: no golden samples recorded"
    return {name: Golden(inputs, first)}, ""


def _drawn(parts: Source, signature: Signature, rows: int, free: int | None) -> Mapping[str, Array]:
    """Inputs of so many rows: the source's own if it has some, else made up."""
    if parts.draw is None:
        return generate(signature, rows, free=free or signatures.FREE_SIZES[0])
    drawn = parts.draw(rows)
    return {alias: drawn[spec.name] for alias, spec in signature.inputs.items()}


def _provenance(parts: Source, meta: Mapping[str, str]) -> dict[str, Any]:
    """Who wrote the bundle, from what. A time stands in it only if asked for: same input, same bytes."""
    import onnx

    from .. import __version__

    facts: dict[str, Any] = {
        "creator": f"mserve {__version__}",
        "source": dict(parts.origin),
        "versions": {"onnx": onnx.__version__},
    }
    if parts.conversion:
        facts["conversion"] = parts.conversion["facts"]
    if parts.origin["kind"] != "table":
        import onnxruntime  # the engine that has run the model

        facts["versions"]["onnxruntime"] = onnxruntime.__version__
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    if epoch.isascii() and epoch.isdigit():
        facts["created"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(epoch)))
    if meta:
        facts["meta"] = dict(meta)
    return facts


def _serialise(model: onnx.ModelProto, metagraph: MetaGraph) -> bytes:
    for key, value in metagraph.props().items():
        model.metadata_props.add(key=key, value=value)
    return seal(model.SerializeToString(deterministic=True))
