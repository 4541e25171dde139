"""Configuration: every key, every way a file can be wrong, what goes before what, and reloading."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tomllib
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server_tools import serving
from test_commands import run
from test_server import X, publish

from mserve.errors import InputError, UsageError
from mserve.loader.servable import Batching
from mserve.server import config as configuration
from mserve.server import request_log
from mserve.server.app import model_configs
from mserve.server.config import Config, Source, changed, load, needing_restart, parse
from mserve.server.run import curl_options
from mserve.server.settings import AuthTable, LimitsTable, ModelBatching, TlsTable
from mserve.server.toml_lines import key_lines
from mserve.server.watch import ConfigWatch

WHOLE = """\
# Everything that can be said.
[server]
host = "0.0.0.0"
port = 9000
grpc_port = "off"
processes = 4
device = "cuda:0,cuda:1"
poll = 0.5
grace = 5
prefetch = true
admin = true
strict_json = true

[models.ranker]
base_path = "models/ranker"
versions = { latest = 2 }
labels = { stable = 3, canary = 4 }
transition = "unload-first"
batching = { max_batch = 64, delay_ms = 2 }

[models."two words"]
base_path = "/srv/two"
versions = [7, 3]

[models.all]
base_path = "models/all"
versions = "all"

[batching]
max_batch = 32
delay_ms = 1.5
max_queue = 100
allowed_batch = [1, 8]
preferred_batch = [4]
max_queue_bytes = "1MiB"

[limits]
body = "1MiB"
buffered = 4_000_000
timeout = 1
connections = 10
idle = 5.0
send = 6.0

[tls]
cert = "server.pem"
key = "server.key"
client_ca = "ca.pem"

[auth]
tokens = "tokens.txt"
admin_tokens = "admin.txt"

[log]
level = "warning"
format = "json"
access = "access.log"

