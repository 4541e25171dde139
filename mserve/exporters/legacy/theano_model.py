"""Theano models: pickles of a graph of variables, or of a compiled `theano.function`.

Python's own reading of a pickle runs what the file says, and needs Theano and the classes of
the model. `pickles.py` only notes what would have been made; the graph is walked in these notes.
A variable has an `owner`, the application of an operator to other variables; one without is
an input, a constant, or shared: then its numbers lie in its container.

An object with variables as attributes answers with `p_y_given_x` if it has that, as the tutorials
call it, or with what `--output NAME` says.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import InputError, UsageError
from ...files import read_input
from ...tensors import Dim, TensorSpec
from .. import pickles, ports
from ..build import Graph
from ..kinds import Converted, ConvertOptions, Kind, Seen
from ..pickles import Made
from . import networks, theano_ops
from .theano_ops import Ops, Value

MAX_NODES = 1_000_000
MAX_AXES = 8
USUAL = ("p_y_given_x", "y", "output", "prediction", "y_pred")
Named = dict[str, Made]


def convert(source: str, options: ConvertOptions) -> Converted:
    """The graph as ONNX. Raises InputError for what is malformed or cannot be mapped."""
    path = Path(source)
    chosen = _outputs(pickles.load(read_input(path), str(path)), options, path)
    order = _order(list(chosen.values()), path)
    if bad := sorted({name for one in order for name in theano_ops.unknown(_owner(one).fields.get("op"))}):
        known = dict.fromkeys(theano_ops.OPERATORS)
        networks.check_known(bad, known, "the graph", path)
    ops = Ops(Graph(), str(path))
    inputs = _leaves(ops, order, list(chosen.values()), options)
    for variable in order:
        owner = _owner(variable)
        given = [ops.values[id(one)] for one in _variables(owner, "inputs")]
        for index, made in enumerate(_variables(owner, "outputs")):
            if id(made) not in ops.values and (made is variable or made in chosen.values()):
                ops.values[id(made)] = theano_ops.apply(ops, owner.fields["op"], given, index)
        if id(variable) not in ops.values:  # not among the outputs that its owner lists
            place = variable.fields.get("index")
            index = place if isinstance(place, int) else 0
            ops.values[id(variable)] = theano_ops.apply(ops, owner.fields["op"], given, index)
    tensors = {name: ops.real(ops.values[id(one)]) for name, one in chosen.items()}
    kind = ""
    if len(chosen) == 1 and (owner_of := next(iter(chosen.values())).fields.get("owner")):
        last = theano_ops.name_of(owner_of.fields.get("op"))
        kind = {"LogSoftmax": networks.LOG_PROBABILITIES}.get(last, "")
        kind = networks.PROBABILITIES if last in ("Softmax", "SoftmaxWithBias") else kind
    return networks.finish(ops.graph, inputs, tensors, kind, options)


def _outputs(root: Any, options: ConvertOptions, path: Path) -> Named:
    """The variables that answer, by name. Raises InputError where there are none, UsageError to choose."""
    if isinstance(root, Made) and root.kind == "_constructor_Function":
        return _of_function(root, path)
    if _is_variable(root):
        return {"output": root}
    fields = root.fields if isinstance(root, Made) else root if isinstance(root, dict) else {}
    found = {
        str(k): v for k, v in fields.items() if _is_variable(v) and isinstance(v.fields.get("owner"), Made)
    }
    wanted = [name.partition("=")[0] for name in options.output]
    if missing := [name for name in wanted if name not in found]:
        raise UsageError("no such output", where=path, expected=", ".join(found), found=", ".join(missing))
    if wanted:
        return {name: found[name] for name in wanted}
    if not found:
        raise InputError(
            "no graph lies in the pickle",
            where=path,
            expected="an object with variables that are computed, or a theano.function",
            found=getattr(root, "name", type(root).__name__)[:80],
            hint="parameters alone do not say what is computed from them: pickle the graph with them",
        )
    usual = [name for name in USUAL if name in found]
    if usual or len(found) == 1:
        name = usual[0] if usual else next(iter(found))
        return {name: found[name]}
    raise UsageError("which variable answers?", where=path, expected=f"--output {' or '.join(found)}")


def _of_function(root: Made, path: Path) -> Named:
    maker = root.arguments[0] if root.arguments else None
    facts = maker.arguments[0] if isinstance(maker, Made) and maker.arguments else None
    outputs = facts.get("outputs") if isinstance(facts, dict) else None
    listed = outputs if isinstance(outputs, list | tuple) else [outputs]
    inner = [one.fields.get("variable", one) for one in listed if isinstance(one, Made)]
    found = [one for one in inner if _is_variable(one)]
    if not found or len(found) < len(listed):
        raise InputError("the function's outputs are missing", where=path, found=str(type(outputs).__name__))
    names = ["output"] if len(found) == 1 else [f"output{i}" for i in range(len(found))]
    return dict(zip(names, found, strict=True))


def _is_variable(value: Any) -> bool:
    return isinstance(value, Made) and "type" in value.fields and ("owner" in value.fields or _is_leaf(value))


def _is_leaf(value: Made) -> bool:
    return "data" in value.fields or "container" in value.fields


def _owner(variable: Made) -> Made:
    owner = variable.fields.get("owner")
    assert isinstance(owner, Made)
    return owner


def _variables(owner: Made, key: str) -> list[Made]:
    found = owner.fields.get(key)
    if not isinstance(found, list | tuple) or not all(isinstance(one, Made) for one in found):
        raise InputError(
            "a node is malformed", where=owner.name, expected=f"its {key}", found=type(found).__name__
        )
    return list(found)


def _order(chosen: list[Made], path: Path) -> list[Made]:
    """The computed variables, each after those that it is made of. Raises InputError for a cycle."""
    order: list[Made] = []
    state: dict[int, bool] = {}
    pending: list[tuple[Made, bool]] = [(one, False) for one in reversed(chosen)]
    while pending:
        variable, done = pending.pop()
        if done:
            state[id(variable)] = True
            order.append(variable)
            continue
        if id(variable) in state or not isinstance(variable.fields.get("owner"), Made):
            if state.get(id(variable)) is False:
                raise InputError("the graph has a cycle", where=path, found=variable.name)
            continue
        state[id(variable)] = False
        if len(state) > MAX_NODES:
            raise InputError("the graph is too large", where=path, expected=f"{MAX_NODES} nodes")
        pending.append((variable, True))
        pending += [(one, False) for one in _variables(_owner(variable), "inputs")]
    return order


def _leaves(
    ops: Ops, order: list[Made], chosen: list[Made], options: ConvertOptions
) -> dict[str, TensorSpec]:
    """Give every variable that is not computed its value; what has no numbers is an input."""
    given = ports.specs(options.input)
    inputs: dict[str, TensorSpec] = {}
    for leaf, user in _used(order):
        if id(leaf) in ops.values or isinstance(leaf.fields.get("owner"), Made):
            continue
        if _is_leaf(leaf):
            ops.values[id(leaf)] = _constant(ops, leaf)
            continue
        name = leaf.fields.get("name")
        name = (
            name
            if isinstance(name, str) and name.isidentifier() and name not in inputs
            else f"x{len(inputs)}"
        )
        spec = given.get(name) or TensorSpec(name, "float32", _shape(leaf, user, ops))
        inputs[name] = spec
        ops.values[id(leaf)] = Value(name, len(spec.shape or ()))
        if spec.dtype != "float32":
            ops.values[id(leaf)].tensor = ops.graph.cast(name, "float32")
    ports.only_known(given, list(inputs), ops.where)
    return inputs


def _used(order: list[Made]) -> Iterator[tuple[Made, Made]]:
    for variable in order:
        owner = _owner(variable)
        for one in _variables(owner, "inputs"):
            yield one, owner


def _constant(ops: Ops, leaf: Made) -> Value:
    where = f"{ops.where}: {leaf.fields.get('name') or leaf.kind}"
    data = leaf.fields.get("data")
    if "container" in leaf.fields:
        container = leaf.fields["container"]
        storage = container.fields.get("storage") if isinstance(container, Made) else None
        data = storage[0] if isinstance(storage, list) and storage else None
    return ops.constant(pickles.array(data, where))


def _shape(leaf: Made, user: Made, ops: Ops) -> tuple[Dim, ...]:
    """The shape of an input: its rank is that of its type; columns are the rows of the matrix it meets."""
    kind = leaf.fields.get("type")
    flags = kind.fields.get("broadcastable") if isinstance(kind, Made) else None
    if not isinstance(flags, tuple | list) or not 0 < len(flags) <= MAX_AXES:
        raise InputError("an input without a shape", where=ops.where, found=pickles.shown(flags))
    sides: list[Dim] = ["batch", *["?"] * (len(flags) - 1)]
    inputs = _variables(user, "inputs")
    if (
        len(flags) == 2
        and theano_ops.name_of(user.fields.get("op")) in ("Dot", "Dot22")
        and inputs[0] is leaf
        and len(inputs) == 2
    ):
        other = inputs[1]
        owner = other.fields.get("owner")
        if isinstance(owner, Made) and theano_ops.name_of(owner.fields.get("op")) in theano_ops.SAME:
            other = next(
                iter(_variables(owner, "inputs")), other
            )  # a matrix that lies on a GPU comes from there
        if _is_leaf(other):
            known = _constant(ops, other).known
            sides[1] = known.shape[0] if known is not None and known.ndim == 2 else "?"
    return tuple(sides)


def _matches(seen: Seen) -> bool:
    head = seen.head
    pickled = head[:1] == b"\x80" or head[:1] in (b"c", b"(", b"]", b"}")
    return pickled and b"theano." in head


KIND = Kind(
    name="theano",
    what="a Theano model (a pickle, which is read without running it)",
    matches=_matches,
    convert=convert,
    options=("input", "output", "labels"),
)
