"""Spark's trees: rows of nodes, for one tree or many, and what the leaves answer.

A node's `split` is on a feature: a list of categories that go left, or one number, and then
what is not above it goes left. A leaf has a prediction, and the counts of the classes that
fell into it in training: for a forest of classifiers these are made to sum to one in each tree
and added up. Trees look at doubles; thresholds are rounded so that every float32 goes the same way.
"""

from __future__ import annotations

from collections import defaultdict

from ...errors import InputError
from ...tensors import Array
from ..build import Graph
from ..documents import Doc
from ..trees.forest import EQUAL, LEAF, LESS_EQUAL, Forest, Tree
from .spark_files import Stage, read_rows
from .spark_numbers import round_down

MAX_CLASSES = 1 << 16
MAX_CATEGORY = 1 << 24


def class_counts(stage: Stage, graph: Graph, row: str, features: int) -> tuple[str, int]:
    """The classes' shares, not divided by their sum, float32 [batch, classes]; and how many there are."""
    import numpy as np

    trees = _trees(stage)
    classes = max(len(_stats(node)) for tree in trees for node in tree)
    if not 1 < classes <= MAX_CLASSES:
        raise InputError("a bad number of classes", where=stage.where, found=classes)
    forest = Forest(stage.where, features, classes)
    for tree in trees:
        shares = []
        for node in tree:
            counts = _stats(node)
            if len(counts) != classes or (counts < 0).any() or not counts.sum() > 0:
                raise InputError("a node's counts are malformed", where=node.where, expected=f"{classes}")
            shares.append(np.asarray(counts / counts.sum()))
        forest.grow(_tree(tree, [0.0] * len(tree), dict(enumerate(shares))))
    return forest.build(graph, row), classes


def weighted(stage: Stage, graph: Graph, row: str, features: int, weights: Array | None) -> str:
    """The sum over the trees of weight times prediction, float32 [batch, 1]; no weights are equal ones."""
    trees = _trees(stage)
    if weights is None:
        factors = [1 / len(trees)] * len(trees)
    elif len(weights) != len(trees):
        raise InputError("weights do not match", where=stage.where, expected=len(trees), found=len(weights))
    else:
        factors = weights.tolist()
    forest = Forest(stage.where, features, 1)
    for tree, factor in zip(trees, factors, strict=True):
        forest.grow(_tree(tree, [factor * _number(node, "prediction") for node in tree], {}))
    return forest.build(graph, row)


def tree_weights(stage: Stage) -> Array:
    """The weight of each tree, float64, in the order of the trees."""
    import numpy as np

    rows = [Doc(row, stage.where) for row in read_rows(stage.path / "treesMetadata")]
    named = all("treeID" in row for row in rows)  # Spark 4 does not name these columns
    key, weight = ("treeID", "weights") if named else ("_1", "_3")
    found = {(row / key).integer(0, len(rows) - 1): _number(row, weight) for row in rows}
    if len(found) != len(rows):
        raise InputError("a tree stands twice", where=stage.where)
    return np.array([found[index] for index in sorted(found)])


def _number(doc: Doc, key: str) -> float:
    return float(Doc([(doc / key).value], f"{doc.where}.{key}").floats(1)[0])


def _stats(node: Doc) -> Array:
    return (node / "impurityStats").floats()


def _trees(stage: Stage) -> list[list[Doc]]:
    """The nodes of each tree, by their number."""
    found: dict[int, dict[int, Doc]] = defaultdict(dict)
    rows = stage.rows()
    for row in rows:
        doc = Doc(row, stage.where)
        node = doc / "nodeData" if "nodeData" in doc else doc
        tree = (doc / "treeID").integer(0, len(rows)) if "treeID" in doc else 0
        number = (node / "id").integer(0, len(rows))
        if number in found[tree]:
            raise InputError("a node stands twice", where=stage.where, found=f"tree {tree}, node {number}")
        found[tree][number] = Doc(node.value, f"{stage.where}: tree {tree}, node {number}")
    if not found or sorted(found) != list(range(len(found))):
        raise InputError("trees are missing", where=stage.where, expected="numbers from 0 on")
    for tree, nodes in found.items():
        if sorted(nodes) != list(range(len(nodes))):
            raise InputError("nodes are missing", where=f"{stage.where}: tree {tree}")
    return [[found[tree][number] for number in range(len(found[tree]))] for tree in range(len(found))]


def _tree(nodes: list[Doc], weights: list[float], shares: dict[int, Array]) -> Tree:
    import numpy as np

    count = len(nodes)
    modes, features, values = [LEAF] * count, [0] * count, [0.0] * count
    left, right = [-1] * count, [-1] * count
    categories: dict[int, list[int]] = {}
    for number, node in enumerate(nodes):
        left[number] = (node / "leftChild").integer(-1, count - 1)
        right[number] = (node / "rightChild").integer(-1, count - 1)
        if left[number] < 0:
            continue
        split = node / "split"
        features[number] = (split / "featureIndex").integer(0, 2**31 - 1)
        found = (split / "leftCategoriesOrThreshold").floats()
        if (split / "numCategories").integer(-1, MAX_CATEGORY) >= 0:
            modes[number] = EQUAL
            categories[number] = _members(found, node)
        elif len(found) != 1:
            raise InputError("a split has no threshold", where=node.where, expected="1", found=len(found))
        else:
            modes[number] = LESS_EQUAL
            values[number] = float(round_down(np.array(found))[0])
    leaves = {number: shares[number].tolist() for number in range(count) if modes[number] == LEAF and shares}
    missing = [False] * count  # NaN is not below anything, nor a category
    return Tree(modes, features, values, left, right, missing, weights, 0, categories, leaves)


def _members(values: Array, node: Doc) -> list[int]:
    if not all(value.is_integer() and 0 <= value < MAX_CATEGORY for value in values.tolist()):
        raise InputError("a category is no whole number", where=node.where, found=str(values[:4].tolist()))
    return [int(value) for value in values.tolist()]
