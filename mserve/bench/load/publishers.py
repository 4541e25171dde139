"""Publishers: what puts new versions in place while a server is measured.

a base path     copies of versions are renamed into it, as a training job does it
load, cycle     the server's own repository API is called: load, or unload and load
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from urllib.parse import quote

from ...errors import EnvironmentProblem, InputError, UsageError
from ...format import layout
from ...wire.grpc_answer import status_name
from ...wire.messages import message
from ..targets.endpoint import Endpoint
from ..targets.grpc_asking import OIP, OK, ask
from ..targets.pages import post
from ..targets.target import Target
from .reload import WORDS, Publisher, Swap

CALL_S = 60.0
_TEMP_PREFIX = ".mserve-bench-"


class BasePath:
    """Publishes copies of given versions, or of the newest one, as new versions of a base path.

    Each is copied beside the others and published by one rename. All but the newest two of
    the copies are removed again, and in the end all of them.
    """

    def __init__(self, base: Path, sources: Sequence[Path] = ()) -> None:
        """Raises InputError where there is nothing to publish."""
        self._base = base
        try:
            existing = layout.versions(base)
        except OSError as error:
            raise InputError("not a base path", where=base, found=error.strerror or error) from error
        if not existing:
            raise InputError("a base path without a version", where=base)
        for source in sources:
            if not source.is_dir():
                raise InputError("not a version's directory", where=source)
        self._next = max(existing)
        newest = existing[self._next].name
        self._digits = len(newest) if newest.startswith("0") else 1
        self._sources = cycle(sources or [existing[self._next]])
        self._published: list[Path] = []

    def publish(self) -> Swap:
        """Publish the next version. Raises EnvironmentProblem."""
        self._next += 1
        target = self._base / f"{self._next:0{self._digits}}"
        try:
            copy = Path(tempfile.mkdtemp(prefix=_TEMP_PREFIX, dir=self._base))
            try:
                shutil.copytree(next(self._sources), copy, dirs_exist_ok=True)
                copy.chmod(0o755)
                begin = time.perf_counter_ns()
                copy.rename(target)
            finally:
                shutil.rmtree(copy, ignore_errors=True)
        except OSError as error:
            raise EnvironmentProblem(
                "cannot publish a version", where=target, found=error.strerror or error
            ) from error
        self._published.append(target)
        while len(self._published) > 2:
            shutil.rmtree(self._published.pop(0), ignore_errors=True)
        return Swap(begin, time.perf_counter_ns(), b"%d" % self._next)

    def restore(self) -> None:
        """Remove the copies."""
        while self._published:
            shutil.rmtree(self._published.pop(), ignore_errors=True)


class Repository:
    """Tells a server to load a model again, by the model repository API of Triton and ours.

    Over the protocol, and with the trust and the token, with which the model is asked.
    """

    def __init__(self, endpoint: Endpoint, model: str, word: str) -> None:
        self._endpoint, self._model, self._actions = endpoint, model, WORDS[word]

    def publish(self) -> Swap:
        """Call, and wait for the answers. Raises EnvironmentProblem, Unauthenticated, Forbidden."""
        begin = time.perf_counter_ns()
        for action in self._actions:
            found = (self._by_grpc if self._endpoint.is_grpc else self._by_http)(action)
            if found:
                raise EnvironmentProblem(
                    "the server does not reload",
                    where=f"{self._endpoint.url}: {action} {self._model}",
                    found=found,
                    hint="ours needs --admin",
                )
        return Swap(begin, time.perf_counter_ns())

    def _by_http(self, action: str) -> str:
        path = f"/v2/repository/models/{quote(self._model, safe='')}/{action}"
        status, body = post(self._endpoint, path, b"{}", CALL_S)
        return "" if status == 200 else f"status {status}: {body[:400].decode('utf-8', 'replace')}"

    def _by_grpc(self, action: str) -> str:
        name = f"RepositoryModel{action.capitalize()}"
        asked = message(f"inference.{name}Request")(model_name=self._model)
        status, found = ask(self._endpoint, f"{OIP}/{name}", asked, f"inference.{name}Response", CALL_S)
        return "" if status == OK else f"{status_name(status)}: {found[:400]}"

    def restore(self) -> None:
        """Nothing was changed."""


def open_publisher(where: str, sources: Sequence[Path], target: Target) -> Publisher:
    """The publisher that `--during-reload WHERE` names. Raises UsageError or InputError."""
    if target.endpoint is None:
        raise UsageError(
            "--during-reload needs a server", hint="mserve serve BASE_PATH, and its URL; or --spawn"
        )
    if where not in WORDS:
        return BasePath(Path(where), sources)
    if sources:
        raise UsageError("--publish is for a base path", hint="--during-reload BASE_PATH --publish DIR")
    return Repository(target.endpoint, str(target.describe()["model"]), where)
