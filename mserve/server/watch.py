"""Following a configuration that changes while the server runs.

A reading is one transaction: the whole new configuration is read and checked, and only
then takes the place of the old one. On any problem the old one stays, and the problem
is kept for whoever asks.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from ..errors import MserveError
from .base_paths import models_in
from .config import Config, Source, load, needing_restart

log = logging.getLogger("mserve")

Fingerprint = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """A new configuration, and which of its keys have no effect before a restart."""

    config: Config
    restart: tuple[str, ...]


class ConfigWatch:
    """Tells when a configuration may have changed, and reads it again.

    `config` is what holds, `problem` why the newest reading was refused, or "". Both methods
    read the disk and may be called from any one thread at a time.
    """

    def __init__(self, source: Source) -> None:
        """Read for the first time. Raises InputError, UsageError."""
        self.source = source
        self.problem = ""
        self._seen = _fingerprint(source.file)
        self.config = self._started = load(source)

    def due(self) -> bool:
        """Whether something changed since the last reading: the file, or the base paths in a directory."""
        directory, known = self.config.server.models, self._found()
        if directory and set(models_in(directory, known)[0].values()) != set(known):
            return True
        return _fingerprint(self.source.file) != self._seen

    def reload(self) -> Change | None:
        """Read again, changed or not; None when the new configuration has a problem."""
        # Looked at before it is read: a change during the reading is seen at the next look.
        self._seen = _fingerprint(self.source.file)
        try:
            config = load(self.source, self._found())
        except MserveError as error:
            if str(error) != self.problem:
                log.warning("the new configuration is not used: %s", error)
            self.problem = str(error)
            return None
        self.problem = ""
        self.config = config
        return Change(config, tuple(needing_restart(self._started, config)))

    def _found(self) -> list[Path]:
        """The base paths that lie in the directory of `[server] models`."""
        return [m.base_path for m in self.config.models.values()] if self.config.server.models else []


def _fingerprint(file: Path | None) -> Fingerprint:
    """Inode, size and time of a file, behind links; () where there is none."""
    try:
        status = file.stat() if file else None
    except OSError:
        return ()
    return (status.st_ino, status.st_size, status.st_mtime_ns) if status else ()
