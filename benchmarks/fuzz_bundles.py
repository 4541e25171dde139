"""Damage valid bundles at random and use them in every way; nothing may happen but a BundleError.

    python benchmarks/fuzz_bundles.py --minutes 30

Each round copies a bundle, damages one of its files (often with the digests made right
again, so that the damage gets past them), and opens, inspects, loads, runs and validates
it. Rounds run in child processes, so that a crash, a hang (over --timeout seconds) or
memory over --memory MB is seen and reported with the seed that caused it. Exit 1 if
anything but an orderly error happened.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing as mp
import random
import resource
import shutil
import struct
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import mserve
from mserve.errors import MserveError
from mserve.format.metagraph import TRAILER_BYTES, seal

BATCH = 40


def source() -> onnx.ModelProto:
    """A model with a table, a dense part, text, a subgraph and a small constant."""
    inner = helper.make_graph(
        [helper.make_node("Add", ["h", "k"], ["o"])],
        "inner",
        [],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.float32(1), "k")],
    )
    other = onnx.GraphProto()
    other.CopyFrom(inner)
    other.node[0].output[0] = other.output[0].name = "p"
    other.node[0].input[1] = other.initializer[0].name = "m"
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("MatMul", ["e", "W"], ["h"]),
        helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=other),
        helper.make_node("Gather", ["names", "ids"], ["name"]),
    ]
    rng = np.random.default_rng(0)
    graph = helper.make_graph(
        nodes,
        "fuzz",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["N"])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 32]),
            helper.make_tensor_value_info("name", TensorProto.STRING, ["N"]),
        ],
        [
            numpy_helper.from_array(rng.random((400, 64), np.float32), "table"),
            numpy_helper.from_array(rng.random((64, 32), np.float32), "W"),
            numpy_helper.from_array(np.array(True), "yes"),
            numpy_helper.from_array(np.array([f"name {i}" for i in range(400)], object), "names"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def damage(data: bytes, rng: random.Random) -> bytes:
    """One to four changes: flipped bits, other bytes, cuts, doubled or moved pieces, odd numbers."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(7)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at : at + 1] = bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))])
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            del out[at : at + rng.choice((1, 4, 64, 1024))]
        elif kind == 4:
            piece = out[at : at + rng.choice((1, 8, 200, 4000))]
            out[at:at] = piece * rng.choice((1, 2, 50))
        elif kind == 5:
            out[at : at + 8] = struct.pack("<q", rng.choice((0, -1, 2**31, 2**40, 2**62, 4096)))
        else:
            text = rng.choice((b"../../etc/passwd", b"/dev/zero", b"export-00000-of-00001", b"[" * 3000))
            out[at : at + rng.choice((0, len(text)))] = text
    return bytes(out)


def reseal(meta: bytes, rng: random.Random) -> bytes:
    """`export.meta` with its digests right again, as far as it can still be read."""
    body = meta[:-TRAILER_BYTES] if len(meta) > TRAILER_BYTES else meta
    try:
        return seal(body) if rng.random() < 0.3 else body + trailer(body)
    except ValueError:
        return body + trailer(body)


def trailer(body: bytes) -> bytes:
    return b"\x72\x51\x0a\x0dmserve.sha256\x12\x40" + hashlib.sha256(body).hexdigest().encode()


def one_round(bundle: Path, seed: int) -> str:
    """Damage a copy and use it; returns what became of it."""
    rng = random.Random(seed)
    names = ["export.meta"] * 6 + ["export-00000-of-00001"] * 2 + ["assets/mserve/golden.npz"]
    name = rng.choice(names)
    target = bundle / name
    original = target.read_bytes()
    changed = damage(original, rng)
    if name == "export.meta" and rng.random() < 0.8:
        changed = reseal(changed, rng)
    if name != "export.meta" and rng.random() < 0.7:  # keep the size, which is checked first
        changed = changed[: len(original)].ljust(len(original), b"\0")
    try:
        target.write_bytes(changed)
        return use(bundle)
    finally:
        target.write_bytes(original)


def use(bundle: Path) -> str:
    from mserve.checks import validate
    from mserve.commands.inspect import describe
    from mserve.format import open_bundle

    try:
        opened = open_bundle(bundle)
        describe(opened)
        validate(opened, full=True)
        servable = mserve.load(bundle)
        servable.run(servable.example())
        servable.close()
    except MserveError as error:
        return type(error).__name__
    return "used"


def child(bundle: str, first: int, results: mp.Queue[tuple[int, str]]) -> None:
    """A batch of rounds in a copy of its own."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "00000001"
        shutil.copytree(bundle, copy)
        for path in copy.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        for seed in range(first, first + BATCH):
            results.put((seed, "started"))
            try:
                results.put((seed, one_round(copy, seed)))
            except BaseException:
                results.put((seed, "UNEXPECTED " + traceback.format_exc()))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        results.put((-1, f"peak {peak}"))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--timeout", type=float, default=60, help="seconds for a batch of rounds")
    parser.add_argument("--memory", type=int, default=1000, help="MB")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    bad: list[str] = []
    peak = 0
    end = time.monotonic() + options.minutes * 60
    spawn = mp.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        bundle = mserve.export(source(), Path(directory) / "base", golden=3).path
        seed = options.seed
        while time.monotonic() < end:
            results: mp.Queue[tuple[int, str]] = spawn.Queue()
            process = spawn.Process(target=child, args=(str(bundle), seed, results))
            process.start()
            last, finished, deadline = seed, False, time.monotonic() + options.timeout
            while not finished and time.monotonic() < deadline:
                try:
                    last, what = results.get(timeout=0.2)
                except Exception:
                    if not process.is_alive():
                        break
                    continue
                if last == -1:
                    finished, peak = True, max(peak, int(what.split()[1]))
                elif what.startswith("UNEXPECTED"):
                    bad.append(f"seed {last}: {what}")
                elif what != "started":
                    counts[what] += 1
            if not finished:
                state = "hung" if process.is_alive() else f"died with {process.exitcode}"
                bad.append(f"seed {last}: {state}")
                process.kill()
            process.join()
            seed += BATCH
    print(f"{counts.total()} rounds in {options.minutes:g} minutes, seeds {options.seed} to {seed}")
    for what, count in counts.most_common():
        print(f"  {count:7}  {what}")
    print(f"peak memory of a child: {peak} MB")
    for text in bad[:20]:
        print(text)
    print("nothing unexpected" if not bad and peak < options.memory else f"{len(bad)} unexpected")
    return 1 if bad or peak >= options.memory else 0


if __name__ == "__main__":
    raise SystemExit(main())
