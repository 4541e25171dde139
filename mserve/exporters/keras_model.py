"""Keras models, `.keras` archives and HDF5 files of earlier versions, without TensorFlow.

Keras 3 runs on several engines; here it loads the model on PyTorch, and PyTorch's exporter
makes the ONNX graph: from the traced program, and where that fails from a recording of one
run. Keras itself answers the trials.

Its files may name any function to call on loading (layers of class Lambda hold code); its own
safe mode refuses them, and stays on.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EnvironmentProblem, InputError
from ..tensors import ANY_DIM, DTYPES, Array, Signature, TensorSpec
from .answers import LABELS_FILE, given_labels
from .kinds import Converted, ConvertOptions, Kind, Seen

if TYPE_CHECKING:
    import onnx

BACKEND = "torch"
OPSET = 18
HDF5 = b"\x89HDF\r\n\x1a\n"
ARCHIVE = ("config.json", "model.weights.h5")
CONFIG = b"model_config"
LOOKED_BYTES = 1 << 20
MAX_CONFIG_BYTES = 256 << 20
SAVED = "model.keras"


def convert(source: str, options: ConvertOptions) -> Converted:
    """The model as ONNX. Raises InputError for what Keras does not load, or cannot be exported."""
    path = Path(source)
    _check_file(path)
    keras = _keras()
    model = _loaded(keras, path)
    signature = _signature(model, path)
    opset = options.opset or OPSET
    graph = _exported(model, signature, opset, path)
    _check_open(graph, signature, path)
    assets: dict[str, bytes] = {}
    if options.labels is not None:
        alias, spec = next(iter(signature.outputs.items()))
        count = spec.shape[-1] if spec.shape and isinstance(spec.shape[-1], int) else 0
        assets = given_labels(options, count)
        labelled = {**signature.outputs, alias: replace(spec, labels=LABELS_FILE)}
        signature = replace(signature, outputs=labelled)

    def reference(_: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        answers = _ask(model, [inputs[alias] for alias in signature.inputs])
        return dict(zip(signature.outputs, answers, strict=True))

    import torch

    return Converted(
        graph,
        {"serving_default": signature},
        assets=assets,
        reference=reference,
        compared_with=f"keras {keras.__version__} on torch",
        versions={"keras": keras.__version__, "torch": torch.__version__},
    )


def _keras() -> Any:
    """Keras on PyTorch. Raises EnvironmentProblem where this process has it on another engine."""
    os.environ["KERAS_BACKEND"] = BACKEND
    import keras

    if keras.backend.backend() != BACKEND:
        raise EnvironmentProblem(
            "Keras runs on another engine in this process",
            expected=BACKEND,
            found=keras.backend.backend(),
            hint="convert in a process of its own: leave out --no-isolate",
        )
    return keras


def _check_file(path: Path) -> None:
    """Say what is wrong with the file before Keras does. Raises InputError."""
    seen = Seen(str(path))
    if seen.head.startswith(HDF5):
        import h5py

        try:
            with h5py.File(path, "r") as file:
                config = file.attrs.get("model_config")
                found = ", ".join(list(file)[:8]) or "nothing"
        except (OSError, RuntimeError, KeyError) as error:
            raise InputError("the HDF5 file cannot be read", where=path, found=error) from error
        if config is None:
            raise InputError(
                "the HDF5 file holds weights alone",
                where=path,
                expected="a whole model, with model_config",
                found=found,
                hint="load the weights into the model in Python, and save that, or mserve.export(model, ...)",
            )
        return
    try:
        with zipfile.ZipFile(path) as archive, archive.open("config.json") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
        if len(data) > MAX_CONFIG_BYTES:
            raise ValueError(f"config.json has more than {MAX_CONFIG_BYTES} bytes")
        json.loads(data)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, OSError, ValueError, RuntimeError) as error:
        raise InputError("the Keras archive cannot be read", where=path, found=error) from error


def _loaded(keras: Any, path: Path) -> Any:
    """The model, in evaluation. What Keras refuses is said with its own words."""
    named = path
    if path.suffix not in (".keras", ".h5", ".hdf5"):  # Keras goes by the name
        ending = ".h5" if Seen(str(path)).head.startswith(HDF5) else ".keras"
        named = Path.cwd() / f"source{ending}"
        named.symlink_to(path.absolute())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = keras.saving.load_model(named, compile=False, safe_mode=True)
        except Exception as error:  # of any class, by Keras and by the layers
            text = str(error)
            unsafe = "unsafe" in text or "Lambda" in text
            raise InputError(
                "the model holds code, which Keras's safe mode refuses"
                if unsafe
                else "Keras refuses the model",
                where=path,
                expected="layers that Keras knows",
                found=text.strip().splitlines()[0][:500] if text.strip() else type(error).__name__,
                hint="replace Lambda layers by layers or keras.ops, and save again"
                if unsafe
                else "with layers of your own: mserve.export of the PyTorch module that it is",
            ) from error
        finally:
            if named != path:
                named.unlink()
    stateful = [x.name for x in getattr(model, "layers", ()) if getattr(x, "stateful", False)]
    if stateful:
        raise InputError(
            "the model is stateful: a row's answer depends on the rows before it",
            where=path,
            expected="layers with stateful=False",
            found=", ".join(stateful),
        )
    return model


def _signature(model: Any, path: Path) -> Signature:
    """The model's inputs and outputs under their own names. Raises InputError for a model without shapes."""
    try:
        inputs, outputs = list(model.inputs or ()), list(model.outputs or ())
    except (AttributeError, ValueError):
        inputs, outputs = [], []
    if not inputs or not outputs:
        raise InputError(
            "the model does not say what it takes",
            where=path,
            expected="a functional or sequential model whose input shape is known",
            found=type(model).__name__,
            hint="call it once, or begin it with keras.Input(shape), and save again",
        )
    named = model if hasattr(model, "output_names") else getattr(model, "_functional", None)  # Sequential
    names = list(getattr(named, "output_names", ()))
    short = [n if n and names.count(n) == 1 else f"output_{i}" for i, n in enumerate(names)]
    if len(short) != len(outputs):
        short = [f"output_{i}" for i in range(len(outputs))]
    given = {t.name.split(":")[0]: _spec(t.name.split(":")[0], t) for t in inputs}
    if len(given) != len(inputs):
        given = {f"input_{i}": _spec(f"input_{i}", t) for i, t in enumerate(inputs)}
    taken = {n: n if n not in given else f"{n}_output" for n in short}
    return Signature(
        "predict", given, {n: _spec(taken[n], t) for n, t in zip(short, outputs, strict=True)}, 0
    )


