"""Result: the reports of a session, and what they amount to for the shell. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...errors import EnvironmentProblem
from ..judgement.scenario import Outcome
from ..judgement.search import Search
from ..judgement.verdict import Verdict
from ..load.recorder import INTERRUPTED
from .report import Report

# Verdicts that let a run count as good even where somebody wants to be strict.
GOOD = (Verdict.PASS, Verdict.MEASURED)


@dataclass(slots=True)
class Result:
    """What a session found. `search` is set when it was one; `headline` is then its confirmed run."""

    reports: list[Report] = field(default_factory=list)
    search: Search | None = None
    stopped: str = ""
    scenario: Outcome | None = None
    loadgen: dict[str, Any] | None = None

    def headline(self) -> Report | None:
        """The report to show in full: the only one, or the last that met the objectives at the found rate."""
        if self.search is not None:
            found = [r for r in self.reports if r.load.rate == self.search.rate and self.search.rate]
            return next((r for r in reversed(found) if r.verdict.code == Verdict.PASS), None)
        return self.reports[0] if len(self.reports) == 1 else None

    def to_json(self) -> dict[str, Any]:
        """The result as `--json` prints it."""
        return {
            "search": self.search.to_json() if self.search else None,
            "stopped": self.stopped or None,
            "scenario": self.scenario.to_json() if self.scenario else None,
            "loadgen": self.loadgen,
            "reports": [report.to_json() for report in self.reports],
        }

    def exit_code(self, *, asserted: bool, strict: bool = False) -> int:
        """0, or 130: interrupted, 4: the server is gone, 1: nothing worked or nothing met the objectives.

        Wrong answers are 1, whatever the objectives say. An INCONCLUSIVE result is 0; `strict`
        makes it 1, and INVALID, UNSTABLE and ERRORS too.
        """
        if self.stopped:
            return 130 if self.stopped == INTERRUPTED else EnvironmentProblem.exit_code
        if self.wrong():
            return 1
        if self.search is not None:
            return 0 if self.search.rate is not None else 1
        if self.scenario is not None and not self.scenario.valid:
            return 1
        if not any(report.ok for report in self.reports):
            return 1
        codes = {report.verdict.code for report in self.reports}
        accepted = {Verdict.PASS} if strict else {Verdict.PASS, Verdict.INCONCLUSIVE}
        if asserted and not accepted & codes:
            return 1
        return int(strict and not asserted and not codes <= set(GOOD))

    def wrong(self) -> str:
        """What `--verify` found wrong, first of all; "" if nothing."""
        return next((text for report in self.reports if (text := report.wrong())), "")

    def warnings(self) -> list[str]:
        """What did not decide the exit code, and somebody should know all the same."""
        undecided = sum(r.verdict.code == Verdict.INCONCLUSIVE for r in self.reports)
        if self.search is not None or not undecided:
            return list(self.search.warnings) if self.search else []
        return [
            "INCONCLUSIVE: too few requests to prove an objective met or missed; measure longer (--duration)"
        ]
