"""Fitted scikit-learn estimators from files: skops, which holds data, and pickles, which run code.

A pickle names what is to be called while it is read. With `--trust` it is read, and even
then nothing is called but scikit-learn's classes and what rebuilds numpy's arrays: whatever
else a pickle asks for could not become ONNX anyway. That is a second line of defence, not a
reason to trust: classes have constructors, and libraries have faults.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...errors import EnvironmentProblem, InputError, UsageError
from ...files import read_input
from ..kinds import ConvertOptions, Seen

MAX_BYTES = 8 << 30
# How files that joblib has compressed begin, and what opens them.
COMPRESSED: tuple[tuple[bytes, Callable[[Any], Any]], ...] = (
    (b"\x78", lambda file: io.BytesIO(_inflated(file.read()))),
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ", lzma.open),
    (b"\x5d\x00", lzma.open),
)
NUMPY = (
    "_reconstruct scalar _frombuffer ndarray dtype RandomState Generator MT19937 PCG64 SeedSequence".split()
)
NUMPY += "__randomstate_ctor __bit_generator_ctor __generator_ctor".split()
BUILTINS = (
    "set frozenset slice range complex bytearray bytes list dict tuple int float str bool object".split()
)
OTHERS = (
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("copyreg", "_reconstructor"),
    ("copy_reg", "_reconstructor"),
    ("joblib.numpy_pickle", "NumpyArrayWrapper"),
    ("_codecs", "encode"),
)


def _inflated(data: bytes) -> bytes:
    found = zlib.decompressobj()
    plain = found.decompress(data, MAX_BYTES)
    if found.unconsumed_tail:
        raise ValueError(f"more than {MAX_BYTES} bytes")
    return plain


def is_pickle(seen: Seen) -> bool:
    """Whether a file is a pickle, perhaps compressed, whose first bytes name scikit-learn."""
    head = seen.head
    if head[:1] == b"\x78":
        try:
            head = zlib.decompressobj().decompress(head, 4096)
        except zlib.error:
            return False
    elif opener := next((opener for mark, opener in COMPRESSED if head.startswith(mark)), None):
        try:
            with opener(seen.path) as file:
                head = file.read(4096)
        except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error):
            return False
    return head[:1] == b"\x80" and head[1:2] <= b"\x05" and b"sklearn" in head


def is_skops(seen: Seen) -> bool:
    return "schema.json" in seen.names and seen.head.startswith(b"PK\x03\x04")


def load_pickle(source: str, options: ConvertOptions) -> Any:
    """The estimator in a pickle. Raises InputError for anything but scikit-learn's own."""
    path = Path(source)
    data = read_input(path)
    opener = next((opener for mark, opener in COMPRESSED if data.startswith(mark)), None)
    try:
        plain = opener(io.BytesIO(data)).read(MAX_BYTES) if opener else data
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
        raise InputError("the compressed pickle cannot be read", where=path, found=error) from error
    return checked(lambda: _unpickler(path, plain).load(), path, options)


def load_skops(source: str, options: ConvertOptions) -> Any:
    """The estimator in a skops file, whose types are scikit-learn's and numpy's; others need trust.

    Raises UsageError naming these, InputError where the file cannot be read.
    """
    import skops.io

    path = Path(source)
    try:
        untrusted = [name for name in skops.io.get_untrusted_types(file=path) if name != "numpy.dtype"]
    except Exception as error:  # whatever skops meets in the archive
        raise InputError("the skops file cannot be read", where=path, found=error) from error
    if untrusted and not options.trust:
        raise UsageError(
            "the skops file holds types that are not known to be harmless",
            where=path,
            expected="--trust, if you know who made it",
            found=", ".join(untrusted),
        )
    return checked(lambda: skops.io.load(path, trusted=[*untrusted, "numpy.dtype"]), path, options)


