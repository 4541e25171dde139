"""Plans: what the JSON part of a binary request, or what stands for it in gRPC, means to one version.

A client that sends tensors as raw bytes sends the same JSON before them again and again:
names, datatypes, shapes. What follows from it is worked out and checked once, and kept
by the JSON's bytes. A plan knows one version's signature, so it belongs to the version's
servable and ends with it; it knows sizes and types, never values: tensors whose bytes
have to be looked at (text, booleans, ids and lengths) have no plan, nor has a request with an id, whose
JSON does not come again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from ..tensors import DTYPES, Array, Signature, check_inputs
from .oip import DATATYPES, InferRequest, Wanted
from .oip_texts import Buffer

PLANS_MAX = 512
JSON_BYTES_MAX = 2 << 10
HEADS_MAX = 64
Shapes = tuple[tuple[int, ...], ...]


class Answer(NamedTuple):
    """The bytes of an HTTP answer up to what its request alone has to say, from there to its first
    tensor, and the size of its body.
    """

    head: bytes
    body: bytes
    size: int


@dataclass(slots=True)
class Plan:
    """A checked request without its tensors: the signature's resolved name, and its inputs' `rows`.

    `parts` are the inputs: alias, numpy dtype, elements, where they begin behind the JSON,
    shape; `size` is how many bytes they have in all. `places` says which outputs of the
    signature are answered, where all of these are raw numbers; otherwise it is empty.
    `timed` tells whether the request has a timeout, `alone` whether it shares no batch. `heads`
    are the JSON parts of such answers, by the shapes of all outputs, each with its length as
    text; `answers` what stands around the tensors on the wire of HTTP, where they can be so
    made: for no other request than one whose time is the server's.
    """

    message: InferRequest
    signature: str
    rows: int
    parts: Sequence[tuple[str, Any, int, int, tuple[int, ...]]]
    size: int
    places: Sequence[int]
    timed: bool
    alone: bool = False
    answers: dict[Shapes, Answer] = field(default_factory=dict)
    heads: dict[Shapes, tuple[bytes, str]] = field(default_factory=dict)

    def inputs(self, body: Buffer, start: int) -> dict[str, Array]:
        """The inputs by alias, as views of a body whose tensors begin at `start`."""
        import numpy as np

        arrays: dict[str, Array] = {}
        for alias, dtype, _, offset, shape in self.parts:
            array: Array = np.ndarray(shape, dtype, body, start + offset)
            arrays[alias] = array if array.flags.aligned else array.copy()
        return arrays

    def inputs_of(self, raw: Sequence[bytes]) -> dict[str, Array] | None:
        """The inputs by alias, as views of a piece each; None where a size does not fit."""
        import numpy as np

        arrays: dict[str, Array] = {}
        for (alias, dtype, count, _, shape), piece in zip(self.parts, raw, strict=True):
            if len(piece) != count * dtype.itemsize:
                return None
            arrays[alias] = np.ndarray(shape, dtype, piece)
        return arrays

    def keep_head(self, shapes: Shapes, head: bytes) -> None:
        """Keep the JSON part of an answer, if there is only raw data behind it."""
        if not self.places or len(head) > JSON_BYTES_MAX:
            return
        if len(self.heads) >= HEADS_MAX:
            self.heads.clear()
        self.heads[shapes] = head, str(len(head))

    def keep_answer(self, shapes: Shapes, head: bytes, size: int) -> None:
        """Keep an HTTP answer of `size` bytes of body whose head begins so, and whose JSON is kept."""
        if self.timed or shapes not in self.heads:
            return
        if len(self.answers) >= HEADS_MAX:
            self.answers.clear()
        start = b"%bContent-Length: %d\r\n" % (head, size)
        self.answers[shapes] = Answer(start, b"\r\n" + self.heads[shapes][0], size)


class Plans:
    """The plans of one version, by the bytes of the JSON."""

    def __init__(self) -> None:
        self._plans: dict[bytes, Plan] = {}

    def find(self, body: Buffer, length: int) -> Plan | None:
        """The plan for a body whose JSON has `length` bytes; None if there is none that fits its size."""
        plan = self._plans.get(bytes(body[:length]))
        return None if plan is None or len(body) - length != plan.size else plan

    def learn(
        self, body: Buffer, length: int, message: InferRequest, name: str, signature: Signature
    ) -> None:
        """Keep what a request means that was read the long way, if a plan can tell. Raises RequestError."""
        if length > JSON_BYTES_MAX or message.id is not None:
            return
        plan = _plan(message, name, signature)
        if plan is not None and plan.size == len(body) - length:
            self._keep(bytes(body[:length]), plan, signature, plan.inputs(body, length))

    def find_key(self, key: bytes) -> Plan | None:
        """The plan for what gRPC sends in place of JSON."""
        return self._plans.get(key)

    def learn_key(
        self, key: bytes, message: InferRequest, name: str, signature: Signature, raw: Sequence[bytes]
    ) -> None:
        """As `learn`, for a message of gRPC and its tensors. Raises RequestError."""
        plan = _plan(message, name, signature)
        if plan is not None and (inputs := plan.inputs_of(raw)) is not None:
            self._keep(key, plan, signature, inputs)

    def _keep(self, key: bytes, plan: Plan, signature: Signature, inputs: dict[str, Array]) -> None:
        plan.rows = check_inputs(signature, inputs)
        plan.alone = signature.batch_axis is None or plan.rows == 0
        if len(self._plans) >= PLANS_MAX:
            self._plans.clear()
        self._plans[key] = plan


def _plan(message: InferRequest, name: str, signature: Signature) -> Plan | None:
    """The plan of a request; None where values matter, or inputs are not all there."""
    if signature.sparse or {given.name for given in message.inputs} != signature.inputs.keys():
        return None
    parts, size = [], 0
    for given in message.inputs:
        dtype = DTYPES[DATATYPES[given.datatype]]
        if given.raw is None or dtype.name in ("string", "bool") or not len(given.raw):
            return None
        numpy = dtype.to_numpy()
        parts.append((given.name, numpy, len(given.raw) // numpy.itemsize, size, given.shape))
        size += len(given.raw)
    bare = replace(message, inputs=[replace(given, raw=None) for given in message.inputs])
    places = _places(message.wanted(signature), signature)
    return Plan(bare, name, 0, parts, size, places, message.timeout_ns > 0)


def _places(wanted: Sequence[Wanted], signature: Signature) -> Sequence[int]:
    raw = all(w.binary and not w.classes and signature.outputs[w.name].dtype != "string" for w in wanted)
    aliases = list(signature.outputs)
    return [aliases.index(w.name) for w in wanted] if raw else []


def shapes_of(outputs: Sequence[Array]) -> Shapes:
    """The shapes of a run's outputs."""
    return tuple([output.shape for output in outputs])
