"""Subject: a model that is run here, and looked into: a bundle or a bare ONNX file, on one device.

A bundle's answers come from a servable, so that they are what a server would answer. Whatever else is
asked (a graph without optimisations, tensors inside the graph) is a session made for the occasion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

from ..compare.model import SAVED_MODEL, Model, open_model
from ..defaults import fill_defaults
from ..errors import InputError, ModelRefused, NotFound, UsageError
from ..format import open_bundle
from ..format.prune import Parts, shape_of
from ..loader.servable import Servable, load
from ..rows import Cuts, feeds, row_count
from ..runtime import ort, table
from ..runtime.devices import CPU, resolve
from ..runtime.engines import RUN_S, time_limit
from ..runtime.weights import Weights, open_weights
from ..tensors import DEFAULT_SIGNATURE, Array, Signature, check_inputs, plain_text
from ..wire import graph_proto, protobuf

ROWS_AT_ONCE = 1024
Named = Mapping[str, Array]


class Subject:
    """A model that is run. `model` is what was opened; `plain` leaves out optimisations of the graph."""

    def __init__(self, model: Model, device: str = CPU, *, plain: bool = False) -> None:
        self.model = model
        self.plain = plain
        self.device = device
        self._cuda = resolve(device)
        self._servable: Servable | None = None
        if model.bundle is not None and not plain:
            self._servable = load(model.path, device)
        if plain and self.is_table:
            raise UsageError("a table has no graph to optimise", where=model.path)

    @property
    def label(self) -> str:
        """What it is called beside another one."""
        where = "" if self.device == CPU else f" on {self.device}"
        return f"{self.model.path}{where}{', without optimisations' if self.plain else ''}"

    @cached_property
    def is_table(self) -> bool:
        """Whether it is looked up in and not computed."""
        return self.model.bundle is not None and table.is_table(self.model.bundle.graph)

    def signature(self, name: str = "") -> tuple[str, Signature]:
        """A signature by name; "" stands for the default one, or the only one. Raises NotFound."""
        known = self.model.signatures
        if not name:
            name = DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in known or len(known) != 1 else next(iter(known))
        if name not in known:
            raise NotFound("no such signature", expected=", ".join(known), found=repr(name))
        return name, known[name]

    def run(self, inputs: Named, name: str) -> dict[str, Array]:
        """The outputs of a signature, by alias; many independent rows are run in pieces.

        Raises RequestError, ExecutionFailed, and ModelRefused where a run takes longer than RUN_S.
        """
        import numpy as np

        spec = self.model.signatures[name]
        arrays = self._checked(inputs, spec)
        rows = row_count(spec, arrays) if arrays and spec.batch_axis is not None else 1
        if rows <= ROWS_AT_ONCE:
            return self._run(arrays, name)
        cuts, starts = Cuts(spec, arrays), range(0, rows, ROWS_AT_ONCE)
        pieces = [self._run(cuts.rows(at, min(rows, at + ROWS_AT_ONCE)), name) for at in starts]
        return {alias: np.concatenate([piece[alias] for piece in pieces]) for alias in spec.outputs}

    def _run(self, arrays: Named, name: str) -> dict[str, Array]:
        if self._servable is not None:
            return self._servable.run(arrays, name, limit_s=RUN_S)
        ports = self.model.signatures[name].outputs
        found = self.observe(arrays, name, [spec.name for spec in ports.values()])
        return {alias: found[spec.name] for alias, spec in ports.items()}

    def _checked(self, inputs: Named, spec: Signature) -> Named:
        import numpy as np

        arrays = fill_defaults(spec, {a: plain_text(np.asarray(x)) for a, x in inputs.items()})
        check_inputs(spec, arrays)
        return arrays

    def observe(self, inputs: Named, name: str, tensors: Sequence[str]) -> dict[str, Array]:
        """Tensors of the main graph by name, for inputs of a signature; what is no tensor is left out.

        Raises UsageError where a tensor needs inputs that the signature does not have, and as `run`.
        """
        return self._observed(inputs, name, tensors, self._parts.exposing(tensors))

    def shapes(self, inputs: Named, name: str, tensors: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """The shapes that tensors of the main graph have for some inputs: no tensor is kept for it."""
        named = [shape_of(tensor) for tensor in tensors]
        found = self._observed(inputs, name, named, self._parts.exposing(tensors, shapes=True))
        return {t: tuple(found[n].tolist()) for t, n in zip(tensors, named, strict=True)}

    def _observed(self, inputs: Named, name: str, tensors: Sequence[str], model: bytes) -> dict[str, Array]:
        import numpy as np

        if self.is_table:
            raise UsageError("a table has no tensors inside", where=self.model.path)
        spec = self.model.signatures[name]
        arrays = self._checked(inputs, spec)
        fed = feeds(spec, arrays)
        session = ort.observer(
            model, self._weights, cuda=self._cuda[0] if self._cuda else None, plain=self.plain
        )
        missing = [port for port in session.inputs if port not in fed]
        if missing:
            raise UsageError(
                "a tensor needs inputs that the signature does not have", where=name, found=", ".join(missing)
            )
        options = session.run_options()
        with time_limit(options, RUN_S, self.model.path):
            found = session.run(list(tensors), {port: fed[port] for port in session.inputs}, options)
        return {t: x for t, x in zip(tensors, found, strict=True) if isinstance(x, np.ndarray)}

    @cached_property
    def _weights(self) -> Weights:
        if self.model.bundle is not None:
            return open_weights(self.model.bundle)
        return Weights(self.model.path, {}, True)

    @cached_property
    def _parts(self) -> Parts:
        assert self.model.data is not None
        try:
            return Parts(self.model.data)
        except protobuf.Malformed as error:
            raise ModelRefused(
                "the graph is not a protobuf message", where=self.model.path, found=error
            ) from error

    def inside(self, asked: str) -> list[str]:
        """The tensors that a name stands for: a tensor, or what the nodes of that name make.

        Raises InputError, with names that are near.
        """
        made: dict[str, list[str]] = {}
        assert self.model.data is not None
        for node in graph_proto.nodes(self.model.data):
            for tensor in filter(None, node.outputs):
                made[tensor] = [tensor]
        for node in graph_proto.nodes(self.model.data):
            if node.name and node.name not in made:
                made[node.name] = [t for t in node.outputs if t]
        if asked in made:
            return made[asked]
        near = get_close_matches(asked, made, 3, 0.4)
        hint = (
            f"did you mean {' or '.join(map(repr, near))}?" if near else "mserve inspect --graph lists them"
        )
        if asked in self.model.tensors:
            hint = "that is a weight: mserve inspect --weights shows it"
        raise InputError("no such tensor or node", where=self.model.path, found=repr(asked), hint=hint)

    def close(self) -> None:
        """Free what was loaded."""
        if self._servable is not None:
            self._servable.close()
            self._servable = None


def open_subject(path: Path, device: str = CPU, *, plain: bool = False) -> Subject:
    """A bundle, a base path (its newest version) or an ONNX file, ready to run; the caller closes it.

    Raises a BundleError or InputError for what is broken or something else, EnvironmentProblem
    where the device cannot be used.
    """
    resolve(device)
    try:
        model = open_model(path)
    except InputError:
        if path.is_dir():  # what a bundle lacks is more to the point
            open_bundle(path)
        raise
    if model.kind == SAVED_MODEL:
        raise InputError(
            "a SavedModel cannot be run: mserve has no TensorFlow",
            where=path,
            hint="convert it to ONNX; mserve run takes the ONNX file, or a bundle exported from it",
        )
    return Subject(model, device, plain=plain)
