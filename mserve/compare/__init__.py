"""Diff: two versions in, changes out, on five levels, each with a verdict.

    diff(old, new, options)    Diff: levels, changes, verdict, what --fail-on names
    Options                    what the outputs level asks and how it judges

Every level is a function of two open models, so that whoever needs one level asks for that.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

from ..errors import UsageError
from . import assets, graph, outputs, signature, weights
from .change import GRAPH, LEVELS, OUTPUTS, SKIPPED, TABLE, WEIGHTS, Change, Diff, Level, Rule
from .graph import Compared
from .model import Model, open_model
from .outputs import Options

DEFAULT = Options()
__all__ = ["LEVELS", "TABLE", "Change", "Diff", "Level", "Model", "Options", "Rule", "diff", "open_model"]


def diff(
    old: str | os.PathLike[str],
    new: str | os.PathLike[str],
    options: Options = DEFAULT,
    *,
    fail_on: Collection[str] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> Diff:
    """Compare two versions: bundles, base paths (their newest version), ONNX files or SavedModels.

    `fail_on` names levels that have to be compared: `outputs` among them asks for answers even where
    none would be compared by itself. `progress` is told which level begins. Raises an MserveError for
    what cannot be opened, and UsageError where such a level cannot be compared.
    """
    one, two = open_model(Path(old)), open_model(Path(new))
    if OUTPUTS in fail_on and options.run is None:
        options = replace(options, run=True)
    progress("signatures")
    first, pairs = signature.compare(one, two)
    same = bool(one.content) and one.content == two.content
    progress("graph")
    graphs = _same(one, two) if same else graph.compare(one, two, pairs)
    progress("weights")
    equal = Level(WEIGHTS, summary=f"{len(two.tensors)} weights, equal digests")
    third = equal if same else weights.compare(graphs)
    progress("assets")
    fourth = assets.compare(one, two)
    fifth = Level(OUTPUTS, skipped="not asked for")
    if options.run is not False:
        untouched = graphs.level.verdict == third.verdict == "equal"
        if untouched and options.run is None and options.inputs is None and options.labels is None:
            fifth = Level(OUTPUTS, summary="the same graph and weights: not run")
        else:
            progress("outputs")
            fifth = outputs.compare(one, two, pairs, options)
    levels = (first, graphs.level, third, fourth, fifth)
    for level in levels:
        if level.verdict == SKIPPED and level.name in fail_on:
            raise UsageError(
                f"the level {level.name} cannot be compared here",
                where=f"{old} and {new}",
                found=level.skipped,
                hint=f"leave {level.name} out of --fail-on",
            )
    return Diff(one.facts(), two.facts(), levels)


def _same(one: Model, two: Model) -> Compared:
    """What the content digest says: graph, signatures, weights and assets are the same bytes."""
    return Compared(Level(GRAPH, summary="the same bytes"), one.tensors, two.tensors)
