"""The process that converts one source: `python -m mserve.exporters.child DIRECTORY`.

`job.json` in the directory says what to convert; the answer is `result.json`, the model,
its assets, and inputs with what the source framework answers. Whatever happens here, a
file of a framework's own making or code that a source brought along, the parent reads
the answer as it reads any file from outside (`conversion.py`).
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, MserveError
from ..examples import generate
from ..format.golden import Golden, pack, read_npz
from ..rows import first
from ..tensors import DEFAULT_SIGNATURE, DTYPES, Array, Signature, plain_text
from . import signatures, sources
from .kinds import Converted, ConvertOptions, Kind
from .operators import check_operators

if TYPE_CHECKING:
    import onnx

JOB, RESULT, MODEL = "job.json", "result.json", "model.onnx"
# From here on weights lie beside the graph: protobuf ends at 2 GiB.
LARGE_BYTES = 1 << 30


def main(directory: Path) -> int:
    """Do the job of a directory; 0 whenever `result.json` tells how it went."""
    job = json.loads((directory / JOB).read_bytes())
    _limit(job["limits"])
    clip = job["options"].pop("clip", None)
    options = ConvertOptions(**job["options"], clip=tuple(clip) if clip else None)
    options = replace(options, input=tuple(options.input), output=tuple(options.output))
    result = attempt(sources.named(job["kind"]), job["source"], options, directory)
    (directory / RESULT).write_text(json.dumps(result))
    return 0


def _limit(limits: Mapping[str, int]) -> None:
    if sys.platform != "win32":
        import resource

        for name, value in limits.items():
            with suppress(ValueError, OSError):  # a lower limit stands already, or the system has no such one
                resource.setrlimit(getattr(resource, name), (value, value))


def _most_memory_kib() -> int:
    """The largest resident size of this process so far; 0 where the system does not tell.

    getrusage would count the parent, whose memory the child had before it became another program.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def attempt(kind: Kind, source: str, options: ConvertOptions, directory: Path) -> dict[str, Any]:
    """Convert, and tell how it went as JSON: the result, or the error."""
    start = time.monotonic()
    try:
        result = perform(kind, source, options, directory)
    except MserveError as error:
        error.__traceback__ = None
        return {"error": type(error).__name__, **_parts(error)}
    except MemoryError:
        return {"error": "InputError", "what": "the conversion ran out of memory"}
    except Exception as error:  # a framework's own
        traceback.print_exc()
        found = f"{type(error).__name__}: {error}"[:2000]
        return {"error": "InputError", "what": f"converting {kind.what} failed", "found": found}
    result["seconds"] = round(time.monotonic() - start, 3)
    result["memory_kib"] = _most_memory_kib()
    return result


def _parts(error: MserveError) -> dict[str, str]:
    return {name: getattr(error, name) for name in ("what", "where", "expected", "found", "hint")}


def perform(kind: Kind, source: str, options: ConvertOptions, directory: Path) -> dict[str, Any]:
    """Convert into a directory and describe what lies there.

    Raises MserveError, and what frameworks raise.
    """
    import onnx

    assert kind.convert is not None
    converted = kind.convert(source, options)
    if isinstance(converted.model, Path):
        model = onnx.load(converted.model, load_external_data=False)
    else:
        model = converted.model
    check_operators(model, kind.what, source)
    model = _with_shapes(model)
    path = converted.model if isinstance(converted.model, Path) else directory / MODEL
    onnx.save_model(
        model,
        path,
        save_as_external_data=not isinstance(converted.model, Path) and model.ByteSize() > LARGE_BYTES,
        location=f"{path.name}.data",
    )
    named = converted.signatures or {DEFAULT_SIGNATURE: signatures.derive(model.graph, source)}
    files = {}
    for index, (name, data) in enumerate(sorted(converted.assets.items())):
        files[name] = f"asset-{index}"
        (directory / files[name]).write_bytes(data)
    return {
        "model": str(path.relative_to(directory)),
        "signatures": {name: signature.to_json() for name, signature in named.items()},
        "assets": files,
        "notes": list(converted.notes),
        "versions": dict(converted.versions),
        "compared_with": converted.compared_with if converted.reference else "",
        "trials": _trials(converted, named, options, directory),
    }


def _with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every shape that can be inferred: some converters give outputs none."""
    import onnx

    if model.ByteSize() > LARGE_BYTES:
        return model
    return onnx.shape_inference.infer_shapes(model)


def _trials(
    converted: Converted, named: Mapping[str, Signature], options: ConvertOptions, directory: Path
) -> list[dict[str, Any]]:
    """Write inputs and, where the framework is there, its answers; one file for each signature and size."""
    trials: list[dict[str, Any]] = []
    for name, signature in named.items():
        for inputs in _inputs(converted, name, signature, options):
            outputs = _answers(converted, name, signature, inputs)
            file = f"trial-{len(trials)}.npz"
            (directory / file).write_bytes(pack({name: Golden(inputs, outputs)}))
            trials.append({"file": file, "signature": name, "outputs": list(outputs)})
    return trials


def _inputs(
    converted: Converted, name: str, signature: Signature, options: ConvertOptions
) -> list[dict[str, Array]]:
    if options.example is not None and name == DEFAULT_SIGNATURE:
        example = options.example
        arrays = read_npz(Path(example)) if not isinstance(example, Mapping) else dict(example)
        if arrays.keys() != signature.inputs.keys():
            raise InputError(
                "the example inputs are not the model's",
                where=example if not isinstance(example, Mapping) else "the example",
                expected=", ".join(signature.inputs),
                found=", ".join(arrays),
            )
        given = {alias: plain_text(array) for alias, array in arrays.items()}
        alone = signature.batch_axis is not None and any(len(x) > 1 for x in given.values() if x.ndim)
        return [given, first(signature, given)] if alone else [given]
    rows = (converted.rows, 1) if signature.batch_axis is not None else (1,)
    if converted.draw is not None:
        return [dict(converted.draw(name, count)) for count in rows]
    return [generate(signature, count, seed=count) for count in rows]


def _answers(
    converted: Converted, name: str, signature: Signature, inputs: Mapping[str, Array]
) -> dict[str, Array]:
    """What the framework answers, in the dtypes of the signature; nothing where it is not there."""
    import numpy as np

    if converted.reference is None:
        return {}
    answers = converted.reference(name, inputs)
    return {
        alias: np.asarray(array).astype(DTYPES[signature.outputs[alias].dtype].to_numpy())
        for alias, array in answers.items()
        if alias in signature.outputs
    }


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
