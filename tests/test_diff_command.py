"""`mserve diff`: what it prints in which form, and what it exits with."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import mutations
import pytest
from builders import mlp, reseal, save, set_json
from test_commands import run

import mserve
from mserve.compare import TABLE, Diff, diff
from mserve.compare.change import FAIL_ON, Change, Level, check_fail_on
from mserve.compare.html import render as html
from mserve.compare.markdown import cell
from mserve.compare.markdown import render as markdown
from mserve.errors import UsageError


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1, version 2 (the same), version 3 (trained again), and changed ONNX files beside them."""
    root = tmp_path_factory.mktemp("diff")
    for number, seed in ((1, 0), (2, 0), (3, 5)):
        mserve.export(mlp(seed=seed), root / "m", version=number, golden=3, name="digits")
    save(mutations.input_renamed(mlp()), root / "renamed.onnx")
    save(mutations.with_relu(mlp()), root / "relu.onnx")
    save(mlp(), root / "plain.onnx")
    return root


def one(place: Path, number: int) -> Path:
    return place / "m" / f"{number:08}"


EXITS = [
    ("equal", ["1", "2"], ["any"], 0, "equal"),
    ("trained again, nothing asked", ["1", "3"], [], 0, "compatible"),
    ("trained again breaks nobody", ["1", "3"], ["breaking"], 0, "compatible"),
    ("trained again, weights asked", ["1", "3"], ["weights"], 1, "FAILED: compatible"),
    ("trained again, answers asked", ["1", "3"], ["outputs"], 1, "FAILED: compatible"),
    ("trained again, several asked", ["1", "3"], ["signature,graph", "assets"], 0, "compatible"),
    ("trained again, anything", ["1", "3"], ["any"], 1, "FAILED: compatible"),
    ("an input renamed", ["1", "renamed.onnx"], ["breaking"], 1, "FAILED: BREAKING: 1 change(s)"),
    ("a node inserted", ["1", "relu.onnx"], ["graph"], 1, "FAILED: compatible"),
    ("nothing is asked, and it breaks", ["1", "renamed.onnx"], [], 0, "BREAKING: 1 change(s)"),
]


@pytest.mark.parametrize(("why", "sides", "fail_on", "code", "last"), EXITS, ids=[e[0] for e in EXITS])
def test_exit_codes(
    place: Path, why: str, sides: list[str], fail_on: list[str], code: int, last: str
) -> None:
    paths = [one(place, int(s)) if s.isdigit() else place / s for s in sides]
    done = run("diff", *paths, *(x for name in fail_on for x in ("--fail-on", name)))
    assert done.returncode == code, (why, done.stdout, done.stderr)
    assert done.stdout.splitlines()[-1].startswith(last), why


ERRORS = [
    ("no such model", ["m", "absent"], 3, "no such model"),
    ("a text file", ["m", "words.txt"], 3, "not a model that can be compared"),
    ("an empty directory", ["m", "empty"], 3, "not a model that can be compared"),
    ("an unknown level", ["m", "m", "--fail-on", "everything"], 2, "--fail-on knows no such level"),
    ("a level that cannot be compared", ["m", "plain.onnx", "--fail-on", "assets"], 2, "leave assets out"),
    ("inputs, and no outputs", ["m", "m", "--no-outputs", "--inputs", "x.npz"], 2, "leave one of them out"),
    ("inputs that are not there", ["m", "plain.onnx", "--inputs", "x.npz"], 3, "cannot read"),
    (
        "a page that cannot be written",
        ["m", "m", "--html", "absent/x.html"],
        4,
        "the output cannot be written",
    ),
]


@pytest.mark.parametrize(("why", "arguments", "code", "text"), ERRORS, ids=[e[0] for e in ERRORS])
def test_errors(place: Path, why: str, arguments: list[str], code: int, text: str) -> None:
    (place / "words.txt").write_text("no model\n")
    (place / "empty").mkdir(exist_ok=True)
    done = run("diff", *arguments, cwd=place)
    assert done.returncode == code, (why, done.stderr)
    assert text in done.stderr


def test_a_base_path_stands_for_its_newest_version(place: Path) -> None:
    facts = json.loads(run("diff", one(place, 1), place / "m", "--json").stdout)
    assert facts["new"]["version"] == 3


def test_json(place: Path) -> None:
    """Both ways to ask for JSON give one document with everything in it."""
    texts = [
        run("diff", one(place, 1), one(place, 3), *how).stdout for how in (["--json"], ["--format", "json"])
    ]
    assert texts[0] == texts[1]
    facts: dict[str, Any] = json.loads(texts[0])
    assert (facts["schema"], facts["kind"], facts["failed"], facts["fail_on"]) == (1, "diff", False, [])
    assert list(facts["levels"]) == ["signature", "graph", "weights", "assets", "outputs"]
    verdicts = {name: level["verdict"] for name, level in facts["levels"].items()}
    assert verdicts == {
        "signature": "equal",
        "graph": "equal",
        "weights": "changed",
        "assets": "equal",
        "outputs": "changed",
    }
    change = facts["levels"]["weights"]["changes"][0]
    assert set(change) == {"level", "where", "class", "rule", "text", "old", "new", "facts"}
    assert change["facts"]["changed_rows"] > 0
    assert json.loads(run("diff", one(place, 1), one(place, 3), "--json", "--fail-on", "any").stdout)[
        "failed"
    ]


