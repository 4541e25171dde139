"""scikit-learn estimators from skops files, which hold data and name types that are known to be harmless."""

from __future__ import annotations

from ..kinds import Converted, ConvertOptions, Kind
from . import sklearn_files, sklearn_model


def convert(source: str, options: ConvertOptions) -> Converted:
    """The estimator as ONNX. Raises InputError, and UsageError for types that need trust."""
    return sklearn_model.converted(sklearn_files.load_skops(source, options), source, options)


KIND = Kind(
    name="skops",
    what="a scikit-learn model (skops)",
    matches=sklearn_files.is_skops,
    convert=convert,
    extra="sklearn",
    modules=("sklearn", "skl2onnx", "skops"),
    options=("input", "opset", "allow_version_mismatch"),
)
