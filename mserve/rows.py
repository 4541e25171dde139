"""Rows of a request's inputs, dense and sparse ones: cut out, picked, joined, and given to a graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from .sparse import LENGTHS, graph_tensors, starts
from .tensors import Array, Signature


class Cuts:
    """Cuts rows out of inputs as views. It knows where the entries of each row begin."""

    def __init__(self, signature: Signature, inputs: Mapping[str, Array]) -> None:
        self._inputs = inputs
        self._starts = _starts(signature, inputs)

    def rows(self, start: int, stop: int) -> dict[str, Array]:
        """The rows from `start` up to `stop`."""
        found = {}
        for name, array in self._inputs.items():
            at = self._starts.get(name)
            found[name] = array[start:stop] if at is None else array[at[start] : at[stop]]
        return found


def first(signature: Signature, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The first row; none if there is none."""
    return Cuts(signature, inputs).rows(0, min(1, row_count(signature, inputs)))


def row_count(signature: Signature, inputs: Mapping[str, Array]) -> int:
    """How many rows there are in inputs of a signature that has a batch axis."""
    name = next((s.names(alias)[LENGTHS] for alias, s in signature.sparse.items()), "")
    return len(inputs[name] if name else next(iter(inputs.values())))


def take(signature: Signature, inputs: Mapping[str, Array], rows: Sequence[int] | Array) -> dict[str, Array]:
    """The rows of these numbers, in this order; copies."""
    import numpy as np

    picked = np.asarray(rows, np.int64)
    at, found = _starts(signature, inputs), {}
    for name, array in inputs.items():
        if (begin := at.get(name)) is None:
            found[name] = array[picked]
            continue
        lengths = np.diff(begin)[picked]
        # The place of each entry: where its row begins, and its place there.
        shift = begin[picked] - starts(lengths)[:-1]
        found[name] = array[np.repeat(shift, lengths) + np.arange(int(lengths.sum()))]
    return found


def join(batches: Iterable[Mapping[str, Array]]) -> dict[str, Array]:
    """The rows of several inputs, one behind the other."""
    import numpy as np

    whole = list(batches)
    return {name: np.concatenate([batch[name] for batch in whole]) for name in whole[0]}


def feeds(signature: Signature, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """What a graph is fed with, by the names of its tensors, for inputs that were checked."""
    if not signature.sparse:
        ports = signature.inputs
        return {ports[alias].name: x for alias, x in inputs.items()}
    found: dict[str, Array] = {}
    for alias in signature.ports():
        if alias in signature.sparse:
            found |= graph_tensors(alias, signature.sparse[alias], inputs)
        else:
            found[signature.inputs[alias].name] = inputs[alias]
    return found


def _starts(signature: Signature, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Where the rows of each part with entries begin."""
    found: dict[str, Array] = {}
    for alias, sparse in signature.sparse.items():
        names = sparse.names(alias)
        begin = starts(inputs[names[LENGTHS]])
        found |= {name: begin for part, name in names.items() if part != LENGTHS}
    return found
