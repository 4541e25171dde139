"""TensorFlow Serving's model_config_list: what is taken, what is refused, and by which name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server_tools import serving
from test_commands import run
from test_server import X, publish

from mserve.errors import InputError, UsageError
from mserve.server.config import Config, Source, load, parse
from mserve.server.model_config_list import from_message, parse_text
from mserve.wire.messages import message

FILE = Path("/etc/models.config")

WHOLE = """\
# Written for tensorflow_model_server --model_config_file.
model_config_list {
  config {
    name: "ranker"
    base_path: "/models/ranker"
    model_platform: "tensorflow"
    model_version_policy { specific { versions: 7 versions: 3 } }
    version_labels { key: "stable" value: 3 }
    version_labels { key: "canary" value: 7 }
  }
  config: {
    name: 'two words', base_path: 'models/two'
    model_type: TENSORFLOW
    model_version_policy: { latest: { num_versions: 2 } };
  }
  config { name: "all" base_path: "/a" model_version_policy { all {} } }
  config { name: "zero" base_path: "/z" model_version_policy { latest {} } }
  config { name: "plain" base_path: "/p" }
}
"""


def named(name: str) -> str:
    return f'model_config_list {{ config {{ name: "{name}" base_path: "/m" }} }}'


def one(text: str) -> str:
    return f'model_config_list {{ config {{ name: "m" base_path: "/m" {text} }} }}'


def test_what_tensorflow_serving_takes_is_taken() -> None:
    models, warnings = parse_text(WHOLE, FILE)
    assert warnings == ()
    assert {n: m.base_path for n, m in models.items()} == {
        "ranker": Path("/models/ranker"),
        "two words": Path("/etc/models/two"),
        "all": Path("/a"),
        "zero": Path("/z"),
        "plain": Path("/p"),
    }
    assert [m.versions for m in models.values()] == [(3, 7), 2, "all", 1, 1]
    assert models["ranker"].labels == {"canary": 7, "stable": 3}


@pytest.mark.parametrize(
    "text", ["model_config_list {}", "model_config_list: {}", "# none\nmodel_config_list <>"]
)
def test_an_empty_list_is_fine(text: str) -> None:
    assert parse(Source(FILE), text).models == {}


BAD = [
    ("a name twice", one('} config { name: "m" base_path: "/b"'), ["twice", '"m"']),
    ("no name", named(""), ["name", "it is empty"]),
    ("a slash in the name", named("a/b"), ['"a/b"', "it holds '/'"]),
    ("a reserved name", named("stats"), ["Open Inference"]),
    ("no base path", 'model_config_list { config { name: "m" } }', ["base_path", 'found: ""']),
    (
        "a remote path",
        'model_config_list { config { name: "m" base_path: "gs://b/m" } }',
        ["base_path", "gs://b/m"],
    ),
    ("another platform", one('model_platform: "pytorch"'), ["platform", '"pytorch"']),
    ("another type", one("model_type: OTHER"), ["platform", "model_type 2"]),
    ("type and platform", one('model_type: TENSORFLOW model_platform: "tensorflow"'), ["given twice"]),
    ("no listed version", one("model_version_policy { specific {} }"), ["specific versions", "[]"]),
    ("a negative version", one("model_version_policy { specific { versions: -1 } }"), ["[-1]"]),
    ("two policies", one("model_version_policy { all {} latest {} }"), ["text format", "oneof"]),
    ("a negative label", one('version_labels { key: "s" value: -1 }'), ["version_labels", '{"s": -1}']),
    ("a label without name", one("version_labels { value: 1 }"), ["version_labels"]),
    ("an unknown field", one('model_path: "x"'), ["text format", "model_path"]),
    ("a custom configuration", "custom_model_config { }", ["custom_model_config is not supported"]),
    ("an open brace", "model_config_list { config {", ["text format", "1:"]),
    ("bytes that are not text", one('model_platform: "\\xff"'), ["text format"]),
    ("nothing of the kind", "model_config_list { config { config { config {", ["text format"]),
]


@pytest.mark.parametrize(("what", "text", "parts"), BAD, ids=[b[0] for b in BAD])
def test_what_is_refused(what: str, text: str, parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        parse(Source(FILE), text)
    for part in ["models.config", *parts]:
        assert part in str(caught.value), what


def test_request_logging_is_passed_over_with_a_warning() -> None:
    text = one(
        'logging_config { log_collector_config { type: "x" filename_prefix: "/y" } '
        "sampling_config { sampling_rate: 0.1 } }"
    )
    models, warnings = parse_text(text, FILE)
    assert list(models) == ["m"]
    assert len(warnings) == 1
    assert "[request_log]" in warnings[0]
    assert parse(Source(FILE), text).warnings == warnings


def test_a_message_needs_absolute_paths() -> None:
    config: Any = message("tensorflow.serving.ModelServerConfig")()
    entry = config.model_config_list.config.add(name="m", base_path="/m")
    assert from_message(config, "ReloadConfigRequest")[0]["m"].base_path == Path("/m")
    entry.base_path = "m"
    with pytest.raises(InputError, match="the absolute path of a local directory"):
        from_message(config, "ReloadConfigRequest")


@pytest.mark.parametrize(
    ("name", "text", "models"),
    [
        ("models.config", "# a comment\n\n model_config_list {}", []),
        ("models.pbtxt", "model_config_list{config{name:'m' base_path:'/m'}}", ["m"]),
        ("models.config", "[models.m]\nbase_path = 'm'\n", ["m"]),
        ("empty", "", []),
    ],
)
def test_the_kind_of_file_shows_in_its_content(name: str, text: str, models: list[str]) -> None:
    assert list(parse(Source(Path(name)), text).models) == models


def test_a_toml_file_is_toml() -> None:
    with pytest.raises(InputError, match="not TOML"):
        parse(Source(Path("mserve.toml")), "model_config_list {}")


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, len(WHOLE)), st.integers(0, 30), st.text(max_size=8) | st.sampled_from(list("{}<>:\"'[]"))
)
def test_no_edit_raises_anything_but_a_worded_error(at: int, gone: int, text: str) -> None:
    try:
        config = parse(Source(FILE), WHOLE[:at] + text + WHOLE[at + gone :])
    except (InputError, UsageError):
        return
    assert isinstance(config, Config)


def test_print_config_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "models.config"
    file.write_text(one("model_version_policy { all {} }"))
    rows = run("serve", "--config", file, "--port", 0, "--print-config").stdout.splitlines()
    assert f"models.m.versions\tall\t{file}" in rows
    assert "server.port\t0\t--port" in rows
    assert load(Source(file)).models["m"].versions == "all"


def test_a_server_follows_the_file(tmp_path: Path) -> None:
    publish(tmp_path / "c", 1.0)
    file = tmp_path / "models.config"
    file.write_text("model_config_list {}")
    with serving(f"--config={file}", tmp_path / "log") as server:
        assert server.predict("c", X).status == 404
        file.write_text('model_config_list { config { name: "c" base_path: "c" } }')
        server.wait_until(lambda: server.predict("c", X).status == 200)
