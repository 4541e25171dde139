"""HandleReloadConfigRequest on a real socket: a list of models that takes the place of the server's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from server_tools import Running, serving
from test_grpc_health import check
from test_tfs_grpc import A, B, ask, ours, predict, refused, spec
from tfs_models import export_flowers


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    """`flowers` version 1, and a server that may be reloaded."""
    export_flowers(tmp_path / "flowers", version=1)
    flags = ("--name", "flowers", "--admin", "--strict-json")
    with serving(tmp_path / "flowers", tmp_path / "log", *flags) as running:
        yield running


@pytest.fixture
def channel(server: Running) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as open_channel:
        yield open_channel


def listed(*models: dict[str, Any]) -> Any:
    """A request with the given models; clients name the platform "tensorflow"."""
    request = ours("ReloadConfigRequest")
    request.config.model_config_list.SetInParent()
    for model in models:
        request.config.model_config_list.config.add(model_platform="tensorflow", **model)
    return request


def reload(channel: grpc.Channel, *models: dict[str, Any], **options: Any) -> tuple[int, str]:
    """The answered status code, and its text."""
    status = ask(channel, "HandleReloadConfigRequest", listed(*models), **options).status
    return status.error_code, status.error_message


def test_models_come_change_and_go(server: Running, channel: grpc.Channel, tmp_path: Path) -> None:
    """What the answer says is true when it comes: new models and labels answer at once."""
    export_flowers(tmp_path / "flowers", version=2, factor=10)
    export_flowers(tmp_path / "other", version=5, factor=3)
    every = {"all": {}}
    flowers = {"name": "flowers", "base_path": str(tmp_path / "flowers"), "model_version_policy": every}
    other = {"name": "other", "base_path": str(tmp_path / "other")}
    labels = {"stable": 1, "canary": 2}
    assert reload(channel, flowers | {"version_labels": labels}, other) == (0, "")
    for asked, version in ((spec(label="stable"), 1), (spec(label="canary"), 2), (spec("other"), 5)):
        answer = ask(channel, "Predict", predict(asked, a=A, b=B))
        assert answer.model_spec.version.value == version
    assert reload(channel, flowers | {"version_labels": {"stable": 2}}) == (0, "")
    answer = ask(channel, "Predict", predict(spec(label="stable"), a=A, b=B))
    assert answer.model_spec.version.value == 2
    server.wait_until(lambda: server.get("/v1/models/other").status == 404)
    only_one = {"specific": {"versions": [1]}}
    assert reload(channel, flowers | {"model_version_policy": only_one}) == (0, "")
    server.wait_until(lambda: server.version("flowers") == "1")
    body = b'{"signature_name": "inverse", "inputs": [NaN]}'
    assert server.predict("flowers", body).status == 400  # the rest of the configuration has stayed


def test_a_model_that_cannot_come_is_told_and_keeps_nobody_waiting(
    server: Running, channel: grpc.Channel, tmp_path: Path
) -> None:
    (tmp_path / "arriving" / "1").mkdir(parents=True)
    flowers = {"name": "flowers", "base_path": str(tmp_path / "flowers")}
    nowhere = {"name": "nowhere", "base_path": str(tmp_path / "nowhere")}
    arriving = {"name": "arriving", "base_path": str(tmp_path / "arriving")}
    seventh = {"specific": {"versions": [1, 7]}}
    endless = {"name": "endless", "base_path": "/m" * 4000}
    code, text = reload(channel, flowers | {"model_version_policy": seventh}, nowhere, arriving, endless)
    assert code == 14
    reasons = dict(reason.split(": ", 1) for reason in text.splitlines())
    assert reasons.keys() == {"flowers", "nowhere", "arriving", "endless"}
    assert "version 7 is not in" in reasons["flowers"]
    assert "No such file or directory" in reasons["nowhere"]
    assert "no export.meta" in reasons["arriving"]
    assert "File name too long" in reasons["endless"]
    answer = ask(channel, "Predict", predict(spec(), a=A, b=B))
    assert answer.model_spec.version.value == 1
    export_flowers(tmp_path / "nowhere", version=3)
    server.wait_until(lambda: server.get("/v1/models/nowhere/metadata").status == 200)


def test_another_base_path_serves_the_old_one_until_the_new_one_can(
    server: Running, channel: grpc.Channel, tmp_path: Path
) -> None:
    code, text = reload(channel, {"name": "flowers", "base_path": str(tmp_path / "new")})
    assert (code, "flowers: cannot list" in text) == (14, True)
    assert ask(channel, "Predict", predict(spec(), a=A, b=B)).model_spec.version.value == 1
    export_flowers(tmp_path / "new", version=4)
    assert reload(channel, {"name": "flowers", "base_path": str(tmp_path / "new")})[0] == 0
    server.wait_until(lambda: server.version("flowers") == "4")


BAD = [
    ("no configuration at all", lambda: ours("ReloadConfigRequest"), "no configuration"),
    ("a relative base path", lambda: listed({"name": "m", "base_path": "m"}), "base_path"),
    ("a model twice", lambda: listed(*[{"name": "m", "base_path": "/m"}] * 2), "listed twice"),
    ("a name that no URL can hold", lambda: listed({"name": "a/b", "base_path": "/m"}), "name"),
    (
        "a configuration of another kind",
        lambda: ours("ReloadConfigRequest", config={"custom_model_config": {"type_url": "x"}}),
        "custom_model_config is not supported",
    ),
]


def test_a_wrong_list_changes_nothing(channel: grpc.Channel) -> None:
    for why, make, part in BAD:
        status, text = refused(channel, "HandleReloadConfigRequest", make())
        assert (status, part in text) == ("INVALID_ARGUMENT", True), (why, text)
        assert ask(channel, "Predict", predict(spec(), a=A, b=B)).model_spec.version.value == 1


def test_an_empty_list_unloads_everything(server: Running, channel: grpc.Channel) -> None:
    assert reload(channel) == (0, "")
    server.wait_until(lambda: server.get("/v1/models").json() == {"models": []})
    assert refused(channel, "Predict", predict(spec(), a=A, b=B))[0] == "NOT_FOUND"


def test_who_may_ask_and_who_may_reload(tmp_path: Path) -> None:
    """One token asks, another one reloads as well; probes carry none."""
    export_flowers(tmp_path / "flowers", version=1)
    (tmp_path / "tokens").write_text("reader\n")
    (tmp_path / "admins").write_text("chief\n")
    config = tmp_path / "mserve.toml"
    config.write_text(
        '[server]\nadmin = true\n[auth]\ntokens = "tokens"\nadmin_tokens = "admins"\n'
        '[models.flowers]\nbase_path = "flowers"\n'
    )
    predicts, reloads = predict(spec(), a=A, b=B), listed()
    with serving(f"--config={config}", tmp_path / "log") as running:
        reader, chief = ((("authorization", f"Bearer {name}"),) for name in ("reader", "chief"))
        with grpc.insecure_channel(f"127.0.0.1:{running.grpc_port}") as channel:
            assert refused(channel, "Predict", predicts)[0] == "UNAUTHENTICATED"
            assert ask(channel, "Predict", predicts, metadata=reader).model_spec.version.value == 1
            reload = "HandleReloadConfigRequest"
            assert refused(channel, reload, reloads)[0] == "UNAUTHENTICATED"
            assert refused(channel, reload, reloads, metadata=reader)[0] == "PERMISSION_DENIED"
            assert check(channel, "") == 1
            assert ask(channel, reload, reloads, metadata=chief).status.error_code == 0
