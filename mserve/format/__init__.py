"""The bundle: layout, metagraph, shards, digests, reader, writer. FORMAT.md is its specification."""

from .layout import GOLDEN_FILE, META_FILE
from .metagraph import FileRecord, MetaGraph
from .reader import Bundle, open_bundle

__all__ = ["GOLDEN_FILE", "META_FILE", "Bundle", "FileRecord", "MetaGraph", "open_bundle"]
