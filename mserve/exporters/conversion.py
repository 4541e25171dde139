"""One conversion, as the exporting process sees it: a job is written, an answer is read.

The answer comes from a process in which a framework, or code that came with a source, had
its way; so it is read like any file from outside: sizes are limited, names are checked,
the model goes through the same door as an ONNX file that a user names.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mserve

from .. import errors
from ..errors import BundleError, InputError, MserveError, UsageError
from ..files import read_input
from ..format import golden
from ..format.digests import file_digest
from ..format.golden import Golden
from ..rows import row_count, take
from ..tensors import DEFAULT_SIGNATURE, Array, Signature
from . import child, isolation, onnx_model, sources
from .kinds import ConvertOptions, Kind, Source

MAX_RESULT_BYTES = 64 << 20
MAX_ASSET_BYTES = 1 << 30
MAX_GOLDEN_ROWS = 16
PATHS = ("example", "check", "labels", "weights")


@contextmanager
def converted(kind: Kind, source: Any, options: ConvertOptions) -> Iterator[Source]:
    """Convert a source, which is a text or a live object, and take the ONNX model apart.

    The model's weights lie in files that go with the context. Raises what the conversion
    raised, and InputError when it died or what it left makes no sense.
    """
    with tempfile.TemporaryDirectory(prefix="mserve-export-") as work:
        directory = Path(work).resolve()
        live = not isinstance(source, str | os.PathLike)
        if live:
            text, options = _saved(kind, source, directory, options)
        else:
            text = os.fspath(source)
        ready = _absolute(options, directory)
        result, network = _done(kind, _absolute_source(text), ready, directory)
        parts = _source(text, result, directory, network=network)
        parts.conversion["pip"] = sources.pip_line(kind) if kind.answers else ""
        parts.origin = {"kind": kind.name} | (_class_of(source) if live else _file_facts(Path(text)))
        parts.name = "" if live else Path(text).name.partition(".")[0]
        yield parts


def _saved(kind: Kind, source: Any, directory: Path, options: ConvertOptions) -> tuple[str, ConvertOptions]:
    """A live object, saved as its framework saves it, and the options to convert it with."""
    if kind.save is None:
        raise InputError("this kind of object cannot be exported", expected="a file", found=type(source))
    place = directory / "object"
    place.mkdir()
    return kind.save(source, place, options)


def _absolute_source(text: str) -> str:
    """A path made absolute; a source that is no path (`module:function`) as it is."""
    return os.path.abspath(text) if os.path.exists(text) else text


def _absolute(options: ConvertOptions, directory: Path) -> ConvertOptions:
    """The options with paths that hold wherever the child runs, and arrays as files."""
    import numpy as np

    paths: dict[str, Any] = {
        name: os.path.abspath(value)
        for name in PATHS
        if (value := getattr(options, name)) is not None and not isinstance(value, Mapping)
    }
    if isinstance(options.example, Mapping):
        paths["example"] = str(directory / "example.npz")
        arrays = {alias: np.asarray(array) for alias, array in options.example.items()}
        arrays = {alias: x.astype(str) if x.dtype.hasobject else x for alias, x in arrays.items()}
        np.savez(paths["example"], **arrays)  # type: ignore[arg-type]
    return replace(options, **paths, work=str(directory), cwd=str(Path.cwd()))


def _done(kind: Kind, text: str, options: ConvertOptions, directory: Path) -> tuple[dict[str, Any], bool]:
    """The result of the conversion, and whether it had the network."""
    if not options.isolate:
        result, network = child.attempt(kind, text, options, directory), True
    else:
        job = {
            "kind": kind.name,
            "source": text,
            "options": asdict(options),
            "limits": isolation.limits(),
        }
        (directory / child.JOB).write_text(json.dumps(job))
        ended = isolation.run(directory)
        network = ended.network
        if not (directory / child.RESULT).is_file():
            raise InputError(
                f"the process that converts {kind.what} died",
                where=text,
                expected="a result",
                found="; ".join(
                    x for x in (isolation.cause(ended.status), isolation.last_words(directory)) if x
                ),
                hint="see what happens in this process: --no-isolate",
            )
        result = _json(directory / child.RESULT)
    if "error" in result:
        raise _error(result, text)
    return result, network


def _json(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(read_input(path, MAX_RESULT_BYTES))
    except (ValueError, RecursionError) as error:
        raise InputError("the conversion's result cannot be read", where=path, found=error) from error
    if not isinstance(result, dict):
        raise InputError("the conversion's result cannot be read", where=path, expected="an object")
    return result


def _error(result: Mapping[str, Any], where: str) -> MserveError:
    """The error that the child raised, of the same class."""
    kind = getattr(errors, str(result["error"]), None)
    chosen = kind if isinstance(kind, type) and issubclass(kind, MserveError) else InputError
    parts = {name: str(result.get(name, "")) for name in ("where", "expected", "found", "hint")}
    return chosen(
        str(result.get("what", "the conversion failed")), **(parts | {"where": parts["where"] or where})
    )


def _source(text: str, result: Mapping[str, Any], directory: Path, *, network: bool) -> Source:
    """What the child left, taken apart. Raises InputError where it makes no sense."""
    try:
        named = {
            str(name): Signature.from_json(value, f"signature {name}")
            for name, value in result["signatures"].items()
        }
        trials = tuple(_trial(trial, named, directory) for trial in result["trials"])
        assets = {
            str(name): read_input(_inside(file, directory), MAX_ASSET_BYTES)
            for name, file in result["assets"].items()
        }
        parts = onnx_model.read(_inside(result["model"], directory))
        notes = tuple(str(note)[:1000] for note in result["notes"])
        versions = {str(k): str(v)[:100] for k, v in result["versions"].items()}
        facts = {
            "converter": f"mserve {mserve.__version__}",
            "versions": versions,
            "compared_with": str(result["compared_with"])[:200],
            "network": network,
        }
        cost = {"seconds": float(result["seconds"]), "memory_kib": int(result["memory_kib"])}
    except (KeyError, TypeError, ValueError, AttributeError, BundleError) as error:
        raise InputError("the conversion left no sensible result", where=text, found=error) from error
    parts.signatures, parts.assets, parts.trials, parts.notes = named, assets, trials, notes
    parts.conversion = {"facts": facts, "cost": cost}
    _draw_from_trials(parts)
    return parts


def _inside(name: Any, directory: Path) -> Path:
    """A file that the child left, which lies in the directory. Raises ValueError."""
    path = (directory / str(name)).resolve()
    if not path.is_relative_to(directory):
        raise ValueError(f"{name!r} lies elsewhere")
    return path


def _trial(trial: Mapping[str, Any], named: Mapping[str, Signature], directory: Path) -> dict[str, Golden]:
    name, aliases = str(trial["signature"]), [str(alias) for alias in trial["outputs"]]
    signature = replace(named[name], outputs={alias: named[name].outputs[alias] for alias in aliases})
    return golden.unpack(_inside(trial["file"], directory), {name: signature})


def _class_of(source: Any) -> dict[str, str]:
    return {"object": f"{type(source).__module__}.{type(source).__qualname__}"}


def _file_facts(path: Path) -> dict[str, str]:
    """The name and digest of a source that lies on the disk; nothing of one that does not."""
    if not path.exists():
        return {}
    digest = _tree_digest(path) if path.is_dir() else file_digest(path)
    return {"file": path.name.encode("utf-8", "replace").decode(), "sha256": digest}


def _tree_digest(root: Path) -> str:
    """sha256 over the names and digests of the files of a directory, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(root).as_posix()}\0{file_digest(path)}\n".encode(errors="replace"))
    return digest.hexdigest()


def _draw_from_trials(parts: Source) -> None:
    """Golden rows of the default signature are those that the conversion was tried with."""
    import numpy as np

    signatures = parts.signatures or {}
    name = DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in signatures else next(iter(signatures), "")
    inputs = next((trial[name].inputs for trial in parts.trials if name in trial), None)
    if not inputs or signatures[name].batch_axis is None:
        return
    signature = signatures[name]
    count = row_count(signature, inputs)

    def draw(rows: int) -> dict[str, Array]:
        found = take(signature, inputs, np.arange(rows) % count)
        return {signature.inputs[alias].name: array for alias, array in found.items()}

    if count:
        parts.draw, parts.golden_rows = draw, min(count, MAX_GOLDEN_ROWS)


def check_options(kind: Kind, options: Mapping[str, bool]) -> None:
    """Refuse options that say nothing about this kind. `options` tells of each whether it is set."""
    for name, is_set in options.items():
        if is_set and name not in kind.options:
            raise UsageError(
                f"{name} says nothing about {kind.what}",
                expected=", ".join(kind.options) or "none of these options",
                found=name,
            )
