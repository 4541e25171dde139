"""Files of requests, as the sender of requests takes them.

    npz          its arrays, with `rows` cut into requests of so many rows
    JSON         one request, TensorFlow Serving's or Open Inference's, or a bare list of rows
    JSON lines   a request a line, or a recorded request log

Several requests are sent in an order that is drawn once, from the seed; those of a log
in the order in which they arrived.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from ..errors import InputError, UsageError
from ..files import read_input
from ..format.golden import read_npz
from ..tensors import Array, Signature
from ..wire import oip_json, tfs_json
from ..wire.json_values import check_values

REQUESTS_MAX = 1 << 20


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
        arrays = plain_arrays(read_npz(path), path)
        samples = [Sample(arrays)] if not rows else list(_cut(arrays, rows, path))
        return Samples(samples, str(path))
    if rows:
        raise UsageError(
            "--rows is for requests that can be cut", hint="a JSON request holds its rows itself"
        )
    return parse_requests(read_input(path), str(path), lines=path.suffix in (".jsonl", ".ndjson"))


def parse_requests(data: bytes, where: str, *, lines: bool) -> Samples:
    """The requests of a JSON document, or of JSON lines, where `lines` says so or it looks so.

    Raises InputError, and RequestError for what is no JSON.
    """
    records = [line for line in data.splitlines() if line.strip()]
    first = orjson_object(records[0]) if records else {}
    logged = "time" in first and "instances" not in first
    if not lines and not logged and (len(records) < 2 or not first):
        return Samples([_json(data if lines else _enveloped(data), where)], where)
    if not records:
        raise InputError("the file holds no requests", where=where, expected="a JSON request a line")
    if len(records) > REQUESTS_MAX:
        raise InputError(
            "too many requests", where=where, expected=f"at most {REQUESTS_MAX}", found=len(records)
        )
    if logged:
        return _log(records, where)
    return Samples([_json(line, f"{where}:{i}") for i, line in enumerate(records, 1)], where)


def plain_arrays(arrays: Mapping[str, Array], where: object) -> dict[str, Array]:
    """The arrays of an npz archive, text as objects. Raises InputError where there are none."""
    if not arrays:
        raise InputError("the npz archive holds no arrays", where=where)
    return {a: texts(x, where) if x.dtype.kind in "UST" else x for a, x in arrays.items()}


def texts(array: Array, where: object) -> Array:
    """An array of numpy's texts, or of ASCII bytes, as objects. Raises InputError for what is no text."""
    try:
        return array.astype(str).astype(object)
    except (UnicodeDecodeError, SystemError, ValueError) as error:  # SystemError: beyond Unicode
        found = error if isinstance(error, UnicodeDecodeError) else "a character that Unicode does not have"
        raise InputError("an array's values are no text", where=where, found=found) from error


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


def _json(body: bytes, where: str) -> Sample:
    value = tfs_json.parse(body)
    if ("instances" in value) == ("inputs" in value):
        raise InputError(
            "the inputs are not a predict request",
            where=where,
            expected="exactly one of 'instances' and 'inputs'",
            found=", ".join(value)[:80] or "an empty object",
            hint='a request for one row is {"instances": [ROW]}; a .json file may also be a list of rows',
        )
    return Sample(body=body, signature=tfs_json.signature_name(value))


def _enveloped(body: bytes) -> bytes:
    """A bare list of rows as the request that it stands for; all else as it is."""
    if body.lstrip()[:1] != b"[":
        return body
    check_values(body)
    try:
        json.loads(body)  # bare NaN passes, as it does in requests
    except (ValueError, RecursionError):
        return body  # whose reader says where it stops being JSON
    return b'{"instances":' + body + b"}"


def _log(lines: Sequence[bytes], where: str) -> Samples:
    """A recorded request log: in the order in which the requests arrived."""
    records = []
    for number, line in enumerate(lines, 1):
        record = orjson_object(line)
        inputs, time = record.get("inputs"), record.get("time")
        if not isinstance(inputs, dict) or type(time) not in (int, float):
            raise InputError(
                "not a line of a request log",
                where=f"{where}:{number}",
                expected='"time", and "inputs" of one query',
                found=line[:60].decode("utf-8", "replace"),
                hint="--inputs golden, or --inputs FILE, sends other requests at a log's times",
            )
        hidden = [a for a, x in inputs.items() if isinstance(x, dict) and x.get("redacted") is True]
        if hidden:
            raise InputError(
                "the log holds no values of an input",
                where=f"{where}:{number}",
                found=f"{hidden[0]!r} was redacted",
                hint="record without redact, or send other requests",
            )
        records.append(record)
    models = sorted({str(record.get("model")) for record in records})
    if len(models) > 1:
        raise InputError("the log is of several models", where=where, found=", ".join(models)[:200])
    records.sort(key=lambda record: float(record["time"]))
    requests = [_logged(record) for record in records]
    return Samples(requests, f"{where}, a request log", ordered=True)


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
