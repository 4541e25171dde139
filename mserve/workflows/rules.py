"""Rules: everything that a gate can say of a new version, in one table.

A rule has a severity, which the policy may change:

    fail           the version may not ship
    inconclusive   a question that decides has no answer: fails only under --strict
    warn           shown, and passes
    note           reported, and passes: what a version trained again always has
    off            not looked at

The changes that `diff` knows and the codes of `validate` are rules under their own names; their
classes say the severity, unless `_OTHERWISE` does. What only the gate measures has limits: the
keys of its rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..checks.findings import CODES, ERROR
from ..compare import change

FAIL, INCONCLUSIVE, WARN, NOTE, OFF = SEVERITIES = ("fail", "inconclusive", "warn", "note", "off")
VALIDATE, LATENCY = "validate", "latency"
STEPS = (*change.LEVELS, VALIDATE, LATENCY)
RETRAINED, SAME = EXPECTED = ("retrained", "same")

METRICS = {"AUC": "metric-auc", "log-loss": "metric-log-loss", "accuracy": "metric-accuracy"}

# Kinds of values in a policy.
NUMBER, SHARE, COUNT, METRIC, WORDS, TOLERANCES = "number", "share", "count", "metric", "words", "tolerances"


@dataclass(frozen=True, slots=True)
class Key:
    """One limit of a rule: its kind, default (None: no limit) and what it means."""

    kind: str
    default: Any
    meaning: str


@dataclass(frozen=True, slots=True)
class GateRule:
    """A row of the table. `same` is the severity under `--expect same`, "" if it is no other."""

    step: str
    severity: str
    meaning: str
    same: str = ""
    keys: Mapping[str, Key] = field(default_factory=dict)

    def under(self, expected: str) -> str:
        """The severity where the policy says nothing."""
        return self.same if expected == SAME and self.same else self.severity


_OF_CLASS = {
    change.BREAKING: FAIL,
    change.UNKNOWN: INCONCLUSIVE,
    change.COMPATIBLE: NOTE,
    change.NONE: OFF,
}
# Severity, and that under --expect same, where the class of a change does not say it.
_OTHERWISE: dict[str, tuple[str, str]] = {
    "weight-permuted": (FAIL, ""),
    "weights-swapped": (FAIL, ""),
    "weight-rounded": (FAIL, ""),
    "weight-broken": (FAIL, ""),
    "lines-changed": (WARN, FAIL),
    "asset-removed": (WARN, FAIL),
    "asset-changed": (NOTE, WARN),
    "answers-moved": (NOTE, FAIL),
}

_OWN: dict[str, GateRule] = {
    "rows-together": GateRule(
        change.SIGNATURE,
        FAIL,
        "rows were independent, and now a row's answer depends on the other rows of its request",
    ),
    "opset-maximum": GateRule(
        change.GRAPH,
        FAIL,
        "an operator set is newer than allowed: engines in use may not know it",
        keys={"maximum": Key(COUNT, None, "the newest version of ai.onnx")},
    ),
    "operators-allowed": GateRule(
        change.GRAPH,
        FAIL,
        "an operator is used that the policy does not allow",
        keys={
            "allowed": Key(WORDS, None, "operators that may be used, all others may not"),
            "denied": Key(WORDS, (), "operators that may not be used"),
        },
    ),
    "domains-allowed": GateRule(
        change.GRAPH,
        FAIL,
        "operators of a domain are used that the policy does not allow",
        keys={
            "allowed": Key(
                WORDS,
                ("ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "mserve"),
                "domains whose operators may be used; OLD's own are always allowed",
            )
        },
    ),
    "growth-parameters": GateRule(
        change.WEIGHTS,
        WARN,
        "the number of parameters has grown by more than the maximum",
        keys={"maximum": Key(SHARE, 0.5, "largest growth: 0.5 or 50%")},
    ),
    "growth-bytes": GateRule(
        change.WEIGHTS,
        WARN,
        "the bytes of all weights have grown by more than the maximum",
        keys={"maximum": Key(SHARE, 0.5, "largest growth: 0.5 or 50%")},
    ),
    "vocabulary-alone": GateRule(
        change.ASSETS,
        FAIL,
        "a vocabulary has other lines, and the weights that were trained with the old ones are the same",
    ),
    "answers-broken": GateRule(
        change.OUTPUTS, FAIL, "answers that were numbers are NaN or infinite, or the other way round"
    ),
    "drift-psi": GateRule(
        change.OUTPUTS,
        FAIL,
        "the population stability index of the scores is above the maximum",
        keys={
            "maximum": Key(NUMBER, 0.25, "above it is commonly read as a large shift"),
            "rows": Key(COUNT, 200, "with fewer rows nothing is said"),
        },
    ),
    "drift-ks": GateRule(
        change.OUTPUTS,
        FAIL,
        "the distributions of the scores are further apart (Kolmogorov-Smirnov) than the maximum",
        keys={
            "maximum": Key(NUMBER, 0.2, "0 to 1"),
            "rows": Key(COUNT, 200, "with fewer rows nothing is said"),
        },
    ),
    "rank-tau": GateRule(
        change.OUTPUTS,
        FAIL,
        "the scores rank the rows otherwise: Kendall's tau is below the minimum",
        keys={
            "minimum": Key(NUMBER, 0.5, "-1 to 1"),
            "rows": Key(COUNT, 50, "with fewer rows nothing is said"),
        },
    ),
    "rank-top": GateRule(
        change.OUTPUTS,
        FAIL,
        "of the tenth of rows with the highest scores too few are still there",
        keys={
            "minimum": Key(NUMBER, 0.3, "the share that is still there"),
            "rows": Key(COUNT, 200, "with fewer rows nothing is said"),
        },
    ),
    "agreement": GateRule(
        change.OUTPUTS,
        FAIL,
        "too many rows have another best class; few rows have to be far below to prove it",
        keys={"minimum": Key(NUMBER, 0.8, "the share of rows with the same best class")},
    ),
    "drift-unknown": GateRule(
        change.OUTPUTS,
        INCONCLUSIVE,
        "answers moved, and there are no labels and too few real requests to say whether that matters",
    ),
    "not-run": GateRule(
        change.OUTPUTS, INCONCLUSIVE, "the answers of the two versions cannot be compared here"
    ),
    "metric-auc": GateRule(
        change.OUTPUTS,
        FAIL,
        "AUC on the labels has fallen by more than the margin",
        keys={"margin": Key(NUMBER, 0.005, "largest fall")},
    ),
    "metric-log-loss": GateRule(
        change.OUTPUTS,
        FAIL,
        "log-loss on the labels has risen by more than the margin",
        keys={"margin": Key(NUMBER, 0.01, "largest rise")},
    ),
    "metric-accuracy": GateRule(
        change.OUTPUTS,
        FAIL,
        "accuracy on the labels has fallen by more than the margin",
        keys={"margin": Key(NUMBER, 0.01, "largest fall")},
    ),
    "metric-unproven": GateRule(
        change.OUTPUTS,
        INCONCLUSIVE,
        "a metric is worse by more than its margin, and the labels are too few to exclude chance",
    ),
    "metric-required": GateRule(
        change.OUTPUTS,
        FAIL,
        "a metric that the policy requires was not measured: labels are missing or do not fit",
        keys={"metric": Key(METRIC, None, "AUC, log-loss or accuracy")},
    ),
    "tolerances": GateRule(
        change.OUTPUTS,
        NOTE,
        "how far answers may be apart and still be the same (answers-moved, answers-close)",
        keys={
            "rtol": Key(NUMBER, 1e-3, "relative to the largest value of a row"),
            "atol": Key(NUMBER, 1e-5, "absolute"),
            "outputs": Key(
                TOLERANCES, {}, 'by output: outputs."serving_default.y" = { rtol = 1e-2, atol = 1e-4 }'
            ),
        },
    ),
    "not-a-bundle": GateRule(
        VALIDATE,
        INCONCLUSIVE,
        "NEW is no bundle: files, independent rows and speed cannot be checked before it is exported",
    ),
    "validate-ended": GateRule(VALIDATE, FAIL, "the checks of NEW ended its process, or did not end"),
    **{
        f"latency-{name}": GateRule(
            LATENCY, FAIL, meaning, keys={"margin": Key(SHARE, margin, "by which NEW may cost more: 5%")}
        )
        for name, margin, meaning in (
            ("p10", 0.05, "the fastest tenth of single requests is slower than the margin allows"),
            ("p50", 0.05, "the median latency of single requests is longer than the margin allows"),
            ("p99", 0.25, "the 99th percentile of the latency under load is longer than the margin allows"),
            ("throughput", 0.05, "answers in a second are fewer than the margin allows"),
            ("cpu", 0.05, "the processor time of an answer is longer than the margin allows"),
        )
    },
    "latency-errors": GateRule(LATENCY, FAIL, "more requests to NEW fail than to OLD"),
    "latency-unproven": GateRule(
        LATENCY,
        INCONCLUSIVE,
        "neither slower nor as fast is proven: the machine is too noisy, or time ran out",
    ),
    "latency-not-measured": GateRule(
        LATENCY, INCONCLUSIVE, "the two versions cannot be measured side by side here"
    ),
}


def _table() -> dict[str, GateRule]:
    """Rules by name, in the order of the steps."""
    found: dict[str, GateRule] = {}
    for name, rule in change.TABLE.items():
        severity, same = _OTHERWISE.get(name, (_OF_CLASS[rule.severity], ""))
        found[name] = GateRule(rule.level, severity, rule.meaning, same)
    for name, (kind, meaning) in CODES.items():
        found[name] = GateRule(VALIDATE, FAIL if kind == ERROR else WARN, meaning)
    assert not found.keys() & _OWN.keys()
    found |= _OWN
    return dict(sorted(found.items(), key=lambda item: STEPS.index(item[1].step)))


RULES = _table()
