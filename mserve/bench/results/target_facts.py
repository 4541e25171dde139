"""What a target says of itself, as lines for people. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def target_rows(target: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows of the table of facts, from what `Target.describe` gives; only what is known."""
    rows = [("protocol", target["protocol"])] if target.get("protocol") else []
    if target.get("inputs"):
        distinct = target.get("distinct") or 1
        several = f", {distinct:,} different requests" if distinct > 1 else ""
        verified = f", answers verified against {target['verified']}" if target.get("verified") else ""
        rows.append(("inputs", f"{target['inputs']}{several}{verified}"))
    if spawned := target.get("spawned"):
        rows.append(("spawned server", f"process {spawned['process']}, {_cpus(spawned['cpus'])}"))
    return rows


def _cpus(cpus: Mapping[str, list[int]]) -> str:
    if not cpus["server"]:
        return "on CPUs that it shares with the generator"
    server, generator = (", ".join(map(str, cpus[who])) for who in ("server", "generator"))
    return f"on CPUs {server}; the generator on CPUs {generator}"
