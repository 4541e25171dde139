"""What `mserve diff` costs: two bundles of which a hundredth of the rows changed, and two equal ones.

    python benchmarks/diff.py --gib 4

Every diff is a fresh process. Its time stands beside that of reading the same shards of both bundles
once, piece by piece; the two take turns, and the ratio of the best of each counts. `cold` has nothing of
the shards in the page cache. Needs three times the size on the disk under --directory, and Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bundle import WIDTH, make_model

import mserve

PIECE = 4 << 20
CHANGED = 0.01

DIFF = """
import json, sys, time
start = time.perf_counter()
from mserve.compare import diff
imported = time.perf_counter()
found = diff(sys.argv[1], sys.argv[2])
done = time.perf_counter()
status = open("/proc/self/status").read()  # not getrusage: that keeps the peak of who started it
peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024
rows = [c.facts["changed_rows"] for c in found.level("weights").changes]
facts = {"seconds": done - imported, "with_imports": done - start, "peak_mb": peak}
print(json.dumps(facts | {"verdict": found.verdict(), "rows": rows}))
"""


def change_rows(table: Path, rows: int) -> int:
    """Change a hundredth of a table's rows in place, spread all over it; how many."""
    chosen = np.random.default_rng(1).choice(rows, max(1, int(rows * CHANGED)), replace=False)
    values = np.memmap(table, np.float32, "r+", shape=(rows, WIDTH))
    for start in range(0, len(chosen), 1 << 14):
        part = np.sort(chosen[start : start + (1 << 14)])
        values[part] *= np.float32(1.01)
    values.flush()
    return len(chosen)


def shards(version: Path) -> list[Path]:
    return sorted(version.glob("export-*-of-*"))


def changed_shards(old: Path, new: Path) -> list[Path]:
    """The shards of both that differ in their digests."""
    from mserve.format import open_bundle

    digests = [{r.name: r.sha256 for r in open_bundle(v).metagraph.shards} for v in (old, new)]
    names = [name for name in digests[0] if digests[1].get(name) != digests[0][name]]
    return [version / name for version in (old, new) for name in names]


def forget(paths: list[Path]) -> None:
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def read(paths: list[Path]) -> float:
    """Seconds to read files once, into one buffer."""
    buffer = bytearray(PIECE)
    start = time.perf_counter()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - start


def diff(old: Path, new: Path) -> dict[str, float]:
    command = [sys.executable, "-c", DIFF, str(old), str(new)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def command(old: Path, new: Path) -> float:
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "mserve", "diff", str(old), str(new)], capture_output=True, check=True
    )
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gib", type=float, default=1)
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--directory", type=Path, default=None)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="mserve-diff-", dir=options.directory))
    try:
        source, rows = make_model(work / "source", options.gib)
        base = work / "m"
        old = mserve.export(source, base, golden=0).path
        again = mserve.export(source, base, golden=0, dedup=True, meta={"why": "equal"}).path
        count = change_rows(source.parent / "table.bin", rows)
        new = mserve.export(source, base, golden=0).path
        shutil.rmtree(source.parent)
        paths = changed_shards(old, new)
        size = sum(p.stat().st_size for p in paths)
        print(f"{rows:,} rows of {WIDTH} floats, {count:,} changed; {size / 2**30:.2f} GiB to read")
        for kind in ("cold", "warm"):
            times, readings, peaks = [], [], []
            for _ in range(options.reps):
                for what in ("read", "diff"):
                    if kind == "cold":
                        forget(paths)
                    if what == "read":
                        readings.append(read(paths))
                        continue
                    found = diff(old, new)
                    assert found["rows"] == [count], found
                    times.append(found["seconds"])
                    peaks.append(found["peak_mb"])
            ratio = min(times) / min(readings)
            print(
                f"{kind}: diff {min(times):.2f} s, reading {min(readings):.2f} s, ratio {ratio:.2f}, "
                f"peak {max(peaks):.0f} MB resident"
            )
        equal = [diff(old, again)["seconds"] for _ in range(options.reps)]
        whole = [command(old, again) for _ in range(options.reps)]
        print(f"equal: {min(equal) * 1000:.1f} ms, as a command {min(whole):.2f} s")
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