def test_explain_prints_the_table() -> None:
    done = run("diff", "--explain")
    assert done.returncode == 0
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert {row[1]: (row[0], row[2], row[3]) for row in rows} == {
        name: (rule.level, rule.severity, rule.meaning) for name, rule in TABLE.items()
    }


def test_a_patch_is_printed(place: Path) -> None:
    done = run("diff", place / "plain.onnx", place / "relu.onnx")
    assert [line for line in done.stdout.splitlines() if line.startswith("+ Relu(")]


def test_batching_is_compared_between_bundles(place: Path, tmp_path: Path) -> None:
    old = mserve.export(mlp(), tmp_path / "b").path

    def alone(signatures: dict[str, Any]) -> dict[str, Any]:
        signatures["serving_default"]["batch_axis"] = None
        return signatures

    new = mserve.export(mlp(), tmp_path / "b").path
    for path in (new, new / "export.meta"):
        path.chmod(0o755)
    reseal(new, lambda proto: set_json(proto, "mserve.signatures", alone))
    assert [c.rule for c in diff(old, new).level("signature").changes] == ["batching-changed"]


# --- names that mean to be something else


EVIL = "</td><script>alert(1)</script>|`*[x](http://e.example)@all\x1b[31m\n# head"


def evil() -> Diff:
    changes = (Change("subgraph", EVIL, EVIL, "1", "2", {"patch": [f"- {EVIL}", "```", f"+ {EVIL}"]}),)
    worst = {"worst_rows": [{"row": 0, "old": EVIL, "new": 1.0, "gap": "inf"}]}
    moved = (Change("answers-moved", EVIL, EVIL, facts=worst),)
    levels = (Level("graph", changes, EVIL), Level("outputs", moved, EVIL))
    return Diff({"path": EVIL, "kind": EVIL}, {"path": EVIL, "kind": EVIL, "identity": EVIL}, levels)


class Tags(HTMLParser):
    """The tags and attributes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.add(tag)
        self.attributes.update(name for name, _ in attrs)


def test_a_page_holds_no_script_and_loads_nothing() -> None:
    page = html(evil())
    tags = Tags(page)
    assert tags.found <= set("html head meta title style body h1 h2 table tr th td span pre".split())
    assert tags.attributes <= {"lang", "charset", "http-equiv", "content", "class"}
    assert "alert(1)" in page
    assert "\x1b" not in page


def test_markdown_keeps_its_form() -> None:
    """Whatever names say, tables have their columns, and nothing becomes a link, a mention or a tag."""
    text = markdown(evil())
    assert "\x1b" not in text
    outside = re.sub(r"```diff\n.*?\n```", "", text, flags=re.DOTALL)
    assert "<script" not in re.sub(r"\\<", "", outside)
    assert "@all" not in outside
    assert text.count("```") == 2
    for line in outside.splitlines():
        if line.startswith("| "):
            assert len(re.findall(r"(?<!\\)\|", line)) in (4, 5), line


def test_a_cell_of_markdown() -> None:
    assert cell("a|b") == "a\\|b"
    assert cell("plain text 1.5") == "plain text 1.5"
    assert "\n" not in cell("two\nlines")


def test_markdown_and_html_of_a_real_comparison(place: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = run("diff", one(place, 1), place / "relu.onnx", "--format", "markdown", "--html", page)
    assert done.returncode == 0
    assert done.stdout.startswith("### mserve diff: compatible")
    assert "```diff" in done.stdout
    assert re.search(r"\+ Relu\(\w+\) -&gt; \w", page.read_text())


def test_what_fails() -> None:
    breaking, moved, close = (
        Change(rule, "x", "t") for rule in ("input-removed", "answers-moved", "answers-close")
    )
    found = Diff({}, {}, (Level("signature", (breaking,)), Level("outputs", (moved, close))))
    wanted = {
        "breaking": [breaking],
        "signature": [breaking],
        "outputs": [moved],
        "graph": [],
        "any": [breaking, moved],
    }
    for name, changes in wanted.items():
        assert found.failing([name]) == changes
    assert check_fail_on(["breaking, outputs", "any"]) == ["breaking", "outputs", "any"]
    assert set(check_fail_on([",".join(FAIL_ON)])) == set(FAIL_ON)
    with pytest.raises(UsageError):
        check_fail_on(["none"])


def test_an_unreadable_external_file_is_one_error(place: Path, tmp_path: Path) -> None:
    import builders

    path = builders.external(mlp(), tmp_path / "e.onnx", location="weights.bin")
    assert run("diff", place / "plain.onnx", path, "--fail-on", "any").returncode == 0
    (tmp_path / "weights.bin").write_bytes(b"short")
    done = run("diff", place / "plain.onnx", path)
    assert done.returncode == 3
    assert "missing or too short" in done.stderr
