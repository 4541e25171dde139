"""What is known of run times, for predictions."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..loader.servable import Servable

ROW_BITS = 40
COLD = 0.5
RISE, FALL = 1.25, 0.05


@dataclass(slots=True)
class Times:
    """Run times in nanoseconds, by bit length of the rows, 0 if unknown: high estimates that fall slowly.

    `runs` rise at once: who has a deadline wants the worst. `inline` is what a run takes on the
    event loop; it rises by a quarter at most, since one run that the system interrupted, of many
    times the length, would send a hundred batches the longer way. A worker that was asleep works
    with cold caches and may take twice as long, so from its runs follows only that it is worth
    another try; without tries, one slow run would keep a model away from the loop for ever.
    """

    runs: list[float] = field(default_factory=lambda: [0.0] * ROW_BITS)
    inline: list[float] = field(default_factory=lambda: [0.0] * ROW_BITS)

    def learn(self, rows: int, run_ns: int, *, inline: bool) -> None:
        """Note a run of so many rows."""
        bits = rows.bit_length()
        self.runs[bits] = _high(self.runs[bits], run_ns)
        known = self.inline[bits]
        if inline:
            self.inline[bits] = _high(known, min(run_ns, known * RISE) if known else run_ns)
        else:
            guess = run_ns * COLD
            self.inline[bits] = _high(known, guess) if 0 < guess < known else known or guess


def _high(known: float, run_ns: float) -> float:
    return float(run_ns) if run_ns > known else known + (run_ns - known) * FALL


def expected_ns(times: Times, rows: int, servable: Servable) -> float:
    """How long a run of so many rows takes, as learned of this size, or fewer rows, or all batches; or 0."""
    bits = rows.bit_length()
    if known := times.runs[bits] or max(times.runs[:bits], default=0.0):
        return known
    return servable.stats.run_ns / max(1, servable.stats.batches)