def checked(load: Callable[[], Any], path: Path, options: ConvertOptions) -> Any:
    """What `load` returns, if it is an estimator that this scikit-learn has written.

    Raises InputError for what it raises, and where another version has written it.
    """
    import sklearn
    from sklearn.base import BaseEstimator
    from sklearn.exceptions import InconsistentVersionWarning

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not options.allow_version_mismatch:
                warnings.simplefilter("error", InconsistentVersionWarning)
            found = load()
    except InconsistentVersionWarning as warning:
        raise InputError(
            "another version of scikit-learn has written the model, and this one may misread it",
            where=path,
            expected=f"scikit-learn {warning.current_sklearn_version}",
            found=f"{warning.estimator_name} of scikit-learn {warning.original_sklearn_version}",
            hint=f"install scikit-learn=={warning.original_sklearn_version}, or --allow-version-mismatch",
        ) from warning
    except InputError:
        raise
    except Exception as error:  # a hostile or truncated pickle raises anything
        found = f"{type(error).__name__}: {error}"[:500]
        raise InputError("the model cannot be read", where=path, found=found) from error
    if not isinstance(found, BaseEstimator):
        raise InputError(
            "the file holds no estimator",
            where=path,
            expected=f"an estimator of scikit-learn {sklearn.__version__}",
            found=type(found).__name__,
        )
    return found


def _unpickler(path: Path, data: bytes) -> Any:
    """An unpickler, of joblib's pickles too, that calls nothing but what is known."""
    from importlib.metadata import version

    from joblib import numpy_pickle

    if tuple(int(part) for part in version("joblib").split(".")[:2]) < (1, 6):
        # Older ones read arrays of objects with an unpickler of their own, which calls anything.
        raise EnvironmentProblem(
            "this joblib cannot read a pickle with care",
            expected="joblib 1.6 or later",
            found=version("joblib"),
            hint="pip install 'joblib>=1.6'",
        )

    class Unpickler(numpy_pickle.NumpyUnpickler):  # type: ignore[misc]
        def find_class(self, module: str, name: str) -> Any:
            if not _allowed(module, name):
                raise InputError(
                    "the pickle asks for something that is not scikit-learn's",
                    where=path,
                    expected="classes of scikit-learn, numpy and scipy.sparse",
                    found=f"{module}.{name}",
                    hint="steps of your own cannot become ONNX: do them before or after the model",
                )
            return super().find_class(module, name)

    return Unpickler(str(path), io.BytesIO(data), ensure_native_byte_order=True)


def _allowed(module: str, name: str) -> bool:
    """Whether a pickle may have this. A dotted name would reach through a module into others."""
    package = module.partition(".")[0]
    if "." in name:
        return False
    if package == "numpy":
        rebuilds = module.startswith("numpy.random") and name.startswith("__pyx_unpickle_")
        return rebuilds or name in NUMPY or _is_class(module, name, "numpy")
    if module in ("builtins", "__builtin__"):
        return name in BUILTINS
    if module.startswith("scipy.sparse"):
        return name.endswith(("_matrix", "_array"))
    if package == "sklearn":
        rebuilds = name.startswith("__pyx_unpickle_") or name == "newObj"
        scores = module == "sklearn.feature_selection._univariate_selection"
        return rebuilds or scores or _is_class(module, name, "sklearn")
    return (module, name) in OTHERS


def _is_class(module: str, name: str, package: str) -> bool:
    """Whether a name is a class that the package itself defines; for numpy, a dtype or a scalar."""
    import importlib

    import numpy as np

    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return False
    if not isinstance(found, type) or found.__module__.partition(".")[0] != package:
        return False
    return package != "numpy" or issubclass(found, np.generic | np.dtype)


def pickled(estimator: Any, path: Path) -> None:
    """Write an estimator for the process that converts it. Raises InputError."""
    import joblib

    try:
        joblib.dump(estimator, path)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise InputError("the estimator cannot be pickled", found=error) from error
