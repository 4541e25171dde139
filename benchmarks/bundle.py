"""What the bundle costs: loading, exporting, cold starts, and second versions.

    python benchmarks/bundle.py load --gib 1      a bundle against one external-data blob, same weights
    python benchmarks/bundle.py export --gib 4    mserve export against cp, sync and sha256sum
    python benchmarks/bundle.py cold --gib 12     export, then a start with nothing in the page cache
    python benchmarks/bundle.py share --gib 1     two versions and two processes over one table

Every measurement is a fresh process, the two sides in turn, medians of --reps. Ratios
count; absolute times depend on the machine and its disk. Needs twice the model's size on
the disk under --directory, and Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH = 64

LOAD = """
import json, os, sys, time
import numpy as np
kind, path = sys.argv[1:]
if kind == "mserve":
    from mserve.loader.servable import load
    from mserve.format import open_bundle
import onnxruntime as ort

def kib(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name))

before = kib("RssAnon")
start = time.perf_counter()
if kind == "mserve":
    from mserve.runtime.engines import open_engines
    session = open_engines(open_bundle(path))["serving_default"]
    run = lambda ids: session.run(["score"], {"ids": ids})
else:
    options = ort.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    run = lambda ids: session.run(["score"], {"ids": ids})
loaded = time.perf_counter()
rows = int(os.environ["ROWS"])
run(np.random.default_rng(0).integers(0, rows, (8, 32)))
first = time.perf_counter()
faults = open("/proc/self/io").read()
read = next(int(line.split()[1]) for line in faults.splitlines() if line.startswith("read_bytes"))
times = {"load_s": loaded - start, "first_s": first - loaded}
print(json.dumps(times | {"anon_mb": (kib("RssAnon") - before) / 1024, "read_mb": read / 2**20}))
"""


def make_model(directory: Path, gib: float, seed: int = 0) -> tuple[Path, int]:
    """A table of `gib` GiB in an external file, and a dense part of 17 MB; returns the path and the rows."""
    rows = int(gib * 2**30 / (4 * WIDTH))
    block = np.random.default_rng(0).standard_normal((1 << 16, WIDTH), dtype="f4")
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "table.bin").open("wb") as file:
        for start in range(0, rows, len(block)):
            (block[: min(len(block), rows - start)] + start % 7).tofile(file)
    dense = np.random.default_rng(seed)
    shapes = {"W1": (WIDTH, 1024), "W2": (1024, 4096), "W3": (4096, 1)}
    weights = [
        numpy_helper.from_array(dense.standard_normal(shape, dtype="f4"), name)
        for name, shape in shapes.items()
    ]
    table = TensorProto(name="table", data_type=1, dims=[rows, WIDTH], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": "table.bin", "offset": 0, "length": rows * WIDTH * 4}.items():
        table.external_data.add(key=key, value=str(value))
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("ReduceMean", ["e"], ["m"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["m", "W1"], ["h1"]),
        helper.make_node("Relu", ["h1"], ["r1"]),
        helper.make_node("MatMul", ["r1", "W2"], ["h2"]),
        helper.make_node("Relu", ["h2"], ["r2"]),
        helper.make_node("MatMul", ["r2", "W3"], ["o"]),
        helper.make_node("Sigmoid", ["o"], ["score"]),
    ]
    graph = helper.make_graph(
        nodes,
        "ranker",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", 32])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N", 1])],
        [table, *weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, directory / "model.onnx")
    return directory / "model.onnx", rows


def one_blob(source: Path, directory: Path) -> Path:
    """The same model with all weights in one external file, as onnx.save would leave it."""
    directory.mkdir()
    os.link(source.parent / "table.bin", directory / "weights.bin")
    model = onnx.load(source, load_external_data=False)
    with (directory / "weights.bin").open("ab") as file:
        for tensor in model.graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                tensor.external_data[0].value = "weights.bin"
                continue
            file.write(b"\0" * (-file.tell() % 4096))
            places = {"location": "weights.bin", "offset": file.tell(), "length": len(tensor.raw_data)}
            file.write(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in places.items():
                tensor.external_data.add(key=key, value=str(value))
    onnx.save(model, directory / "model.onnx")
    return directory / "model.onnx"


def measured(kind: str, path: Path, rows: int) -> dict[str, float]:
    """One load and one request in a process of its own."""
    command = [sys.executable, "-c", LOAD, kind, str(path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "ROWS": str(rows)}
    )
    result: dict[str, float] = json.loads(done.stdout)
    return result


def export(source: Path, base: Path, *flags: str) -> tuple[Path, float, int]:
    """The version's path, seconds, and peak resident memory in MB of `mserve export`."""
    command = [sys.executable, "-m", "mserve", "export", str(source), str(base), *flags]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    path = process.stdout.read().strip()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"export failed: {command}")
    return Path(path), time.perf_counter() - start, usage.ru_maxrss // 1024


