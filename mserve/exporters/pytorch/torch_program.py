"""Programs that `torch.export.save` has written (.pt2), and live PyTorch modules.

Opening one runs code: where the example inputs in the archive do not load as plain tensors,
torch unpickles them without limits, and texts in it are handed to sympy. So a file needs
trust. A live module becomes such a program first, in the process it lives in: its
class may be defined in a script that nobody else can import.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InputError, UsageError
from ...format.golden import read_npz
from ...tensors import Array
from .. import ports
from ..kinds import Converted, ConvertOptions, Kind, Seen
from ..ports import BATCH, Port
from . import torch_factory

if TYPE_CHECKING:
    import onnx

PROGRAM, ANSWERS = "program.pt2", "answers.npz"


def _matches(seen: Seen) -> bool:
    names = {name.partition("/")[2] for name in seen.names}
    return "models/model.json" in names and "archive_format" in names


def convert(source: str, options: ConvertOptions) -> Converted:
    """The program as ONNX, compared with itself, or with the live module that it was made from."""
    import torch

    from . import torch_onnx

    if options.input:
        raise UsageError("a program has its inputs", expected="no --input", found=", ".join(options.input))
    torch_onnx.quiet()
    try:
        program = torch.export.load(source)
    except Exception as error:  # whatever torch meets in the archive
        text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise InputError("the program cannot be read", where=source, found=text[:500]) from error
    arrays, module = _example(program, source)
    names = list(arrays)
    with torch.no_grad():
        aliases = torch_onnx.output_names(module(*torch_onnx.tensors(arrays, names)), options)
    with torch_onnx.refusals():
        result = torch.onnx.export(
            program, dynamo=True, output_names=aliases, opset_version=options.opset or None, verbose=False
        )
    model = torch_onnx.exported(result, options, aliases)
    given = _described(_renamed(model), arrays)
    converted = torch_onnx.settled(model, given, options)
    converted.draw = torch_factory.drawing(given, arrays)
    converted.reference = torch_onnx.answering(module, names, aliases)
    converted.compared_with = f"torch {torch.__version__}"
    if not ports.has_batch(given):
        converted.notes = (
            "the program has no open batch axis, so requests run alone: export it with "
            "dynamic_shapes={0: torch.export.Dim.DYNAMIC} for each input to join them",
        )
    if Path(source).parent.is_relative_to(Path(options.work)):
        _answer_live(converted, Path(source).parent / ANSWERS, aliases)
    return converted


def _example(program: Any, source: str) -> tuple[dict[str, Array], Any]:
    """The example inputs in the program, by name, and a function that takes them in their order.

    Raises InputError where they are not tensors.
    """
    import torch

    args, kwargs = program.example_inputs or ((), {})
    names, keys = list(program.graph_signature.user_inputs), list(kwargs)
    values = [*args, *kwargs.values()]
    if not names or len(values) != len(names) or not all(isinstance(v, torch.Tensor) for v in values):
        raise InputError(
            "the program's inputs are not plain tensors",
            where=source,
            expected="one tensor for each argument",
            found=", ".join(type(v).__name__ for v in values) or "no example inputs",
            hint="export a module whose forward takes tensors",
        )
    module, count = program.module(), len(args)

    def call(*given: Any) -> Any:
        return module(*given[:count], **dict(zip(keys, given[count:], strict=True)))

    return {name: v.detach().cpu().numpy() for name, v in zip(names, values, strict=True)}, call


def _renamed(model: onnx.ModelProto | Path) -> onnx.GraphProto:
    """The graph, after the symbol of axis 0 (s77 and the like) is called batch in it, wherever it stands."""
    import onnx

    proto = onnx.load(model, load_external_data=False) if isinstance(model, Path) else model
    first = [v.type.tensor_type.shape.dim[:1] for v in proto.graph.input]
    symbols = {dims[0].dim_param if dims else "" for dims in first}
    if "" in symbols:
        return proto.graph
    words = re.compile(rf"\b({'|'.join(map(re.escape, sorted(symbols)))})\b")
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = words.sub(BATCH, dim.dim_param)
    if isinstance(model, Path):
        onnx.save_model(proto, model)
    return proto.graph


def _described(graph: onnx.GraphProto, arrays: Mapping[str, Array]) -> tuple[Port, ...]:
    from .. import signatures

    inputs = signatures.derive(graph, "the exported graph").inputs.values()
    return tuple(Port(name, spec.dtype, spec.shape or ()) for name, spec in zip(arrays, inputs, strict=True))


def _answer_live(converted: Converted, path: Path, aliases: list[str]) -> None:
    """To the example that the live module has answered, its answers are what counts."""
    known, program = read_npz(path), converted.reference
    converted.rows = len(known["outputs/0"]) if known["outputs/0"].ndim else 1
    answers = {alias: known[f"outputs/{index}"] for index, alias in enumerate(aliases)}

    def reference(name: str, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        import numpy as np

        same = all(np.array_equal(known[f"inputs/{alias}"], array) for alias, array in inputs.items())
        return answers if same or program is None else program(name, inputs)

    converted.reference = reference


def _accepts(source: Any) -> bool:
    names = {(one.__module__, one.__name__) for one in type(source).__mro__}
    keras = any(module.startswith("keras.") for module, _ in names)  # on PyTorch its models are modules too
    return ("torch.nn.modules.module", "Module") in names and not keras


def _save(source: Any, directory: Path, options: ConvertOptions) -> tuple[str, ConvertOptions]:
    """The module as a program, with its own answers to the example beside it.

    Raises UsageError without example inputs, InputError where torch.export refuses.
    """
    names = torch_factory.argument_names(source.forward)
    given, example = torch_factory.inputs_of(names, None, options)
    arrays = torch_factory.traced_with(given, example)
    training = source.training
    try:
        _export(_on_cpu(source).eval(), given, arrays, directory)
    finally:
        source.train(training)
    return str(directory / PROGRAM), replace(options, input=(), example=None)


def _on_cpu(module: Any) -> Any:
    """The module, or a copy if it lies on an accelerator, which the converting process does not see."""
    import copy

    held = (*module.parameters(), *module.buffers())
    return module if all(t.device.type == "cpu" for t in held) else copy.deepcopy(module).cpu()


def _export(module: Any, given: tuple[Port, ...], arrays: Mapping[str, Array], directory: Path) -> None:
    import numpy as np
    import torch

    from . import torch_onnx

    args = torch_onnx.tensors(arrays, [port.name for port in given])
    opened = tuple(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for axes in torch_onnx.dynamic(given))
    with torch_onnx.refusals(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what torch's own recurrent layers do
        answers = module(*args)
        program = torch.export.export(module, args, dynamic_shapes=opened)
    torch.export.save(program, directory / PROGRAM)
    found = [leaf for leaf in torch_onnx.leaves(answers).values() if isinstance(leaf, torch.Tensor)]
    known: dict[str, Any] = {f"outputs/{index}": leaf.detach().numpy() for index, leaf in enumerate(found)}
    known |= {f"inputs/{name}": array for name, array in arrays.items()}
    np.savez(directory / ANSWERS, **known)


KIND = Kind(
    name="pt2",
    what="a PyTorch program (.pt2), or a live module",
    matches=_matches,
    convert=convert,
    extra="torch",
    modules=("torch", "onnxscript"),
    runs_code="pickles among its example inputs and constants",
    options=("input", "output", "opset", "labels"),
    accepts=_accepts,
    save=_save,
)
