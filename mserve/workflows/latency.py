"""The latency step: OLD and NEW measured in turn, as `bench OLD --against NEW` does, and what that proves.

`quick` looks once, after 12 rounds or half a minute, and sees 10 % on a quiet machine; `default` goes on
to 48 rounds or three minutes; a number of seconds to as many rounds as fit. What is not decided by then
is INCONCLUSIVE.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..compare import Model
from ..errors import UsageError
from .judge import Reason, Reasons
from .policy import Policy
from .rules import FAIL, LATENCY, OFF, WARN

METRICS = ("p10", "p50", "throughput", "cpu", "p99")
SLACK_S = 300.0  # for loading, warming up and the last round
SECONDS_MAX = 86_400.0


@dataclass(frozen=True, slots=True)
class Length:
    """After how many rounds to look, and after how many seconds no round begins."""

    looks: tuple[int, ...]
    limit_s: float


_LENGTHS = {"quick": Length((12,), 30.0), "default": Length((12, 24, 48), 180.0)}
_LOOKS = (12, 24, 48, 96, 192)


def length(text: str) -> Length | None:
    """What `--latency` asks for: off, quick, default or seconds. Raises UsageError."""
    if text == "off":
        return None
    if text in _LENGTHS:
        return _LENGTHS[text]
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 1 <= seconds <= SECONDS_MAX:
        raise UsageError("bad --latency", expected="off, quick, default or seconds, from 1", found=text[:40])
    return Length(_LOOKS, seconds)


def request_of(old: Model, new: Model, inputs: Path | None, signature: str, policy: Policy) -> dict[str, Any]:
    """What the process that measures is to do: both are asked the same requests where there are any."""
    given = inputs
    if given is None:
        with_golden = (m for m in (old, new) if m.bundle is not None and m.bundle.metagraph.golden)
        given = next((m.path for m in with_golden), None)
    deciding = [name for name in METRICS if policy.severity(f"latency-{name}") != OFF]
    return {
        "old": str(old.path),
        "new": str(new.path),
        "inputs": None if given is None else str(given),
        "signature": signature,
        "metrics": deciding,
        "margins": {name: policy.value(f"latency-{name}", "margin") for name in deciding},
    }


def measured(request: Mapping[str, Any]) -> dict[str, Any]:
    """Measure, in this process. Raises what opening and asking the two versions raises."""
    from ..bench.judgement.against import Options, compare
    from ..bench.targets.opening import open_target
    from ..bench.targets.target import Ask

    inputs = None if request["inputs"] is None else Path(request["inputs"])
    ask = Ask(inputs=inputs, signature=request["signature"])
    options = Options(
        looks=tuple(request["looks"]),
        limit_s=request["limit_s"],
        metrics=tuple(request["metrics"]),
        margins=request["margins"],
    )
    old, new = request["old"], request["new"]
    found = compare(lambda: open_target(old, ask), lambda: open_target(new, ask), options, _note)
    return found.to_json()


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- what was found


def judge_latency(found: Mapping[str, Any], policy: Policy) -> list[Reason]:
    """Reasons in a comparison, as `Comparison.to_json` has it, or in why there is none."""
    reasons = Reasons(policy)
    if "ended" in found or "error" in found:
        error = found.get("error", {})
        rule = "latency-errors" if error.get("code") == "finding" else "latency-not-measured"
        reasons.add(rule, LATENCY, found.get("ended") or error["text"])
        return reasons.found
    code, why = found["verdict"]["code"], found["verdict"]["reason"]
    if code == "stopped":
        reasons.add("latency-not-measured", LATENCY, why)
    if "requests to B failed" in why:
        reasons.add("latency-errors", LATENCY, why.replace("to B", "to NEW").replace("to A", "to OLD"))
    undecided = []
    for metric in found["metrics"]:
        name, rounds = metric["name"], len(found["rounds"][metric["name"]])
        margin = policy.value(f"latency-{name}", "margin")
        text = f"{metric['ratio'] - 1:+.1%} ({metric['low'] - 1:+.1%} to {metric['high'] - 1:+.1%})"
        text += f" in {rounds} rounds, margin {margin:.0%}"
        if metric["outcome"] == "regression":
            reasons.add(f"latency-{name}", name, text, metric)
        elif metric["outcome"] == "inconclusive" and policy.severity(f"latency-{name}") in (FAIL, WARN):
            undecided.append(f"{name} {text}")
    if undecided and code == "inconclusive":
        reasons.add("latency-unproven", LATENCY, "; ".join(undecided))
    return reasons.found


def summary(found: Mapping[str, Any]) -> str:
    """The step in a few words."""
    shown = [f"{m['name']} {m['ratio'] - 1:+.1%}" for m in found.get("metrics", ())]
    return ", ".join(shown) or "not measured"
