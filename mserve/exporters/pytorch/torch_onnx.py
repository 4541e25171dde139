"""From a PyTorch module, or a program that torch.export has written, to ONNX.

torch.onnx.export keeps state in its process: a second export there may freeze dimensions
that the first left open, without an error. So each conversion has a process of its own,
and the dimensions of every export are held to what was asked for all the same.

The exporter names outputs after the operators that made them. Here they are called by
where they stand in what `forward` returns: a dict's keys, `a.0` for the first of a list
under `a`, `output` where there is only one.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InputError, MserveError, UsageError
from ...tensors import DEFAULT_SIGNATURE, Array, Signature, TensorSpec
from .. import answers, ports, signatures
from ..kinds import Converted, ConvertOptions
from ..ports import BATCH, Port

if TYPE_CHECKING:
    import onnx

# A batch of one row would be taken for a fixed size.
TRACED_ROWS = 3
SCRIPT_OPSET = 17


def quiet() -> None:
    """Keep the exporter's remarks on packages that it could use to itself."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)


@contextmanager
def refusals() -> Iterator[None]:
    """What torch says of a module that it cannot export, as an InputError, its advice left out."""
    try:
        yield
    except MserveError:
        raise
    except Exception as error:  # torch has many kinds of these, and operators have their own
        text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).partition("## Exception summary")
        raise InputError(
            "PyTorch cannot export the module",
            found=" ".join((text[2] or text[0]).partition("(Refer to the full")[0].split())[:1000],
            hint="what the module does with shapes must not depend on numbers read from them "
            "(use -1 and x.shape[0] as they are), nor on the values of its inputs",
        ) from error


def leaves(result: Any) -> dict[str, Any]:
    """What a module returned, by name and in the exporter's order; entries may be no tensors."""
    from torch.utils import _pytree as pytree

    found = {}
    for path, leaf in pytree.tree_flatten_with_path(result)[0]:
        words = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path]
        name = ".".join(words)
        found[f"output_{name}" if name.isdigit() else name or "output"] = leaf
    return found


def tensors(arrays: Mapping[str, Array], names: Sequence[str]) -> tuple[Any, ...]:
    """Arrays as the arguments of a module, in the order of `names`."""
    import torch

    return tuple(torch.from_numpy(arrays[name].copy()) for name in names)