[request_log]
path = "requests.jsonl"
sample = 1
redact = ["user_id"]
max_bytes = "1GB"
"""


def read(text: str, file: str = "conf/mserve.toml", **flags: Any) -> Config:
    given = {key.replace("__", "."): value for key, value in flags.items()}
    return parse(Source(Path(file), flags=given), text)


BATCHING = """
[batching]
max_batch = 64
delay_ms = 1
allowed_batch = [1, 4, 16]
preferred_batch = [8, 16]
"""


@pytest.mark.parametrize(
    ("what", "own", "expected"),
    [
        ("a model takes the server's", "", None),
        ("all but what it sets", "batching = { delay_ms = 5 }", (16, 5, (1, 4, 16), (8, 16))),
        ("its own limit leaves out larger sizes", "batching = { max_batch = 8 }", (4, 1, (1, 4), ())),
        ("an empty list means none", "batching = { allowed_batch = [] }", (64, 1, (), (8, 16))),
    ],
)
def test_sizes_of_batches_are_inherited(what: str, own: str, expected: tuple[Any, ...] | None) -> None:
    config = read(BATCHING + MODEL + own)
    found = model_configs(config)[0].batching
    if expected is None:
        assert found is None, what
        return
    assert found is not None
    most, delay, allowed, preferred = expected
    assert found == Batching(most, delay * 1_000_000, allowed=allowed, preferred=preferred), what


def test_sizes_of_batches_reach_the_model_the_metrics_and_the_page_that_triton_has(tmp_path: Path) -> None:
    publish(tmp_path / "m", 1.0)
    batching = "batching = { delay_ms = 2, allowed_batch = [4, 16], preferred_batch = [4, 8] }"
    file = tmp_path / "mserve.toml"
    file.write_text(f'[models.m]\nbase_path = "{tmp_path / "m"}"\n{batching}\n')
    with serving(f"--config={file}", tmp_path / "log") as server:
        config = server.get("/v2/models/m/config").json()
        assert config["max_batch_size"] == 16
        assert config["dynamic_batching"] == {
            "preferred_batch_size": [4, 8],
            "max_queue_delay_microseconds": 2000,
        }
        assert len(server.predict("m", X).json()["predictions"]) == 1
        assert 'mserve_padding_rows_total{model="m",version="1"} 3.0' in server.get("/metrics").body.decode()


def test_every_key_is_read() -> None:
    config = read(WHOLE)
    assert config.server.grpc_port is None
    assert (config.server.port, config.server.poll, config.server.admin) == (9000, 0.5, True)
    assert config.server.processes == 4
    assert list(config.models) == ["ranker", "two words", "all"]
    ranker = config.models["ranker"]
    assert ranker.base_path == Path("conf/models/ranker"), "relative to the file"
    assert (ranker.versions, ranker.transition) == (2, "unload-first")
    assert ranker.labels == {"stable": 3, "canary": 4}
    assert ranker.batching == ModelBatching(64, 2.0)
    assert config.models["two words"].base_path == Path("/srv/two")
    assert config.models["two words"].versions == (3, 7)
    assert config.models["all"].versions == "all"
    assert config.limits == LimitsTable(2**20, 4_000_000, 1.0, 10, 5.0, 6.0)
    assert config.tls.client_ca == Path("conf/ca.pem")
    assert config.log.access == Path("conf/access.log")
    assert config.request_log.redact == ("user_id",)
    assert config.request_log.max_bytes == 10**9
    given = {s.key for s in configuration.settings(config) if s.origin.startswith("conf/mserve.toml:")}
    every = {s.key for s in configuration.settings(config) if not s.key.startswith("models.")}
    assert every - given == {"server.models"}, "WHOLE sets all keys that may stand together"


def test_an_empty_file_is_all_defaults() -> None:
    config = read("")
    assert config.models == {}
    assert (config.server.host, config.server.port, config.server.grpc_port) == ("127.0.0.1", 8501, 8500)
    assert {s.origin for s in configuration.settings(config)} == {"default"}


MODEL = '[models.m]\nbase_path = "m"\n'
BAD = [
    ("port = 1\n[server\n", ["not TOML", "line 2"]),
    ("[server]\nport = 1\nport = 2\n", ["not TOML", "line 3"]),
    ("x = " + "[" * 20_000, ["nested too deeply"]),
    ("x = " + "9" * 5000, ["not TOML"]),
    (f"server{'.a' * 400_000} = 1", ["nested too deeply"]),
    (f"server.port{'.a' * 990} = 1", ["[server] port", "something deeply nested"]),
    (f"server{'.a' * 990} = 1", ["[server] a", "unknown key"]),
    ("[server]\nprot = 1", ["mserve.toml:2: [server] prot", "unknown key", 'did you mean "port"']),
    ("[servre]\nport = 1", ["mserve.toml:1: [servre]", "unknown table", 'did you mean "server"']),
    ("port = 1", ["mserve.toml:1: [port]", "unknown table", "port belongs in [server]"]),
    ("[server]\nmax_queue = 1", ["[server] max_queue", "max_queue belongs in [batching]"]),
    ("[server]\nxyzzy = 1", ["[server] xyzzy", "known: host, port"]),
    ("server = 1", ["mserve.toml:1: [server]", "a table", "found: 1"]),
    ("models = 1", ["[models]", "a table for each model"]),
    ("[models]\nm = 1", ["mserve.toml:2: [models] m", "a table"]),
    ("[server]\nport = 65536", ["mserve.toml:2: [server] port", "from 0 to 65535", "found: 65536"]),
    ("[server]\nport = true", ["[server] port", "whole number", "found: true"]),
    ("[server]\nport = 1.0", ["[server] port", "whole number", "found: 1.0"]),
    ('[server]\ngrpc_port = "on"', ["[server] grpc_port", '"off"', 'found: "on"']),
    ("[server]\ngrpc_port = -1", ["[server] grpc_port", "found: -1"]),
    ("[server]\nport = 5000\ngrpc_port = 5000", ["mserve.toml:3: server.grpc_port", "two ports", "5000"]),
    ("[server]\nport = 8500", ["mserve.toml:2: server.port", "two ports"]),
    ('[server]\nhost = ""', ["[server] host", "not empty"]),
    ("[server]\npoll = 0", ["[server] poll", "from 0.05"]),
    ("[server]\npoll = nan", ["[server] poll", "a number", "NaN"]),
    ("[server]\npoll = inf", ["[server] poll", "a number", "Infinity"]),
    ('[server]\nadmin = "yes"', ["[server] admin", "true or false"]),
    ('[server]\nmodels = "models"\n' + MODEL, ["server.models", "both"]),
    ('[server]\nmodels = "s3://bucket"', ["[server] models", "an address"]),
    ("[models.m]", ["mserve.toml:1: [models] m", "no base path"]),
    ("[models.m]\nbase_path = 1", ["[models.m] base_path", "a directory"]),
    ('[models.m]\nbase_path = "gs://b/m"', ["[models.m] base_path", "gs://b/m, an address"]),
    ('[models.m]\nbase_path = "a\\u0000b"', ["[models.m] base_path", "a directory"]),
    (MODEL + "versions = 2", ["mserve.toml:3: [models.m] versions", "{ latest = 2 }", "found: 2"]),
    (MODEL + 'versions = "newest"', ["[models.m] versions", '"newest"']),
    (MODEL + "versions = []", ["[models.m] versions", "found: []"]),
    (MODEL + "versions = [-1]", ["[models.m] versions", "[-1]"]),
    (MODEL + "versions = [true]", ["[models.m] versions", "[true]"]),
    (MODEL + "versions = { latest = 0 }", ["[models.m] versions", '{"latest": 0}']),
    (MODEL + "versions = { newest = 1 }", ["[models.m] versions"]),
    (MODEL + 'labels = { stable = "3" }', ["[models.m] labels", 'stable = "3"']),
    (MODEL + "labels = { stable = -3 }", ["[models.m] labels", "stable = -3"]),
    (MODEL + 'labels = { "a/b" = 3 }', ["[models.m] labels", "'a/b'", "'/'"]),
    (MODEL + 'labels = ["stable"]', ["[models.m] labels", "a table of labels"]),
    (MODEL + 'transition = "now"', ["[models.m] transition", '"load-first" or "unload-first"']),
    (MODEL + "batching = 1", ["[models.m] batching", "a table"]),
    (MODEL + "batching = { max_queue = 1 }", ["[models.m.batching] max_queue", "belongs in [batching]"]),
    (MODEL + "batching = { max_batch = 0 }", ["mserve.toml:3: [models.m.batching] max_batch", "found: 0"]),
    ("[batching]\nallowed_batch = [4, 1]", ["[batching] allowed_batch", "each larger than the one before"]),
    ("[batching]\nallowed_batch = [0, 1]", ["[batching] allowed_batch", "each larger than the one before"]),
    ("[batching]\nallowed_batch = 4", ["[batching] allowed_batch", "a list"]),
    ("[batching]\nallowed_batch = [1, 256]", ["batching.allowed_batch", "sizes up to max_batch, 128", "256"]),
    (
        MODEL + "batching = { max_batch = 8, preferred_batch = [16] }",
        ["models.m.batching.preferred_batch", "sizes up to max_batch, 8", "16"],
    ),
    ('[models.stats]\nbase_path = "m"', ["[models] stats", "Open Inference Protocol"]),
    ('[models."a/b"]\nbase_path = "m"', ['mserve.toml:1: [models] "a/b"', "it holds '/'"]),
    ('[models."a:b"]\nbase_path = "m"', ['[models] "a:b"', "it holds ':'"]),
    ('[models.""]\nbase_path = "m"', ["cannot be a model's name", "it is empty"]),
    ('[models.".."]\nbase_path = "m"', ["cannot be a model's name"]),
    ('[limits]\nbody = "64MX"', ["[limits] body", "64MiB", '"64MX"']),
    ("[limits]\nbody = 0", ["[limits] body", "found: 0"]),
    ('[limits]\nbody = "2MiB"\nbuffered = "1MiB"', ["limits.buffered", "at least limits.body, 2097152"]),
    ("[limits]\ntimeout = 0", ["[limits] timeout", "from 0.001"]),
    ('[tls]\ncert = "c"', ["mserve.toml:2: tls.cert", "tls.key besides it"]),
    ('[tls]\nkey = "c"', ["tls.key", "tls.cert besides it"]),
    ('[tls]\nclient_ca = "c"', ["tls.client_ca", "tls.cert besides it"]),
    ('[log]\nlevel = "loud"', ["[log] level", '"debug" or "info"']),
    ("[log]\naccess = 1", ["[log] access", "true, false or the path"]),
    ("[request_log]\nsample = 1.1", ["[request_log] sample", "from 0 to 1"]),
    ('[request_log]\nredact = "user"', ["[request_log] redact", "a list of names"]),
]


@pytest.mark.parametrize(("text", "parts"), BAD, ids=[f"{i}: {b[0][:40]!r}" for i, b in enumerate(BAD)])
def test_an_error_names_the_key(text: str, parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        read(text)
    for part in parts:
        assert part in str(caught.value)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(InputError) as caught:
        read('[server]\nprot = 1\nport = "x"\n[limits]\nidle = 0\n[log]\nlevel = 1\n')
    text = str(caught.value)
    for part in ("[server] prot", "[server] port", "[limits] idle", "[log] level", "3 more problems"):
        assert part in text
    many = "".join(f'[models."a/{i}"]\nbase_path = "x"\n' for i in range(1000))
    with pytest.raises(InputError, match="and 980 more"):
        read(many)


def test_files_that_are_named_must_be_readable(tmp_path: Path) -> None:
    file, tokens = tmp_path / "mserve.toml", tmp_path / "tokens.txt"
    file.write_text('[auth]\ntokens = "tokens.txt"\n')
    with pytest.raises(InputError, match=r"mserve.toml:2: auth.tokens.*No such file"):
        load(Source(file))
    tokens.write_text("# nobody\n")
    with pytest.raises(InputError, match="holds no token"):
        load(Source(file))
    tokens.write_text("secret\n")
    assert load(Source(file)).auth.tokens == tokens


@pytest.mark.parametrize(
    ("content", "part"),
    [(b"\xff\xfe", "UTF-8"), (b"#" * (1 << 20) + b"\n", "too large"), (None, "No such file")],
)
def test_a_file_that_cannot_be_taken(tmp_path: Path, content: bytes | None, part: str) -> None:
    file = tmp_path / "mserve.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=part):
        load(Source(file))


LINES = st.sampled_from(WHOLE.splitlines())
VALUES = st.sampled_from(
    [
        "-1",
        "1e400",
        "nan",
        '"x"',
        "[]",
        "{}",
        "[[1], 2]",
        "true",
        "1979-05-27",
        "99999999999999999999",
        '"\\u0001"',
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_edit_of_a_file_raises_anything_but_a_worded_error(data: st.DataObject) -> None:
    lines = WHOLE.splitlines()
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(lines) - 1))
        match data.draw(st.sampled_from(["drop", "copy", "value", "key", "bytes"])):
            case "drop":
                del lines[at]
            case "copy":
                lines.insert(at, data.draw(LINES))
            case "value":
                lines[at] = lines[at].split("=")[0] + "= " + data.draw(VALUES)
            case "key":
                lines[at] = data.draw(st.text("abc._-[]\"'= \u00e9", max_size=8)) + lines[at][3:]
            case _:
                lines[at] += data.draw(st.text(max_size=6))
        lines = lines or [""]
    with suppress(InputError, UsageError):
        assert isinstance(read("\n".join(lines)), Config)


def test_the_file_goes_before_defaults_and_flags_before_the_file() -> None:
    config = read("[server]\nport = 9000\npoll = 2\n", server__port=0, batching__max_batch=7)
    assert (config.server.port, config.server.poll, config.batching.max_batch) == (0, 2.0, 7)
    assert config.origins["server.port"] == "--port"
    assert config.origins["server.poll"] == "conf/mserve.toml:3"
    assert config.origins["batching.max_batch"] == "--max-batch"
    assert "server.host" not in config.origins


def test_a_file_is_checked_where_flags_go_before_it() -> None:
    with pytest.raises(InputError, match=r"\[server\] port"):
        read("[server]\nport = -5\n", server__port=0)


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ({"server__port": 70000}, "bad --port"),
        ({"limits__body": "big"}, "bad --max-body"),
        ({"server__grpc_port": "on"}, "bad --grpc-port"),
        ({"log__level": "loud"}, "bad --log-level"),
    ],
)
def test_a_bad_flag_is_a_usage_error_with_its_name(flags: dict[str, Any], part: str) -> None:
    with pytest.raises(UsageError, match=part):
        read("", **flags)


def test_the_room_for_bodies_grows_with_one_body() -> None:
    config = read('[limits]\nbody = "1GiB"\n')
    assert config.limits.buffered == 2 << 30
    assert config.origins["limits.buffered"] == "twice limits.body"


HARD = """\
"models"."quoted = key"."base_path" = "x"
text = '''
[server]
port = 1
'''
list = [
  [3],
  [4],
]
a.b.c = 1
[server] # a comment
  port = 2