def _spec(name: str, tensor: Any) -> TensorSpec:
    dims = list(tensor.shape)
    shape = ("batch", *(ANY_DIM if d is None else int(d) for d in dims[1:]))
    dtype = str(tensor.dtype)
    if dtype not in DTYPES:
        raise InputError("a tensor of the model cannot be served", expected="a known dtype", found=dtype)
    return TensorSpec(name, dtype, shape)


def _ask(model: Any, inputs: Sequence[Array]) -> list[Array]:
    import numpy as np
    import torch

    with torch.no_grad():
        tensors = [torch.from_numpy(np.ascontiguousarray(x)) for x in inputs]
        return [x.detach().cpu().numpy() for x in _flat(model(_given(tensors), training=False))]


def _given(tensors: Sequence[Any]) -> Any:
    return tensors[0] if len(tensors) == 1 else list(tensors)


def _flat(answers: Any) -> list[Any]:
    if isinstance(answers, Mapping):
        return [answers[key] for key in answers]
    return list(answers) if isinstance(answers, list | tuple) else [answers]


def _exported(model: Any, signature: Signature, opset: int, path: Path) -> onnx.ModelProto:
    """The model through PyTorch's exporter. Raises InputError with what both of its ways say."""
    import onnx
    import torch

    class Module(torch.nn.Module):  # type: ignore[misc]
        """The model as the exporter wants it."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: Any) -> Any:
            return tuple(_flat(self.model(_given(tensors), training=False)))

    module = Module().eval()
    args = tuple(_example(spec) for spec in signature.inputs.values())
    _ask(model, [x.numpy() for x in args])  # Keras makes some of its state in the first call
    inputs, outputs = ([s.name for s in side.values()] for side in (signature.inputs, signature.outputs))
    names = {"input_names": inputs, "output_names": outputs, "opset_version": opset}
    file = str(Path.cwd() / "keras.onnx")
    problems = []
    logging.getLogger("torch.onnx").setLevel(logging.CRITICAL)
    for dynamo in (True, False):
        how: dict[str, Any] = {"dynamic_axes": {n: {0: "batch"} for n in (*inputs, *outputs)}}
        if dynamo:
            sizes = tuple(_open_sizes(spec) for spec in signature.inputs.values())
            how = {"dynamic_shapes": (sizes,), "verbose": False, "external_data": False}
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            try:
                torch.onnx.export(module, args, file, dynamo=dynamo, **{**names, **how})
                found = onnx.load(file)
                _check_open(found, signature, path)
                return found
            except Exception as error:  # of any class
                problems.append((str(error).strip() or repr(error)).splitlines()[0][:300])
    raise InputError(
        "the model cannot be exported",
        where=path,
        expected="layers that PyTorch exports",
        found="; ".join(problems),
    )


def _example(spec: TensorSpec) -> Any:
    """Zeros of two rows: a size of one may be taken for a constant."""
    import numpy as np
    import torch

    sizes = (2, *(8 if isinstance(d, str) else d for d in (spec.shape or ())[1:]))
    return torch.from_numpy(np.zeros(sizes, DTYPES[spec.dtype].to_numpy()))


def _open_sizes(spec: TensorSpec) -> dict[int, Any]:
    import torch

    return {i: torch.export.Dim.DYNAMIC for i, d in enumerate(spec.shape or ()) if isinstance(d, str)}


def _check_open(graph: onnx.ModelProto, signature: Signature, path: Path) -> None:
    """What is open in the model is open in the graph; exporters lose it silently. Raises InputError."""
    known = {value.name: value.type.tensor_type.shape.dim for value in graph.graph.input}
    for alias, spec in signature.inputs.items():
        dims = known.get(spec.name)
        for axis, size in enumerate(spec.shape or ()):
            if dims and isinstance(size, str) and dims[axis].HasField("dim_value"):
                raise InputError(
                    "the conversion fixed a size that is open in the source",
                    where=f"{path}: input {alias}, axis {axis}",
                    expected="any size",
                    found=dims[axis].dim_value,
                )


def _matches(seen: Seen) -> bool:
    if all(name in seen.names for name in ARCHIVE):
        return True
    return seen.head.startswith(HDF5) and _is_model(seen.path)


def _is_model(path: Path) -> bool:
    """Whether an HDF5 file has a model's attributes, or only the weights that Keras writes."""
    try:
        with path.open("rb") as file:
            head = file.read(LOOKED_BYTES)
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOOKED_BYTES))
            return CONFIG in head or b"keras_version" in head or CONFIG in file.read(LOOKED_BYTES)
    except OSError:
        return False


def _accepts(value: Any) -> bool:
    classes = type(value).__mro__
    return any(c.__name__ == "Model" and c.__module__.startswith("keras.") for c in classes)


def _save(model: Any, directory: Path, options: ConvertOptions) -> tuple[str, ConvertOptions]:
    """A live model, whatever engine it runs on, as an archive."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(directory / SAVED)
    return str(directory / SAVED), options


KIND = Kind(
    name="keras",
    what="a Keras model",
    matches=_matches,
    convert=convert,
    extra="keras",
    modules=("keras", "torch", "onnxscript"),
    options=("opset", "labels"),
    accepts=_accepts,
    save=_save,
)
