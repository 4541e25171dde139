"""Files as the inputs of one signature: what `mserve run --inputs` reads.

    npz             arrays by input               npy    one input
    JSON, JSONL     predict requests              CSV    see `csv_arrays`
    PNG, JPEG       one input, see `images`       raw    one input: its values, little-endian
    lines           one sparse input: LIBSVM's or libFM's text, a row a line

A source is FILE, or NAME=FILE for one input; "-" is standard input. Which kind a file is says its
suffix, else its first bytes, unless the caller says it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import InputError, UsageError
from ..files import MAX_INPUT_BYTES, read_input
from ..format.golden import npz_arrays, restored
from ..tensors import DTYPES, Array, Signature, TensorSpec
from ..wire import tfs_json
from .csv_arrays import read_csv
from .images import ImageOptions, read_image
from .lines import read_lines
from .requests import Sample, arrays_of, parse_requests, plain_arrays, texts

KINDS = ("npz", "npy", "json", "jsonl", "csv", "tsv", "image", "raw", "lines")
_SUFFIXES = {f".{kind}": kind for kind in KINDS} | {
    ".ndjson": "jsonl", ".png": "image", ".jpg": "image", ".jpeg": "image", ".bin": "raw",
    ".libsvm": "lines", ".svm": "lines", ".libfm": "lines"
}  # fmt: skip
_MAGIC = {b"PK\x03\x04": "npz", b"\x93NUMPY": "npy", b"\x89PNG": "image", b"\xff\xd8\xff": "image"}
Named = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Options:
    """How files are read: `kind` is one of KINDS, "" to tell by the file; `stdin` is what "-" reads."""

    kind: str = ""
    image: ImageOptions = field(default_factory=ImageOptions)
    stdin: Callable[[], BinaryIO] | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """The arrays of one run by alias; `form` is what it was: "arrays", or the JSON of a
    protocol: "rows", "columns" or "oip"."""

    arrays: Named
    form: str = "arrays"


@dataclass(frozen=True, slots=True)
class _Source:
    alias: str
    where: str
    kind: str
    data: bytes


def read_arrays(
    sources: Sequence[str], name: str, signature: Signature, options: Options
) -> Sequence[Request]:
    """The requests in some sources: several for JSON lines, else one. `name` is the signature's.

    An input that is given more than once is joined along axis 0. Raises InputError, UsageError,
    RequestError; names, dtypes and shapes are left to `check_inputs`.
    """
    if sum(source == "-" or source.endswith("=-") for source in sources) > 1:
        raise UsageError("standard input can be read once", found=" ".join(sources))
    opened = [_source(text, signature, options) for text in sources]
    if len(opened) == 1 and not opened[0].alias and opened[0].kind in ("json", "jsonl"):
        source = opened[0]
        samples = parse_requests(source.data, source.where, lines=source.kind == "jsonl").requests
        return [_asked(sample, name, signature) for sample in samples]
    parts: dict[str, list[Array]] = {}
    for source in opened:
        for alias, array in _READERS[source.kind](source, signature, options).items():
            parts.setdefault(alias, []).append(array)
    return [Request({alias: _joined(alias, arrays) for alias, arrays in parts.items()})]


def _source(text: str, signature: Signature, options: Options) -> _Source:
    """A source taken apart and read."""
    alias, equals, rest = text.partition("=")
    known = [*signature.inputs, *signature.sparse]
    if not equals or (alias not in known and Path(text).exists()):
        alias, rest = "", text
    if alias and alias not in known:
        near = get_close_matches(alias, known, 3)
        raise InputError(
            "the signature has no such input",
            expected=", ".join(known) or "no inputs",
            found=repr(alias),
            hint=f"did you mean {' or '.join(map(repr, near))}?" if near else "",
        )
    where = "standard input" if rest == "-" else rest
    data = _standard_input(options) if rest == "-" else read_input(Path(rest))
    kind = options.kind or _kind(rest, data)
    if alias in signature.sparse and kind != "lines":
        raise UsageError(
            f"the rows of {alias!r} have any number of entries, and a file of this kind gives one array",
            where=where,
            expected="lines of id:value, or a file for each part: "
            + ", ".join(signature.sparse[alias].names(alias).values()),
            found=kind,
        )
    return _Source(alias, where, kind, data)


def _standard_input(options: Options) -> bytes:
    if options.stdin is None:
        raise UsageError("there is no standard input to read")
    data = options.stdin().read(MAX_INPUT_BYTES + 1)
    if len(data) > MAX_INPUT_BYTES:
        raise InputError("the input is too large", expected=f"at most {MAX_INPUT_BYTES} bytes")
    return data


def _kind(name: str, data: bytes) -> str:
    """What a file is, by its suffix or its first bytes. Raises InputError."""
    found = _SUFFIXES.get(Path(name).suffix.lower()) or next(
        (kind for magic, kind in _MAGIC.items() if data.startswith(magic)), ""
    )
    if found:
        return found
    if name == "-" or data[:64].lstrip()[:1] in (b"{", b"["):
        return "json"
    raise InputError(
        "what kind of file this is cannot be told",
        where=name,
        expected=", ".join(_SUFFIXES),
        found=f"{Path(name).suffix or 'no suffix'}, first bytes {data[:8]!r}",
        hint=f"--input-format says it: {', '.join(KINDS)}",
    )


def _asked(sample: Sample, name: str, signature: Signature) -> Request:
    """A JSON request by the signature that is asked. Raises InputError where it is for another."""
    if sample.signature not in ("", name):
        raise InputError(
            "the request is for another signature", expected=repr(name), found=repr(sample.signature),
            hint=f"--signature {sample.signature}",
        )  # fmt: skip
    if sample.form == "tfs":
        arrays, rows = tfs_json.inputs_of(tfs_json.parse(sample.body), signature)
        return Request(arrays, "rows" if rows else "columns")
    return Request(arrays_of(sample, signature), "oip")


# --- one kind each


def _npz(source: _Source, signature: Signature, _: Options) -> Named:
    found = plain_arrays(npz_arrays(io.BytesIO(source.data), source.where), source.where)
    if source.alias and len(found) != 1:
        raise InputError(
            "one input is one array", where=source.where, expected="one array", found=", ".join(found)
        )
    named = {source.alias: next(iter(found.values()))} if source.alias else found
    return {a: _typed(x, signature.inputs.get(a), source.where) for a, x in named.items()}


def _npy(source: _Source, signature: Signature, _: Options) -> Named:
    import numpy as np
    from numpy.lib import format as npy

    alias, spec = _lone(source, signature)
    try:
        file = io.BytesIO(source.data)
        major = npy.read_magic(file)[0]
        shape, _order, kind = (npy.read_array_header_1_0 if major == 1 else npy.read_array_header_2_0)(file)
        count = math.prod(shape)
        needed = kind.itemsize * count
        if kind.hasobject or needed > len(source.data) or (count and not kind.itemsize):
            raise ValueError(
                "objects" if kind.hasobject else f"{count} values of {needed} bytes are announced"
            )
        file.seek(0)
        array: Array = np.load(file, allow_pickle=False)
    except Exception as error:  # numpy's reader of headers raises what Python's parsers do
        raise InputError(
            "cannot read the npy file", where=source.where, found=str(error).split("\n")[0][:200],
            hint="write it with numpy.save, strings as numpy text arrays, not objects",
        ) from error  # fmt: skip
    return {alias: _typed(array, spec, source.where)}


def _typed(array: Array, spec: TensorSpec | None, where: str) -> Array:
    """Text as objects, short types as such: numpy's files have no word for them."""
    if array.dtype.kind in "UST":
        return texts(array, where)
    return array if spec is None else restored(array, spec.dtype)