[  models . "a b"  ]
'base_path' = 3
"""


def test_lines_are_right_or_absent() -> None:
    import tomllib

    lines = key_lines(HARD, tomllib.loads(HARD))
    assert lines["models", "quoted = key", "base_path"] == 1
    assert lines["a", "b", "c"] == 10
    assert ("server",) not in lines, "it seems to stand there twice"
    assert lines["models", "a b"] == 13
    assert lines["models", "a b", "base_path"] == 14


# What to serve


def test_a_directory_of_base_paths_is_all_its_models(tmp_path: Path) -> None:
    for name in ("a", "b", "stats", ".hidden"):
        (tmp_path / "models" / name / "1").mkdir(parents=True)
    (tmp_path / "models" / "empty").mkdir()
    file = tmp_path / "mserve.toml"
    file.write_text('[server]\nmodels = "models"\n')
    config = load(Source(file))
    assert {n: m.base_path for n, m in config.models.items()} == {
        "a": tmp_path / "models/a",
        "b": tmp_path / "models/b",
    }
    assert len(config.warnings) == 1
    assert "stats" in config.warnings[0]
    same = load(Source(base_path=tmp_path / "models", latest=3))
    assert [(n, m.versions) for n, m in same.models.items()] == [("a", 3), ("b", 3)]


@pytest.mark.parametrize(
    ("source", "part"),
    [
        (Source(), "nothing to serve"),
        (Source(Path("mserve.toml"), name="x"), "--name goes with BASE_PATH"),
        (Source(Path("mserve.toml"), latest=2), "--latest goes with BASE_PATH"),
        (Source(base_path=Path("x"), name="a/b"), "bad --name"),
        (Source(base_path=Path("x"), name="stats"), "bad --name"),
        (Source(Path("mserve.toml"), Path("x")), "both BASE_PATH and the configuration"),
    ],
)
def test_a_contradictory_command_line(source: Source, part: str) -> None:
    with pytest.raises(UsageError, match=part):
        parse(source, MODEL)


def test_a_directory_whose_name_cannot_be_a_models_needs_another() -> None:
    with pytest.raises(UsageError, match="needs another name"):
        parse(Source(base_path=Path("stats")), "")
    assert list(parse(Source(base_path=Path("stats"), name="x"), "").models) == ["x"]


def test_a_base_path_takes_the_rest_from_the_file(tmp_path: Path) -> None:
    config = parse(Source(Path("mserve.toml"), tmp_path / "m"), "[batching]\nmax_batch = 3\n")
    assert list(config.models) == ["m"]
    assert config.batching.max_batch == 3


# --print-config


def test_print_config_shows_values_and_origins(tmp_path: Path) -> None:
    (tmp_path / "mserve.toml").write_text(f"{MODEL}[server]\nport = 9000\n")
    done = run("serve", "--config", "mserve.toml", "--host", "::1", "--print-config", cwd=tmp_path)
    rows = dict(line.split("\t", 1) for line in done.stdout.splitlines())
    assert done.returncode == 0
    assert rows["server.port"] == "9000\tmserve.toml:4"
    assert rows["server.host"] == "::1\t--host"
    assert rows["server.poll"] == "1.0\tdefault"
    assert rows["models.m.base_path"] == "m\tmserve.toml:2"
    document = json.loads(
        run("serve", "--config", "mserve.toml", "--print-config", "--json", cwd=tmp_path).stdout
    )
    found = {s["key"]: s for s in document["settings"]}
    assert found["server.port"] == {
        "key": "server.port",
        "value": 9000,
        "origin": "mserve.toml:4",
        "restart": True,
        "doc": "HTTP port; 0 takes a free one",
    }
    assert found["models.m.versions"]["value"] == {"latest": 1}


def test_print_config_refuses_what_serve_would(tmp_path: Path) -> None:
    (tmp_path / "mserve.toml").write_text("[server]\nprot = 1\n")
    done = run("serve", "--config", "mserve.toml", "--print-config", cwd=tmp_path)
    assert done.returncode == 3
    assert "mserve.toml:2: [server] prot" in done.stderr


def test_the_help_tells_the_defaults_of_the_table() -> None:
    """The help is drawn without a look at the table, which would make it slow."""
    text = " ".join(run("serve", "--help").stdout.split())
    for setting in configuration.settings(Config()):
        flag, value = setting.about.flag, setting.value
        if flag and not isinstance(value, bool):
            shown = (
                "64MiB" if setting.key == "limits.body" else f"{value:g}" if value != str(value) else value
            )
            assert re.search(rf"{flag} <[^>]*> [^\[]*\[default: \({re.escape(shown)}\)", text), flag


# Reloading

TWO = '[models.m]\nbase_path = "x"\n[models.n]\nbase_path = "y"\n'


def settled(watch: ConfigWatch) -> bool:
    """Whether something is due once a file has stayed the same for two looks."""
    return watch.due() or watch.due()


def test_a_watch_sees_changes_and_keeps_the_old_configuration_on_errors(tmp_path: Path) -> None:
    file = tmp_path / "mserve.toml"
    file.write_text(MODEL)
    watch = ConfigWatch(Source(file))
    assert not settled(watch)

    file.write_text(MODEL + "labels = { s = 1 }\n[server]\nport = 1\n")
    assert settled(watch)
    change = watch.reload()
    assert change is not None
    assert change.config.models["m"].labels == {"s": 1}
    assert change.restart == ("server.port",)
    assert not settled(watch)

    file.write_text("[server]\nport = 'x'\n[models]\n")
    assert settled(watch)
    assert watch.reload() is None
    assert "[server] port" in watch.problem
    assert watch.config is change.config
    assert not settled(watch), "a bad file is read once"

    file.unlink()
    assert settled(watch)
    assert watch.reload() is None
    assert "No such file" in watch.problem

    file.write_text(MODEL)
    change = watch.reload()
    assert change is not None
    assert (change.restart, watch.problem) == ((), ""), "compared with what the server was started with"


def test_a_watch_sees_a_link_that_moves(tmp_path: Path) -> None:
    """As Kubernetes replaces a mounted configuration: the file stays a link, its target moves."""
    for name, version in (("old", 1), ("new", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mserve.toml").write_text(f"{MODEL}labels = {{ s = {version} }}\n")
    (tmp_path / "data").symlink_to("old")
    (tmp_path / "mserve.toml").symlink_to("data/mserve.toml")
    watch = ConfigWatch(Source(tmp_path / "mserve.toml"))
    (tmp_path / "next").symlink_to("new")
    os.replace(tmp_path / "next", tmp_path / "data")
    assert settled(watch)
    change = watch.reload()
    assert change is not None
    assert change.config.models["m"].labels == {"s": 2}


PIECES = [
    ("written in pieces", ["[models.m]\n", '[models.m]\nbase_path = "x"\n', TWO]),
    ("truncated, then written", ["", TWO]),
]


@pytest.mark.parametrize(("how", "states"), PIECES, ids=[p[0] for p in PIECES])
def test_a_watch_waits_until_a_file_is_written(tmp_path: Path, how: str, states: list[str]) -> None:
    """Each state alone would be read, and the server would lose models that are still to come."""
    file = tmp_path / "mserve.toml"
    file.write_text(TWO + "# before\n")
    watch = ConfigWatch(Source(file))
    for text in states:
        file.write_text(text)
        assert not watch.due(), f"{how}: it has just changed"
    assert watch.due()
    change = watch.reload()
    assert change is not None
    assert list(change.config.models) == ["m", "n"]
    assert not settled(watch)


def test_a_file_in_the_middle_of_a_change_holds_up_a_directory_of_models(tmp_path: Path) -> None:
    """A new base path must not have the half-written file read."""
    (tmp_path / "models" / "a" / "1").mkdir(parents=True)
    file = tmp_path / "mserve.toml"
    file.write_text('[server]\nmodels = "models"\n')
    watch = ConfigWatch(Source(file))
    (tmp_path / "models" / "b" / "1").mkdir(parents=True)
    file.write_text("")
    assert not watch.due()
    file.write_text('[server]\nmodels = "models"\npoll = 2\n')
    assert not watch.due()
    assert watch.due()


def test_a_reading_during_which_the_file_changes_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mserve.toml"
    file.write_text(TWO)
    watch = ConfigWatch(Source(file))
    before = watch.config
    file.write_text('[models.m]\nbase_path = "x"\n')

    def slowly(path: Path) -> str:
        text = path.read_text()
        path.write_text(TWO)
        return text

    monkeypatch.setattr("mserve.server.config.read_text", slowly)
    assert watch.reload() is None
    assert (watch.problem, watch.config) == ("", before)
    monkeypatch.undo()
    assert settled(watch)
    change = watch.reload()
    assert change is not None
    assert list(change.config.models) == ["m", "n"]


def test_a_file_without_models_takes_none_away(tmp_path: Path) -> None:
    """An emptied file is valid, and so is one whose models are commented out: neither can be meant."""
    file = tmp_path / "mserve.toml"
    file.write_text(TWO)
    watch = ConfigWatch(Source(file))
    for text in ("", "[limits]\ntimeout = 3\n", "[models]\n"):
        file.write_text(text)
        assert watch.reload() is None, text
        assert "names no models" in watch.problem
        assert list(watch.config.models) == ["m", "n"]
    file.write_text('[models.n]\nbase_path = "y"\n')
    change = watch.reload()
    assert change is not None
    assert list(change.config.models) == ["n"]
    file.write_text("")
    assert "names no models" in ConfigWatch(Source(file)).config.warnings[0]


def test_a_watch_finds_new_base_paths_and_never_loses_all(tmp_path: Path) -> None:
    models = tmp_path / "models"
    (models / "a" / "1").mkdir(parents=True)
    watch = ConfigWatch(Source(base_path=models))
    assert list(watch.config.models) == ["a"]
    (models / "b" / "1").mkdir(parents=True)
    assert watch.due()
    watch.reload()
    assert list(watch.config.models) == ["a", "b"]
    (models / "b" / "1").rmdir()
    assert not watch.due(), "an empty base path stays"
    (models / "b").rmdir()
    assert watch.due()
    watch.reload()
    assert list(watch.config.models) == ["a"]
    models.rename(tmp_path / "gone")
    assert not watch.due(), "a directory that is gone takes no model away"
    watch.reload()
    assert list(watch.config.models) == ["a"]


def test_another_directory_of_models_brings_its_own(tmp_path: Path) -> None:
    (tmp_path / "old" / "a" / "1").mkdir(parents=True)
    (tmp_path / "new").mkdir()
    file = tmp_path / "mserve.toml"
    file.write_text('[server]\nmodels = "old"\n')
    watch = ConfigWatch(Source(file))
    assert list(watch.config.models) == ["a"]
    file.write_text('[server]\nmodels = "new/"\n')
    watch.reload()
    assert list(watch.config.models) == [], "what was found elsewhere is not kept for it"


def test_keys_that_need_a_restart() -> None:
    before, after = read(MODEL), read(MODEL + "[server]\nport = 1\nadmin = true\n[tls]\ncert='c'\nkey='k'\n")
    assert needing_restart(before, after) == ["server.port", "tls.cert", "tls.key"]


def config_of(text: str, tmp_path: Path) -> Config:
    file = tmp_path / "mserve.toml"
    file.write_text(text)
    return load(Source(file))


CHANGES = [
    ("a value", "[limits]\ntimeout = 5.0\n", ["limits.timeout: 30.0 -> 5.0"]),
    (
        "a model, of which only what is written is told",
        '[models."two words"]\nbase_path = "m"\n',
        ['models."two words".base_path: - -> "m"'],
    ),
    ("nothing", "", []),
    ("a value that was the default", "[limits]\ntimeout = 30.0\n", []),
]


@pytest.mark.parametrize(("what", "text", "expected"), CHANGES, ids=[c[0] for c in CHANGES])
def test_what_differs_between_two_configurations(
    what: str, text: str, expected: list[str], tmp_path: Path
) -> None:
    now, before = config_of(text, tmp_path), config_of("", tmp_path)
    assert [line.replace(f"{tmp_path}/", "") for line in changed(before, now)] == expected, what
    back = [line.split(": ")[0] for line in changed(now, before)]
    assert back == [line.split(": ")[0] for line in expected]


def test_token_files_are_named_and_not_read_out(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("s3cret\n")
    now, before = config_of('[auth]\ntokens = "tokens"\n', tmp_path), config_of("", tmp_path)
    (line,) = changed(before, now)
    assert line.startswith("auth.tokens: null -> ")
    assert "s3cret" not in line


@pytest.mark.parametrize(
    ("what", "text", "options"),
    [
        ("plain", "", ""),
        ("tokens", '[auth]\ntokens = "t"\n', " -H 'Authorization: Bearer TOKEN'"),
        ("TLS", '[tls]\ncert = "c.pem"\nkey = "k.pem"\n', " --cacert c.pem"),
        (
            "mutual TLS",
            '[tls]\ncert = "c.pem"\nkey = "k.pem"\nclient_ca = "a.pem"\n',
            " --cacert c.pem --cert CLIENT.pem --key CLIENT.key",
        ),
    ],
)
def test_the_line_to_paste_has_what_curl_needs(what: str, text: str, options: str) -> None:
    tables = tomllib.loads(text)
    paths = {t: {k: Path(v) for k, v in keys.items()} for t, keys in tables.items()}
    config = SimpleNamespace(tls=TlsTable(**paths.get("tls", {})), auth=AuthTable(**paths.get("auth", {})))
    assert curl_options(config) == options, what  # type: ignore[arg-type]


def test_the_request_log_ends_though_its_disk_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread is stuck in a write and its queue is full."""
    monkeypatch.setattr(request_log, "CLOSE_S", 0.05)
    monkeypatch.setattr(request_log, "WAITING_MAX", 1)
    go = threading.Event()
    monkeypatch.setattr(request_log.RequestLog, "_write", lambda self, data: go.wait(20))
    record = request_log._Record({}, [], [])
    waits = request_log.RequestLog(request_log.Sampling(tmp_path / "log"))
    waits._queue.put(record)
    while not waits._queue.empty():
        time.sleep(0.01)
    waits._queue.put(record)
    waits.close()
    assert waits._queue.full(), "it did not wait for room"
    go.set()