def answering(module: Callable[..., Any], names: Sequence[str], aliases: Sequence[str]) -> Any:
    """A reference that runs the module itself."""

    def reference(signature: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        import torch

        with torch.no_grad():
            found = leaves(module(*tensors(inputs, names))).values()
        given = [leaf for leaf in found if leaf is not None]
        return {alias: leaf.detach().numpy() for alias, leaf in zip(aliases, given, strict=True)}

    return reference


def output_names(result: Any, options: ConvertOptions) -> list[str]:
    """Names for the tensors of a result: `--output` in their order, or where they stand in it."""
    import torch

    found = {name: leaf for name, leaf in leaves(result).items() if leaf is not None}
    odd = {name: type(leaf).__name__ for name, leaf in found.items() if not isinstance(leaf, torch.Tensor)}
    if odd or not found:
        raise InputError(
            "the module returns something that is not a tensor",
            expected="tensors, and lists and dicts of them",
            found=", ".join(f"{name}: {kind}" for name, kind in odd.items()) or "nothing",
        )
    given = list(ports.parse_outputs(options.output))
    if given and len(given) != len(found):
        expected = f"{len(found)} names, for {', '.join(found)}"
        raise UsageError("--output does not fit the module", expected=expected, found=", ".join(given))
    return given or signatures.aliases(list(found))


def dynamic(given: Sequence[Port]) -> tuple[dict[int, str], ...]:
    """The open dimensions of each input, by axis."""
    return tuple({axis: d for axis, d in enumerate(p.dims) if isinstance(d, str)} for p in given)


def exported(program: Any, options: ConvertOptions, names: Sequence[str]) -> onnx.ModelProto | Path:
    """The ONNX model of an exporter's result: in memory, or a file where it is large."""
    from ..child import LARGE_BYTES

    program.model.producer_name = "pytorch"
    for value, name in zip(program.model.graph.outputs, names, strict=True):
        value.name = name
    # Traces of the stack stand in the metadata: paths of this machine, which are no part of a model.
    for one in (program.model.graph, *program.model.functions.values()):
        one.metadata_props.clear()
        for node in one.all_nodes():
            node.metadata_props.clear()
            for out in node.outputs:
                out.metadata_props.clear()
    weights = sum(v.const_value.nbytes for v in program.model.graph.initializers.values() if v.const_value)
    if weights < LARGE_BYTES:
        found: onnx.ModelProto = program.model_proto
        return found
    path = Path(options.work) / "torch.onnx"
    program.save(path, external_data=True)
    return path


def settled(model: onnx.ModelProto | Path, given: Sequence[Port], options: ConvertOptions) -> Converted:
    """The conversion, with a signature; what was asked to be open must be. Raises InputError."""
    import onnx
    import torch

    proto = onnx.load(model, load_external_data=False) if isinstance(model, Path) else model
    signature = signatures.derive(proto.graph, "the exported graph")
    found = list(signature.inputs.values())
    for port, spec in zip(given, found, strict=True):
        frozen = [
            axis
            for axis, dim in enumerate(port.dims)
            if isinstance(dim, str) and isinstance((spec.shape or port.dims)[axis], int)
        ]
        if frozen:
            raise InputError(
                "the export froze a dimension that must stay open",
                where=f"input {port.name}",
                expected=port,
                found=spec,
                hint="another export in the same process may be why (leave --no-isolate out), or the module "
                "reads the size as a number: use x.shape[0] and -1 rather than fixed sizes",
            )
    promised = ports.has_batch(given)
    if promised and not signatures.may_batch(signature):
        shapes = ", ".join(f"{alias}: {spec}" for alias, spec in signature.outputs.items())
        expected = "axis 0 of every output is the batch, as of every input"
        hint = (
            "describe the inputs without the symbol batch if rows are not independent: --input x:float32[n,4]"
        )
        raise InputError("an output has no batch axis", expected=expected, found=shapes, hint=hint)
    signature = replace(signature, batch_axis=0) if promised else signature
    signature, assets = _labelled(signature, options)
    return Converted(
        model, {DEFAULT_SIGNATURE: signature}, assets=assets, versions={"torch": str(torch.__version__)}
    )


def _labelled(signature: Signature, options: ConvertOptions) -> tuple[Signature, dict[str, bytes]]:
    """Names of classes for the outputs with as many columns. Raises UsageError when there is none."""
    if options.labels is None:
        return signature, {}
    count = len(Path(options.labels).read_text(errors="replace").splitlines())
    fits = {a: spec for a, spec in signature.outputs.items() if (spec.shape or (0,))[-1] == count}
    if not fits:
        shapes = ", ".join(f"{alias}: {spec}" for alias, spec in signature.outputs.items())
        raise UsageError(
            "the label file does not fit",
            where=options.labels,
            expected=f"an output with {count} columns",
            found=shapes,
        )
    named: dict[str, TensorSpec] = {
        a: replace(spec, labels=answers.LABELS_FILE) if a in fits else spec
        for a, spec in signature.outputs.items()
    }
    return replace(signature, outputs=named), answers.given_labels(options, count)


def module_to_onnx(
    module: Any, arrays: Mapping[str, Array], given: Sequence[Port], options: ConvertOptions
) -> Converted:
    """A module, traced with example arrays (in the order of its arguments), compared with itself.

    Raises InputError when what it returns, or its dimensions, cannot be kept.
    """
    import torch

    quiet()
    module = module.eval()
    names = [port.name for port in given]
    args = tensors(arrays, names)
    with torch.no_grad():
        aliases = output_names(module(*args), options)
    with refusals():
        program = torch.onnx.export(
            module,
            args,
            dynamo=True,
            dynamic_shapes=dynamic(given),
            input_names=names,
            output_names=aliases,
            opset_version=options.opset or None,
            verbose=False,
        )
    converted = settled(exported(program, options, aliases), given, options)
    converted.reference = answering(module, names, aliases)
    converted.compared_with = f"torch {torch.__version__}"
    return converted


def script_to_onnx(
    script: Any, arrays: Mapping[str, Array], given: Sequence[Port], options: ConvertOptions
) -> Converted:
    """A TorchScript module. Only the older exporter reads these; it knows tensors and tuples of them."""
    import torch

    quiet()
    names = [port.name for port in given]
    args = tensors(arrays, names)
    with torch.no_grad():
        result = script(*args)
    if isinstance(result, dict):
        raise InputError(
            "TorchScript that returns a dict cannot be exported",
            expected="a tensor, or a tuple of tensors",
            found=f"a dict of {', '.join(map(str, result))}",
            hint="export the module itself (package.module:factory), or script one that returns a tuple",
        )
    aliases = output_names(result, options)
    path = Path(options.work) / "torch.onnx"
    axes = dict(zip(names, dynamic(given), strict=True))
    # Which output axes follow, the exporter finds out; the batch it must be told of.
    axes |= {alias: {0: BATCH} for alias in aliases} if ports.has_batch(given) else {}
    with refusals():
        torch.onnx.export(
            script.eval(),
            args,
            str(path),
            dynamo=False,
            opset_version=options.opset or SCRIPT_OPSET,
            input_names=names,
            output_names=aliases,
            dynamic_axes=axes,
        )
    converted = settled(path, given, options)
    converted.reference = answering(script, names, aliases)
    converted.compared_with = f"torch {torch.__version__}"
    return converted
