"""The features that a forest reads: rows of them all, or sparse rows.

Trees go by the features of a whole row, and read few of very many. So of a sparse row only
those that some split reads are put into a row, for as long as a batch is answered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ...sparse import IDS, LENGTHS, VALUES, Sparse
from ...tensors import Array, Ports
from .. import answers
from ..answers import FEATURES
from ..build import Graph
from ..kinds import ConvertOptions
from ..sparse_graph import row_picks, sparse_input
from .forest import Forest


@dataclass(frozen=True, slots=True)
class TreeRows:
    """How rows reach a forest: `take` gives the tensor [batch, forest.features] that its splits read.

    `places` are the columns of features in it. `draw` makes inputs of so many rows, and `dense` the whole
    rows [batch, features] that inputs stand for.
    """

    ports: Ports
    assets: Mapping[str, bytes]
    places: Mapping[int, int]
    take: Callable[[Graph], str]
    draw: Callable[[int], dict[str, Array]]
    dense: Callable[[Mapping[str, Array]], Array]


def of(forest: Forest, names: Sequence[str], options: ConvertOptions) -> TreeRows:
    """Rows for a forest of features of these names, which it may come to call by other numbers."""
    features = forest.features
    inputs, assets = answers.features(features, names)
    if not options.sparse:
        return TreeRows(
            inputs,
            assets,
            {feature: feature for feature in range(features)},
            lambda graph: FEATURES,
            lambda rows: {FEATURES: forest.draw(rows)},
            lambda inputs: inputs[FEATURES],
        )
    ids = forest.compact()
    doc = f"ids count from 0{', the lines of ' + answers.FEATURES_FILE if names else ''}; others are 0"
    port = sparse_input(FEATURES, features, doc=doc)
    return TreeRows(
        {FEATURES: port},
        assets,
        {feature: place for place, feature in enumerate(ids.tolist())},
        lambda graph: row_picks(graph, port, ids),
        lambda rows: _entries(port, forest.draw(rows), ids),
        lambda inputs: _dense(port, inputs),
    )


def _entries(port: Sparse, drawn: Array, ids: Array) -> dict[str, Array]:
    """Rows over the features of these ids, and one of the others, as sparse rows without zeros and NaN."""
    import numpy as np

    others = np.setdiff1d(np.arange(int(port.shape[1])), ids)[:1]
    drawn = drawn[:, : len(ids) + len(others)]
    there = np.isfinite(drawn) & (drawn != 0)
    names = port.names(FEATURES)
    return {
        names[IDS]: np.concatenate([ids, others])[np.nonzero(there)[1]],
        names[VALUES]: drawn[there],
        names[LENGTHS]: there.sum(1),
    }


def _dense(port: Sparse, inputs: Mapping[str, Array]) -> Array:
    """What sparse rows stand for, float32 [batch, features]."""
    import numpy as np

    names = port.names(FEATURES)
    lengths, ids = inputs[names[LENGTHS]], inputs[names[IDS]]
    found = np.zeros((len(lengths), int(port.shape[1])), np.float32)
    found[np.repeat(np.arange(len(lengths)), lengths), ids] = inputs[names[VALUES]]
    return found
