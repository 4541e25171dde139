"""Forests of decision trees, from whatever wrote them, as one TreeEnsembleRegressor.

ONNX compares a feature with a number in one way for each node: less, less or equal, or
equal. A question "is the category one of these" becomes a chain of equalities that share
their yes-child; ONNX Runtime knows the pattern and makes a bit set of it. Where a missing
value (NaN) goes is one flag for each node. Everything is float32 in there; readers round
their thresholds so that every float32 input goes the same way as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...errors import InputError
from ...tensors import Array
from ..build import ML, Graph

LESS, LESS_EQUAL, EQUAL, LEAF = "BRANCH_LT", "BRANCH_LEQ", "BRANCH_EQ", "LEAF"
# Enough for any model that answers in time, and few enough to be built in memory.
MAX_NODES = 50_000_000


@dataclass(slots=True)
class Tree:
    """One tree: nodes by number, the first is the root. `mode` is one of the above for each node.

    `value` is a threshold or a category; a leaf has its `weight`. `categories` lists, for nodes whose mode
    is EQUAL, the categories that go to `yes`. `missing_yes` tells where NaN goes. `shares` are of leaves
    that add to every target: a weight for each, instead of `weight` for `target`.
    """

    mode: Sequence[str]
    feature: Sequence[int]
    value: Sequence[float]
    yes: Sequence[int]
    no: Sequence[int]
    missing_yes: Sequence[bool]
    weight: Sequence[float]
    target: int = 0
    categories: dict[int, list[int]] = field(default_factory=dict)
    shares: dict[int, list[float]] = field(default_factory=dict)


@dataclass(slots=True)
class Forest:
    """Trees in the making of a TreeEnsembleRegressor: its attributes, each a list over all nodes."""

    where: str
    features: int
    targets: int
    trees: int = 0
    nodes: dict[str, list[float]] = field(
        default_factory=lambda: {
            name: []
            for name in (
                "treeids nodeids featureids values truenodeids falsenodeids missing_value_tracks_true"
            ).split()
        }
    )
    modes: list[str] = field(default_factory=list)
    leaves: dict[str, list[float]] = field(
        default_factory=lambda: {name: [] for name in ("treeids", "nodeids", "ids", "weights")}
    )
    tried: dict[int, set[float]] = field(default_factory=dict)
    category_features: set[int] = field(default_factory=set)

    def grow(self, tree: Tree) -> None:
        """Add a tree. Raises InputError: a child that is not there or stands twice, a leaf that is no number,
        a feature out of range, too many nodes.
        """
        where = f"{self.where}: tree {self.trees}"
        pending, seen = [0], set()
        spare = len(tree.mode)
        while pending:
            node = pending.pop()
            if not 0 <= node < len(tree.mode) or node in seen:
                raise InputError(
                    "a tree is not a tree", where=where, expected="every node once", found=f"child {node}"
                )
            seen.add(node)
            if tree.mode[node] == LEAF:
                self._leaf(node, tree, where)
                continue
            if not 0 <= tree.feature[node] < self.features:
                raise InputError(
                    "a split is on a feature that the model does not have",
                    where=f"{where}, node {node}",
                    expected=f"0 to {self.features - 1}",
                    found=tree.feature[node],
                )
            spare = self._split(node, tree, spare, where)
            pending += [tree.no[node], tree.yes[node]]
        self.trees += 1

    def _split(self, node: int, tree: Tree, spare: int, where: str) -> int:
        """One split, or a chain of equalities whose further nodes are numbered from `spare` on."""
        import math

        feature, tried = tree.feature[node], self.tried.setdefault(tree.feature[node], set())
        missing, yes, no = tree.missing_yes[node], tree.yes[node], tree.no[node]
        if tree.mode[node] != EQUAL:
            if math.isnan(tree.value[node]):
                raise InputError("a threshold is not a number", where=f"{where}, node {node}", found="NaN")
            self._node(node, tree.mode[node], feature, tree.value[node], (yes, no, missing))
            tried.add(tree.value[node])
            return spare
        members = tree.categories[node]
        self.category_features.add(feature)
        tried.update(members)
        if not members:  # nothing is in an empty set
            self._node(node, LESS, feature, -math.inf, (yes, no, missing))
        for index, member in enumerate(members):
            here = node if index == 0 else spare + index - 1
            last = index == len(members) - 1
            self._node(here, EQUAL, feature, member, (yes, no if last else spare + index, missing))
        return spare + max(0, len(members) - 1)

    def _node(self, node: int, mode: str, feature: int, value: float, to: tuple[int, int, bool]) -> None:
        if len(self.modes) >= MAX_NODES:
            raise InputError(
                "the forest is too large", where=self.where, expected=f"at most {MAX_NODES} nodes"
            )
        yes, no, missing = to
        self.modes.append(mode)
        row = (self.trees, node, feature, value, yes, no, missing)
        for values, one in zip(self.nodes.values(), row, strict=True):
            values.append(one)

    def _leaf(self, node: int, tree: Tree, where: str) -> None:
        import math

        self._node(node, LEAF, 0, 0.0, (0, 0, False))
        weights = dict(enumerate(tree.shares.get(node, ()))) or {tree.target: float(tree.weight[node])}
        for target, weight in weights.items():
            if not math.isfinite(weight):
                raise InputError("a leaf is not a number", where=f"{where}, node {node}", found=weight)
            for values, one in zip(self.leaves.values(), (self.trees, node, target, weight), strict=True):
                values.append(one)

    def compact(self) -> Array:
        """Renumber the features to those that splits read, in their order; int64, what they were before.

        One more feature stands behind them, which no split reads.
        """
        import numpy as np

        splits = np.array([mode != LEAF for mode in self.modes], bool)
        before = np.array(self.nodes["featureids"], np.int64)
        used = np.unique(before[splits])
        self.nodes["featureids"] = np.where(splits, np.searchsorted(used, before), 0).tolist()
        places = {feature: place for place, feature in enumerate(used.tolist())}
        self.tried = {places[feature]: values for feature, values in self.tried.items()}
        self.category_features = {places[feature] for feature in self.category_features}
        self.features = len(used) + 1
        return used

    def build(self, graph: Graph, inputs: str) -> str:
        """The sums of the leaves that rows reach, [batch, targets], from inputs [batch, features]."""
        import numpy as np

        if not self.trees:  # a model of no rounds: the operator wants at least one tree
            self.grow(Tree([LEAF], [0], [0.0], [0], [0], [False], [0.0]))
        attributes = {
            f"nodes_{name}": np.asarray(v).astype(np.float32 if name == "values" else np.int64)
            for name, v in self.nodes.items()
        }
        targets = {
            f"target_{name}": np.asarray(v).astype(np.float32 if name == "weights" else np.int64)
            for name, v in self.leaves.items()
        }
        return graph.add(
            "TreeEnsembleRegressor",
            inputs,
            domain=ML,
            n_targets=self.targets,
            aggregate_function="SUM",
            post_transform="NONE",
            nodes_modes=self.modes,
            **{name: array.tolist() for name, array in (attributes | targets).items()},
        )

    def draw(self, rows: int, *, seed: int = 0) -> Array:
        """Inputs, float32 [rows, features], that try the forest: thresholds themselves and their neighbours,
        categories known and not, numbers between, and missing values.
        """
        import numpy as np

        rng = np.random.default_rng(seed + rows)
        made = rng.standard_normal((rows, self.features)).astype(np.float32)
        for feature, values in self.tried.items():
            known = np.array(sorted(v for v in values if np.isfinite(v)) or [0.0], np.float32)
            picked = rng.choice(known, rows)
            if feature in self.category_features:
                made[:, feature] = np.where(rng.random(rows) < 0.3, rng.integers(0, 40, rows), picked)
                continue
            near = np.nextafter(picked, np.where(rng.random(rows) < 0.5, -np.inf, np.inf), dtype=np.float32)
            between = rng.uniform(known[0], known[-1], rows).astype(np.float32)
            way = rng.integers(0, 4, rows)
            made[:, feature] = np.select([way == 0, way == 1, way == 2], [picked, near, between], 0.0)
        made[rng.random(made.shape) < 0.1] = np.nan
        return made