def forget(path: Path) -> None:
    """Drop a directory's files from the page cache."""
    for file in path.rglob("*"):
        if file.is_file():
            fd = os.open(file, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def median(values: list[dict[str, float]], key: str) -> float:
    return statistics.median(v[key] for v in values)


def load(work: Path, gib: float, reps: int) -> None:
    source, rows = make_model(work / "source", gib)
    bundle, _, _ = export(source, work / "base")
    blob = one_blob(source, work / "blob")
    sides: dict[str, list[dict[str, float]]] = {"mserve": [], "onnxruntime": []}
    for _ in range(reps + 1):
        for kind, path in (("mserve", bundle), ("onnxruntime", blob)):
            sides[kind].append(measured(kind, path, rows))
    print(f"{gib:g} GiB, warm page cache, medians of {reps} after one not counted")
    for kind, values in sides.items():
        kept = values[1:]
        print(
            f"  {kind:12} load {median(kept, 'load_s') * 1e3:7.1f} ms   first request"
            f" {median(kept, 'first_s') * 1e3:6.1f} ms   anonymous {median(kept, 'anon_mb'):7.1f} MB"
        )
    for key, name in (("load_s", "load time"), ("anon_mb", "anonymous memory")):
        pairs = [a[key] / b[key] for a, b in zip(sides["mserve"][1:], sides["onnxruntime"][1:], strict=True)]
        print(
            f"  ratio of {name}: {statistics.median(pairs):.3f} (pairs {min(pairs):.2f} to {max(pairs):.2f})"
        )


def throughput(work: Path, gib: float, reps: int) -> None:
    source, _ = make_model(work / "source", gib)
    size = sum(f.stat().st_size for f in source.parent.iterdir())
    ours, theirs, peaks = [], [], []
    for _ in range(reps):
        base = work / "base"
        _, seconds, peak = export(source, base)
        ours.append(seconds)
        peaks.append(peak)
        shutil.rmtree(base)
        subprocess.run(["sync"], check=True)
        start = time.perf_counter()
        copy = work / "copy"
        shell = f"cp -r {source.parent} {copy} && sync && sha256sum {copy}/* > /dev/null"
        subprocess.run(["sh", "-c", shell], check=True)
        theirs.append(time.perf_counter() - start)
        shutil.rmtree(copy)
        subprocess.run(["sync"], check=True)
    print(f"{size / 2**30:.2f} GiB, medians of {reps}")
    print(f"  mserve export          {statistics.median(ours):6.2f} s   peak resident {max(peaks)} MB")
    print(f"  cp, sync, sha256sum    {statistics.median(theirs):6.2f} s")
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    print(f"  throughput of export as a share of theirs: {statistics.median(ratios):.2f}")
    print(f"  resident beyond the source mapping: at most {max(peaks) - size // 2**20} MB")


def cold(work: Path, gib: float, reps: int) -> None:
    source, rows = make_model(work / "source", gib)
    bundle, seconds, peak = export(source, work / "base")
    shutil.rmtree(source.parent)
    print(f"{gib:g} GiB exported in {seconds:.1f} s, peak resident {peak} MB")
    for _ in range(reps):
        forget(bundle)
        v = measured("mserve", bundle, rows)
        print(
            f"  cold: loaded in {v['load_s']:.2f} s, first answer {v['first_s']:.2f} s later,"
            f" {v['read_mb']:.0f} MB read from the disk, anonymous {v['anon_mb']:.0f} MB"
        )
    v = measured("mserve", bundle, rows)
    print(f"  warm: loaded in {v['load_s']:.2f} s, first answer {v['first_s'] * 1e3:.0f} ms later")


def share(work: Path, gib: float, reps: int) -> None:
    source, rows = make_model(work / "source", gib)
    base = work / "base"
    export(source, base)
    make_dense = onnx.load(source, load_external_data=False)
    for tensor in make_dense.graph.initializer:
        if tensor.name == "W1":
            tensor.raw_data = np.full((WIDTH, 1024), 0.5, "f4").tobytes()
    onnx.save(make_dense, source)
    before = used(base)
    export(source, base, "--dedup")
    print(f"first version: {before / 1e6:,.1f} MB")
    print(f"second version, dense part retrained: + {(used(base) - before) / 1e6:,.1f} MB")
    with (source.parent / "table.bin").open("r+b") as file:
        for row in range(0, rows, 100):  # 1 % of the rows
            file.seek(row * WIDTH * 4)
            file.write(np.zeros(WIDTH, "f4").tobytes())
    before = used(base)
    export(source, base, "--dedup")
    print(f"third version, 1 % of the table's rows changed: + {(used(base) - before) / 1e6:,.1f} MB")
    code = (
        "import sys, numpy as np, mserve\n"
        "models = [mserve.load(p) for p in sys.argv[2:]]\n"
        "ids = np.arange(int(sys.argv[1]) // 32 * 32).reshape(-1, 32)\n"
        "[m.run({'ids': ids[i : i + 4096]}) for m in models for i in range(0, len(ids), 4096)]\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    versions = [str(base / f"{v:08d}") for v in (1, 2)]
    for title, sets in (
        ("one process, one version", [versions[:1]]),
        ("one process, two versions", [versions]),
        ("two processes, one version", [versions[:1], versions[:1]]),
    ):
        print(f"{title}: {memory(code, rows, sets)}")


def memory(code: str, rows: int, sets: list[list[str]]) -> str:
    """Resident, shared and anonymous memory of processes that have touched every row."""
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(rows), *paths], stdin=-1, stdout=-1, text=True)
        for paths in sets
    ]
    for process in running:
        assert process.stdout is not None
        process.stdout.readline()
    texts = []
    for process in running:
        fields = {}
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]:
            fields[line.split(":")[0]] = int(line.split()[1]) // 1024
        names = {"Rss": "resident", "Pss_File": "its share of files", "Pss_Anon": "anonymous"}
        texts.append(", ".join(f"{text} {fields[key]} MB" for key, text in names.items()))
    for process in running:
        process.communicate("")
    return "; ".join(texts)


def used(path: Path) -> int:
    """Bytes on the disk, files that are linked twice counted once."""
    files = {(s.st_dev, s.st_ino): s.st_size for p in path.rglob("*") if p.is_file() and (s := p.stat())}
    return sum(files.values())


COMMANDS: dict[str, tuple[Callable[[Path, float, int], None], float]] = {
    "load": (load, 1),
    "export": (throughput, 4),
    "cold": (cold, 12),
    "share": (share, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("what", choices=COMMANDS)
    parser.add_argument("--gib", type=float)
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--directory", type=Path, help="where to work; default: a temporary directory")
    options = parser.parse_args()
    command, gib = COMMANDS[options.what]
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        command(Path(directory), options.gib or gib, options.reps)


if __name__ == "__main__":
    main()
