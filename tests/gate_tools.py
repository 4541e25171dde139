"""Bundles of real models for gates, and versions of them that were changed in one way."""

from __future__ import annotations

import csv
import gzip
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import mutations
import numpy as np
import onnx
from builders import reseal, set_json
from onnx import ModelProto, helper
from test_real_models import AVAZU, magika_features

import mserve
from mserve.workflows.gate import Gate, Options, gate
from mserve.workflows.policy import policy_of

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ROOT / "samples" / "digits"
Find = Callable[[str], Path]
Change = Callable[[ModelProto], ModelProto]


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels and labels of the 360 digits that the sample's model was not trained on."""
    with gzip.open(DIGITS / "digits.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)[-360:]
    return table[:, :64], table[:, 64].astype(np.int64)


class Models:
    """Files of real models, and golden samples of real requests for them; made-up images for `angle`."""

    def __init__(self, find: Find, root: Path) -> None:
        self.root, self._find = root, find
        self._old: dict[str, Path] = {}

    def file(self, name: str) -> Path:
        files = {
            "magika": "02_magika/model.onnx",
            "angle": "04_ppocr/ch_ppocr_mobile_v2.0_cls_infer.onnx",
            "avazu": "09_avazu_spark_lr/derived_avazu_lr_16strings.onnx",
        }
        return DIGITS / "digits.onnx" if name == "digits" else self._find(files[name])

    def golden(self, name: str) -> dict[str, Any]:
        if name == "digits":
            return {"pixels": digits()[0][:60]}
        if name == "magika":
            files = [Path(__file__), self._find("04_ppocr/page.png"), ROOT / "tests" / "run.sh"]
            return {"bytes": np.array([magika_features(f) for f in files], np.int32)}
        if name == "angle":
            return {"x": np.random.default_rng(3).random((4, 3, 48, 192), np.float32)}
        with gzip.open(self._find("09_avazu_spark_lr/avazu_stream_23299.csv.gz"), "rt") as file:
            rows = [dict(zip(AVAZU, row, strict=True)) for row in islice(csv.reader(file), 64)]
        names = [port.name for port in onnx.load(self.file(name)).graph.input]
        return {port: np.array([row[port] for row in rows], object) for port in names}

    def old(self, name: str) -> Path:
        """The bundle of a model as it is."""
        if name not in self._old:
            place = self.root / "old" / name
            self._old[name] = mserve.export(self.file(name), place, golden=self.golden(name)).path
        return self._old[name]

    def new(self, name: str, change: Change, place: Path, **options: Any) -> Path:
        """A bundle of a changed model, with the same golden inputs, by position."""
        model = change(onnx.load(self.file(name)))
        ports = [port.name for port in model.graph.input]
        golden = dict(zip(ports, self.golden(name).values(), strict=True))
        if change is mutations.batch_of_one:
            golden = {port: x[:1] for port, x in golden.items()}
        return mserve.export(model, place / name, golden=golden, **options).path


def gated(old: Path, new: Path, policy: dict[str, Any] | None = None, **options: Any) -> Gate:
    """A gate without latency, under a policy as its file has it."""
    return gate(old, new, Options(**{"latency": "off", **options}), policy_of(policy or {}, "policy"))


def resigned(version: Path, edit: Callable[[Any], Any]) -> Path:
    """A bundle whose signatures were edited and sealed again, in place."""
    for path in (version, version / "export.meta"):
        path.chmod(0o755)
    reseal(version, lambda proto: set_json(proto, "mserve.signatures", edit))
    return version


def copied(version: Path, place: Path) -> Path:
    """A copy of a bundle that may be changed."""
    copy = Path(shutil.copytree(version, place / "copy" / version.name))
    copy.chmod(0o755)
    return copy


def through_branch(model: ModelProto) -> ModelProto:
    """The first output passes through the branch of an If, in which an operator hides."""
    copy = mutations.copied(model)
    name = copy.graph.output[0].name
    for node in copy.graph.node:
        node.input[:] = ["before_if" if x == name else x for x in node.input]
        node.output[:] = ["before_if" if x == name else x for x in node.output]
    kind = copy.graph.output[0].type.tensor_type.elem_type
    info = helper.make_tensor_value_info
    branch = []
    for op in ("Identity", "Softsign"):
        nodes = [helper.make_node(op, ["before_if"], [f"{op}_y"])]
        branch.append(helper.make_graph(nodes, op, [], [info(f"{op}_y", kind, None)]))
    copy.graph.initializer.append(helper.make_tensor("yes", onnx.TensorProto.BOOL, [], [True]))
    copy.graph.node.append(
        helper.make_node("If", ["yes"], [name], then_branch=branch[0], else_branch=branch[1])
    )
    return copy
