"""Following a configuration that changes while the server runs.

A reading is one transaction: the whole new configuration is read and checked, and only
then takes the place of the old one. On any problem the old one stays, and the problem
is kept for whoever asks.

Editors and copying tools truncate a file and write it in pieces, and the beginning of a
configuration is often a valid one with fewer models. So a file is read when two looks
have found it the same, a reading during which it changed does not count, and one that
names no models takes none away.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError, MserveError
from .base_paths import models_in
from .config import Config, Source, load, names_models, needing_restart

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
        self._seen = self._looked = _fingerprint(source.file)
        self.config = self._started = load(source)

    def due(self) -> bool:
        """Whether something changed since the last reading: the file, or the base paths in a directory.

        A file that changed is due at the second look that finds it the same.
        """
        before, self._looked = self._looked, _fingerprint(self.source.file)
        if self._looked != before:
            return False
        directory, known = self.config.server.models, self._found()
        if directory and set(models_in(directory, known)[0].values()) != set(known):
            return True
        return self._looked != self._seen

    def reload(self) -> Change | None:
        """Read again, changed or not; None when the new configuration has a problem, or changes still."""
        self._seen = _fingerprint(self.source.file)
        try:
            config = self._checked(load(self.source, self._found()))
        except MserveError as error:
            if str(error) != self.problem:
                log.warning("the new configuration is not used: %s", error)
            self.problem = str(error)
            return None
        if _fingerprint(self.source.file) != self._seen:
            return None
        self.problem = ""
        self.config = config
        return Change(config, tuple(needing_restart(self._started, config)))

    def _checked(self, config: Config) -> Config:
        """The configuration. Raises InputError for one that takes all models away."""
        if self.config.models and not names_models(config):
            raise InputError(
                "the new configuration names no models",
                where=self.source.file,
                expected="a [models.NAME] table, or models in [server]",
                hint="to serve nothing, stop the server",
            )
        return config

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
