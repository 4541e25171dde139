"""Fixtures that several test files share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import builders
import pytest
from hypothesis import settings
from onnx import ModelProto
from writers import Writers

import mserve

ROOT = Path(__file__).resolve().parent.parent

# A test that finds something new stops a change that has nothing to do with it: whoever searches says so,
# with --hypothesis-profile=search. No deadlines: what is slow here says nothing of what is slow there.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("search", derandomize=False, deadline=None)
settings.load_profile("same")

# What a shell starts in the background ignores Ctrl-C, and so would every command that a test ends so.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Path of a real model or data file; skips the test where the collection is absent."""

    def find(name: str) -> Path:
        for base in (os.environ.get("MSERVE_TEST_DATA"), ROOT.parent / "shared" / "data"):
            if base and (Path(base) / name).exists():
                return Path(base) / name
        pytest.skip(f"no test data: {name}")

    return find


@pytest.fixture(scope="session")
def mlp() -> ModelProto:
    """A 784-128-10 network; callers do not change it."""
    return builders.mlp()


@pytest.fixture(scope="session")
def mlp_file(mlp: ModelProto, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network as a file."""
    return builders.save(mlp, tmp_path_factory.mktemp("source") / "mlp.onnx")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base path that does not exist yet."""
    return tmp_path / "base"


@pytest.fixture
def version(mlp: ModelProto, base: Path) -> Path:
    """A fresh bundle that the test may spoil: two shards and one asset."""
    asset = base.parent / "words.txt"
    asset.write_text("zero\none\n")
    return mserve.export(mlp, base, assets=[asset], shard_bytes=100_000, name="digits").path


@pytest.fixture(scope="session")
def writers() -> Iterator[Writers]:
    """A warm process that forks exporting children."""
    with Writers() as running:
        yield running
