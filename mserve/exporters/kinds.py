"""What a kind of source is: the interface that every file of this package that reads one fills.

A kind says how it is told from others (`matches`, by content), what it needs (`extra`,
`modules`), whether opening it runs code that lies in it (`runs_code`), and how it becomes
ONNX (`convert`). `convert` is called in a process of its own, which ends with it. A kind
whose sources are taken apart without a conversion has `read` instead.

Third parties add kinds through the entry-point group `mserve.exporters`; each entry is an
object of class Kind.
"""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..tensors import Array, Signature

if TYPE_CHECKING:
    import onnx

    from ..format.golden import Golden
    from ..format.shards import Tensor

HEAD_BYTES = 4096
SHOWN_NAMES = 4096
# The largest |answer - the source framework's answer| / max(1, |the framework's|).
TOLERANCE = 1e-5
# Options that concern every conversion, whatever the kind.
COMMON = ("example", "check", "tol", "trust", "isolate")


@dataclass(frozen=True)
class Seen:
    """A source as `matches` sees it: what was named, and its first bytes or the names that lie in it.

    `names` are those of a directory's entries, or of a zip archive's members; a file that
    cannot be read has no bytes and no names. Nothing in a source is run or unpacked.
    """

    text: str

    @property
    def path(self) -> Path:
        return Path(self.text)

    @cached_property
    def is_dir(self) -> bool:
        return self._mode is not None and stat.S_ISDIR(self._mode)

    @cached_property
    def is_file(self) -> bool:
        return self._mode is not None and stat.S_ISREG(self._mode)

    @cached_property
    def _mode(self) -> int | None:
        try:
            return self.path.stat().st_mode
        except (OSError, ValueError):
            return None

    @cached_property
    def head(self) -> bytes:
        """The first HEAD_BYTES of a regular file."""
        if not self.is_file:
            return b""
        try:
            with self.path.open("rb") as file:
                return file.read(HEAD_BYTES)
        except OSError:
            return b""

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Entries of a directory, or members of a zip archive, sorted; the first SHOWN_NAMES."""
        try:
            if self.is_dir:
                with os.scandir(self.path) as entries:
                    return tuple(sorted(e.name for e, _ in zip(entries, range(SHOWN_NAMES), strict=False)))
            if self.head.startswith(b"PK\x03\x04"):
                with zipfile.ZipFile(self.path) as archive:
                    return tuple(sorted(archive.namelist()[:SHOWN_NAMES]))
        except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError):
            pass
        return ()


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """How to convert; the command line's flags and `mserve.export`'s keywords.

    `input` and `output` describe tensors as the command line does; `example` is an npz file, or arrays by
    input alias, to compare with and to record; `check` is an npz file with inputs and
    expected outputs by alias; `tol` is the largest difference allowed. `trust` lets a source
    that carries code run it; `isolate` converts in a process of its own without network.
    `sparse` takes rows of ids and values, False rows of all features; None leaves it to the kind.
    `allow_version_mismatch` accepts a model that another version of its framework has written.
    `work` and `cwd` are set for `convert`: a directory to write into, and the caller's.
    """

    input: tuple[str, ...] = ()
    output: tuple[str, ...] = ()
    opset: int = 0
    example: str | os.PathLike[str] | Mapping[str, Array] | None = None
    check: str | os.PathLike[str] | None = None
    tol: float = TOLERANCE
    task: str = ""
    clip: tuple[float, float] | None = None
    features: int = 0
    sparse: bool | None = None
    labels: str | os.PathLike[str] | None = None
    weights: str | os.PathLike[str] | None = None
    allow_version_mismatch: bool = False
    trust: bool = False
    isolate: bool = True
    work: str = ""
    cwd: str = ""


@dataclass(slots=True)
class Converted:
    """What `convert` returns.

    `model` is an ONNX model, or the path of one whose weights lie beside it. `signatures`, by name; None
    derives one from the graph. A signature with `batch_axis` 0 promises independent rows, and the export
    fails if the graph does not keep that. `assets` are bytes by name. `draw(signature's name, rows)` makes
    inputs by alias that exercise the model (None: from the signature). `reference(signature's
    name, inputs)` answers, by output alias, with the source framework itself, called `compared_with`
    (such as "xgboost 3.2.0"); None where it is not installed. It is asked for one row and for `rows`.
    `versions` are of what took part.
    """

    model: onnx.ModelProto | Path
    signatures: Mapping[str, Signature] | None = None
    assets: Mapping[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    draw: Callable[[str, int], Mapping[str, Array]] | None = None
    reference: Callable[[str, Mapping[str, Array]], Mapping[str, Array]] | None = None
    compared_with: str = ""
    rows: int = 13
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Source:
    """A model taken apart. `graph` refers to `tensors` by name; `origin` is for provenance.

    A source that knows more than its graph says has `signatures`, inputs to `draw` golden
    rows from, by tensor, and how many `golden_rows` it wants unless the user says. `notes` are
    sentences for the user. One that was converted has `assets` of its own, `trials` (inputs, and what the
    source framework answers, by signature) and what is known of the `conversion`.
    """

    graph: onnx.ModelProto
    tensors: list[Tensor]
    origin: dict[str, str]
    name: str
    signatures: Mapping[str, Signature] | None = None
    draw: Callable[[int], Mapping[str, Array]] | None = None
    golden_rows: int = 1
    notes: tuple[str, ...] = ()
    assets: Mapping[str, bytes] = field(default_factory=dict)
    trials: tuple[Mapping[str, Golden], ...] = ()
    conversion: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of source.

    `what` names it in a sentence ("an XGBoost model"). `matches` is cheap, imports nothing heavy and bears
    any bytes. `extra` is mserve's pip extra, "" for none, or the requirement itself for a third party;
    `modules` must be importable for `convert`; `compares` is a module that gives the framework's own
    answers and that `convert` can do without; `answers` is false where `modules` only read its files.
    `runs_code` says what in the source could run; "" for
    formats that only hold data. `options` are the fields of ConvertOptions, beyond COMMON, that it takes.

    `convert(source, options)` raises MserveError. `accepts` and `save` are for live objects: whether an
    object is of this kind (told by its class, without importing anything), and how it is saved into a
    directory; `save` returns the source and the options that `convert` is to be given.
    """

    name: str
    what: str
    matches: Callable[[Seen], bool]
    convert: Callable[[str, ConvertOptions], Converted] | None = None
    read: Callable[[Any, Any], Source] | None = None
    extra: str = ""
    modules: tuple[str, ...] = ()
    compares: str = ""
    answers: bool = True
    runs_code: str = ""
    options: tuple[str, ...] = ()
    accepts: Callable[[Any], bool] | None = None
    save: Callable[[Any, Path, ConvertOptions], tuple[str, ConvertOptions]] | None = None
