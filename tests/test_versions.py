"""The reconciler at work: real bundles, a real loop; labels, policies and configurations that change."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import builders
import pytest

import mserve
from mserve.errors import ModelRefused, NotFound, RequestError, Unavailable
from mserve.format.layout import versions
from mserve.front import Front
from mserve.loader import reconciler
from mserve.loader.plan import ModelConfig, Policy
from mserve.loader.reconciler import Model, Reconciler
from mserve.loader.servable import Servable, State, load
from mserve.server.base_paths import models_in
from mserve.server.calls import Calls
from mserve.server.metrics import Metrics
from mserve.server.oip import Oip
from mserve.server.tfs_pages import status_json
from mserve.wire.context import Context

Work = Callable[[Reconciler], Awaitable[None]]


def publish(base: Path, version: int) -> Path:
    """A version that answers with its own number."""
    return mserve.export(builders.constant(version), base, version=version, golden=0).path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A base path with the versions 1, 2 and 3."""
    for version in (1, 2, 3):
        publish(tmp_path / "m", version)
    return tmp_path / "m"


def run(configs: list[ModelConfig], work: Work, opener: Callable[[Path, str], Servable] = load) -> None:
    """Look after the models while `work` is done."""

    async def main() -> None:
        keeper = Reconciler(configs, opener=opener, poll_s=0.02)
        keeper.start()
        try:
            await asyncio.wait_for(work(keeper), 30)
        finally:
            await keeper.close()

    asyncio.run(main())


async def until(holds: Callable[[], object]) -> None:
    while not holds():
        await asyncio.sleep(0.005)


def serving(model: Model) -> list[int]:
    return sorted(model.available)


def config(base: Path, policy: Policy | None = None, **rest: Any) -> ModelConfig:
    return ModelConfig("m", base, policy or Policy(), **rest)


@pytest.mark.parametrize(
    ("what", "policy", "expected"),
    [
        ("the newest", Policy(), [3]),
        ("the two newest", Policy(2), [2, 3]),
        ("all", Policy(0), [1, 2, 3]),
        ("exactly these", Policy(versions=(1, 3)), [1, 3]),
        ("exactly these, of which one is not there", Policy(versions=(2, 9)), [2]),
    ],
)
def test_policies(store: Path, what: str, policy: Policy, expected: list[int]) -> None:
    async def work(keeper: Reconciler) -> None:
        model = keeper.models["m"]
        await until(lambda: serving(model) == expected)
        assert ("9 is not there" in model.problem) == (9 in policy.versions), what

    run([config(store, policy)], work)


def test_a_label_loads_its_version_moves_when_the_next_can_answer_and_rolls_back(store: Path) -> None:
    async def work(keeper: Reconciler) -> None:
        model, front = keeper.models["m"], Front(keeper.models, None)  # type: ignore[arg-type]
        await until(lambda: model.labels == {"stable": 1} and serving(model) == [1, 3])
        assert front.resolve("m", label="stable").version == 1
        assert front.resolve("m").version == 3

        keeper.configure([config(store, labels={"stable": 4})])
        await asyncio.sleep(0.1)
        assert front.resolve("m", label="stable").version == 1, "4 is not there yet"
        publish(store, 4)
        await until(lambda: model.labels == {"stable": 4})
        await until(lambda: serving(model) == [4])
        keeper.configure([config(store, labels={"stable": 2})])
        await until(lambda: model.labels == {"stable": 2})
        with pytest.raises(RequestError, match="Unrecognized servable version label: canary"):
            front.resolve("m", label="canary")

    run([config(store, labels={"stable": 1})], work)


