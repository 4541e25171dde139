"""What swaps did, for people. Pure."""

from __future__ import annotations

from ..judgement.quantiles import Percentile
from ..judgement.verdict import interval, show
from ..load.reload import Side, Swaps


def swap_facts(swaps: Swaps, *, quotable: bool) -> list[tuple[str, str]]:
    """Rows for the report; without percentiles where the run carries none."""
    count, seen = len(swaps.windows), sum(window.seen for window in swaps.windows)
    mean = f", {swaps.seconds / count:.3f} s each" if count else ""
    unseen = f", {count - seen} not seen to the end" if seen < count else ""
    rows = [
        ("swaps", f"{count}{mean}{unseen}"),
        ("inside swaps", _side(swaps.inside, quotable)),
        ("outside swaps", _side(swaps.outside, quotable)),
    ]
    return [*rows, ("swapping ended", swaps.problem)] if swaps.problem else rows


def _side(side: Side, quotable: bool) -> str:
    texts = [f"{side.requests:,} requests, {side.failed:,} failed"]
    return ", ".join(texts + ([_percentile(p) for p in side.percentiles] if quotable else []))


def _percentile(found: Percentile) -> str:
    name = f"p{100 * found.p:g}"
    if found.value_ns is None:
        return f"{name} needs {found.needed} samples"
    return f"{name} {show(found.value_ns)} ({interval(found)})"
