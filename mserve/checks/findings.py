"""What validate can find: codes, severities, and how far answers may be off."""

from __future__ import annotations

from dataclasses import dataclass

from ..numerics import ATOL, RTOL

ERROR, WARNING = "error", "warning"

# Every code: its severity, and what it means. Codes are stable; the README lists them.
CODES: dict[str, tuple[str, str]] = {
    "file-digest": (ERROR, "a file's bytes are not those that were exported"),
    "tensor-digest": (ERROR, "a tensor's bytes are not those that were exported"),
    "content-digest": (ERROR, "the recorded content digest is not that of export.meta"),
    "shard-layout": (ERROR, "a shard is not HDF5, or a dataset is not what and where the graph says"),
    "tensor-overlap": (ERROR, "two tensors share bytes of a shard"),
    "onnx-checker": (ERROR, "onnx.checker refuses the graph"),
    "inner-external": (ERROR, "a constant of a subgraph or function lies in another file"),
    "load": (ERROR, "the graph, or the table, does not load"),
    "golden-run": (ERROR, "the model fails on its own golden inputs"),
    "golden-outputs": (ERROR, "the model's answers are not the recorded ones"),
    "golden-absent": (WARNING, "no golden samples are recorded, so answers were not checked"),
    "shape-inference": (WARNING, "the graph's shapes contradict each other (--full)"),
    "unused-weight": (WARNING, "nothing reads a weight (--full)"),
    "output-shape": (ERROR, "an output does not have its declared shape or dtype (--full)"),
    "batch-neighbours": (ERROR, "a row's answer depends on the other rows of its batch (--full)"),
    "batch-size": (ERROR, "a row's answer depends on how many rows its batch has (--full)"),
    "padding": (ERROR, "an input that may be padded gives other answers when it is"),
    "integer-division": (WARNING, "a division of whole numbers that a request can make end the process"),
    "not-a-number": (WARNING, "the model answers golden inputs with NaN or infinity (--full)"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One result of a check: a code of CODES, where, and what was found."""

    code: str
    where: str
    text: str

    @property
    def severity(self) -> str:
        """error or warning, as CODES says."""
        return CODES[self.code][0]

    def to_json(self) -> dict[str, str]:
        return {"code": self.code, "severity": self.severity, "where": self.where, "text": self.text}


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far golden outputs may be off: |difference| <= atol + rtol * |recorded|."""

    rtol: float = RTOL
    atol: float = ATOL