def test_the_default_label_answers_requests_that_name_no_version(store: Path) -> None:
    async def work(keeper: Reconciler) -> None:
        model, front = keeper.models["m"], Front(keeper.models, None)  # type: ignore[arg-type]
        await until(lambda: model.default)
        keeper.configure([config(store, labels={"default": 1})])
        assert front.resolve("m").version == 3, "until 1 is loaded, what answered goes on"
        await until(lambda: front.resolve("m").version == 1)
        publish(store, 9)
        await until(lambda: 9 in model.available)
        assert front.resolve("m").version == 1
        keeper.configure([config(store)])
        await until(lambda: front.resolve("m").version == 9)

    run([config(store)], work)


def test_a_pinned_version_that_is_absent_is_not_replaced_by_another(store: Path) -> None:
    async def work(keeper: Reconciler) -> None:
        model, front = keeper.models["m"], Front(keeper.models, None)  # type: ignore[arg-type]
        await until(lambda: model.available)
        with pytest.raises(Unavailable, match="names version 7; version 7 is not in"):
            front.resolve("m")

    run([config(store, labels={"default": 7})], work)


def test_a_broken_version_is_tried_once_and_again_when_its_files_change(store: Path) -> None:
    tries: list[Path] = []

    def opener(path: Path, device: str) -> Servable:
        if path.name == "00000003":
            tries.append(path)
            if len(tries) == 1:
                raise ModelRefused("no such operator")
        return load(path)

    async def work(keeper: Reconciler) -> None:
        model = keeper.models["m"]
        await until(lambda: serving(model) == [2])
        await asyncio.sleep(0.3)
        assert model.slots[3].state is State.FAILED
        assert len(tries) == 1, "an error that cannot go away is not tried again"
        (store / "00000003" / "note").write_text("mended")
        await until(lambda: serving(model) == [3])

    run([config(store)], work, opener)


def test_what_may_go_away_is_tried_again_later_and_later(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler, "RETRY_FIRST_NS", 20_000_000)
    times: list[float] = []

    def opener(path: Path, device: str) -> Servable:
        if path.name == "00000003" and len(times) < 3:
            times.append(time.monotonic())
            raise MemoryError("not enough memory")
        return load(path)

    async def work(keeper: Reconciler) -> None:
        await until(lambda: serving(keeper.models["m"]) == [3])
        assert times[1] - times[0] >= 0.02
        assert times[2] - times[1] >= 0.04

    run([config(store)], work, opener)


def test_unload_first_never_holds_two_versions(store: Path) -> None:
    loaded: list[Servable] = []
    most = 0

    def opener(path: Path, device: str) -> Servable:
        nonlocal most
        alive = [s for s in loaded if s._sessions]
        most = max(most, len(alive) + 1)
        loaded.append(load(path))
        return loaded[-1]

    async def work(keeper: Reconciler) -> None:
        model = keeper.models["m"]
        await until(lambda: serving(model) == [3])
        half = publish(store.parent / "other", 4)
        shutil.copytree(half, store / "00000004", ignore=lambda _, names: [n for n in names if "-of-" in n])
        await asyncio.sleep(0.2)
        assert serving(model) == [3], "half a copy is no reason to let go of what serves"
        shutil.copytree(half, store / "00000004", dirs_exist_ok=True)
        await until(lambda: serving(model) == [4])

    run([config(store, unload_first=True)], work, opener)
    assert most == 1


def test_a_version_renamed_away_drains(store: Path) -> None:
    async def work(keeper: Reconciler) -> None:
        model = keeper.models["m"]
        await until(lambda: serving(model) == [3])
        (store / "00000003").rename(store.parent / "gone")
        await until(lambda: serving(model) == [2])
        await until(lambda: 3 not in model.slots)

    run([config(store)], work)


