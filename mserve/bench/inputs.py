"""Inputs: what requests carry, and where it comes from.

    a file           npz: its arrays, with --rows N cut into requests of N rows
                     JSON: one request, TensorFlow Serving's or Open Inference's
                     JSON lines: a request a line, or a recorded request log
    golden samples   of a bundle, with the outputs that were recorded for them
    made up          from a signature: within declared ranges, else like the values that
                     are known; text and whole numbers drawn from known values

Several requests are sent in an order that is drawn once, from the seed; those of a log
in the order in which they arrived.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from ..errors import InputError, RequestError, UsageError
from ..examples import generate, generated_bytes
from ..files import read_input
from ..format.golden import Golden, read_npz
from ..rows import row_count, take
from ..sparse import length_names
from ..tensors import DTYPES, Array, Signature, TensorSpec
from ..wire import oip_json, tfs_json

GOLDEN = Path("golden")
REQUESTS_MAX = 1 << 20
# What made-up requests may take together.
MADE_UP_BYTES = 64 << 20
# Known values that are kept for each input.
POOL_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Sample:
    """One request: arrays by alias, or JSON as it was given; the outputs that it must get, if known."""

    arrays: Mapping[str, Array] = field(default_factory=dict)
    body: bytes = b""
    outputs: Mapping[str, Array] | None = None
    signature: str = ""

    @property
    def form(self) -> str:
        """ "arrays", or which protocol's JSON the body is: "tfs" or "oip"."""
        if not self.body:
            return "arrays"
        inputs = orjson_object(self.body).get("inputs")
        oip = isinstance(inputs, list) and inputs and isinstance(inputs[0], dict) and "datatype" in inputs[0]
        return "oip" if oip else "tfs"


@dataclass(frozen=True, slots=True)
class Samples:
    """The requests of a run. `source` says where they come from; `ordered` forbids another order."""

    requests: Sequence[Sample]
    source: str
    ordered: bool = False

    def mixed(self, seed: int) -> Samples:
        """In an order that is drawn, unless they have one."""
        if self.ordered or len(self.requests) < 2:
            return self
        order = np.random.default_rng(seed).permutation(len(self.requests))
        return Samples([self.requests[i] for i in order], self.source)


def orjson_object(body: bytes) -> dict[str, Any]:
    """A JSON object, {} for anything else."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


# files


def read_inputs(path: Path, rows: int = 0) -> Samples:
    """The requests of a file; `rows` cuts arrays into requests of so many. Raises InputError, UsageError."""
    if path.suffix == ".npz":
        arrays = {a: x.astype(str).astype(object) if x.dtype.kind in "UST" else x for a, x in _npz(path)}
        samples = [Sample(arrays)] if not rows else list(_cut(arrays, rows, path))
        return Samples(samples, str(path))
    if rows:
        raise UsageError(
            "--rows is for requests that can be cut", hint="a JSON request holds its rows itself"
        )
    data = read_input(path)
    lines = [line for line in data.splitlines() if line.strip()]
    if path.suffix not in (".jsonl", ".ndjson") and (len(lines) < 2 or not orjson_object(lines[0])):
        return Samples([_json(data, path, "")], str(path))
    if not lines:
        raise InputError("the file holds no requests", where=path, expected="a JSON request a line")
    if len(lines) > REQUESTS_MAX:
        raise InputError(
            "too many requests", where=path, expected=f"at most {REQUESTS_MAX}", found=len(lines)
        )
    if "time" in orjson_object(lines[0]):
        return _log(lines, path)
    return Samples([_json(line, path, f":{i}") for i, line in enumerate(lines, 1)], str(path))


def _npz(path: Path) -> Iterator[tuple[str, Array]]:
    arrays = read_npz(path)
    if not arrays:
        raise InputError("the npz archive holds no arrays", where=path)
    yield from arrays.items()


def _cut(arrays: Mapping[str, Array], rows: int, path: Path) -> Iterator[Sample]:
    """Requests of `rows` rows each; what does not fill one is left out."""
    counts = {x.shape[:1] for x in arrays.values()}
    total = next(iter(counts))[0] if len(counts) == 1 and counts != {()} else 0
    if total < rows:
        raise InputError(
            "the arrays cannot be cut into requests", where=path, expected=f"{rows} rows or more in each",
            found=", ".join(f"{a}: {list(x.shape)}" for a, x in arrays.items()),
        )  # fmt: skip
    for at in range(0, total - rows + 1, rows):
        yield Sample({a: x[at : at + rows] for a, x in arrays.items()})


def _json(body: bytes, path: Path, line: str) -> Sample:
    value = tfs_json.parse(body)
    if ("instances" in value) == ("inputs" in value):
        raise InputError(
            "the inputs are not a predict request",
            where=f"{path}{line}",
            expected="exactly one of 'instances' and 'inputs'",
            found=", ".join(value)[:80] or "an empty object",
        )
    return Sample(body=body, signature=tfs_json.signature_name(value))


def _log(lines: Sequence[bytes], path: Path) -> Samples:
    """A recorded request log: in the order in which the requests arrived."""
    records = []
    for number, line in enumerate(lines, 1):
        record = orjson_object(line)
        inputs, time = record.get("inputs"), record.get("time")
        if not isinstance(inputs, dict) or type(time) not in (int, float):
            raise InputError(
                "not a line of a request log",
                where=f"{path}:{number}",
                expected='"time", and "inputs" of one query',
                found=line[:60].decode("utf-8", "replace"),
            )
        hidden = [a for a, x in inputs.items() if isinstance(x, dict) and x.get("redacted") is True]
        if hidden:
            raise InputError(
                "the log holds no values of an input",
                where=f"{path}:{number}",
                found=f"{hidden[0]!r} was redacted",
                hint="record without redact, or make requests up",
            )
        records.append(record)
    models = sorted({str(record.get("model")) for record in records})
    if len(models) > 1:
        raise InputError("the log is of several models", where=path, found=", ".join(models)[:200])
    records.sort(key=lambda record: float(record["time"]))
    requests = [_logged(record) for record in records]
    return Samples(requests, f"{path}, a request log", ordered=True)


def _logged(record: Mapping[str, Any]) -> Sample:
    """The request of a line; the server's default signature needs no name."""
    name = record.get("signature") or ""
    head = {"signature_name": name} if name else {}
    return Sample(body=orjson.dumps({**head, "inputs": record["inputs"]}), signature=str(name))


