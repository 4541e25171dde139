"""What the reconciler decides: tables of what is on the disk and what is loaded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto

import mserve
from mserve.errors import NotABundle
from mserve.format import open_bundle
from mserve.loader.plan import Action, ModelConfig, Policy, Slot, follow, plan
from mserve.loader.reconciler import Reconciler
from mserve.loader.servable import State
from mserve.loader.source import Candidate, scan

LATER = 10**9


def disk(*versions: int) -> dict[int, Candidate]:
    return {v: Candidate(Path(str(v)), (("f", v, 0, 0),)) for v in versions}


def slots(**states: str) -> dict[int, Slot]:
    """`v1="available"`: files as on the disk; a failed or waiting version is due LATER."""
    found = {}
    for name, state in states.items():
        version = int(name[1:])
        found[version] = Slot(
            version, Path(str(version)), State(state), fingerprint=(("f", version, 0, 0),), retry_at_ns=LATER
        )
    return found


def config(latest: int) -> ModelConfig:
    return ModelConfig("m", Path(), Policy(latest))


def load(v: int) -> Action:
    return Action("load", v)


CASES = [
    ("an empty server loads the newest", disk(1, 2, 3), slots(), 1, 0, [load(3)]),
    ("two of the newest, newest first", disk(1, 2, 3), slots(), 2, 0, [load(3), load(2)]),
    ("nothing to do", disk(1, 2), slots(v2="available"), 1, 0, []),
    ("a new version is loaded before the old one goes", disk(1, 2), slots(v1="available"), 1, 0, [load(2)]),
    ("while the new one loads, the old one stays", disk(1, 2), slots(v1="available", v2="loading"), 1, 0, []),
    ("then the old one goes", disk(1, 2), slots(v1="available", v2="available"), 1, 0, [Action("unload", 1)]),
    ("a draining version is left alone", disk(1, 2), slots(v1="draining", v2="available"), 1, 0, []),
    (
        "a waiting newest does not keep the older from loading",
        disk(1, 2),
        slots(v2="waiting"),
        1,
        0,
        [load(1)],
    ),
    ("a failed newest does not unload the older", disk(1, 2), slots(v1="available", v2="failed"), 1, 0, []),
    ("a failed version is tried again when it is time", disk(1), slots(v1="failed"), 1, LATER, [load(1)]),
    (
        "a waiting version is looked at again when it is time",
        disk(1),
        slots(v1="waiting"),
        1,
        LATER,
        [load(1)],
    ),
    (
        "changed files are tried at once",
        {1: Candidate(Path("1"), (("f", 9, 9, 9),))},
        slots(v1="failed"),
        1,
        0,
        [load(1)],
    ),
    (
        "a removed version goes when another serves",
        disk(2),
        slots(v1="available", v2="available"),
        1,
        0,
        [Action("unload", 1)],
    ),
    ("a removed newest gives way to the older", disk(1), slots(v2="available"), 1, 0, [load(1)]),
    ("an emptied base path changes nothing", disk(), slots(v2="available"), 1, 0, []),
    (
        "what failed and is gone is forgotten",
        disk(1),
        slots(v1="available", v2="failed"),
        1,
        0,
        [Action("forget", 2)],
    ),
    (
        "an old version that waits is forgotten once newer ones serve",
        disk(1, 2),
        slots(v1="waiting", v2="available"),
        1,
        0,
        [Action("forget", 1)],
    ),
    ("loading and gone: it finishes first", disk(2), slots(v1="loading", v2="available"), 1, 0, []),
]


@pytest.mark.parametrize(
    ("what", "candidates", "now_slots", "latest", "now", "expected"), CASES, ids=[c[0] for c in CASES]
)
def test_plan(
    what: str,
    candidates: dict[int, Candidate],
    now_slots: dict[int, Slot],
    latest: int,
    now: int,
    expected: list[Action],
) -> None:
    assert plan(candidates, now_slots, config(latest), {}, now) == expected, what


@given(
    st.sets(st.integers(1, 6)),
    st.dictionaries(
        st.integers(1, 6), st.sampled_from(["waiting", "loading", "available", "draining", "failed"])
    ),
    st.integers(1, 3),
    st.sampled_from([0, LATER]),
)
def test_no_plan_takes_the_service_down(
    versions: set[int], states: dict[int, str], latest: int, now: int
) -> None:
    """After any plan: what was available still is unless another wanted one is; states allow each action."""
    current = slots(**{f"v{v}": s for v, s in states.items()})
    actions = plan(disk(*versions), current, config(latest), {}, now)
    assert len({a.version for a in actions}) == len(actions)
    available = {v for v, s in current.items() if s.state is State.AVAILABLE}
    unloaded = {a.version for a in actions if a.kind == "unload"}
    assert not available or available - unloaded
    for action in actions:
        state = current[action.version].state if action.version in current else None
        allowed = {
            "load": {None, State.WAITING, State.FAILED},
            "unload": {State.AVAILABLE},
            "forget": {State.WAITING, State.FAILED},
        }
        assert state in allowed[action.kind]
        assert action.kind != "load" or action.version in versions


def test_scan_passes_over_what_is_no_version(tmp_path: Path) -> None:
    for name in ("00000001", "2", ".tmp-3", "latest", "4.bak", "-5"):
        (tmp_path / name).mkdir()
    (tmp_path / "6").write_text("a file")
    found = scan(tmp_path)
    assert sorted(found.candidates) == [1, 2]
    assert found.problem == ""


def test_scan_of_a_missing_path_is_a_problem_not_an_error(tmp_path: Path) -> None:
    found = scan(tmp_path / "nope")
    assert found.candidates == {}
    assert "No such file" in found.problem
    assert "the server waits for it to appear" in found.problem


@pytest.mark.parametrize(
    ("place", "name", "part"),
    [
        ("1", "model.onnx", "mserve export {dir}/model.onnx BASE_PATH"),
        ("1", "saved_model.pb", "tf2onnx.convert --saved-model {dir}"),
        ("1", "notes.txt", "finish the copy"),
        ("", "net.onnx", "mserve export {dir}/net.onnx BASE_PATH"),
        ("", "notes.txt", "holds no version yet"),
    ],
)
def test_other_servers_layouts_get_a_hint(tmp_path: Path, place: str, name: str, part: str) -> None:
    """Of a version directory when it is opened, of a base path when it is listed."""
    directory = tmp_path / place
    directory.mkdir(exist_ok=True)
    (directory / name).write_bytes(b"")
    if place:
        with pytest.raises(NotABundle) as caught:
            open_bundle(directory)
        text = str(caught.value)
    else:
        text = scan(tmp_path).problem
    assert part.format(dir=directory) in text


def model(policy: Policy, labels: dict[str, int] | None = None, *, unload_first: bool = False) -> ModelConfig:
    return ModelConfig("m", Path(), policy, labels or {}, unload_first)


def checked(version: int) -> dict[int, Slot]:
    found = slots(**{f"v{version}": "waiting"})
    found[version].checked, found[version].retry_at_ns = True, 0
    return found


def check(v: int) -> Action:
    return Action("check", v)


def unload(v: int) -> Action:
    return Action("unload", v)


ALL, TWO = Policy(latest=0), Policy(latest=2)
ONLY_1, ONLY_7 = Policy(versions=(1,)), Policy(versions=(7,))
UNLOAD_FIRST = model(Policy(), unload_first=True)
POLICY_CASES = [
    ("all: every version", disk(1, 2, 3), slots(v2="available"), model(ALL), {}, [load(3), load(1)]),
    (
        "all: a broken one is no reason to unload",
        disk(1, 2),
        slots(v1="available", v2="failed"),
        model(ALL),
        {},
        [],
    ),
    ("specific: only the one asked for", disk(1, 2), slots(), model(ONLY_1), {}, [load(1)]),
    (
        "specific: then the others go",
        disk(1, 2),
        slots(v1="available", v2="available"),
        model(ONLY_1),
        {},
        [unload(2)],
    ),
    ("specific and not there: what serves goes on", disk(1), slots(v1="available"), model(ONLY_7), {}, []),
    (
        "a label keeps an old version loaded",
        disk(1, 2),
        slots(v1="available", v2="available"),
        model(Policy(), {"stable": 1}),
        {"stable": 1},
        [],
    ),
    (
        "a label loads an old version",
        disk(1, 2),
        slots(v2="available"),
        model(Policy(), {"stable": 1}),
        {},
        [load(1)],
    ),
    (
        "a moved label keeps its old version until the new one is available",
        disk(1, 2, 3),
        slots(v1="available", v2="loading", v3="available"),
        model(Policy(), {"stable": 2}),
        {"stable": 1},
        [],
    ),
    (
        "then the old one goes",
        disk(1, 2, 3),
        slots(v1="available", v2="available", v3="available"),
        model(Policy(), {"stable": 2}),
        {"stable": 2},
        [unload(1)],
    ),
    (
        "a label on a version that is not there holds the old one",
        disk(1, 3),
        slots(v1="available", v3="available"),
        model(Policy(), {"stable": 9}),
        {"stable": 1},
        [],
    ),
    (
        "a labelled version whose directory is gone stays",
        disk(3),
        slots(v1="available", v3="available"),
        model(Policy(), {"stable": 1}),
        {"stable": 1},
        [],
    ),
    (
        "a removed label lets its version go",
        disk(1, 3),
        slots(v1="available", v3="available"),
        model(Policy()),
        {"stable": 1},
        [unload(1)],
    ),
    (
        "unload-first: the new version's files are checked first",
        disk(1, 2),
        slots(v1="available"),
        UNLOAD_FIRST,
        {},
        [check(2)],
    ),
    (
        "unload-first: while it is checked the old one serves",
        disk(1, 2),
        slots(v1="available", v2="loading"),
        UNLOAD_FIRST,
        {},
        [],
    ),
    (
        "unload-first: half a copy unloads nothing",
        disk(1, 2),
        slots(v1="available", v2="waiting"),
        UNLOAD_FIRST,
        {},
        [],
    ),
    (
        "unload-first: checked, so the old one goes",
        disk(1, 2),
        slots(v1="available") | checked(2),
        UNLOAD_FIRST,
        {},
        [unload(1)],
    ),
    (
        "unload-first: and nothing is loaded before it is gone",
        disk(1, 2),
        slots(v1="draining") | checked(2),
        UNLOAD_FIRST,
        {},
        [],
    ),
    ("unload-first: then the new one is loaded", disk(1, 2), checked(2), UNLOAD_FIRST, {}, [load(2)]),
    (
        "unload-first: it failed, so the old one comes back",
        disk(1, 2),
        slots(v2="failed"),
        UNLOAD_FIRST,
        {},
        [check(1)],
    ),
]


@pytest.mark.parametrize(
    ("what", "candidates", "now_slots", "config", "labels", "expected"),
    POLICY_CASES,
    ids=[c[0] for c in POLICY_CASES],
)
def test_plan_by_policy_and_label(
    what: str,
    candidates: dict[int, Candidate],
    now_slots: dict[int, Slot],
    config: ModelConfig,
    labels: dict[str, int],
    expected: list[Action],
) -> None:
    assert plan(candidates, now_slots, config, labels, 0) == expected, what


STATES = st.sampled_from(["waiting", "loading", "available", "draining", "failed"])
POLICIES = st.sampled_from([Policy(1), TWO, ALL, Policy(versions=(2,)), Policy(versions=(1, 5))])
VERSIONS = st.integers(1, 6)


@given(
    st.sets(VERSIONS),
    st.dictionaries(VERSIONS, STATES),
    POLICIES,
    st.dictionaries(st.sampled_from(["a", "b"]), VERSIONS),
    st.dictionaries(st.sampled_from(["a", "b"]), VERSIONS),
)
def test_what_a_label_names_is_never_unloaded(
    versions: set[int], states: dict[int, str], policy: Policy, wanted: dict[str, int], now: dict[str, int]
) -> None:
    """Neither the version a label names now, while its target cannot answer, nor its target."""
    current = slots(**{f"v{v}": s for v, s in states.items()})
    unloaded = {a.version for a in plan(disk(*versions), current, model(policy, wanted), now, 0)}
    for label, target in wanted.items():
        ready = target in current and current[target].state is State.AVAILABLE
        named = target if ready else now.get(label)
        if named in current and current[named].state is State.AVAILABLE:
            assert named not in unloaded


LABEL_CASES: list[tuple[str, dict[str, int], dict[str, int], set[int], dict[str, int]]] = [
    ("a label appears with its version", {}, {"stable": 2}, {1, 2}, {"stable": 2}),
    ("not before", {}, {"stable": 2}, {1}, {}),
    ("a label stays until its new version can answer", {"stable": 1}, {"stable": 2}, {1}, {"stable": 1}),
    ("and moves then", {"stable": 1}, {"stable": 2}, {1, 2}, {"stable": 2}),
    ("many labels on one version", {}, {"a": 1, "b": 1}, {1}, {"a": 1, "b": 1}),
    ("a removed label is gone", {"stable": 1}, {}, {1}, {}),
    ("a label whose version has ended names nothing", {"stable": 1}, {"stable": 2}, {3}, {}),
]


@pytest.mark.parametrize(
    ("what", "now", "wanted", "available", "expected"), LABEL_CASES, ids=[c[0] for c in LABEL_CASES]
)
def test_labels_follow_their_versions(
    what: str, now: dict[str, int], wanted: dict[str, int], available: set[int], expected: dict[str, int]
) -> None:
    assert follow(now, model(Policy(), wanted), available) == expected, what


def test_a_wish_during_a_look_is_not_lost_and_counters_go_on(mlp: ModelProto, tmp_path: Path) -> None:
    """With a minute between looks, whatever is asked for happens at once."""
    mserve.export(mlp, tmp_path / "m")

    async def until(holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not holds():
                await asyncio.sleep(0)

    async def work() -> None:
        reconciler = Reconciler([ModelConfig("m", tmp_path / "m")], poll_s=60)
        model = reconciler.models["m"]
        reconciler.start()
        await until(lambda: bool(model.available) and model.settled())
        model.available[1].stats.rows = 5
        for _ in range(3):
            reconciler.look("m")
            await until(lambda: not model.wake.is_set())  # the look has begun
            reconciler.set_wanted("m", False)
            await until(lambda: not model.available and not model.slots)
            reconciler.look("m")
            await until(lambda: not model.wake.is_set())
            reconciler.set_wanted("m", True)
            await until(lambda: bool(model.available))
            assert model.available[1].stats.rows == 5
        await reconciler.close()

    asyncio.run(work())