def test_a_running_server_follows_its_file(tmp_path: Path) -> None:
    """New models, labels and limits take effect while the server answers; a mistake changes nothing."""
    for value in (1.0, 2.0):
        publish(tmp_path / "c", value)
    file = tmp_path / "mserve.toml"
    table = '[models.c]\nbase_path = "c"\nversions = "all"\n'
    file.write_text(table)
    with serving(f"--config={file}", tmp_path / "log") as server:

        def labelled(label: str) -> int:
            body = json.dumps(X).encode()
            return server.ask("POST", f"/v1/models/c/labels/{label}:predict", body).status

        server.wait_until(lambda: server.version("c") == "2")
        assert labelled("stable") != 200
        file.write_text(table + "labels = { stable = 1, default = 1 }\n")
        server.wait_until(lambda: labelled("stable") == 200)
        server.wait_until(lambda: server.version("c") == "1")
        assert 'configuration: models.c.labels: {} -> {"stable": 1, "default": 1}' in server.log()
        assert "mserve_configuration_refused 0.0" in server.get("/metrics").body.decode()
        assert "configuration_problem" not in server.get("/").json()

        file.write_text("[models.c]\nbase_path = 3\n")
        server.wait_until(lambda: "the new configuration is not used" in server.log())
        assert labelled("stable") == 200
        server.wait_until(lambda: "configuration_problem" in server.get("/").json())
        assert "[models.c] base_path" in server.get("/").json()["configuration_problem"]
        assert "mserve_configuration_refused 1.0" in server.get("/metrics").body.decode()

        file.write_text(
            f'{table}[models.d]\nbase_path = "c"\n[limits]\nconnections = 1000\n[server]\nhost = "x"\n'
        )
        server.process.send_signal(signal.SIGHUP)
        server.wait_until(lambda: server.predict("d", X).status == 200)
        assert "with a restart: server.host" in server.log()
        assert "configuration: limits.connections: 10000 -> 1000" in server.log()
        assert "mserve_configuration_refused 0.0" in server.get("/metrics").body.decode()
        file.write_text('[models.d]\nbase_path = "c"\n')
        server.wait_until(lambda: server.predict("c", X).status == 404)
        assert server.predict("d", X).status == 200
        assert server.stop() == 0