def _csv(source: _Source, signature: Signature, _: Options) -> Named:
    chosen = signature
    if source.alias:
        chosen = Signature("predict", {source.alias: signature.inputs[source.alias]}, {})
    return read_csv(source.data, chosen, source.where, "\t" if source.kind == "tsv" else ",")


def _image(source: _Source, signature: Signature, options: Options) -> Named:
    alias, spec = _lone(source, signature)
    return {alias: read_image(source.data, spec, f"{source.where}, for input {alias!r}", options.image)}


def _raw(source: _Source, signature: Signature, _: Options) -> Named:
    """The values of one input, little-endian and in row-major order; one size may be open."""
    import numpy as np

    alias, spec = _lone(source, signature)
    where, open_dims = source.where, [d for d in spec.shape or () if not isinstance(d, int)]
    if spec.dtype == "string" or DTYPES[spec.dtype].bits < 8 or spec.shape is None or len(open_dims) > 1:
        raise InputError(
            "raw bytes do not say what this input is",
            where=f"{where}, for input {alias!r}",
            expected="a dtype of whole bytes, and at most one open size",
            found=str(spec),
            hint="give it as npy, which holds the shape, or text as JSON",
        )
    kind, fixed = DTYPES[spec.dtype].to_numpy(), 1
    for dim in spec.shape:
        fixed *= dim if isinstance(dim, int) else 1
    row = fixed * kind.itemsize
    whole = len(source.data) == row if not open_dims else row and len(source.data) % row == 0
    if not whole:
        what = f"{row} bytes" if not open_dims else f"a multiple of {row} bytes"
        raise InputError(
            "the raw file has the wrong number of bytes",
            where=where, expected=f"{what}, for {spec}", found=len(source.data),
        )  # fmt: skip
    shape = [d if isinstance(d, int) else -1 for d in spec.shape]
    return {alias: np.frombuffer(source.data, kind.newbyteorder("<")).astype(kind).reshape(shape)}