def arrays_of(sample: Sample, signature: Signature) -> Mapping[str, Array]:
    """A sample's arrays by the signature that it is for. Raises RequestError."""
    if sample.form == "arrays":
        return sample.arrays
    if sample.form == "oip":
        return oip_json.parse(sample.body).arrays(signature)
    return tfs_json.inputs_of(tfs_json.parse(sample.body), signature)[0]


# golden samples, and what is made up


def golden_samples(golden: Golden, signature: Signature, rows: int, distinct: int) -> list[Sample]:
    """Recorded rows in requests of `rows`, at most `distinct`; all of them as one without a batch axis."""
    if signature.batch_axis is None:
        return [Sample(golden.inputs, outputs=golden.outputs)]
    total = row_count(signature, golden.inputs) if golden.inputs else 0
    if not total:
        return []
    samples = []
    for number in range(min(distinct, total)):
        at = (np.arange(rows) + number * rows) % total
        inputs, outputs = take(signature, golden.inputs, at), {a: x[at] for a, x in golden.outputs.items()}
        samples.append(Sample(inputs, outputs=outputs))
    return samples


def made_up(
    signature: Signature, rows: int, distinct: int, seed: int, known: Mapping[str, Array]
) -> list[Sample]:
    """Requests from a signature, different ones as far as their bytes are bearable.

    `known` has values that inputs may take, flat. Raises RequestError where a single one is too large.
    """
    size = generated_bytes(signature, rows)
    if size > MADE_UP_BYTES:
        raise RequestError(
            "the inputs are too large to make some up",
            expected=f"at most {MADE_UP_BYTES} bytes",
            found=size,
            hint="give a request: --inputs F.json or F.npz",
        )
    count = max(1, min(distinct, MADE_UP_BYTES // max(1, size)))
    return [Sample(_one(signature, rows, (seed, i), known)) for i in range(count)]


def _one(
    signature: Signature, rows: int, seed: tuple[int, int], known: Mapping[str, Array]
) -> dict[str, Array]:
    arrays = generate(signature, rows, seed=seed[0] * 100_003 + seed[1])
    rng, lengths = np.random.default_rng(seed), length_names(signature.sparse)
    for alias, spec in signature.inputs.items():
        pool = known.get(alias) if alias not in lengths else None
        if pool is not None and pool.size and not spec.length_of:
            arrays[alias] = _drawn(spec, arrays[alias], pool, rng)
    return arrays


def _drawn(spec: TensorSpec, array: Array, pool: Array, rng: np.random.Generator) -> Array:
    """Text and numbers without a range, as the known ones are."""
    if spec.dtype == "string" or (spec.range is None and array.dtype.kind in "biu"):
        return np.asarray(pool[rng.integers(0, len(pool), array.shape)])
    if spec.range is None and array.dtype.kind == "f":
        low, high = float(np.nanmin(pool)), float(np.nanmax(pool))
        if np.isfinite([low, high]).all() and low < high:
            return np.asarray(rng.random(array.shape) * (high - low) + low).astype(array.dtype)
    return array


def pools(signature: Signature, recorded: Mapping[str, Array], words: Sequence[str] = ()) -> dict[str, Array]:
    """Values that each input may take: recorded ones, and for text without any the given words."""
    found = {}
    for alias, spec in signature.inputs.items():
        if alias in recorded and recorded[alias].size:
            found[alias] = recorded[alias].ravel()[:POOL_MAX]
        elif spec.dtype == "string" and words:
            found[alias] = np.array(words[:POOL_MAX], dtype=DTYPES["string"].to_numpy())
    return found
