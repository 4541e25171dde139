"""Gate: may NEW take the place of OLD? Comparison, checks and measurement, held against a policy.

    gate(old, new, options, policy)    Gate: reasons, verdict, exit code

The steps are those of `diff`, then `validate` on NEW with all its checks, then the latency of both in
turn. Each gives reasons, each reason names its rule, and the worst severity is the verdict. Latency is
not measured where the verdict is FAIL already, nor between versions with the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import compare
from ..compare import Diff, Model
from ..compare.outputs import made_up
from ..runtime.engines import RUN_S
from .apart import apart
from .judge import Reason, Reasons, judge_answers, judge_diff, worst_first
from .latency import SLACK_S, Length, judge_latency, length, request_of, summary
from .operators import operators
from .policy import Policy
from .rules import FAIL, INCONCLUSIVE, LATENCY, VALIDATE

PASS = "pass"
CHECKS = 4  # how many times as long as one run the checks may take, which make many runs
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked. `inputs`, `labels`, `signature` and `seconds` as in `compare.Options`.

    `latency` is off, quick, default or a number of seconds.
    """

    inputs: Path | None = None
    labels: Path | None = None
    signature: str = ""
    latency: str = "default"
    seconds: float = RUN_S


@dataclass(frozen=True, slots=True)
class Step:
    """One step: what it did, or why it did nothing, and how long it took."""

    name: str
    summary: str
    ran: bool
    seconds: float = 0.0


@dataclass(slots=True)
class Gate:
    """The answer. `comparison` is that of latency as `bench --json` has it, {} if it was not measured."""

    policy: Policy
    diff: Diff
    steps: list[Step] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)
    comparison: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """fail, inconclusive or pass."""
        found = {reason.severity for reason in self.reasons}
        return FAIL if FAIL in found else INCONCLUSIVE if INCONCLUSIVE in found else PASS

    def exit_code(self) -> int:
        """1: FAIL, or INCONCLUSIVE where the policy is strict."""
        return int(self.verdict == FAIL or (self.verdict == INCONCLUSIVE and self.policy.strict))

    def sentence(self) -> str:
        """The verdict and the rules that gave it."""
        rules = dict.fromkeys(r.rule for r in self.reasons if r.severity == self.verdict)
        return f"{self.verdict.upper()}{': ' if rules else ''}{', '.join(rules)}"

    def to_json(self) -> dict[str, Any]:
        return {
            "old": dict(self.diff.old),
            "new": dict(self.diff.new),
            "verdict": self.verdict,
            "failed": bool(self.exit_code()),
            "expect": self.policy.expect,
            "strict": self.policy.strict,
            "reasons": [reason.to_json() for reason in self.reasons],
            "steps": [
                {"name": s.name, "summary": s.summary, "ran": s.ran, "seconds": round(s.seconds, 3)}
                for s in self.steps
            ],
            "levels": {level.name: level.to_json() for level in self.diff.levels},
            "latency": dict(self.comparison),
        }


DEFAULT, POLICY = Options(), Policy()


def gate(
    old: Path,
    new: Path,
    options: Options = DEFAULT,
    policy: Policy = POLICY,
    progress: Progress = lambda _: None,
) -> Gate:
    """Hold NEW against OLD. Raises an MserveError for what cannot be opened and for bad options."""
    asked = length(options.latency)
    one, two = compare.open_model(old), compare.open_model(new)
    began = time.monotonic()
    diff = compare.diff(old, new, _how(one, two, options, policy), progress=progress)
    found = Gate(policy, diff)
    found.steps += [Step(level.name, level.shown, not level.skipped) for level in diff.levels]
    found.steps[-1] = Step(*_row(found.steps[-1]), time.monotonic() - began)
    graphs = [operators(m.data) if m.data is not None else None for m in (one, two)]
    found.reasons += judge_diff(diff, graphs[0], graphs[1], policy)
    found.reasons += judge_answers(diff, policy, made_up=options.inputs is None and made_up(one, two))
    _validate(found, two, options, progress)
    _latency(found, (one, two), options, asked, progress)
    found.reasons = worst_first(found.reasons)
    return found


def _row(step: Step) -> tuple[str, str, bool]:
    return step.name, step.summary, step.ran


def _how(old: Model, new: Model, options: Options, policy: Policy) -> compare.Options:
    """Answers are compared unless the models are the same bytes, whose answers nobody needs to see."""
    same = bool(old.content) and old.content == new.content
    return compare.Options(
        None if same else True,
        options.inputs,
        options.labels,
        options.signature,
        policy.value("tolerances", "rtol"),
        policy.value("tolerances", "atol"),
        tolerances=policy.value("tolerances", "outputs"),
        seconds=options.seconds,
    )


def _validate(found: Gate, new: Model, options: Options, progress: Progress) -> None:
    reasons, began = Reasons(found.policy), time.monotonic()
    if new.bundle is None:
        reasons.add("not-a-bundle", str(new.path), f"{new.kind}: mserve export makes a bundle of it")
        found.steps.append(Step(VALIDATE, "NEW is no bundle", False))
    else:
        progress(VALIDATE)
        limits = {key: found.policy.value("tolerances", key) for key in ("rtol", "atol")}
        answer = apart(VALIDATE, {"path": str(new.path), **limits}, CHECKS * options.seconds)
        for finding in answer.get("findings", ()):
            reasons.add(finding["code"], finding["where"], finding["text"])
        if "findings" not in answer:
            text = answer.get("ended") or answer["error"]["text"]
            reasons.add("validate-ended", str(new.path), text)
        shown = f"{len(answer.get('findings', ()))} finding(s)"
        found.steps.append(Step(VALIDATE, shown, True, time.monotonic() - began))
    found.reasons += reasons.found


def _latency(
    found: Gate, sides: tuple[Model, Model], options: Options, asked: Length | None, progress: Progress
) -> None:
    one, two = sides
    request = request_of(one, two, options.inputs, options.signature, found.policy)
    reasons, why = Reasons(found.policy), ""
    if asked is None or not request["metrics"]:
        why = "off"
    elif found.verdict == FAIL:
        why = "not measured: the verdict is FAIL already"
    elif one.content and one.content == two.content:
        why = "not measured: the same bytes"
    elif one.bundle is None or two.bundle is None:
        why = "not measured: both versions have to be bundles"
        reasons.add("latency-not-measured", LATENCY, why)
    if why or asked is None:
        found.reasons += reasons.found
        found.steps.append(Step(LATENCY, why, False))
        return
    progress(f"{LATENCY}: both in turn, for at most {asked.limit_s:g} s and what starting takes (--latency)")
    began = time.monotonic()
    request |= {"looks": asked.looks, "limit_s": asked.limit_s}
    answer = apart(LATENCY, request, asked.limit_s + SLACK_S)
    if answer.get("verdict", {}).get("reason") == "interrupted":
        raise KeyboardInterrupt
    found.comparison = answer if "metrics" in answer else {}
    found.reasons += judge_latency(answer, found.policy)
    found.steps.append(Step(LATENCY, summary(answer), True, time.monotonic() - began))