def _lines(source: _Source, signature: Signature, _: Options) -> Named:
    sparse = [alias for alias, port in signature.sparse.items() if port.kind == "sparse"]
    asked = [source.alias] if source.alias else sparse
    if len(asked) != 1 or asked[0] not in sparse:
        raise UsageError(
            "lines of id:value are for one sparse input",
            where=source.where,
            expected=", ".join(sparse) or "a signature with a sparse input",
            found=source.alias or "no name, and not one sparse input",
            hint="say which: --inputs NAME=FILE" if len(sparse) > 1 else "",
        )
    return read_lines(source.data, asked[0], signature, source.where)


def _json(source: _Source, _: Signature, __: Options) -> Named:
    raise UsageError(
        "a JSON request holds all inputs",
        where=source.where,
        hint="give it alone, or one input each as npy, npz, CSV, an image or raw bytes",
    )


_READERS: dict[str, Callable[[_Source, Signature, Options], Named]] = {
    "npz": _npz, "npy": _npy, "json": _json, "jsonl": _json, "csv": _csv, "tsv": _csv, "image": _image,
    "raw": _raw, "lines": _lines,
}  # fmt: skip


def _lone(source: _Source, signature: Signature) -> tuple[str, TensorSpec]:
    """The input that a file of one array is for. Raises UsageError where that is not said."""
    if source.alias:
        return source.alias, signature.inputs[source.alias]
    if len(signature.inputs) != 1:
        raise UsageError(
            "the file holds one input, and the signature has several",
            where=source.where,
            expected=", ".join(signature.inputs) or "no inputs",
            hint="say which: --inputs NAME=FILE",
        )
    return next(iter(signature.inputs.items()))


def _joined(alias: str, arrays: Sequence[Any]) -> Array:
    import numpy as np

    if len(arrays) == 1:
        return np.asarray(arrays[0])
    try:
        return np.concatenate(arrays)
    except ValueError as error:
        raise InputError(
            f"the files for input {alias!r} cannot be joined",
            expected="one shape behind axis 0",
            found=", ".join(str(list(x.shape)) for x in arrays[:5]),
        ) from error
