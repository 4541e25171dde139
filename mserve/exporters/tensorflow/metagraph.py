"""MetaGraphs with a checkpoint, as TensorFlow 1 saves a model in training: PREFIX.meta beside PREFIX.index.

Such a graph seldom has signatures: `--input` and `--output` say what may be asked.
"""

from __future__ import annotations

from pathlib import Path

from ...errors import UsageError
from ...foreign import detect
from ...foreign.session_bundle import read_export
from ..kinds import Converted, ConvertOptions, Kind, Seen
from . import tf_model
from .session_bundle import asked, format_of, load, ports_of


def convert(source: str, options: ConvertOptions) -> Converted:
    """A checkpoint and the MetaGraph beside it as ONNX. Raises as `session_bundle.convert`."""
    prefix = _prefix(Path(source))
    meta, named = read_export(prefix.with_name(f"{prefix.name}.meta"))
    ports = asked(options, prefix) or ports_of(meta.signatures, named)
    if not ports:
        raise UsageError(
            "the MetaGraph does not say what may be asked",
            where=prefix,
            expected="--input x:0 --output y:0, or ALIAS=TENSOR",
            found=", ".join(f"{op} x{n}" for op, n in meta.graph.operators.most_common(5)),
            hint="mserve inspect lists its operators; the model's code has the tensors' names",
        )
    files = prefix.with_name(f"{prefix.name}.meta"), prefix
    return tf_model.convert(load(files, ports, {}, options), options.opset)


def _prefix(path: Path) -> Path:
    """A checkpoint's prefix, given itself, a file of it, its MetaGraph or its directory."""
    if path.name.endswith(".meta"):
        return path.with_name(path.name.removesuffix(".meta"))
    return detect.detect(path).path


def _matches(seen: Seen) -> bool:
    if seen.is_file and seen.path.name.endswith(".meta"):
        return (
            seen.head[:1] == b"\x0a" and format_of(Path(seen.text.removesuffix(".meta"))) == detect.CHECKPOINT
        )
    if seen.is_dir and not any(name.endswith(".meta") for name in seen.names):
        return False
    return format_of(seen.path) == detect.CHECKPOINT


KIND = Kind(
    name="metagraph",
    what="a TensorFlow MetaGraph with its checkpoint",
    matches=_matches,
    convert=convert,
    extra="tf",
    modules=("tensorflow", "tf2onnx"),
    options=("opset", "input", "output"),
)