def test_models_come_and_go_with_the_configuration(store: Path, tmp_path: Path) -> None:
    publish(tmp_path / "n", 5)
    other = ModelConfig("n", tmp_path / "n")

    async def work(keeper: Reconciler) -> None:
        await until(lambda: keeper.models["m"].available)
        keeper.configure([config(store), other])
        await until(lambda: keeper.models["n"].available)
        servable = keeper.models["m"].available[3]
        servable.in_flight = 1
        keeper.configure([other])
        await until(lambda: not keeper.models["m"].available)
        with pytest.raises(Unavailable):
            Front(keeper.models, None).resolve("m")  # type: ignore[arg-type]
        await asyncio.sleep(0.1)
        assert "m" in keeper.models, "a request is still under way"
        servable.in_flight = 0
        await until(lambda: "m" not in keeper.models)
        with pytest.raises(NotFound):
            Front(keeper.models, None).resolve("m")  # type: ignore[arg-type]
        keeper.configure([config(store), other])
        await until(lambda: "m" in keeper.models and serving(keeper.models["m"]) == [3])

    run([config(store)], work)


def test_another_base_path_takes_over_without_a_gap(store: Path, tmp_path: Path) -> None:
    async def work(keeper: Reconciler) -> None:
        model = keeper.models["m"]
        await until(lambda: serving(model) == [3])
        keeper.configure([config(tmp_path / "later")])
        await asyncio.sleep(0.1)
        assert serving(model) == [3], "nothing there yet"
        publish(tmp_path / "later", 3)
        old = model.available[3]
        await until(lambda: model.available[3] is not old)
        await until(lambda: not old._sessions)
        assert not model.retired

    run([config(store)], work)


def slow_opener(*slow: Path) -> tuple[Callable[[Path, str], Servable], threading.Event]:
    """A loader that keeps some versions waiting until the event is set."""
    go = threading.Event()

    def opener(path: Path, device: str) -> Servable:
        if path in slow:
            assert go.wait(20)
        return load(path)

    return opener, go


