"""`mserve label`: edits of real files that keep everything else, whoever interrupts or competes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from server_tools import serving
from test_commands import run
from test_server import X, publish

from mserve.errors import InputError, UsageError
from mserve.server.labels import edit_labels, read_model

TEXT = """\
# Who serves what.
[models.ranker]
versions = "all"   # every one
base_path = "ranker"
labels = { stable = 1, canary = 2 } # moved by mserve label

[models."two words"]
base_path = "ranker" # the same

[server]
port = 9000
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    for version in ("1", "00000002", "3"):
        (tmp_path / "ranker" / version).mkdir(parents=True)
    path = tmp_path / "mserve.toml"
    path.write_text(TEXT)
    return path


def test_a_move_changes_one_number(file: Path) -> None:
    file.chmod(0o640)
    edit = edit_labels(file, "ranker", {"stable": 3})
    assert (edit.old, edit.new) == ({"stable": 1, "canary": 2}, {"stable": 3, "canary": 2})
    assert file.read_text() == TEXT.replace("stable = 1", "stable = 3")
    assert file.stat().st_mode & 0o777 == 0o640
    assert sorted(p.name for p in file.parent.iterdir()) == ["mserve.toml", "ranker"]


RANKER = '[models.ranker]\nbase_path = "ranker"\n'
STYLES = [
    ("no labels yet", '[models.ranker]\nbase_path = "ranker" # here\n\n[server]\nport = 1\n'),
    ("a table of labels", f"{RANKER}[models.ranker.labels]\n# all\nstable = 1 # old\n"),
    ("dotted keys", '[models.ranker]\nlabels.stable = 1\nbase_path = "ranker"\nlabels.other = 2\n'),
    ("one line", 'models = { ranker = { base_path = "ranker", labels = { stable = 1 } } }\n'),
    ("only dotted keys", 'models.ranker.base_path = "ranker"\nmodels.ranker.labels.stable = 1\n'),
    ("other tables between", f'[models.a]\nbase_path = "a"\n[server]\nport = 1\n{RANKER}'),
    ("the lines of Windows", f"{RANKER}labels = {{ stable = 1 }}\n# end\n".replace("\n", "\r\n")),
    ("no last line end", '[models.ranker]\nbase_path = "ranker"\nlabels = { stable = 1 } # end'),
]


@pytest.mark.parametrize(("what", "text"), STYLES, ids=[s[0] for s in STYLES])
def test_every_way_to_write_a_table(file: Path, what: str, text: str) -> None:
    file.write_bytes(text.encode())
    before = tomllib.loads(text)
    edit_labels(file, "ranker", {"stable": 3, "new one": 2})
    after = file.read_bytes().decode()
    before["models"]["ranker"]["labels"] = before["models"]["ranker"].get("labels", {}) | {
        "stable": 3,
        "new one": 2,
    }
    assert tomllib.loads(after) == before, what
    for line in text.splitlines():
        if "#" in line:
            assert line[line.index("#") :] in after, "comments stay"
    edit_labels(file, "ranker", {}, ["stable", "new one"])
    assert set(read_model(file, "ranker").labels) == {"other"} & set(before["models"]["ranker"]["labels"])


@pytest.mark.parametrize(
    ("name", "moved", "removed", "parts"),
    [
        ("ranker", {"stable": 9}, [], ["no version 9", "one of 1, 2, 3", "stable=9", "--force"]),
        ("rankr", {"stable": 1}, [], ["no such model", 'did you mean "ranker"']),
        ("ranker", {}, ["stabel"], ["no such label", 'did you mean "stable"']),
    ],
)
def test_what_is_refused(
    file: Path, name: str, moved: dict[str, int], removed: list[str], parts: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        edit_labels(file, name, moved, removed)
    for part in parts:
        assert part in str(caught.value)
    assert file.read_text() == TEXT


def test_an_edit_that_makes_the_file_wrong_is_refused(file: Path) -> None:
    file.write_text('[models.ranker]\nbase_path = "ranker"\n')
    with pytest.raises(InputError, match="it holds '/'"):
        edit_labels(file, "ranker", {"a/b": 1})
    assert "labels" not in file.read_text()


def test_a_wrong_file_is_not_edited(file: Path) -> None:
    file.write_text(TEXT + "prot = 1\n")
    with pytest.raises(InputError, match=r"mserve.toml:12: \[server\] prot"):
        edit_labels(file, "ranker", {"stable": 3})


def test_a_model_config_list_is_not_edited(tmp_path: Path) -> None:
    file = tmp_path / "models.config"
    file.write_text('model_config_list { config { name: "m" base_path: "/m" } }')
    with pytest.raises(UsageError, match="not edited"):
        edit_labels(file, "m", {"stable": 1})


def test_a_version_can_be_named_in_advance(file: Path) -> None:
    assert edit_labels(file, "ranker", {"stable": 9}, force=True).new["stable"] == 9


def test_a_link_stays_a_link(file: Path, tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    link = tmp_path / "conf" / "mserve.toml"
    link.symlink_to(file)
    file.write_text(TEXT.replace('"ranker"', f'"{tmp_path / "ranker"}"'))
    edit_labels(link, "ranker", {"stable": 3})
    assert link.is_symlink()
    assert "stable = 3" in file.read_text()


def test_the_command(file: Path) -> None:
    def label(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run("label", *arguments, cwd=file.parent)

    assert label("ranker").stdout == "stable\t1\ncanary\t2\n"
    done = label("ranker", "stable=3", "new=1", "--remove", "canary")
    assert done.stdout == "stable\t1\t3\ncanary\t2\tnone\nnew\tnone\t1\n"
    assert "a server that was started with --config mserve.toml follows by itself" in done.stderr
    assert "nothing to change" in label("ranker", "stable=3").stderr
    document = json.loads(label("ranker", "stable=2", "--json").stdout)
    assert (document["old"], document["labels"]) == ({"stable": 3, "new": 1}, {"stable": 2, "new": 1})
    assert json.loads(label("ranker", "--json").stdout)["labels"] == {"stable": 2, "new": 1}
    assert "two words has no labels" in label("two words").stderr


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["ranker", "stable"], 2, "LABEL=VERSION"),
        (["ranker", "stable=x"], 2, "LABEL=VERSION"),
        (["ranker", "stable=-1"], 2, "LABEL=VERSION"),
        (["ranker", "=1"], 2, "LABEL=VERSION"),
        (["ranker", "a=1", "a=2"], 2, "given twice"),
        (["ranker", "a=9"], 2, "no version 9"),
        (["ranker", "a=1", "--config", "other.toml"], 3, "cannot read the file"),
        (["ranker", "a=9999999999999999999", "--force"], 3, "labels"),
    ],
)
def test_a_wrong_command_line(file: Path, arguments: list[str], code: int, part: str) -> None:
    done = run("label", *arguments, cwd=file.parent)
    assert (done.returncode, part in done.stderr) == (code, True), done.stderr
    assert file.read_text() == TEXT


