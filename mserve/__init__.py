"""mserve: take a trained model to production.

    mserve.export(model_or_path, base_path, version=step)    write a version
    mserve.load(bundle).run({"x": array})                    answer from it

Nothing heavy is imported until one of them is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os

    from .exporters.pipeline import Export
    from .loader.servable import Servable

__version__ = "0.1.0"
__all__ = ["__version__", "export", "load"]


def export(source: Any, base_path: str | os.PathLike[str], **options: Any) -> Export:
    """Export a model as a new, immutable version of `base_path`.

    `source` is the path of a model that `mserve export --list` names, or a live object of a
    framework in that list (an `onnx.ModelProto`, a Booster); or a table: the path of a CSV
    file or an npz archive, or arrays by column, one of which is `key`. Keywords: `version` (a
    number, "auto" or "time"; training jobs pass their global step), `name`,
    `signatures` (by name, or the path of a TOML file), `assets` (paths), `golden` (a
    number of rows, an npz path, or arrays by input name), `meta` (text by key),
    `shard_bytes`, `dedup` (share equal shards with earlier versions), `partitioned`
    (globs of npy or npz files by weight), `kind` (a name in that list), `key` (the key
    column of a table); and, for what must be converted, those of
    `exporters.kinds.ConvertOptions`: `example` (inputs by name), `check`, `tol`, `labels`,
    `trust` and so on. Returns the published version's path, number and metagraph.

    Raises mserve.errors.MserveError subclasses; nothing is published then.
    """
    import dataclasses

    from .errors import UsageError
    from .exporters.pipeline import Options
    from .exporters.pipeline import export as run

    known = [f.name for f in dataclasses.fields(Options)]
    for name in options:
        if name not in known:
            raise UsageError("export has no such keyword", expected=", ".join(known), found=name)
    return run(source, base_path, Options(**options))


def load(bundle: str | os.PathLike[str]) -> Servable:
    """Load a version directory, or the newest version of a base path, for `run(inputs)`.

    Raises a BundleError when the bundle is bad.
    """
    from .loader.servable import load as open_servable

    return open_servable(bundle)
