"""Change: one thing that differs between two versions, and the table that says what it means for clients.

breaking     a client of OLD can fail on NEW, or take its answers for something else
compatible   clients go on working; answers, speed or size may be others
none         nobody can tell by calling the model
unknown      it was asked for and could not be found out, which is no promise

`TABLE` is the only place where a class is given. A level's verdict is its worst class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import UsageError

BREAKING, UNKNOWN, COMPATIBLE, NONE = "breaking", "unknown", "compatible", "none"
SEVERITY = (BREAKING, UNKNOWN, COMPATIBLE, NONE)
SIGNATURE, GRAPH, WEIGHTS, ASSETS, OUTPUTS = LEVELS = ("signature", "graph", "weights", "assets", "outputs")
ANY = "any"
FAIL_ON = (BREAKING, *LEVELS, ANY)
EQUAL, CHANGED, SKIPPED = "equal", "changed", "not compared"


@dataclass(frozen=True, slots=True)
class Rule:
    """A row of the table: the level a change is on, its class, and when it applies."""

    level: str
    severity: str
    meaning: str


TABLE: dict[str, Rule] = {
    # --- signature: what clients rely on
    "signature-removed": Rule(SIGNATURE, BREAKING, "a signature is gone"),
    "signature-added": Rule(SIGNATURE, COMPATIBLE, "there is a new signature"),
    "signature-renamed": Rule(SIGNATURE, BREAKING, "a signature has another name and the same ports"),
    "method-changed": Rule(SIGNATURE, BREAKING, "a signature has another method"),
    "batching-changed": Rule(
        SIGNATURE, COMPATIBLE, "rows were independent and are not, or the other way: speed"
    ),
    "input-removed": Rule(SIGNATURE, BREAKING, "an input is gone: requests that send it are refused"),
    "input-added": Rule(SIGNATURE, BREAKING, "there is a new input without a default"),
    "input-added-optional": Rule(SIGNATURE, COMPATIBLE, "there is a new input with a default"),
    "input-second": Rule(
        SIGNATURE, BREAKING, "the only input is not the only one any more: bare rows in JSON are refused"
    ),
    "input-renamed": Rule(SIGNATURE, BREAKING, "an input has another name"),
    "input-dtype": Rule(SIGNATURE, BREAKING, "an input has another dtype"),
    "input-rank": Rule(SIGNATURE, BREAKING, "an input has another number of axes"),
    "input-narrowed": Rule(SIGNATURE, BREAKING, "an input takes fewer shapes than it did, or others"),
    "input-widened": Rule(SIGNATURE, COMPATIBLE, "an input takes more shapes than it did"),
    "default-removed": Rule(SIGNATURE, BREAKING, "an input that could be left out has to be sent"),
    "default-added": Rule(SIGNATURE, COMPATIBLE, "an input may be left out now"),
    "default-changed": Rule(SIGNATURE, COMPATIBLE, "an input that is left out has another value"),
    "padding-changed": Rule(SIGNATURE, COMPATIBLE, "an input is padded otherwise: speed"),
    "output-removed": Rule(SIGNATURE, BREAKING, "an output is gone"),
    "output-added": Rule(SIGNATURE, COMPATIBLE, "there is a new output beside several"),
    "output-second": Rule(
        SIGNATURE, BREAKING, "the only output is not the only one any more: rows in JSON become objects"
    ),
    "output-last": Rule(
        SIGNATURE, BREAKING, "one output of several is left: rows in JSON are no objects any more"
    ),
    "output-renamed": Rule(SIGNATURE, BREAKING, "an output has another name"),
    "output-dtype": Rule(SIGNATURE, BREAKING, "an output has another dtype"),
    "output-rank": Rule(SIGNATURE, BREAKING, "an output has another number of axes"),
    "output-widened": Rule(SIGNATURE, BREAKING, "an output may have shapes that it never had"),
    "output-narrowed": Rule(SIGNATURE, COMPATIBLE, "an output has some of the shapes that it could have"),
    "examples-removed": Rule(SIGNATURE, BREAKING, "predict requests with serialised examples are refused"),
    "examples-added": Rule(SIGNATURE, COMPATIBLE, "predict requests may carry serialised examples"),
    "labels-removed": Rule(SIGNATURE, BREAKING, "an output has no labels any more"),
    "labels-added": Rule(SIGNATURE, COMPATIBLE, "an output has labels now"),
    "labels-file": Rule(SIGNATURE, NONE, "an output's labels stand in another file (see its lines)"),
    "described": Rule(SIGNATURE, NONE, "a doc or range text: nothing that a request meets"),
    "symbols": Rule(SIGNATURE, NONE, "an open dimension has another name"),
    # --- graph: how the answers are computed
    "opset": Rule(GRAPH, COMPATIBLE, "a domain's operators are of another version"),
    "domain-added": Rule(GRAPH, COMPATIBLE, "operators of a domain that was not used"),
    "domain-removed": Rule(GRAPH, COMPATIBLE, "operators of a domain are used no more"),
    "subgraph": Rule(GRAPH, COMPATIBLE, "nodes were inserted, removed or replaced, shown as a patch"),
    "attribute": Rule(GRAPH, COMPATIBLE, "a node has another attribute"),
    "rewired": Rule(GRAPH, COMPATIBLE, "a node or an output takes another tensor"),
    "function": Rule(GRAPH, COMPATIBLE, "a function of the model was added, removed or changed"),
    "graph-too-large": Rule(GRAPH, UNKNOWN, "too many nodes to match: only operators were counted"),
    # --- weights: what was learned
    "weight-added": Rule(WEIGHTS, COMPATIBLE, "a weight without a counterpart in OLD"),
    "weight-removed": Rule(WEIGHTS, COMPATIBLE, "a weight without a counterpart in NEW"),
    "weight-renamed": Rule(WEIGHTS, NONE, "the same bytes under another name"),
    "weight-dtype": Rule(WEIGHTS, COMPATIBLE, "a weight is stored in another dtype"),
    "weight-shape": Rule(WEIGHTS, COMPATIBLE, "a weight has another shape"),
    "weight-values": Rule(WEIGHTS, COMPATIBLE, "a weight has other values"),
    "weights-swapped": Rule(WEIGHTS, COMPATIBLE, "weights of equal shape have changed places: a mistake?"),
    "weight-permuted": Rule(WEIGHTS, COMPATIBLE, "a weight has its slices in another order: a mistake?"),
    "weight-rounded": Rule(WEIGHTS, COMPATIBLE, "every value of a weight was rounded to a shorter dtype"),
    "weight-broken": Rule(WEIGHTS, COMPATIBLE, "a weight has more NaN or infinite values than it had"),
    "weight-unread": Rule(WEIGHTS, UNKNOWN, "the values of a weight cannot be read"),
    # --- assets and metadata
    "asset-added": Rule(ASSETS, COMPATIBLE, "a new file"),
    "asset-removed": Rule(ASSETS, COMPATIBLE, "a file is gone"),
    "asset-changed": Rule(ASSETS, COMPATIBLE, "a file has other bytes"),
    "lines-appended": Rule(ASSETS, COMPATIBLE, "a vocabulary has more lines at its end"),
    "lines-changed": Rule(ASSETS, COMPATIBLE, "a vocabulary has other lines: numbers mean other words"),
    "labels-moved": Rule(ASSETS, BREAKING, "a label stands for another index of an output"),
    "golden-changed": Rule(ASSETS, NONE, "other golden samples are recorded"),
    "serving-changed": Rule(ASSETS, NONE, "other serving defaults are recorded"),
    "metadata": Rule(ASSETS, NONE, "name, origin or other metadata"),
    # --- outputs: what is answered
    "answers-moved": Rule(OUTPUTS, COMPATIBLE, "answers differ by more than the tolerance"),
    "answers-close": Rule(OUTPUTS, NONE, "answers differ within the tolerance"),
    "answer-shape": Rule(OUTPUTS, BREAKING, "an answer has another shape or dtype"),
    "not-as-declared": Rule(OUTPUTS, BREAKING, "an answer is not what NEW's signature declares"),
    "new-fails": Rule(OUTPUTS, BREAKING, "NEW refuses, fails or crashes on what OLD answers"),
    "old-fails": Rule(OUTPUTS, UNKNOWN, "OLD does not answer, so there is nothing to compare with"),
    "metric": Rule(OUTPUTS, COMPATIBLE, "AUC, log-loss or accuracy on labels has moved"),
    "metric-equal": Rule(OUTPUTS, NONE, "AUC, log-loss or accuracy on labels is what it was"),
    "no-samples": Rule(OUTPUTS, UNKNOWN, "there are no requests to compare answers with"),
    "no-counterpart": Rule(OUTPUTS, UNKNOWN, "a signature, or an output, has no counterpart to compare"),
}


@dataclass(frozen=True, slots=True)
class Change:
    """One difference. `where` is a name inside the model; `facts` are its numbers, as JSON has them."""

    rule: str
    where: str
    text: str
    old: str = ""
    new: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def level(self) -> str:
        return TABLE[self.rule].level

    @property
    def severity(self) -> str:
        """Its class: breaking, unknown, compatible or none."""
        return TABLE[self.rule].severity

    def to_json(self) -> dict[str, Any]:
        shown = {"level": self.level, "where": self.where, "class": self.severity, "rule": self.rule}
        return {**shown, "text": self.text, "old": self.old, "new": self.new, "facts": dict(self.facts)}


@dataclass(frozen=True, slots=True)
class Level:
    """What one level found; `skipped` is the reason why it was not compared, "" if it was."""

    name: str
    changes: tuple[Change, ...] = ()
    summary: str = ""
    skipped: str = ""

    @property
    def verdict(self) -> str:
        """equal, changed, breaking, unknown, or not compared."""
        if self.skipped:
            return SKIPPED
        worst = next((s for s in SEVERITY if any(c.severity == s for c in self.changes)), NONE)
        return {NONE: EQUAL, COMPATIBLE: CHANGED}.get(worst, worst)

    @property
    def shown(self) -> str:
        """What was compared, or why it was not."""
        return self.skipped or self.summary

    def to_json(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "summary": self.shown,
            "changes": [change.to_json() for change in self.changes],
        }


@dataclass(frozen=True, slots=True)
class Diff:
    """The comparison of two versions: `old` and `new` are facts about the two sides."""

    old: Mapping[str, Any]
    new: Mapping[str, Any]
    levels: tuple[Level, ...]

    @property
    def changes(self) -> list[Change]:
        """Those of all levels, worst first, in the order of the levels."""
        return worst_first(change for level in self.levels for change in level.changes)

    def level(self, name: str) -> Level:
        return next(level for level in self.levels if level.name == name)

    def failing(self, fail_on: Iterable[str]) -> list[Change]:
        """The changes that `--fail-on` names, never those of class none; `breaking` is that class."""
        wanted = set(fail_on)
        return [
            change
            for change in self.changes
            if (change.severity == BREAKING and BREAKING in wanted)
            or (change.severity != NONE and (change.level in wanted or ANY in wanted))
        ]

    def verdict(self) -> str:
        """One sentence."""
        breaking = sum(change.severity == BREAKING for change in self.changes)
        unknown = sum(change.severity == UNKNOWN for change in self.changes)
        changed = [level.name for level in self.levels if level.verdict == CHANGED]
        if breaking:
            return f"BREAKING: {breaking} change(s) that clients can fail on"
        if unknown:
            return f"UNKNOWN: {unknown} question(s) without an answer"
        if changed:
            return f"compatible: clients go on working; changed: {', '.join(changed)}"
        return "equal"

    def to_json(self) -> dict[str, Any]:
        return {
            "old": dict(self.old),
            "new": dict(self.new),
            "verdict": self.verdict(),
            "levels": {level.name: level.to_json() for level in self.levels},
        }


def worst_first(changes: Iterable[Change]) -> list[Change]:
    """Changes by their class; those of one class keep their order."""
    return sorted(changes, key=lambda change: SEVERITY.index(change.severity))


def check_fail_on(names: Iterable[str]) -> list[str]:
    """The names of `--fail-on`, each of which may be several with commas. Raises UsageError."""
    given = [part.strip() for name in names for part in name.split(",") if part.strip()]
    for name in given:
        if name not in FAIL_ON:
            raise UsageError("--fail-on knows no such level", expected=", ".join(FAIL_ON), found=name)
    return given
