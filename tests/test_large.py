"""What is done for weights that are mapped, and for bundles on network mounts."""

from __future__ import annotations

import mmap
from pathlib import Path

import builders
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_sharing import ranker

import mserve
from mserve.errors import BundleIncomplete
from mserve.format import open_bundle
from mserve.format.prune import Parts
from mserve.loader import cache
from mserve.loader.cache import is_network, local_copy
from mserve.runtime import weights


def graph_of(nodes: list[onnx.NodeProto]) -> bytes:
    weights = [numpy_helper.from_array(np.zeros((4, 4), np.float32), name) for name in ("A", "B", "C")]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("i", TensorProto.INT64, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        weights,
    )
    return helper.make_model(graph).SerializeToString()


def gather(table: str, index: str = "i", out: str = "y") -> onnx.NodeProto:
    return helper.make_node("Gather", [table, index], [out])


def inner(name: str) -> onnx.GraphProto:
    out = [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)]
    return helper.make_graph([helper.make_node("Identity", [name], ["o"])], "inner", [], out)


TABLES = [
    ("gathered only", [gather("A")], {"A"}),
    ("gathered twice", [gather("A", out="e"), gather("A")], {"A"}),
    ("gathered and multiplied", [gather("A", out="e"), helper.make_node("MatMul", ["e", "A"], ["y"])], set()),
    (
        "gathered and multiplied by another",
        [gather("A", out="e"), helper.make_node("MatMul", ["e", "B"], ["y"])],
        {"A"},
    ),
    ("the indices of a gather", [helper.make_node("Gather", ["i", "A"], ["y"])], set()),
    (
        "gathered and read by a subgraph",
        [
            gather("A", out="e"),
            helper.make_node("If", ["e"], ["y"], then_branch=inner("A"), else_branch=inner("B")),
        ],
        set(),
    ),
]


@pytest.mark.parametrize(("what", "nodes", "expected"), TABLES, ids=[t[0] for t in TABLES])
def test_which_weights_are_tables(what: str, nodes: list[onnx.NodeProto], expected: set[str]) -> None:
    assert Parts(graph_of(nodes)).tables() == expected, what


@pytest.mark.parametrize("prefetch", [False, True])
def test_a_large_bundle_is_mapped_and_answers(
    tmp_path: Path, prefetch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table is advised as random, whole pages of it; nothing is copied to private memory."""
    path = mserve.export(ranker(1.0), tmp_path / "ranker").path
    advised: list[tuple[str, int, int]] = []

    class Watched(mmap.mmap):
        def madvise(self, option: int, *args: int) -> None:
            advised.append(("random" if option == mmap.MADV_RANDOM else "read", *(args or (0, len(self)))))
            super().madvise(option, *args)

    monkeypatch.setattr(weights.mmap, "mmap", Watched)
    from mserve.loader.servable import load

    servable = load(path, prefetch=prefetch)
    assert not servable.private_memory
    weight = next(w for w in open_bundle(path).graph.weights if w.name == "table")
    assert ("random", weight.offset, weight.length) in advised
    assert [a for a in advised if a[0] == "random"] == [("random", weight.offset, weight.length)]
    assert any(a[0] == "read" for a in advised) == prefetch
    ids = np.array([0, 5, 299_999])
    table = np.arange(300_000 * 64, dtype=np.float32).reshape(-1, 64) % 1000
    assert np.allclose(servable.run({"ids": ids})["y"][:, 0], table[ids].sum(1))
    servable.close()


MOUNTS = """rootfs / rootfs rw 0 0
/dev/sda1 / ext4 rw 0 0
server:/models /mnt/models nfs4 rw 0 0
//server/share /mnt/with\\040space cifs rw 0 0
bucket /mnt/bucket fuse.gcsfuse rw 0 0
tmpfs /mnt/models/local tmpfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/srv/models", False),
        ("/mnt/models", True),
        ("/mnt/models/ads/00000001", True),
        ("/mnt/models/local/ads", False),
        ("/mnt/modelsx", False),
        ("/mnt/with space/ads", True),
        ("/mnt/bucket/ads", True),
    ],
)
def test_which_paths_lie_on_a_network(path: str, expected: bool) -> None:
    assert is_network(Path(path), MOUNTS) == expected


@pytest.fixture
def remote(tmp_path: Path) -> tuple[Path, str]:
    """A version, and a table of mounts that says that it lies on NFS."""
    path = mserve.export(builders.mlp(), tmp_path / "far" / "mlp").path
    return path, f"/dev/sda1 / ext4 rw 0 0\nserver:/x {tmp_path / 'far'} nfs4 rw 0 0\n"


def test_a_remote_bundle_is_copied_once(remote: tuple[Path, str], tmp_path: Path) -> None:
    path, mounts = remote
    copy = local_copy(open_bundle(path), mounts, tmp_path / "cache")
    assert copy.path == tmp_path / "cache" / copy.metagraph.identity / "00000001"
    assert copy.meta == open_bundle(path).meta
    marker = copy.path / "marker"
    marker.touch()
    assert local_copy(open_bundle(path), mounts, tmp_path / "cache").path == copy.path
    assert marker.exists()
    assert local_copy(open_bundle(path), "/dev/sda1 / ext4 rw 0 0\n", tmp_path / "cache").path == path


def test_a_remote_file_that_is_not_what_it_should_be_is_not_taken(
    remote: tuple[Path, str], tmp_path: Path
) -> None:
    path, mounts = remote
    bundle = open_bundle(path)
    shard = path / "export-00000-of-00001"
    data = bytearray(shard.read_bytes())
    data[5000] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(data)
    with pytest.raises(BundleIncomplete, match=r"not the one that was exported.*export-00000-of-00001"):
        local_copy(bundle, mounts, tmp_path / "cache")
    assert not list((tmp_path / "cache" / bundle.metagraph.identity).iterdir())


def test_old_copies_go_unless_they_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "is_network", lambda path, mounts=None: "cache" not in path.parts)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    from mserve.loader.servable import load

    held = load(mserve.export(builders.mlp(), tmp_path / "far", meta={"n": "0"}).path)
    assert held.bundle.path.is_relative_to(tmp_path / "cache")
    for n in range(1, 5):
        load(mserve.export(builders.mlp(), tmp_path / "far", meta={"n": str(n)}).path).close()
    copies = {p.name for p in cache.cache_directory().iterdir()}
    assert held.bundle.metagraph.identity in copies
    assert len(copies) == 3  # the held one, the one before the last, and the last
    held.close()