MANY = """
import sys
from pathlib import Path
from mserve.server.labels import edit_labels
file, prefix, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
for i in range(count):
    edit_labels(file, "ranker", {f"{prefix}{i}": 1})
"""


def test_edits_at_the_same_time_are_all_made(file: Path) -> None:
    """Each of three processes adds labels; none takes away what another added."""
    runs = [subprocess.Popen([sys.executable, "-c", MANY, str(file), p, "15"]) for p in "abc"]
    assert [r.wait(60) for r in runs] == [0, 0, 0]
    labels = read_model(file, "ranker").labels
    assert labels.keys() == {"stable", "canary", *(f"{p}{i}" for p in "abc" for i in range(15))}
    assert "# moved by mserve label" in file.read_text()


def test_a_killed_edit_leaves_a_whole_file(file: Path) -> None:
    """Killed at ten moments while it edits on and on; the file is whole, and the next edit succeeds."""
    for attempt in range(10):
        process = subprocess.Popen([sys.executable, "-c", MANY, str(file), f"k{attempt}-", "1000"])
        first = f"k{attempt}-0"
        while first not in file.read_text():
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(0.003 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        labels = read_model(file, "ranker").labels
        added = [n for n in labels if n.startswith(f"k{attempt}-")]
        assert added == [f"k{attempt}-{i}" for i in range(len(added))]
        assert file.read_text().startswith("# Who serves what.")
        assert file.read_text().endswith("port = 9000\n")
    (file.parent / ".mserve.toml.new").write_text("half a fi")
    edit_labels(file, "ranker", {"stable": 2})
    assert os.listdir(file.parent).count(".mserve.toml.new") == 0
    assert read_model(file, "ranker").labels["stable"] == 2


def test_a_running_server_follows_a_label(tmp_path: Path) -> None:
    """The tour: canary tries version 2, then everybody gets it, then everybody is back on 1."""
    for value in (1.0, 2.0):
        publish(tmp_path / "c", value)
    file = tmp_path / "mserve.toml"
    file.write_text('[models.c]\nbase_path = "c"\nlabels = { default = 1 }\n')
    with serving(f"--config={file}", tmp_path / "log") as server:
        assert server.version("c") == "1"
        assert run("label", "c", "canary=2", cwd=tmp_path).returncode == 0
        canary = "/v1/models/c/labels/canary:predict"
        server.wait_until(lambda: server.ask("POST", canary, json.dumps(X).encode()).status == 200)
        assert server.version("c") == "1"
        for version in ("2", "1"):
            assert run("label", "c", f"default={version}", cwd=tmp_path).returncode == 0
            server.wait_until(lambda wanted=version: server.version("c") == wanted)  # type: ignore[misc]


# gc


def test_gc_keeps_what_the_configuration_names(tmp_path: Path) -> None:
    for _ in range(5):
        publish(tmp_path / "c", 1.0)
    file = tmp_path / "mserve.toml"
    file.write_text(
        '[models.c]\nbase_path = "c"\nlabels = { stable = 1, old = 1 }\n'
        '[models.d]\nbase_path = "c"\nversions = [2]\n[models.other]\nbase_path = "x"\nlabels = { s = 3 }\n'
    )
    done = run("gc", tmp_path / "c", "--keep", 1, "--config", file, "--pin", 4, "--json")
    told = {v["version"]: v["reason"] for v in json.loads(done.stdout)["versions"] if not v["removed"]}
    assert told == {
        1: "labelled stable, old",
        2: "listed in the configuration",
        4: "pinned",
        5: "one of the newest 1",
    }
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == [f"{v:08d}" for v in (1, 2, 4, 5)]


def test_gc_removes_nothing_when_the_configuration_is_another(tmp_path: Path) -> None:
    for _ in range(2):
        publish(tmp_path / "c", 1.0)
    file = tmp_path / "mserve.toml"
    file.write_text('[models.x]\nbase_path = "x"\n')
    done = run("gc", tmp_path / "c", "--keep", 1, "--config", file)
    assert done.returncode == 2
    assert "no model of the configuration has this base path" in done.stderr
    assert len(list((tmp_path / "c").iterdir())) == 2
