"""What a rule means, its default, and how a policy sets it."""

from __future__ import annotations

from typing import Any

from .policy import check_rule
from .rules import COUNT, METRIC, NUMBER, RULES, SEVERITIES, SHARE, TOLERANCES, WORDS, Key

_EXAMPLES: dict[str, Any] = {
    NUMBER: 0.1,
    SHARE: 0.1,
    COUNT: 21,
    METRIC: "AUC",
    WORDS: ("Gemm", "Relu"),
    TOLERANCES: {"serving_default.y": {"rtol": 1e-2, "atol": 1e-4}},
}
_NOTHING: tuple[Any, ...] = (None, (), {})


def table() -> list[tuple[str, str, str, str]]:
    """All rules: step, name, severity and meaning."""
    return [(rule.step, name, rule.severity, rule.meaning) for name, rule in RULES.items()]


def one(name: str) -> list[str]:
    """Lines about one rule; the last part can be pasted into a policy. Raises UsageError."""
    check_rule(name)
    rule = RULES[name]
    same = f" ({rule.same} under --expect same)" if rule.same else ""
    lines = [f"{name}: {rule.meaning}", f"step: {rule.step}", f"default: {rule.severity}{same}"]
    lines += [f"{key}: {about.meaning}; default: {_default(about)}" for key, about in rule.keys.items()]
    lines += ["", "[rules]", *_pasted(name)]
    return lines


def _pasted(name: str) -> list[str]:
    rule = RULES[name]
    choices = f"# {', '.join(SEVERITIES)}"
    if not rule.keys:
        return [f'{name} = "{rule.severity}"  {choices}']
    inner = ", ".join(f"{key} = {toml(_example(about))}" for key, about in rule.keys.items())
    return [f'{name} = {{ severity = "{rule.severity}", {inner} }}  {choices}']


def _example(about: Key) -> Any:
    return _EXAMPLES[about.kind] if about.default in _NOTHING else about.default


def _default(about: Key) -> str:
    return "none" if about.default in _NOTHING else toml(about.default)


def toml(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        inner = ", ".join(f"{toml(k) if '.' in k else k} = {toml(v)}" for k, v in value.items())
        return f"{{ {inner} }}"
    return f"{value:g}" if isinstance(value, float) else str(value)
