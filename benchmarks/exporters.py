"""What conversions cost and what they give: a table on stdout.

    python benchmarks/exporters.py cost [MODEL...]    time, memory and error of each conversion
    python benchmarks/exporters.py rows [NAME...]     rows a second, against the framework's predict

`cost` runs `mserve export` on a small model of each kind whose framework is installed, on the real
models that are at hand, and on further files. Its memory is the most that the command and the
processes it starts hold at one time; its error is the one that the export itself found, against the
framework, where that is installed to compare with.

`rows` compares bundles in process with the predict of each linear and boosted source. Ours and
theirs take turns, and the best of many turns counts: on a machine that is shared other figures are
noise. A bundle has one thread. The framework is asked with one as well, and then as it comes.

Then, of each forest, what a row costs among rows that differ, and among copies of itself. ONNX Runtime
walks a tree by branches, and most of the difference is what the processor guesses wrong. XGBoost and
CatBoost depend little on what differs, and are ahead at batch 256. Tried, without any gain with one
thread: many operators instead of one, the newer operator, other comparisons, complete trees, no flags for
missing values, an older engine. Two threads nearly halve the time of theirs and of ours.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import exporters_models as models
from exporters_models import Model

import mserve
from mserve.exporters import sources

TURNS, CALLS = 60, 5
BATCHES = (1, 256)
BAR = 1.0
SAMPLE_S = 0.01
Call = Callable[[], Any]


# --- cost


def cost(paths: list[Path]) -> None:
    print("source\treader\tfile\tKB\tseconds\tCPU seconds\tMB\tmax error\tcompared with")
    with tempfile.TemporaryDirectory() as work:
        directory = Path(work)
        for name, model in models.trained(directory, models.BOOSTED_AND_LINEAR + models.OTHERS):
            if model is None:
                print(f"{name}\tnot installed")
            else:
                _cost(model, directory / "base")
        for model in [*models.real(directory), *map(Model, paths)]:
            _cost(model, directory / "base")


def _cost(model: Model, base: Path) -> None:
    kind = sources.kind_of(model.path)
    size = sum(f.stat().st_size for f in [model.path, *model.path.rglob("*")] if f.is_file()) / 1024
    if lacking := sources.missing(kind):
        print(f"{kind.name}\tnot installed: {', '.join(lacking)}\t{model.path.name}\t{size:.0f}")
        return
    command = [sys.executable, "-m", "mserve", "export", str(model.path), str(base), *model.options]
    start, used = time.monotonic(), _processor_s()
    with subprocess.Popen(
        [*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        peak = [0]
        watcher = threading.Thread(target=_watch, args=(process, peak))
        watcher.start()
        out, err = process.communicate()
        watcher.join()
    seconds, used = time.monotonic() - start, _processor_s() - used
    if process.returncode:
        told = " ".join(line.strip() for line in err.splitlines() if not line.startswith("  next"))
        print(f"{kind.name}\trefused\t{model.path.name}\t{size:.0f}\t{told}")
        return
    facts = mserve.load(json.loads(out)["path"]).bundle.metagraph.provenance.get("conversion", {})
    found, to = facts.get("max_error"), facts.get("compared_with") or "-"
    error = "-" if found is None else f"{found:.1e}"
    reader = ", ".join(kind.modules) or "own"
    figures = f"{size:.0f}\t{seconds:.1f}\t{used:.1f}\t{peak[0] >> 20}"
    print(f"{kind.name}\t{reader}\t{model.path.name}\t{figures}\t{error}\t{to}", flush=True)


def _processor_s() -> float:
    """Seconds of processor time of the processes that have ended, and of theirs."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime


def _watch(process: subprocess.Popen[str], peak: list[int]) -> None:
    """Keep the most bytes that a process and its descendants held at one time, while it runs."""
    while process.poll() is None:
        peak[0] = max(peak[0], _resident(process.pid))
        time.sleep(SAMPLE_S)


def _resident(pid: int) -> int:
    """Resident bytes of a process and its descendants; pages that they share count for each."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [child for task in tasks for child in (task / "children").read_text().split()]
    except (OSError, IndexError):  # it has ended
        return 0
    return pages * 4096 + sum(_resident(int(child)) for child in children)


# --- rows


def rows(names: list[str]) -> None:
    trainers = [t for t in models.BOOSTED_AND_LINEAR if not names or t.__name__ in names]
    print("source\tframework's\tthreads\tbatch\trows/s bundle\trows/s framework\tratio")
    below, alike = [], []
    with tempfile.TemporaryDirectory() as work:
        for name, model in models.trained(Path(work), trainers):
            if model is None:
                print(f"{name}\tnot installed")
                continue
            bundle = mserve.load(mserve.export(model.path, Path(work) / name, trust=True).path)
            below += _rates(name, bundle, model)
            if name in models.FORESTS:
                alike.append(_alike(name, bundle, model))
            bundle.close()
    print(f"below {BAR} with one thread each: {'; '.join(below) or 'none'}")
    print(f"\nns a row at batch {BATCHES[-1]}\tbundle\tframework\tbundle, all alike\tframework, all alike")
    print("\n".join(alike))


def _rates(name: str, bundle: Any, model: Model) -> list[str]:
    """Print the rates of a model, and tell which are below the bar."""
    below = []
    (alias,) = bundle.signature()[1].inputs
    for way, predict in model.predicts.items():
        for threads in (1, 0):
            call = predict(threads)
            for batch in BATCHES:
                part = models.data(batch)[0]
                with models.holding(threads):
                    ours, theirs = _best(lambda p=part: bundle.run({alias: p}), lambda p=part, c=call: c(p))
                used = "1 and 1" if threads else "1 and its own"
                rates = f"{batch / ours:.0f}\t{batch / theirs:.0f}\t{theirs / ours:.2f}"
                print(f"{name}\t{way}\t{used}\t{batch}\t{rates}", flush=True)
                if threads and theirs / ours < BAR:
                    below.append(f"{name} {way} at batch {batch}: {theirs / ours:.2f}")
    return below


def _alike(name: str, bundle: Any, model: Model) -> str:
    """What a row costs, in ns, of rows that differ and of copies of one."""
    (alias,) = bundle.signature()[1].inputs
    predict = next(iter(model.predicts.values()))(1)
    rows = models.data(BATCHES[-1])[0]
    figures = []
    with models.holding(1):
        for part in (rows, rows[:1].repeat(len(rows), axis=0)):
            figures += _best(lambda p=part: bundle.run({alias: p}), lambda p=part: predict(p))
    return "\t".join([name, *(f"{seconds / len(rows) * 1e9:.0f}" for seconds in figures)])


def _best(first: Call, second: Call) -> tuple[float, float]:
    """The shortest time of each in seconds, over turns that alternate."""
    best = [float("inf"), float("inf")]
    for _ in range(TURNS):
        for index, call in enumerate((first, second)):
            start = time.perf_counter()
            for _ in range(CALLS):
                call()
            best[index] = min(best[index], (time.perf_counter() - start) / CALLS)
    return best[0], best[1]


def main() -> None:
    warnings.simplefilter("ignore")
    match sys.argv[1:]:
        case ["cost", *paths]:
            cost([Path(path) for path in paths])
        case ["rows", *names]:
            rows(names)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
