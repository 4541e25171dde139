"""sha256 of files and of parts of files, streamed."""

from __future__ import annotations

import hashlib
from pathlib import Path

CHUNK_BYTES = 4 << 20


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, in hex; memory use is constant. Raises OSError."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def range_digest(path: Path, offset: int, length: int) -> str:
    """sha256 of `length` bytes of a file from `offset`, in hex. Raises OSError, EOFError."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        while length:
            chunk = file.read(min(length, CHUNK_BYTES))
            if not chunk:
                raise EOFError(f"{path} ends {length} bytes early")
            digest.update(chunk)
            length -= len(chunk)
    return digest.hexdigest()
