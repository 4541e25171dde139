"""`mserve bench A --against B`: options of a comparison, and its result for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import EnvironmentProblem, UsageError
from . import _output
from ._bench_report import share

if TYPE_CHECKING:
    from ..bench.judgement.against import Comparison, Options
    from ..bench.judgement.verdict import Load
    from ..bench.results.report import Report
    from ..bench.targets.target import Target

COMPARISON = "Comparison with another, B"

Against = Annotated[
    str | None,
    typer.Option(
        metavar="B",
        help="Compare with a bundle, a URL or a stored --json result: exit 1 if slower.",
        rich_help_panel=COMPARISON,
    ),
]
AgainstDevice = Annotated[
    str,
    typer.Option(help="Where B runs, if it is a bundle and not where A does.", rich_help_panel=COMPARISON),
]
Margin = Annotated[
    str, typer.Option(help="By how much the other may be slower and still be OK.", rich_help_panel=COMPARISON)
]
Metrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        help="What decides: p10, p50, p99, throughput, cpu (all); repeatable.",
        rich_help_panel=COMPARISON,
    ),
]
Rounds = Annotated[
    int, typer.Option(help="Rounds of a comparison, at most.", min=6, max=10_000, rich_help_panel=COMPARISON)
]
AA = Annotated[
    bool,
    typer.Option(
        "--aa", help="Compare the target with itself: this machine's noise.", rich_help_panel=COMPARISON
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="Use a baseline from another environment.", rich_help_panel=COMPARISON)
]
MARGIN = "5%"
ROUNDS = 48
ROUNDS_MIN = 6


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line says about a comparison."""

    other: str | None = None
    device: str = ""
    margin: str = MARGIN
    metrics: tuple[str, ...] = ()
    rounds: int = ROUNDS
    aa: bool = False
    force: bool = False

    def wanted(self) -> bool:
        """Whether there is one to make."""
        if self.aa and self.other is not None:
            raise UsageError("--aa compares the target with itself", hint="leave out --against")
        return self.aa or self.other is not None

    def baseline(self) -> Path | None:
        """The stored result to compare with, where the other is one."""
        path = Path(self.other) if self.other and "://" not in self.other else None
        return path if path is not None and path.is_file() else None

    def options(self, load: Load, *, strict: bool) -> Options:
        """Options of the comparison. Raises UsageError."""
        from ..bench.judgement.against import Options

        return Options(
            margin=share(self.margin, "--margin"),
            rate=load.rate,
            concurrency=load.concurrency,
            warmup_s=load.warmup_s,
            timeout_s=load.timeout_s,
            arrivals=load.arrivals,
            seed=load.seed,
            looks=looks(self.rounds),
            metrics=self.metrics,
            strict=strict,
            aa=self.aa,
        )


def looks(rounds: int) -> tuple[int, ...]:
    """After how many rounds to decide: a quarter, a half, all; with fewer than six nothing can be proven."""
    return tuple(sorted({n for n in (rounds // 4, rounds // 2, rounds) if n >= ROUNDS_MIN}))


def compare(open_a: Callable[[], Target], open_b: Callable[[], Target], options: Options) -> Comparison:
    """Compare two targets. Raises EnvironmentProblem where one does not answer."""
    from ..bench.judgement import against

    try:
        found = against.compare(open_a, open_b, options, _output.note)
    except OSError as error:
        raise EnvironmentProblem("a target does not answer", found=str(error)) from error
    return found


def compare_stored(
    path: Path, stamp: Mapping[str, Any], asked: Asked, measure: Callable[[Load], Report], *, strict: bool
) -> Comparison:
    """Measure as a stored result was measured, and compare. Raises InputError or UsageError."""
    from ..bench.judgement import baseline

    stored = baseline.read(path)
    found = baseline.check(stored, stamp, force=asked.force)
    result = baseline.compare(stored, measure(stored.load), asked.options(stored.load, strict=strict))
    result.warnings += [f"another environment: {text}" for text in found]
    return result


def finish(found: Comparison, stamp: Mapping[str, Any], *, as_json: bool) -> int:
    """Show a comparison; returns the exit code. Raises UsageError for a margin below the noise."""
    from ..bench.judgement.against import check_margin

    if as_json:
        _output.emit_json("bench-comparison", {"environment": dict(stamp), **found.to_json()})
    else:
        _show(found)
    for text in found.warnings:
        _output.note(f"warning: {text}")
    if found.code == "inconclusive":
        _output.note("warning: INCONCLUSIVE: neither is proven; use a larger --margin, or a quieter machine")
    if found.options.aa:
        check_margin(found)
        return found.exit_code() if found.code == "stopped" else 0
    return found.exit_code()


def _show(found: Comparison) -> None:
    rows = [
        (
            m.name,
            f"{m.ratio - 1:+.1%}",
            f"{m.low - 1:+.1%} to {m.high - 1:+.1%}",
            f"{m.p_worse:.2g}",
            m.outcome.upper(),
        )
        for m in found.metrics
    ]
    for side, target in zip("AB", found.targets, strict=True):
        _output.line(f"{side}: {target.get('url') or target.get('path')}, model {target.get('model')}")
    if rows:
        _output.table(("cost of B over A", "estimate", "95 % interval", "p", "verdict"), rows)
    noise = found.to_json()["noise"]
    if noise is not None:
        floors = ", ".join(f"{name} {floor:.1%}" for name, floor in noise["floors"].items())
        _output.line(f"noise floor: {floors}")
        _output.line(f"false positives at this margin: {noise['false_positive_rate']:.1%}")
    elif found.reason:
        _output.line(f"verdict: {found.code.upper()}: {found.reason}")
    else:
        _output.line(f"verdict: {found.code.upper()}")
