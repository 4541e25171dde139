"""Placement: which CPUs the generators take, and which are left to a server of our own."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

# What one generator sends in an open loop without being late itself.
RATE_OF_ONE = 20_000.0
GENERATORS_MAX = 64

ANY: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Placement:
    """The CPUs of each generator, and the server's; an empty set means any."""

    generators: tuple[frozenset[int], ...]
    server: frozenset[int] = ANY

    @property
    def own(self) -> frozenset[int]:
        """All CPUs of the generators together."""
        return ANY.union(*self.generators)


EVERYWHERE = Placement((ANY,))


def cpus() -> list[int]:
    """The CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def generators_for(rate: float | None, available: int) -> int:
    """How many generators a rate takes, with half of the CPUs left to a server; 1 for a closed loop."""
    if rate is None:
        return 1
    return max(1, min(math.ceil(rate / RATE_OF_ONE), available // 2))


def place(generators: int, available: Sequence[int]) -> Placement:
    """A CPU for each generator, the rest for the server; where there are too few, any for all."""
    if generators >= len(available):
        return Placement((ANY,) * generators)
    own, rest = available[:generators], available[generators:]
    return Placement(tuple(frozenset({cpu}) for cpu in own), frozenset(rest))
