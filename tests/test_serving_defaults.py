"""What a bundle says of its own batches: written, checked, overridden, and shown."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto
from server_tools import serving as running
from typer.testing import CliRunner

import mserve
from mserve.checks import validate
from mserve.cli import build
from mserve.errors import BundleError, DigestMismatch, MetaGraphMalformed
from mserve.format import open_bundle
from mserve.format.republish import republish
from mserve.format.serving import BYTES_MAX, Serving, pack, read_serving, unpack
from mserve.loader.batching_defaults import resolved
from mserve.loader.plan import ModelConfig
from mserve.loader.servable import Batching, load
from mserve.server import config
from mserve.server.app import configured

SAID = Serving(32, 1.5, (8, 32), (16,))


def test_what_is_packed_is_unpacked() -> None:
    assert unpack(pack(SAID), "here") == SAID
    assert unpack(pack(Serving()), "here") == Serving()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty"),
        (b"[]", "no object"),
        (b"\xff", "no UTF-8"),
        (b"[" * 5000, "nested without end"),
        (b'{"batching": 3}', "the table is no object"),
        (b'{"batching": {"max_batch": 0}}', "no rows"),
        (b'{"batching": {"max_batch": 1.0}}', "half a row might follow"),
        (b'{"batching": {"max_batch": true}}', "a truth is no number"),
        (b'{"batching": {"max_batch": 1073741825}}', "more rows than a batch may have"),
        (b'{"batching": {"delay_ms": -1}}', "before the request"),
        (b'{"batching": {"delay_ms": NaN}}', "no number"),
        (b'{"batching": {"delay_ms": 1e9}}', "too long"),
        (b'{"batching": {"allowed_batch": [4, 4]}}', "not rising"),
        (b'{"batching": {"preferred_batch": ["4"]}}', "text"),
        (json.dumps({"batching": {"allowed_batch": list(range(1, 99))}}).encode(), "too many sizes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_file_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(MetaGraphMalformed, match="serving defaults"):
        unpack(data, "here")


def test_unknown_keys_are_passed_over() -> None:
    data = b'{"threads": 3, "batching": {"max_batch": 4, "later": {}}}'
    assert unpack(data, "here") == Serving(4)


@pytest.mark.parametrize(
    ("said", "expected", "why"),
    [
        (Serving(), Batching(soft=True), "nothing said, so that the limit is soft"),
        (SAID, Batching(32, 1_500_000, allowed=(8, 32), preferred=(16,)), "all said"),
        (Serving(16).over(SAID), Batching(8, 1_500_000, allowed=(8,), preferred=()), "a smaller limit"),
        (Serving(delay_ms=0).over(SAID), Batching(32, 0, allowed=(8, 32), preferred=(16,)), "zero is said"),
        (Serving(allowed_batch=()).over(Serving(64, None, (8,))), Batching(64), "none is said"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_several_places_are_put_together(said: Serving, expected: Batching, why: str) -> None:
    assert resolved(said) == expected


def test_a_republished_version_differs_in_its_defaults_only(version: Path) -> None:
    old = open_bundle(version)
    made = republish(old, SAID, dedup=True)
    new = open_bundle(made.path)
    assert new.version == old.version + 1
    assert read_serving(new) == SAID
    assert new.metagraph.content == old.metagraph.content
    assert new.metagraph.identity != old.metagraph.identity
    assert (new.metagraph.shards, new.metagraph.assets) == (old.metagraph.shards, old.metagraph.assets)
    assert (new.metagraph.golden, new.metagraph.provenance) == (
        old.metagraph.golden,
        old.metagraph.provenance,
    )
    assert made.shared == tuple(r.name for r in old.metagraph.shards)
    assert all(os.path.samefile(version / n, made.path / n) for n in made.shared)
    assert [f.code for f in validate(new)] == [f.code for f in validate(old)]
    inputs = {"x": np.ones((2, 784), np.float32)}
    with_defaults, without = (load(p) for p in (made.path, version))
    for name, values in without.run(inputs).items():
        np.testing.assert_array_equal(with_defaults.run(inputs)[name], values)
    with_defaults.close()
    without.close()


def test_defaults_replace_earlier_ones_and_copies_are_not_links(version: Path) -> None:
    first = republish(open_bundle(version), SAID)
    second = republish(open_bundle(first.path), Serving(4))
    assert read_serving(open_bundle(second.path)) == Serving(4)
    assert first.shared == second.shared == ()
    shard = open_bundle(version).metagraph.shards[0].name
    assert not os.path.samefile(version / shard, first.path / shard)


@pytest.mark.parametrize("dedup", [False, True])
def test_a_damaged_bundle_is_not_published_again(version: Path, dedup: bool) -> None:
    bundle = open_bundle(version)
    shard = version / bundle.metagraph.shards[0].name
    shard.chmod(0o644)
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DigestMismatch):
        republish(bundle, SAID, dedup=dedup)
    assert [p.name for p in version.parent.iterdir()] == [version.name]


def spoil(version: Path, data: Callable[[int], bytes]) -> Path:
    made = republish(open_bundle(version), SAID).path
    file = made / "assets/mserve/serving.json"
    file.chmod(0o644)
    file.write_bytes(data(file.stat().st_size))
    return made


def test_defaults_that_were_changed_are_not_served(version: Path) -> None:
    made = spoil(version, lambda size: b" " * size)
    with pytest.raises(DigestMismatch):
        load(made)
    assert {f.code for f in validate(open_bundle(made))} == {"file-digest"}


def test_a_file_of_another_size_is_no_bundle(version: Path) -> None:
    with pytest.raises(BundleError):
        load(spoil(version, lambda size: b" " * (BYTES_MAX + 1)))


def parsed(text: str) -> config.Config:
    return config.parse(config.Source(file=Path("mserve.toml")), text)


@pytest.mark.parametrize(
    ("text", "expected", "why"),
    [
        ("", Batching(32, 1_500_000, allowed=(8, 32), preferred=(16,)), "the bundle's own"),
        (
            "[batching]\ndelay_ms = 5",
            Batching(32, 5_000_000, allowed=(8, 32), preferred=(16,)),
            "what is set for all models goes before the bundle",
        ),
        (
            "[batching]\ndelay_ms = 5\n[models.m.batching]\ndelay_ms = 7\nallowed_batch = []",
            Batching(32, 7_000_000, preferred=(16,)),
            "what is set for the model goes before both",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)
def test_the_configuration_goes_before_the_bundle(text: str, expected: Batching, why: str) -> None:
    one = parsed(
        f'[models.m]\nbase_path = "m"\n{text}'
        if "[models" not in text
        else text.replace("[models.m.batching]", '[models.m]\nbase_path = "m"\n[models.m.batching]')
    )
    model = ModelConfig("m", Path(), configured=configured("m", one))
    assert model.batching_of(SAID) == expected
    assert model.batching_of(Serving()) is None


def shown(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(build(), list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.output)
    return found


def test_inspect_and_print_config_show_them(version: Path) -> None:
    assert shown("inspect", str(version), "--json")["serving"] is None
    made = republish(open_bundle(version), SAID).path
    assert shown("inspect", str(made), "--json")["serving"] == {
        "max_batch": 32,
        "delay_ms": 1.5,
        "allowed_batch": [8, 32],
        "preferred_batch": [16],
    }
    flags = ("serve", str(version.parent), "--batch-delay", "3", "--print-config", "--json")
    found = {s["key"]: (s["value"], s["origin"]) for s in shown(*flags)["settings"]}
    assert found["models.digits.batching.max_batch"] == (32, "the bundle, version 2")
    assert found["models.digits.batching.delay_ms"] == (None, "default")
    assert found["batching.delay_ms"][0] == 3


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_server_serves_by_them(mlp: ModelProto, tmp_path: Path, processes: str) -> None:
    base = tmp_path / "digits"
    mserve.export(mlp, base)
    republish(open_bundle(base), Serving(allowed_batch=(4,), max_batch=4))
    body = json.dumps({"instances": [[0.5] * 784] * 3}).encode()
    with running(base, tmp_path / "log", "--processes", processes) as server:
        answer = server.ask("POST", "/v1/models/digits:predict", body, {"x-request-id": "one"})
        assert answer.status == 200, answer.body
        (batch,) = server.get("/debug/requests/one").json()["batches"]
        assert batch["padding"] == 1