@pytest.mark.parametrize("label", ["default", "stable"])
def test_a_label_keeps_its_retired_version_until_the_new_base_path_has_its_own(
    store: Path, tmp_path: Path, label: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests for the label, and those without one, are answered all the time."""
    caplog.set_level("INFO", "mserve")
    later = tmp_path / "later"
    opener, go = slow_opener(publish(later, 4))
    publish(later, 9)
    labels = {label: 1}

    async def work(keeper: Reconciler) -> None:
        model, front = keeper.models["m"], Front(keeper.models, None)  # type: ignore[arg-type]
        await until(lambda: model.labels == labels and serving(model) == [1, 3])
        keeper.configure([config(later, labels={label: 4})])
        while 9 not in model.available:
            assert front.resolve("m", label=label).version == 1
            assert model.default
            await asyncio.sleep(0)
        await until(lambda: serving(model) == [1, 9])
        await asyncio.sleep(0.1)
        assert front.resolve("m", label=label).version == 1
        assert front.resolve("m").version == (1 if label == "default" else 9)
        assert model.labels_waiting() == {label: "version 4 is loading"}
        go.set()
        while model.labels[label] == 1:
            assert front.resolve("m", label=label).version == 1
            await asyncio.sleep(0)
        assert front.resolve("m", label=label).version == 4
        assert model.labels_waiting() == {}
        await until(lambda: not model.retired)
        assert f"m: label {label}: 1 -> 4" in caplog.text

    run([config(store, labels=labels)], work, opener)


def test_one_number_in_two_base_paths_is_two_versions(store: Path, tmp_path: Path) -> None:
    """The label goes on with the old version 1 until the new version 1 can answer."""
    later = tmp_path / "later"
    opener, go = slow_opener(publish(later, 1))
    publish(later, 9)

    async def work(keeper: Reconciler) -> None:
        model = keeper.models["m"]
        await until(lambda: serving(model) == [1, 3])
        old = model.available[1]
        keeper.configure([config(later, labels={"stable": 1})])
        await until(lambda: serving(model) == [1, 9])
        assert model.available[1] is old
        go.set()
        await until(lambda: model.available[1] is not old)
        await until(lambda: not old._sessions)

    run([config(store, labels={"stable": 1})], work, opener)


def test_a_label_that_cannot_be_followed_is_said_once(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def work(keeper: Reconciler) -> None:
        model = keeper.models["m"]
        await until(lambda: model.complained)
        await asyncio.sleep(0.1)
        said = [r.getMessage() for r in caplog.records if "label canary waits" in r.getMessage()]
        assert said == [f"m: label canary waits: version 8 is not in {store}"]
        assert status_json(model, [])["labels_waiting"] == {"canary": f"version 8 is not in {store}"}
        publish(store, 8)
        await until(lambda: model.labels.get("canary") == 8)
        assert "labels_waiting" not in status_json(model, [])

    run([config(store, labels={"canary": 8})], work)


def test_another_configuration_does_not_undo_what_a_client_unloaded(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "mserve")

    async def work(keeper: Reconciler) -> None:
        model = keeper.models["m"]
        await until(lambda: model.available)
        keeper.set_wanted("m", False)
        await until(lambda: not model.slots)
        keeper.configure([config(store, Policy(2))])
        await asyncio.sleep(0.1)
        assert not model.slots
        assert status_json(model, [])["problem"] == "it was unloaded"
        keeper.configure([])
        await until(lambda: "m" not in keeper.models)
        keeper.configure([config(store)])
        await until(lambda: keeper.models["m"].available)
        assert "m: unloaded by a client's call" in caplog.text

    run([config(store)], work)


@pytest.mark.parametrize("held_s", [0.0, 0.3])
def test_a_load_waits_for_the_drain_that_an_unload_began(store: Path, held_s: float) -> None:
    async def work(keeper: Reconciler) -> None:
        model = keeper.models["m"]
        await until(lambda: model.available)
        servable = model.available[3]
        servable.in_flight = 1
        context = Context(time.monotonic_ns(), admin=True)
        protocol = Oip(_calls(keeper), keeper, list)
        await protocol.unload("m", context)
        assert not model.available
        asyncio.get_running_loop().call_later(held_s, setattr, servable, "in_flight", 0)
        await protocol.load("m", {}, context)
        assert model.default is not None
        assert (model.default.version, model.default is servable) == (3, False)

    run([config(store)], work)


def _calls(keeper: Reconciler) -> Calls:
    return Calls(Front(keeper.models, None), Metrics(keeper.models, lambda _: 0))  # type: ignore[arg-type]


def test_an_entry_that_cannot_be_looked_at_is_passed_over(store: Path, tmp_path: Path) -> None:
    """A link to itself raises where others are only no directories."""
    (store / "00000009").symlink_to("00000009")
    (tmp_path / "loop").symlink_to("loop")
    assert sorted(versions(store)) == [1, 2, 3]
    assert models_in(tmp_path) == ({"m": store}, [])


def test_unloaded_by_hand_stays_unloaded_until_it_is_loaded_again(store: Path) -> None:
    async def work(keeper: Reconciler) -> None:
        model = keeper.models["m"]
        await until(lambda: model.available)
        keeper.set_wanted("m", False)
        await until(lambda: not model.slots)
        publish(store, 8)
        await asyncio.sleep(0.1)
        assert not model.slots
        assert model.why_unavailable() == "it was unloaded"
        keeper.set_wanted("m", True)
        await until(lambda: serving(model) == [8])

    run([config(store)], work)


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A base path whose listing does not come back before the test is over."""
    over, stuck, scan = threading.Event(), Path("/stuck"), reconciler.scan

    def slow(base: Path) -> Any:
        if base == stuck:
            over.wait(30)
        return scan(base)

    monkeypatch.setattr(reconciler, "scan", slow)
    yield stuck
    over.set()


def test_a_base_path_that_hangs_holds_up_nobody(store: Path, hanging: Path) -> None:
    async def work(keeper: Reconciler) -> None:
        await until(lambda: serving(keeper.models["m"]) == [3])
        publish(store, 4)
        await until(lambda: serving(keeper.models["m"]) == [4])
        assert not keeper.models["stuck"].available

    run([ModelConfig("stuck", hanging), config(store)], work)
