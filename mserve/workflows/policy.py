"""Policy: what a gate is to do about each rule, from a TOML file.

    expect = "retrained"                # or "same"
    strict = false                      # true: INCONCLUSIVE fails too

    [rules]
    domain-added = "fail"               # a rule's severity: fail, inconclusive, warn, note or off
    opset-maximum = { maximum = 21 }    # a rule's limits
    growth-bytes = { severity = "fail", maximum = "10%" }

Everything that a file says is checked when it is read; nothing is passed over.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError, UsageError
from ..files import read_text
from .rules import (
    COUNT,
    EXPECTED,
    METRIC,
    METRICS,
    NUMBER,
    RETRAINED,
    RULES,
    SEVERITIES,
    SHARE,
    TOLERANCES,
    WORDS,
)

FILE_BYTES_MAX = 1 << 20
MAX_NUMBER = 1e300  # TOML has whole numbers of any length
SEVERITY = "severity"


@dataclass(frozen=True, slots=True)
class Policy:
    """What a file says, by rule: severities, and values of keys. Defaults are those of the rules."""

    expect: str = RETRAINED
    strict: bool = False
    severities: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[tuple[str, str], Any] = field(default_factory=dict)

    def severity(self, rule: str) -> str:
        """fail, inconclusive, warn, note or off."""
        return self.severities.get(rule) or RULES[rule].under(self.expect)

    def value(self, rule: str, key: str) -> Any:
        """A limit; None where there is none."""
        return self.values.get((rule, key), RULES[rule].keys[key].default)

    def names(self, rule: str) -> bool:
        """Whether the policy itself says something about a rule."""
        return rule in self.severities or any(name == rule for name, _ in self.values)


def read_policy(path: Path) -> Policy:
    """Read a policy. Raises InputError naming the file, the key, and a name that may have been meant."""
    text = read_text(path, FILE_BYTES_MAX)
    try:
        return policy_of(tomllib.loads(text), path)
    except (ValueError, RecursionError) as error:  # ValueError also of a number of thousands of digits
        raise InputError("the policy is not TOML", where=path, found=str(error)[:200]) from error


def policy_of(data: Mapping[str, Any], where: object) -> Policy:
    """A policy from the tables of a file. Raises InputError."""
    severities: dict[str, str] = {}
    values: dict[tuple[str, str], Any] = {}
    for name in data:
        _known(name, ("expect", "strict", "rules"), "the policy has no such key", where)
    expect, strict, rules = data.get("expect", RETRAINED), data.get("strict", False), data.get("rules", {})
    _one_of(expect, EXPECTED, f"{where}: expect")
    _typed(isinstance(strict, bool), "true or false", strict, f"{where}: strict")
    _typed(isinstance(rules, dict), "a table", rules, f"{where}: rules")
    for rule, said in rules.items():
        place = f"{where}: rules.{rule}"
        _known(rule, RULES, "there is no such rule", place)
        if not isinstance(said, dict):
            severities[rule] = _one_of(said, SEVERITIES, place)
            continue
        for key, value in said.items():
            _known(key, (SEVERITY, *RULES[rule].keys), "the rule has no such key", place)
            if key == SEVERITY:
                severities[rule] = _one_of(value, SEVERITIES, f"{place}.{key}")
            else:
                values[rule, key] = _READERS[RULES[rule].keys[key].kind](value, f"{place}.{key}")
    return Policy(expect, strict, severities, values)


def nearest(word: str, known: Collection[str]) -> str:
    """A hint for a word that is not one of those known."""
    if close := difflib.get_close_matches(word, known, n=1):
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(known)}" if len(known) <= 8 else "mserve gate --explain lists all"


def check_rule(name: str) -> None:
    """Refuse a rule that is none. Raises UsageError."""
    if name not in RULES:
        raise UsageError("there is no such rule", found=name[:80], hint=nearest(name, RULES))


def _known(word: str, known: Collection[str], what: str, where: object) -> None:
    if word not in known:
        raise InputError(what, where=where, found=word[:80], hint=nearest(word, known))


def _typed(holds: bool, expected: str, found: object, where: str) -> None:
    if not holds:
        raise InputError("the policy has a bad value", where=where, expected=expected, found=repr(found)[:80])


def _one_of(value: object, words: Collection[str], where: str) -> str:
    if value not in words or not isinstance(value, str):
        hint = nearest(value, words) if isinstance(value, str) else ""
        expected = ", ".join(words)
        raise InputError(
            "the policy has a bad value", where=where, expected=expected, found=repr(value)[:80], hint=hint
        )
    return value


# --- values by kind


def _number(value: object, where: str) -> float:
    right = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_NUMBER
    _typed(right, "a number", value, where)
    return float(value)  # type: ignore[arg-type]


def _share(value: object, where: str) -> float:
    """A share of at least 0: 0.05, or "5%"."""
    found = value
    if isinstance(value, str) and value.endswith("%"):
        try:
            found = float(value[:-1]) / 100
        except ValueError:
            found = None
    right = isinstance(found, int | float) and not isinstance(found, bool) and 0 <= found < 1e6
    _typed(right, 'a share such as 0.05 or "5%"', value, where)
    return float(found)  # type: ignore[arg-type]


def _count(value: object, where: str) -> int:
    right = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
    _typed(right, "a whole number", value, where)
    return value  # type: ignore[return-value]


def _words(value: object, where: str) -> tuple[str, ...]:
    right = isinstance(value, list) and all(isinstance(word, str) for word in value)
    _typed(right, "a list of names", value, where)
    return tuple(value)  # type: ignore[arg-type]


def _tolerances(value: object, where: str) -> dict[str, tuple[float, float]]:
    """(rtol, atol) by output; what a table leaves out is the rule's default."""
    _typed(isinstance(value, dict), "a table of outputs", value, where)
    assert isinstance(value, dict)
    found = {}
    for output, limits in value.items():
        place = f"{where}.{output}"
        _typed(isinstance(limits, dict), "a table of rtol and atol", limits, place)
        for key in limits:
            _known(key, ("rtol", "atol"), "the rule has no such key", place)
        defaults = {key: RULES["tolerances"].keys[key].default for key in ("rtol", "atol")}
        rtol, atol = (_number(limits.get(k, defaults[k]), f"{place}.{k}") for k in ("rtol", "atol"))
        found[output] = rtol, atol
    return found


_READERS: dict[str, Callable[[object, str], Any]] = {
    NUMBER: _number,
    SHARE: _share,
    COUNT: _count,
    METRIC: lambda value, where: _one_of(value, METRICS, where),
    WORDS: _words,
    TOLERANCES: _tolerances,
}
