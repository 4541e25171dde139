"""Judge: what a comparison found, held against a policy. Pure.

A reason is a rule with the severity that the policy gives it, the place, and a sentence. Answers of a
version that was trained again are meant to differ, so what judges them is, in this order: metrics on
labels; else drift of scores, ranks and best classes; else nobody can say. Under `expect = "same"` the
tolerance alone decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..compare import Change, Diff
from ..compare.change import ASSETS, EQUAL, GRAPH, OUTPUTS, SIGNATURE, SKIPPED, WEIGHTS
from ..compare.markdown import sentence
from .operators import ONNX, Operators, operator
from .policy import Policy
from .rules import METRICS, NOTE, OFF, RETRAINED, RULES, SEVERITIES

_Z = 1.959964


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a verdict is what it is: a rule of RULES, its severity under the policy, and what was found."""

    rule: str
    severity: str
    where: str
    text: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def step(self) -> str:
        return RULES[self.rule].step

    def to_json(self) -> dict[str, Any]:
        shown = {"step": self.step, "rule": self.rule, "severity": self.severity}
        return {**shown, "where": self.where, "text": self.text, "facts": dict(self.facts)}


@dataclass(slots=True)
class Reasons:
    """Reasons as they are found; rules that are off leave none."""

    policy: Policy
    found: list[Reason] = field(default_factory=list)

    def add(self, rule: str, where: str, text: str, facts: Mapping[str, Any] | None = None) -> None:
        """Note that a rule applies."""
        severity = self.policy.severity(rule)
        if severity != OFF:
            self.found.append(Reason(rule, severity, where, text, facts or {}))

    def limit(self, rule: str, key: str) -> Any:
        """A limit of a rule; None where there is none."""
        return self.policy.value(rule, key)


def worst_first(reasons: list[Reason]) -> list[Reason]:
    """Reasons by severity; those of one severity keep their order."""
    return sorted(reasons, key=lambda reason: SEVERITIES.index(reason.severity))


def judge_diff(diff: Diff, old: Operators | None, new: Operators | None, policy: Policy) -> list[Reason]:
    """Reasons in what changed. `old` and `new` are what the graphs hold, None for a SavedModel."""
    reasons = Reasons(policy)
    untouched = all(diff.level(name).verdict == EQUAL for name in (SIGNATURE, GRAPH, WEIGHTS))
    for change in diff.changes:
        if change.rule != "no-samples" or not untouched:  # equal models need not be asked
            _change(reasons, change)
    if new is not None:
        _operators(reasons, old, new)
    _growth(reasons, diff)
    _vocabularies(reasons, diff)
    return reasons.found


def _change(reasons: Reasons, change: Change) -> None:
    if change.rule == "batching-changed" and change.new == "rows together":
        reasons.add("rows-together", change.where, sentence(change))
    reasons.add(change.rule, change.where, sentence(change), change.facts)


# --- graph and weights


def _operators(reasons: Reasons, old: Operators | None, new: Operators) -> None:
    newest, version = reasons.limit("opset-maximum", "maximum"), new.opsets.get(ONNX, 0)
    if newest is not None and version > newest:
        reasons.add("opset-maximum", ONNX, f"operator set {version}, at most {newest} is allowed")
    allowed, denied = (reasons.limit("operators-allowed", key) for key in ("allowed", "denied"))
    for (domain, kind), count in sorted(new.nodes.items()):
        name = operator(domain, kind)
        if name in denied or (allowed is not None and name not in allowed):
            reasons.add("operators-allowed", name, f"{count} node(s) of an operator that is not allowed")
    known = set() if old is None or reasons.policy.names("domains-allowed") else old.domains()
    for domain in sorted(new.domains() - known - set(reasons.limit("domains-allowed", "allowed"))):
        reasons.add("domains-allowed", domain, "its operators are not allowed")


def _growth(reasons: Reasons, diff: Diff) -> None:
    for rule, key, unit in (
        ("growth-parameters", "parameters", "parameters"),
        ("growth-bytes", "bytes", "bytes of weights"),
    ):
        most, was, now = reasons.limit(rule, "maximum"), diff.old.get(key, 0), diff.new.get(key, 0)
        if was and now > was * (1 + most):
            text = f"{was:,} -> {now:,} {unit}, {now / was - 1:+.1%}; at most {most:+.1%} is allowed"
            reasons.add(rule, key, text, {"old": was, "new": now})


def _vocabularies(reasons: Reasons, diff: Diff) -> None:
    """Lines that moved under weights which did not."""
    if diff.level(WEIGHTS).verdict != EQUAL or diff.level(GRAPH).verdict not in (EQUAL, SKIPPED):
        return
    for change in diff.level(ASSETS).changes:
        if change.rule == "lines-changed":
            reasons.add("vocabulary-alone", change.where, sentence(change))


