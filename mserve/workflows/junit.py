"""A gate as JUnit XML: a suite for each step, a case for each reason, one that passes where there is none.

The form is the one that continuous integration reads: failures fail, what is inconclusive is skipped,
or fails under --strict; warnings and notes are cases that pass and say so in their output.
"""

from __future__ import annotations

from xml.etree import ElementTree as Tree

from ..errors import printable
from .gate import Gate, Step
from .judge import Reason
from .rules import FAIL, INCONCLUSIVE, NOTE


def render(gate: Gate) -> str:
    """The document."""
    suites = [_suite(gate, step) for step in gate.steps]
    root = Tree.Element("testsuites", {"name": "mserve gate", **_sums(suites)})
    root.extend(suites)
    Tree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + Tree.tostring(root, encoding="unicode") + "\n"


def _sums(suites: list[Tree.Element]) -> dict[str, str]:
    counts = {key: sum(int(s.get(key, 0)) for s in suites) for key in ("tests", "failures", "errors")}
    return {
        **{k: str(v) for k, v in counts.items()},
        "time": f"{sum(float(s.get('time', 0)) for s in suites):.3f}",
    }


def _suite(gate: Gate, step: Step) -> Tree.Element:
    reasons = [r for r in gate.reasons if r.step == step.name and r.severity != NOTE]
    cases = [_case(reason, strict=gate.policy.strict) for reason in reasons]
    if not reasons:
        case = Tree.Element("testcase", {"classname": f"mserve.gate.{step.name}", "name": step.name})
        if not step.ran:
            Tree.SubElement(case, "skipped", {"message": _text(step.summary)})
        cases = [case]
    for case in cases:
        case.set("time", "0")
    counts = {
        "tests": len(cases),
        "failures": sum(case.find("failure") is not None for case in cases),
        "errors": 0,
        "skipped": sum(case.find("skipped") is not None for case in cases),
    }
    about = {"name": step.name, **{k: str(v) for k, v in counts.items()}, "time": f"{step.seconds:.3f}"}
    suite = Tree.Element("testsuite", about)
    suite.extend(cases)
    return suite


def _case(reason: Reason, *, strict: bool) -> Tree.Element:
    name = _text(f"{reason.rule} {reason.where}".strip())
    case = Tree.Element("testcase", {"classname": f"mserve.gate.{reason.step}", "name": name})
    failed = reason.severity == FAIL or (reason.severity == INCONCLUSIVE and strict)
    if failed:
        failure = Tree.SubElement(case, "failure", {"type": reason.rule, "message": _text(reason.text)})
        failure.text = _text(f"{reason.where}: {reason.text}")
    elif reason.severity == INCONCLUSIVE:
        Tree.SubElement(case, "skipped", {"message": _text(f"inconclusive: {reason.text}")})
    else:
        Tree.SubElement(case, "system-out").text = _text(f"{reason.severity}: {reason.text}")
    return case


def _text(text: str) -> str:
    """Text that XML can hold: no control characters."""
    return "".join(c if c.isprintable() and c not in "\ufffe\uffff" else " " for c in printable(text))
