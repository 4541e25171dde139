"""Every performance bar of the serving hot path: `python benchmarks/serving.py SECTION... [options]`.

Sections: small ids grpc openloop peers heavy ranking batching, or all. What each measures, and
against what, is said by its functions and printed with its figures. Servers that are compared run
at the same time and are asked in turn, round by round, every other round in the opposite order; a
ratio is that of two neighbours in time, the figure is the median of the rounds, and its range
stands beside it. Load comes from wrk and h2load (to be installed), but for the open loop
(`mserve bench`) and unique ids over gRPC (serving_blast.py). Client and servers share the
machine: where the client was the busier side, the line says so, and its rate is the client's.

It is a report: it exits with 0 whatever the figures are. All of it takes half an hour, and the first
run of `peers` some minutes more, for 2 GB of packages; `--seconds 1 --rounds 1` shows that it works.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from serving_grpc import grpc, grpc_ids
from serving_heavy import heavy, ranking
from serving_load import adopt_orphans
from serving_peers import PEERS, peers
from serving_report import Report, machine
from serving_small import Setting, batching, ids, lengths, openloop, small

SECTIONS: dict[str, tuple[Callable[[Setting], None], ...]] = {
    "small": (small,),
    "ids": (ids, lengths, grpc_ids),
    "grpc": (grpc,),
    "openloop": (openloop,),
    "peers": (peers,),
    "heavy": (heavy,),
    "ranking": (ranking,),
    "batching": (batching,),
}


def arguments() -> argparse.Namespace:
    """What to measure, and how long."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sections", nargs="+", choices=[*SECTIONS, "all"], metavar="SECTION")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each run (4)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each server (5)")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    parser.add_argument(
        "--peers-dir", type=Path, help="keeps the other servers' environments (a temporary one)"
    )
    parser.add_argument("--peers", default=",".join(PEERS), help="which other servers, with commas (all)")
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    asked = arguments()
    adopt_orphans()
    report, facts = Report(), machine()
    print("; ".join(f"{name} {value}" for name, value in facts.items() if value))
    print(f"{asked.rounds} rounds of {asked.seconds:g} s each, interleaved; medians (lowest-highest)")
    if missing := [tool for tool in ("wrk", "h2load") if not shutil.which(tool)]:
        sys.exit(f"not installed: {', '.join(missing)}")
    wanted = list(SECTIONS) if "all" in asked.sections else asked.sections
    with tempfile.TemporaryDirectory(prefix="mserve-serving-") as directory:
        work = Path(directory)
        setting = Setting(
            asked.seconds,
            asked.rounds,
            work,
            report,
            asked.peers_dir or work / "peers",
            frozenset(asked.peers.split(",")),
        )
        for name in wanted:
            for section in SECTIONS[name]:
                try:
                    section(setting)
                except Exception as error:  # the others are still wanted
                    report.skip("the rest of the section", f"{type(error).__name__}: {error}")
    report.table()
    if asked.json:
        report.write(asked.json, facts)


if __name__ == "__main__":
    main()
