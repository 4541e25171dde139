"""The executor with a real loop, real threads and real models."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx
import pytest
from builders import endless
from onnx import TensorProto, helper, numpy_helper

import mserve
from mserve.batching import executor as executor_module
from mserve.batching.batcher import Batch, Limits
from mserve.batching.executor import Executor
from mserve.batching.outbox import Outbox
from mserve.errors import DeadlineExceeded, ExecutionFailed, InputsRefused, MserveError, Overloaded
from mserve.front import Front, Query
from mserve.loader.servable import Batching, Servable, Stats

DEFAULTS = Limits()


def lookup_model() -> onnx.ModelProto:
    """y = table[i]: an index behind the table's end makes the run fail."""
    table = numpy_helper.from_array(np.arange(20, dtype=np.float32).reshape(10, 2), "table")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "i"], ["y"])],
        "lookup",
        [helper.make_tensor_value_info("i", TensorProto.INT64, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [table],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.fixture
def lookup(tmp_path: Path) -> Servable:
    mserve.export(lookup_model(), tmp_path / "lookup")
    return mserve.load(tmp_path / "lookup")


def on_loop(work: Callable[[Executor, Front], Coroutine[Any, Any, None]], limits: Limits = DEFAULTS) -> None:
    async def main() -> None:
        executor = Executor(limits, workers=2)
        try:
            await work(executor, Front({}, executor))
        finally:
            executor.close()

    asyncio.run(main())


async def ask(front: Front, servable: Servable, requests: list[list[int]]) -> list[Any]:
    """Send all requests in one tick; return what each was answered, in order."""
    loop = asyncio.get_running_loop()
    futures = [loop.create_future() for _ in requests]
    for indices, future in zip(requests, futures, strict=True):
        front.predict(
            servable, Query("serving_default", {"i": np.array(indices, np.int64)}), future.set_result
        )
    return await asyncio.gather(*futures)


def test_requests_of_one_tick_form_one_batch(lookup: Servable) -> None:
    async def work(executor: Executor, front: Front) -> None:
        answers = await ask(front, lookup, [[1], [2, 3], [], [4]])
        for indices, answer in zip([[1], [2, 3], [], [4]], answers, strict=True):
            assert np.array_equal(answer[0], np.array([[2 * i, 2 * i + 1] for i in indices]).reshape(-1, 2))

    on_loop(work)
    assert lookup.stats.rows == 4
    assert lookup.stats.batches == 2  # the request without rows runs by itself
    assert lookup.in_flight == 0


def test_a_bad_request_fails_alone(lookup: Servable) -> None:
    """Its neighbours in the batch get their answers, wherever it stands."""

    async def work(executor: Executor, front: Front) -> None:
        for bad in range(7):
            requests = [[i] for i in range(7)]
            requests[bad] = [99]
            answers = await ask(front, lookup, requests)
            assert isinstance(answers[bad], ExecutionFailed)
            for i in set(range(7)) - {bad}:
                assert answers[i][0].tolist() == [[2.0 * i, 2.0 * i + 1]]

    on_loop(work)
    assert lookup.in_flight == 0


def test_a_short_model_comes_to_run_on_the_loop_itself(lookup: Servable) -> None:
    async def work(executor: Executor, front: Front) -> None:
        for _ in range(50):
            await ask(front, lookup, [[1]])

    on_loop(work)
    assert lookup.stats.inline > 0


def test_queue_times_are_not_negative_when_an_answer_causes_the_next_request(lookup: Servable) -> None:
    """A caller in this process may ask again from within its answer, in the same turn of the loop."""

    seen: list[int] = []

    async def work(executor: Executor, front: Front) -> None:
        finished = asyncio.get_running_loop().create_future()

        def again(_: Any) -> None:
            seen.append(lookup.stats.queue_ns)
            if len(seen) == 300:
                finished.set_result(None)
            else:
                front.predict(lookup, Query("serving_default", {"i": np.array([1], np.int64)}), again)

        again(None)
        await finished

    on_loop(work)
    assert lookup.stats.inline > 0
    assert seen == sorted(seen)


def test_mapped_weights_are_never_read_on_the_loop(lookup: Servable) -> None:
    """A page of a mapped table may have to come from the disk."""
    lookup.predictable = False

    async def work(executor: Executor, front: Front) -> None:
        for _ in range(50):
            await ask(front, lookup, [[1]])

    on_loop(work)
    assert lookup.stats.inline == 0
    assert lookup.stats.batches == 50


@pytest.mark.parametrize("delay_ns", [0, 10_000_000_000])
def test_a_deadline_passes_in_the_queue(lookup: Servable, delay_ns: int) -> None:
    """Whether somebody looks in between or not, what is too late is not run."""

    async def work(executor: Executor, front: Front) -> None:
        front.timeout_ns = 1
        answers = await ask(front, lookup, [[1], [2]])
        assert all(isinstance(a, DeadlineExceeded) for a in answers)

    on_loop(work, Limits(delay_ns=delay_ns))
    assert lookup.stats.rows == 0
    assert lookup.in_flight == 0


def test_a_delay_collects_requests_of_several_ticks(lookup: Servable) -> None:
    async def work(executor: Executor, front: Front) -> None:
        first = asyncio.ensure_future(ask(front, lookup, [[1]]))
        await asyncio.sleep(0.002)
        second = asyncio.ensure_future(ask(front, lookup, [[2]]))
        started = time.monotonic()
        await asyncio.gather(first, second)
        assert time.monotonic() - started >= 0.1

    on_loop(work, Limits(delay_ns=150_000_000))
    assert (lookup.stats.batches, lookup.stats.rows) == (1, 2)


def test_who_has_left_costs_no_run(lookup: Servable) -> None:
    async def work(executor: Executor, front: Front) -> None:
        answered: list[object] = []
        entry = front.predict(lookup, Query("serving_default", {"i": np.array([1])}), answered.append)
        entry.cancelled = True
        await ask(front, lookup, [[2]])
        assert answered == []

    on_loop(work)
    assert lookup.stats.rows == 1
    assert lookup.in_flight == 0


def test_a_model_that_does_not_return_a_row_for_each_row(tmp_path: Path) -> None:
    """It was declared batched by hand, and is not: each request is answered as if alone."""
    graph = helper.make_graph(
        [helper.make_node("Unique", ["x"], ["y"], sorted=1)],
        "unique",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["M"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    toml = tmp_path / "signatures.toml"
    toml.write_text(
        "[signatures.serving_default]\nbatch_axis = 0\n"
        'inputs.x = { tensor = "x" }\noutputs.y = { tensor = "y" }\n'
    )
    mserve.export(model, tmp_path / "unique", signatures=toml, golden=0)
    servable = mserve.load(tmp_path / "unique")

    async def work(executor: Executor, front: Front) -> None:
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Any]] = [loop.create_future() for _ in range(2)]
        for value, future in zip((1.0, 1.0), futures, strict=True):
            front.predict(
                servable, Query("serving_default", {"x": np.array([value], np.float32)}), future.set_result
            )
        for answer in await asyncio.gather(*futures):
            assert answer[0].tolist() == [1.0]

    on_loop(work)


def test_closing_answers_what_waits(lookup: Servable) -> None:
    answers: list[Any] = []

    async def main() -> None:
        executor = Executor(Limits(delay_ns=10_000_000_000), workers=1)
        Front({}, executor).predict(lookup, Query("serving_default", {"i": np.array([1])}), answers.append)
        executor.close()

    asyncio.run(main())
    assert len(answers) == 1
    assert isinstance(answers[0], MserveError)


def test_the_rate_at_which_a_queue_drains_is_learned_only_while_there_is_one() -> None:
    stats, second = Stats(), 1_000_000_000
    stats.drained(10, 1 * second, more=False)
    stats.drained(10, 9 * second, more=True)
    assert stats.expected_wait_ns(100) == 0, "nothing waited between the two, so they tell no rate"
    for tick in range(1, 41):
        stats.drained(10, 9 * second + tick * second // 10, more=True)
    assert stats.expected_wait_ns(50) == pytest.approx(second / 2)
    for tick in range(1, 101):
        stats.drained(1, 13 * second + tick * second // 10, more=True)
    assert stats.expected_wait_ns(50) == pytest.approx(5 * second, rel=0.05), "it follows"


def test_what_cannot_be_answered_in_its_time_is_refused_at_once(lookup: Servable) -> None:
    async def work(executor: Executor, front: Front) -> None:
        lookup.stats.drain_rows, lookup.stats.drain_ns = 10.0, 10e9  # a row a second
        query = Query("serving_default", {"i": np.array([1, 2, 3], np.int64)})
        answered: list[Any] = []
        front.predict(lookup, query, answered.append, timeout_ns=2_000_000_000)
        with pytest.raises(Overloaded, match="too long for the request's time") as caught:
            front.predict(lookup, query, answered.append, timeout_ns=2_000_000_000)
        assert caught.value.retry_after_s == 6, "its own rows take their time, too"
        front.predict(lookup, query, answered.append, timeout_ns=8_000_000_000)
        while len(answered) < 2:
            await asyncio.sleep(0.001)
        assert not any(isinstance(a, MserveError) for a in answered)

    on_loop(work)


def square_model(operator: str = "") -> onnx.ModelProto:
    """y = the sums of the rows of x x^T; with `operator`, one more whose cost depends on values."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "t"], ["p"]),
        helper.make_node("ReduceSum", ["p", "axes"], ["s"], keepdims=0),
    ]
    weights = [numpy_helper.from_array(np.array([1], np.int64), "axes")]
    if operator:
        weights.append(numpy_helper.from_array(np.array([1, 1], np.int64), "ones"))
        nodes.append(helper.make_node(operator, ["s", "ones"], ["y"]))
    else:
        nodes.append(helper.make_node("Identity", ["s"], ["y"]))
    ports = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "n", 1]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "n"]),
    ]
    graph = helper.make_graph(nodes, "square", ports[:1], ports[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize(
    ("what", "operator", "inline"),
    [
        ("a size that was never seen is not run on the loop", "", True),
        ("nor is a cost that depends on values", "Tile", False),
    ],
)
def test_only_what_is_known_to_be_short_runs_on_the_loop(
    tmp_path: Path, what: str, operator: str, inline: bool
) -> None:
    mserve.export(square_model(operator), tmp_path / "square", golden=0)
    servable = mserve.load(tmp_path / "square")

    async def ask_one(front: Front, size: int) -> bool:
        """Whether a request was run on the loop."""
        before = servable.stats.inline
        answer = asyncio.get_running_loop().create_future()
        query = Query("serving_default", {"x": np.ones((1, size, 1), np.float32)})
        front.predict(servable, query, answer.set_result)
        assert (await answer)[0].tolist() == [[size] * size], what
        return servable.stats.inline > before

    async def work(executor: Executor, front: Front) -> None:
        small = [await ask_one(front, 4) for _ in range(300)]
        assert any(small) == inline
        assert not await ask_one(front, 1000)

    on_loop(work)


@pytest.mark.parametrize(
    ("why", "read_s", "inline"),
    [
        ("50 ms are long for a tick that brought one request", 0, False),
        ("and a fifth of one that took 250 ms to read its requests", 0.25, True),
    ],
)
def test_a_tick_may_run_a_share_of_what_it_took_to_read(
    lookup: Servable, why: str, read_s: float, inline: bool
) -> None:
    async def work(executor: Executor, front: Front) -> None:
        ran: list[Batch] = []
        executor.on_batch = lambda batch, run_ns, error: ran.append(batch)
        await ask(front, lookup, [[1]])
        ran[0].times.inline[1] = 50e6
        asking = asyncio.ensure_future(ask(front, lookup, [[1]]))
        asyncio.get_running_loop().call_soon(time.sleep, read_s)
        await asking
        assert ran[1].inline == inline, why

    on_loop(work)


def test_while_all_workers_are_busy_the_loop_sleeps(
    lookup: Servable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits is looked at when a worker is free again, not in every turn until then."""
    looks = 0

    def slow(batch: Batch) -> list[list[np.ndarray]]:
        time.sleep(0.2)
        return [[np.zeros((entry.rows, 2), np.float32)] for entry in batch.entries]

    async def work(executor: Executor, front: Front) -> None:
        nonlocal looks
        next_batch = executor.batcher.next_batch

        def looked(*args: Any, **kwargs: Any) -> Batch | None:
            nonlocal looks
            looks += 1
            return next_batch(*args, **kwargs)

        monkeypatch.setattr(executor.batcher, "next_batch", looked)
        await asyncio.gather(*(ask(front, lookup, [[i]]) for i in range(4)))

    monkeypatch.setattr(executor_module, "run_batch", slow)
    on_loop(work, Limits(max_batch_rows=1))
    assert looks < 30


def test_a_run_that_nobody_waits_for_any_more_is_ended(tmp_path: Path) -> None:
    """Two runs without an end take both workers; when their time is over, others are answered again."""
    mserve.export(endless(), tmp_path / "endless", golden=0)
    servable = mserve.load(tmp_path / "endless")

    async def work(executor: Executor, front: Front) -> None:
        loop = asyncio.get_running_loop()

        def send(turns: int, timeout_ns: int) -> asyncio.Future[Any]:
            answer = loop.create_future()
            query = Query("serving_default", {"x": np.array([turns], np.int64)})
            front.predict(servable, query, answer.set_result, timeout_ns=timeout_ns)
            return answer

        late = [send(2**60, 200_000_000) for _ in range(2)]
        for answer in late:
            assert isinstance(await answer, DeadlineExceeded)
        good = await asyncio.wait_for(send(3, 20_000_000_000), 20)
        assert good[0].tolist() == [3]
        assert servable.in_flight <= 2

    on_loop(work)
    servable.close()


def test_an_answer_that_cannot_be_taken_is_not_its_neighbours_business(lookup: Servable) -> None:
    async def work(executor: Executor, front: Front) -> None:
        def refuse(_: Any) -> None:
            raise OSError("no such directory")

        answers: list[Any] = []
        for reply in (answers.append, refuse, answers.append):
            front.predict(lookup, Query("serving_default", {"i": np.array([1], np.int64)}), reply)
        while len(answers) < 2:
            await asyncio.sleep(0.001)
        assert lookup.in_flight == 0

    on_loop(work)


def test_a_row_that_makes_the_model_answer_nan_is_not_its_neighbours_problem(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Sqrt", ["x"], ["y"])],
        "root",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    mserve.export(model, tmp_path / "root")
    servable = mserve.load(tmp_path / "root")

    async def work(executor: Executor, front: Front) -> None:
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Any]] = [loop.create_future() for _ in range(5)]
        for value, future in zip((1, -1, 4, np.nan, 9), futures, strict=True):
            x = np.array([value], np.float32)
            front.predict(servable, Query("serving_default", {"x": x}), future.set_result)
        found = [answer[0].tolist()[0] for answer in await asyncio.gather(*futures)]
        assert found == pytest.approx([1, np.nan, 2, np.nan, 3], nan_ok=True)

    on_loop(work)
    assert servable.stats.batches == 1


def rows_of(indices: list[int]) -> np.ndarray:
    return np.array([[2 * i, 2 * i + 1] for i in indices], np.float32)


def test_a_batch_is_filled_up_to_an_allowed_size(lookup: Servable) -> None:
    """The model sees allowed sizes only; answers have the rows that were asked for."""
    seen: list[list[int]] = []
    compute = lookup.compute

    def spy(signature: str, inputs: Any, options: Any = None, **more: Any) -> Any:
        seen.append(inputs["i"].tolist())
        return compute(signature, inputs, options, **more)

    lookup.compute = spy  # type: ignore[method-assign]

    async def work(executor: Executor, front: Front) -> None:
        for requests in ([[1]], [[1], [2, 3]], [[1], [2, 3], [4, 5]], [[1, 2, 3, 4, 5, 6, 7]]):
            answers = await ask(front, lookup, requests)
            for indices, answer in zip(requests, answers, strict=True):
                assert np.array_equal(answer[0], rows_of(indices))

    on_loop(work, Limits(8, allowed=(2, 4, 8)))
    assert seen == [[1, 1], [1, 2, 3, 3], [1, 2, 3, 4, 5, 5, 5, 5], [1, 2, 3, 4, 5, 6, 7, 7]]
    assert (lookup.stats.rows, lookup.stats.padding) == (1 + 3 + 5 + 7, 1 + 1 + 3 + 1)


def test_a_large_request_is_run_in_parts_and_joined_in_order(lookup: Servable) -> None:
    async def work(executor: Executor, front: Front) -> None:
        large = [i % 10 for i in range(50)]
        answers = await ask(front, lookup, [[1], large, [2]])
        for asked, answer in zip(([1], large, [2]), answers, strict=True):
            assert np.array_equal(answer[0], rows_of(asked))
        assert len(answers[1][0]) == 50

    on_loop(work, Limits(4))
    assert lookup.stats.rows == 52
    assert lookup.stats.batches == 14
    assert lookup.in_flight == 0


def test_a_part_that_fails_fails_its_request_once_and_nobody_else(lookup: Servable) -> None:
    async def work(executor: Executor, front: Front) -> None:
        bad = [1] * 19 + [99, 1]
        answers = await ask(front, lookup, [[1], bad, [2]])
        assert isinstance(answers[1], ExecutionFailed)  # a second answer would fail set_result
        assert np.array_equal(answers[0][0], rows_of([1]))
        assert np.array_equal(answers[2][0], rows_of([2]))
        while not executor.idle():
            await asyncio.sleep(0.001)

    on_loop(work, Limits(4))
    assert lookup.in_flight == 0


def test_the_parts_of_a_request_whose_client_has_left_are_not_run(lookup: Servable) -> None:
    async def work(executor: Executor, front: Front) -> None:
        query = Query("serving_default", {"i": np.zeros(50, np.int64)})
        entry = front.predict(lookup, query, lambda result: pytest.fail("nobody waits"))
        assert lookup.in_flight == 1
        entry.cancelled = True
        await ask(front, lookup, [[2]])

    on_loop(work, Limits(4))
    assert lookup.stats.rows == 1
    assert lookup.in_flight == 0


def test_each_batch_is_told_of_once(lookup: Servable) -> None:
    """With why it closed, who was in it, and how it ended; a listener that fails harms nobody."""
    told: list[tuple[Any, ...]] = []

    async def work(executor: Executor, front: Front) -> None:
        def note(batch: Any, run_ns: int, error: MserveError | None) -> None:
            told.append((batch.reason, [e.rows for e in batch.entries], batch.padding, type(error)))
            assert run_ns >= 0
            assert batch.entries[0].servable is lookup
            assert all(0 < e.arrived_ns <= e.started_ns <= e.ended_ns for e in batch.entries)
            raise RuntimeError("a listener with a mistake")

        executor.on_batch = note
        await ask(front, lookup, [[1], [2, 3], [4], [5], []])
        await ask(front, lookup, [[1], [99]])
        while not executor.idle():
            await asyncio.sleep(0.001)

    on_loop(work, Limits(4, allowed=(2, 4)))
    assert sorted(map(str, told)) == sorted(
        map(
            str,
            [
                ("full", [1, 2, 1], 0, type(None)),
                ("no-delay", [1], 1, type(None)),
                ("alone", [0], 0, type(None)),
                ("no-delay", [1, 1], 0, InputsRefused),
                ("bisect", [1], 1, type(None)),
                ("bisect", [1], 1, InputsRefused),
            ],
        )
    )


def test_a_request_that_would_miss_its_deadline_does_not_wait_for_others(lookup: Servable) -> None:
    """A run seems to take 2 s, so with 5 s to go the batch closes after half of them, not when it is due."""
    reasons: list[str] = []

    async def work(executor: Executor, front: Front) -> None:
        def note(batch: Any, run_ns: int, error: MserveError | None) -> None:
            reasons.append(batch.reason)
            executor.batcher.ran(batch, 2_000_000_000)

        executor.on_batch = note
        query = Query("serving_default", {"i": np.array([1], np.int64)})
        lookup.batching = Batching()
        await ask(front, lookup, [[1]])
        lookup.batching = Batching(delay_ns=20_000_000_000)
        patient = asyncio.ensure_future(ask(front, lookup, [[2]]))
        await asyncio.sleep(0.01)
        answered = asyncio.get_running_loop().create_future()
        front.predict(lookup, query, answered.set_result, timeout_ns=5_000_000_000)
        assert not isinstance(await answered, MserveError)
        assert not isinstance((await patient)[0], MserveError)

    on_loop(work)
    assert reasons == ["no-delay", "deadline"]


def runs_beside_a_busy_loop(servable: Servable, ticks: int) -> int:
    """How many runs a worker ends while the loop is never idle, in so many turns of 0.1 ms."""
    uvloop = pytest.importorskip("uvloop")
    query = Query("serving_default", {"x": builders.floats(64, 784)})
    done: list[Any] = []

    async def main() -> None:
        executor = Executor(Limits(), workers=2)
        front, loop = Front({}, executor), asyncio.get_running_loop()
        left, finished = ticks, loop.create_future()

        def again(result: Any) -> None:
            done.append(result)
            if left:
                front.predict(servable, query, again)

        def tick() -> None:
            nonlocal left
            left -= 1
            until = time.perf_counter_ns() + 100_000
            while time.perf_counter_ns() < until:
                pass
            if left:
                loop.call_soon(tick)
            else:
                finished.set_result(None)

        again(None)
        tick()
        await finished
        executor.close()

    uvloop.run(main())
    return len(done)


def test_a_loop_that_is_never_idle_makes_way_for_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a run ends, a worker needs Python's lock, which such a loop hands over every 5 ms at best."""
    servable = mserve.load(mserve.export(builders.mlp(hidden=2048), tmp_path / "m", golden=0).path)
    servable.predictable = False
    better = runs_beside_a_busy_loop(servable, 3000)
    monkeypatch.setattr(executor_module, "MAKE_WAY_NS", 1 << 62)
    assert better > runs_beside_a_busy_loop(servable, 3000)
    servable.close()


def test_a_request_that_has_the_machine_to_itself_may_use_all_of_it(lookup: Servable) -> None:
    """Runs at the same time are cheaper with a thread each."""

    class Engine:
        """What has the threads for a run alone, and counts how often that was used."""

        runs = 0
        threads = 2

        def run(self, *arguments: Any) -> Any:
            Engine.runs += 1
            return lookup._sessions["serving_default"].run(*arguments)

    async def work(executor: Executor, front: Front) -> None:
        def send() -> asyncio.Future[Any]:
            answer = asyncio.get_running_loop().create_future()
            front.predict(lookup, Query("serving_default", {"i": np.array([1], np.int64)}), answer.set_result)
            return answer

        lookup.predictable, lookup._wide = False, {"serving_default": Engine()}  # type: ignore[dict-item]
        await send()
        assert Engine.runs == 1
        await asyncio.gather(*(send() for _ in range(8)))
        assert Engine.runs == 1, "a batch of several requests has a thread"

    try:
        on_loop(work)
    finally:
        lookup.predictable, lookup._wide = True, {}


class Socket:
    """Notes what is written to it, or fails."""

    def __init__(self, log: list[bytes], error: Exception | None = None) -> None:
        self.log, self.error = log, error

    def write(self, data: bytes) -> None:
        if self.error is not None:
            raise self.error
        self.log.append(data)


def test_the_answers_of_a_batch_are_written_together_when_all_are_made() -> None:
    log: list[bytes] = []
    outbox = Outbox()
    with outbox:
        for i, error in enumerate((None, OSError("gone"), None)):
            outbox.write(Socket(log, error), b"answer %d" % i)
            assert log == []
    assert log == [b"answer 0", b"answer 2"], "in their order, whatever becomes of one"
    outbox.write(Socket(log), b"alone")
    assert log[-1] == b"alone"


def test_what_goes_wrong_in_making_answers_keeps_none_back() -> None:
    log: list[bytes] = []
    outbox = Outbox()
    try:
        with outbox:
            outbox.write(Socket(log), b"made")
            raise KeyError
    except KeyError:
        pass
    outbox.write(Socket(log), b"next")
    assert log == [b"made", b"next"]
