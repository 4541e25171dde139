"""Signatures: every rule of the table is met, and what fits is no change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from mserve.compare.change import SEVERITY, TABLE, Change
from mserve.compare.model import Model
from mserve.compare.signature import compare
from mserve.padding import Pad
from mserve.tensors import Signature, TensorSpec

F = "float32"


def spec(*shape: int | str, dtype: str = F, **rest: object) -> TensorSpec:
    return TensorSpec("t", dtype, shape, **rest)  # type: ignore[arg-type]


def signature(
    inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec], method: str = "predict"
) -> Signature:
    return Signature(method, inputs, outputs)


BASE = signature({"x": spec("N", 4), "z": spec("N", dtype="int64")}, {"y": spec("N", 2), "s": spec("N")})


def model(signatures: Mapping[str, Signature], *, kind: str = "bundle") -> Model:
    return Model(Path("m"), kind, signatures, {})


def changes(old: Signature, new: Signature) -> list[Change]:
    return list(compare(model({"a": old}), model({"a": new}))[0].changes)


def with_input(**ports: TensorSpec) -> Signature:
    return replace(BASE, inputs={**BASE.inputs, **ports})


def with_output(**ports: TensorSpec) -> Signature:
    return replace(BASE, outputs={**BASE.outputs, **ports})


def without(side: str, name: str) -> Signature:
    return replace(BASE, **{side: {a: s for a, s in getattr(BASE, side).items() if a != name}})


ONE = signature({"x": spec("N", 4)}, {"y": spec("N", 2)})
PORTS = [
    ("nothing changed", BASE, BASE, []),
    ("another method", BASE, replace(BASE, method="regress"), ["method-changed"]),
    ("an input is gone", BASE, without("inputs", "z"), ["input-removed"]),
    ("a new input that must be sent", BASE, with_input(w=spec("N")), ["input-added"]),
    ("a new input with a default", BASE, with_input(w=spec("N", default=1.0)), ["input-added-optional"]),
    (
        "the length of another input need not be sent",
        BASE,
        with_input(w=spec("N", length_of="x")),
        ["input-added-optional"],
    ),
    (
        "a second input beside an only one",
        ONE,
        replace(ONE, inputs={**ONE.inputs, "w": spec("N", default=1.0)}),
        ["input-added-optional", "input-second"],
    ),
    (
        "an input under another name",
        BASE,
        replace(BASE, inputs={"u": spec("N", 4), "z": BASE.inputs["z"]}),
        ["input-renamed"],
    ),
    (
        "an input of another name and dtype is another input",
        BASE,
        replace(BASE, inputs={"u": spec("N", 4, dtype="float64"), "z": BASE.inputs["z"]}),
        ["input-removed", "input-added"],
    ),
    ("another dtype", BASE, with_input(x=spec("N", 4, dtype="float64")), ["input-dtype"]),
    ("an axis more", BASE, with_input(x=spec("N", 4, 1)), ["input-rank"]),
    ("another size", BASE, with_input(x=spec("N", 5)), ["input-narrowed"]),
    ("an open size is fixed", BASE, with_input(x=spec(1, 4)), ["input-narrowed"]),
    ("a fixed size is open", BASE, with_input(x=spec("N", "M")), ["input-widened"]),
    ("one axis wider, one narrower", BASE, with_input(x=spec(1, "M")), ["input-narrowed"]),
    ("any shape", BASE, with_input(x=TensorSpec("t", F, None)), ["input-widened"]),
    ("a shape where there was any", with_input(x=TensorSpec("t", F, None)), BASE, ["input-narrowed"]),
    (
        "axes that have to be equal now",
        with_input(x=spec("N", "M")),
        with_input(x=spec("N", "N")),
        ["input-narrowed", "symbols"],
    ),
    (
        "an open axis has another name",
        with_input(x=spec("N", "M")),
        with_input(x=spec("N", "L")),
        ["symbols"],
    ),
    ("a default is gone", with_input(x=spec("N", 4, default=0.0)), BASE, ["default-removed"]),
    ("a default is new", BASE, with_input(x=spec("N", 4, default=0.0)), ["default-added"]),
    (
        "another default",
        with_input(x=spec("N", 4, default=0.0)),
        with_input(x=spec("N", 4, default=1.0)),
        ["default-changed"],
    ),
    (
        "padding",
        with_input(x=spec("N", "L", pad=Pad(1, 0, (8,)))),
        with_input(x=spec("N", "L", pad=Pad(1, 0, (8, 16)))),
        ["padding-changed"],
    ),
    ("a doc text", BASE, with_input(x=spec("N", 4, doc="four numbers")), ["described"]),
    ("a range", BASE, with_input(x=spec("N", 4, range=(0.0, 1.0))), ["described"]),
    ("an output is gone, and one is left", BASE, without("outputs", "s"), ["output-removed", "output-last"]),
    ("a third output", BASE, with_output(q=spec("N")), ["output-added"]),
    (
        "a second output beside an only one",
        ONE,
        replace(ONE, outputs={**ONE.outputs, "q": spec("N")}),
        ["output-added", "output-second"],
    ),
    (
        "an output under another name",
        BASE,
        replace(BASE, outputs={"q": spec("N", 2), "s": spec("N")}),
        ["output-renamed"],
    ),
    ("an output's dtype", BASE, with_output(y=spec("N", 2, dtype="float16")), ["output-dtype"]),
    ("an output's rank", BASE, with_output(y=spec("N")), ["output-rank"]),
    ("an output of another size", BASE, with_output(y=spec("N", 3)), ["output-widened"]),
    ("an output of any size", BASE, with_output(y=spec("N", "K")), ["output-widened"]),
    ("an output's shape is fixed", with_output(y=spec("N", "K")), BASE, ["output-narrowed"]),
    ("labels are new", BASE, with_output(y=spec("N", 2, labels="l.txt")), ["labels-added"]),
    ("labels are gone", with_output(y=spec("N", 2, labels="l.txt")), BASE, ["labels-removed"]),
    ("serialised examples are taken", BASE, replace(BASE, examples="e"), ["examples-added"]),
    ("and no longer", replace(BASE, examples="e"), BASE, ["examples-removed"]),
    ("or by another name", replace(BASE, examples="e"), replace(BASE, examples="f"), ["examples-removed"]),
    (
        "labels in another file",
        with_output(y=spec("N", 2, labels="l.txt")),
        with_output(y=spec("N", 2, labels="m.txt")),
        ["labels-file"],
    ),
]


@pytest.mark.parametrize(("why", "old", "new", "rules"), PORTS, ids=[p[0] for p in PORTS])
def test_a_change_of_a_port(why: str, old: Signature, new: Signature, rules: list[str]) -> None:
    assert [c.rule for c in changes(old, new)] == rules, why


SIGNATURES = [
    ("a signature is gone", {"a": BASE, "b": ONE}, {"a": BASE}, ["signature-removed"]),
    ("a signature is new", {"a": BASE}, {"a": BASE, "b": ONE}, ["signature-added"]),
    ("a signature under another name", {"a": BASE}, {"b": BASE}, ["signature-renamed"]),
    (
        "two that could be it",
        {"a": BASE},
        {"b": BASE, "c": BASE},
        ["signature-removed", "signature-added", "signature-added"],
    ),
]


@pytest.mark.parametrize(("why", "old", "new", "rules"), SIGNATURES, ids=[s[0] for s in SIGNATURES])
def test_a_change_of_signatures(
    why: str, old: dict[str, Signature], new: dict[str, Signature], rules: list[str]
) -> None:
    assert [c.rule for c in compare(model(old), model(new))[0].changes] == rules, why


def test_renamed_ports_are_told_to_the_other_levels() -> None:
    new = replace(BASE, inputs={"u": spec("N", 4), "z": BASE.inputs["z"]})
    (pair,) = compare(model({"a": BASE}), model({"b": new}))[1] or [None]
    assert pair is None or pair.inputs == {"x": "u", "z": "z"}
    (pair,) = compare(model({"a": BASE}), model({"a": new}))[1]
    assert (pair.old, pair.new, pair.inputs) == ("a", "a", {"x": "u", "z": "z"})


def test_every_rule_has_a_class_and_a_sentence() -> None:
    for name, rule in TABLE.items():
        assert rule.severity in SEVERITY, name
        assert rule.meaning, name
        assert not rule.meaning.endswith("."), name


def test_every_signature_rule_is_met_above() -> None:
    met = {rule for row in (*PORTS, *SIGNATURES) for rule in row[3]}
    known = {name for name, rule in TABLE.items() if rule.level == "signature"}
    assert known - met == {"batching-changed"}  # which only bundles have: see test_diff_command
