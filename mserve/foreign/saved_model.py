"""A TensorFlow SavedModel directory, of TensorFlow 1.0 and later.

    saved_model.pb      schema version, and meta graphs told apart by their sets of tags
    variables/          a checkpoint with the prefix "variables"; absent for a model without
    assets/             the files that meta graphs list
    assets.extra/       files for the server

Sources: https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/protobuf/saved_model.proto
and tensorflow/cc/saved_model/README.md in the same repository.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleIncomplete, InputError
from ..wire import protobuf
from ..wire.protobuf import Malformed
from . import files
from .checkpoint import Checkpoint, open_checkpoint
from .meta_graph import AssetFileDef, MetaGraphDef, read_meta_graph

GRAPH_FILE = "saved_model.pb"
TEXT_FILE = "saved_model.pbtxt"
SCHEMA_VERSION = 1
MAX_META_GRAPHS = 1000


@dataclass(frozen=True, slots=True)
class SavedModel:
    """An open SavedModel. `assets` and `extra` are the files that are there, by name with their sizes;
    `problems` what keeps it from being complete."""

    path: Path
    schema_version: int
    meta_graphs: tuple[MetaGraphDef, ...]
    checkpoint: Checkpoint | None
    assets: dict[str, int]
    extra: dict[str, int]
    problems: tuple[BundleIncomplete, ...]


def open_saved_model(path: Path) -> SavedModel:
    """Read what a SavedModel directory says; the values of its variables are not read.

    Absent and short files are `problems` of the result. Raises InputError when a file is
    corrupt or in a form that is not supported, UnsafePath when an asset lies elsewhere.
    """
    problems: list[BundleIncomplete] = []
    schema, meta_graphs = 0, tuple[MetaGraphDef, ...]()
    try:
        schema, meta_graphs = _read_graphs(path / GRAPH_FILE)
    except BundleIncomplete as error:
        problems.append(error)
    checkpoint = None
    if (path / "variables").is_dir():
        try:
            checkpoint = open_checkpoint(path / "variables" / "variables")
            problems += checkpoint.problems
        except BundleIncomplete as error:
            if files.listing(path / "variables"):  # an empty directory is a model without variables
                problems.append(error)
    assets = files.listing(path / "assets")
    problems += missing_assets(path, assets, (a for meta_graph in meta_graphs for a in meta_graph.assets))
    extra = files.listing(path / "assets.extra")
    return SavedModel(path, schema, meta_graphs, checkpoint, assets, extra, tuple(problems))


def _read_graphs(path: Path) -> tuple[int, tuple[MetaGraphDef, ...]]:
    if files.size_of(path) is None and files.size_of(path.with_name(TEXT_FILE)) is not None:
        raise InputError(
            "the SavedModel is in text form, which is not read",
            where=path.with_name(TEXT_FILE),
            expected=GRAPH_FILE,
            hint="load it in TensorFlow and save it again as binary",
        )
    data = files.read_message(path)
    schema, meta_graphs = 0, []
    with files.reading("the SavedModel", path):
        for f in protobuf.fields(data):
            if f.number == 1:
                schema = protobuf.integer(f)
            elif f.number == 2:
                meta_graphs.append(read_meta_graph(data, protobuf.inside(data, f)))
                if len(meta_graphs) > MAX_META_GRAPHS:
                    raise Malformed(f"more than {MAX_META_GRAPHS} meta graphs", f.record_start)
    if schema != SCHEMA_VERSION or not meta_graphs:
        raise InputError(
            "not a SavedModel, or one of another schema",
            where=path,
            expected=f"schema version {SCHEMA_VERSION} and a meta graph",
            found=f"schema version {schema} and {len(meta_graphs)} meta graphs in {len(data)} bytes",
        )
    return schema, tuple(meta_graphs)


def missing_assets(
    path: Path, present: dict[str, int], listed: Iterable[AssetFileDef]
) -> list[BundleIncomplete]:
    """A problem for each listed asset that is not there. Raises UnsafePath for names that lead elsewhere."""
    names = {files.safe_relative(asset.filename, path): None for asset in listed}
    return [
        BundleIncomplete("an asset is missing", where=path / "assets" / name, hint=files.COPY_HINT)
        for name in names
        if name not in present
    ]