# --- answers


def judge_answers(diff: Diff, policy: Policy, *, made_up: bool) -> list[Reason]:
    """Reasons in what was answered. `made_up` says that nobody ever sent the requests."""
    reasons, level = Reasons(policy), diff.level(OUTPUTS)
    if level.verdict == SKIPPED:
        reasons.add("no-samples" if "golden" in level.skipped else "not-run", OUTPUTS, level.skipped)
    measured = [c for c in level.changes if c.rule in ("metric", "metric-equal")]
    for change in measured:
        _metric(reasons, change)
    required = reasons.limit("metric-required", "metric")
    if required is not None and required not in {c.facts["metric"] for c in measured}:
        reasons.add("metric-required", required, "not measured: give --labels that fit an output")
    moved = [c for c in level.changes if c.rule == "answers-moved"]
    for change in moved:
        if isinstance(change.facts["worst"], str):  # no number
            reasons.add("answers-broken", change.where, change.text, change.facts)
    if moved and policy.expect == RETRAINED:
        drift = [] if made_up else [_drifted(reasons, c, labelled=bool(measured)) for c in moved]
        if not any(drift) and not measured:
            reasons.add("drift-unknown", OUTPUTS, _unknown(moved, made_up=made_up))
    return reasons.found


def _unknown(moved: list[Change], *, made_up: bool) -> str:
    rows = max(c.facts["rows"] for c in moved)
    why = "golden samples that export made up" if made_up else f"{rows} row(s)"
    return f"answers moved, and {why} say nothing about drift: give real requests, --inputs, or --labels"


def _metric(reasons: Reasons, change: Change) -> None:
    name = change.facts["metric"]
    rule, sign = METRICS[name], -1 if name == "log-loss" else 1
    margin = reasons.limit(rule, "margin")
    fall = sign * (change.facts["old"] - change.facts["new"])
    if fall <= margin:
        return
    surely = min(-sign * end for end in change.facts["interval"]) > 0
    low, high = change.facts["interval"]
    text = f"{change.text}: worse by {fall:.5f}, more than {margin:g}"
    interval = f"95 % interval of the change {low:+.5f} to {high:+.5f}, {change.facts['rows']:,} labels"
    reasons.add(rule if surely else "metric-unproven", change.where, f"{text} ({interval})", change.facts)


Holds = Callable[[float, float, int], bool]


def _drifted(reasons: Reasons, change: Change, *, labelled: bool) -> bool:
    """Judge the statistics of an output; whether there was one to judge. Labels know better."""
    judged = False
    for rule, (fact, holds) in _DRIFT.items():
        if fact not in change.facts or (labelled and not reasons.policy.names(rule)):
            continue
        keys, value, rows = RULES[rule].keys, change.facts[fact], change.facts["rows"]
        if "rows" in keys and rows < reasons.limit(rule, "rows"):
            continue
        judged = True
        side = "maximum" if "maximum" in keys else "minimum"
        limit = reasons.limit(rule, side)
        if not holds(value, limit, rows):
            text = f"{fact} {value:.3g} over {rows:,} rows, {side} {limit:g}"
            reasons.add(
                rule, change.where, text, {k: v for k, v in change.facts.items() if k != "worst_rows"}
            )
    return judged


def upper(share: float, rows: int) -> float:
    """The upper end of Wilson's 95 % interval of a share: what the share may really be."""
    z2 = _Z * _Z
    spread = _Z * math.sqrt(share * (1 - share) / rows + z2 / (4 * rows * rows))
    return (share + z2 / (2 * rows) + spread) / (1 + z2 / rows)


# Rule: the fact of a change that it judges, and whether (value, limit, rows) is good.
_DRIFT: dict[str, tuple[str, Holds]] = {
    "drift-psi": ("psi", lambda value, limit, _: value <= limit),
    "drift-ks": ("ks", lambda value, limit, _: value <= limit),
    "rank-tau": ("kendall_tau", lambda value, limit, _: value >= limit),
    "rank-top": ("top_overlap", lambda value, limit, _: value >= limit),
    "agreement": ("top1_agreement", lambda value, limit, rows: upper(value, rows) >= limit),
}


def notes(reasons: list[Reason]) -> Iterator[tuple[str, int]]:
    """Rules that are only reported, and how often."""
    counts: dict[str, int] = {}
    for reason in reasons:
        if reason.severity == NOTE:
            counts[reason.rule] = counts.get(reason.rule, 0) + 1
    yield from counts.items()


__all__ = ["Reason", "Reasons", "judge_answers", "judge_diff", "notes", "upper", "worst_first"]