def test_a_server_starts_with_no_model_and_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "mserve.toml"
    file.write_text('[log]\nformat = "json"\nlevel = "debug"\n')
    with serving(f"--config={file}", tmp_path / "log") as server:
        publish(tmp_path / "c", 1.0)
        file.write_text('[models.c]\nbase_path = "c"\n[log]\nformat = "json"\n')
        server.wait_until(lambda: server.predict("c", X).status == 200)
        server.wait_until(lambda: "Ask it:" in server.log())
        server.wait_until(lambda: server.log().count("curl -s") == 1)
        entries = [json.loads(line) for line in server.log().splitlines()]
        assert any("listening on http://" in e["message"] for e in entries)
        assert any("gRPC on " in e["message"] for e in entries)
        assert any("names no models: nothing is served" in e["message"] for e in entries)
        told = [e for e in entries if e["message"] == "took a new configuration"]
        assert [(e["level"], e.keys()) for e in told] == [("info", {"time", "level", "message"})]


def test_what_is_to_be_recorded_is_on_the_disk_when_the_server_has_stopped(tmp_path: Path) -> None:
    publish(tmp_path / "c", 1.0)
    file = tmp_path / "mserve.toml"
    file.write_text(
        '[models.c]\nbase_path = "c"\n'
        '[request_log]\npath = "requests.jsonl"\nsample = 1\nredact = ["x", "ssn"]\n'
    )
    with serving(f"--config={file}", tmp_path / "log") as server:
        assert [server.predict("c", X).status for _ in range(20)] == [200] * 20
        assert server.stop() == 0
    lines = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert [line["inputs"] for line in lines] == [{"x": {"redacted": True}}] * 20
    assert (tmp_path / "requests.jsonl").stat().st_mode & 0o777 == 0o600
    assert server.log().count("request_log.redact names what no loaded signature has: ssn\n") == 1


def test_serve_needs_something_to_serve() -> None:
    command = [sys.executable, "-m", "mserve", "serve"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "nothing to serve" in done.stderr
