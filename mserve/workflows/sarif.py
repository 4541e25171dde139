"""A gate as SARIF 2.1.0: what code scanning shows beside a change.

Every rule that gave a reason stands in the tool's table with its meaning; a reason is a result with the
path of NEW as its place, and the name inside the model as its logical place. What is inconclusive has
the kind `open`: the format's word for a rule that could not be decided.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .. import __version__
from ..errors import printable
from .gate import Gate
from .judge import Reason
from .rules import FAIL, INCONCLUSIVE, NOTE, RULES, WARN

_LEVELS = {FAIL: "error", WARN: "warning", NOTE: "note", INCONCLUSIVE: "none"}


def render(gate: Gate) -> str:
    """The document."""
    names = list(dict.fromkeys(reason.rule for reason in gate.reasons))
    path = Path(gate.diff.new["path"])
    driver = {
        "name": "mserve gate",
        "version": __version__,
        "rules": [_rule(gate, name) for name in names],
    }
    run = {
        "tool": {"driver": driver},
        "invocations": [{"executionSuccessful": True, "exitCode": gate.exit_code()}],
        "results": [_result(reason, names.index(reason.rule), path) for reason in gate.reasons],
        "properties": {"verdict": gate.verdict, "strict": gate.policy.strict, "expect": gate.policy.expect},
    }
    document = {
        "$schema": "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json",
        "version": "2.1.0",
        "runs": [run],
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _rule(gate: Gate, name: str) -> dict[str, Any]:
    rule = RULES[name]
    return {
        "id": name,
        "shortDescription": {"text": rule.meaning},
        "help": {"text": f"mserve gate --explain {name}"},
        "defaultConfiguration": {"level": _LEVELS[gate.policy.severity(name)]},
        "properties": {"step": rule.step},
    }


def _result(reason: Reason, index: int, path: Path) -> dict[str, Any]:
    where, text = printable(reason.where), printable(reason.text)
    place = "/".join([reason.step, where])
    uri = path.resolve().as_uri() if path.is_absolute() else quote(path.as_posix())
    location = {
        "physicalLocation": {"artifactLocation": {"uri": uri}},
        "logicalLocations": [{"name": where or reason.step, "fullyQualifiedName": place}],
    }
    digest = hashlib.sha256(f"{reason.rule}\0{reason.where}".encode()).hexdigest()
    return {
        "ruleId": reason.rule,
        "ruleIndex": index,
        "kind": "open" if reason.severity == INCONCLUSIVE else "fail",
        "level": _LEVELS[reason.severity],
        "message": {"text": f"{where}: {text}" if where else text},
        "locations": [location],
        "partialFingerprints": {"mserve/v1": digest},
    }
