"""The protobuf messages: what ships is what the .proto files say, in a pool of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from mserve.wire.messages import DESCRIPTORS, message, methods


def test_the_shipped_descriptors_are_those_of_the_proto_files(tmp_path: Path) -> None:
    protoc = pytest.importorskip("grpc_tools.protoc")
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    folder, out = DESCRIPTORS.parent, tmp_path / "out.binpb"
    sources = sorted(str(p) for p in folder.glob("*.proto"))
    wellknown = Path(protoc.__file__).parent / "_proto"
    flags = [f"-I{folder}", f"-I{wellknown}", "--include_imports", f"--descriptor_set_out={out}"]
    assert protoc.main(["protoc", *flags, *sources]) == 0

    def described(path: Path) -> dict[str, bytes]:
        files = FileDescriptorSet.FromString(path.read_bytes()).file
        return {f.name: f.SerializeToString(deterministic=True) for f in files if "google/" not in f.name}

    assert described(out) == described(DESCRIPTORS)


def test_messages_round_trip() -> None:
    check = message("grpc.health.v1.HealthCheckRequest")
    assert check.FromString(check(service="x").SerializeToString()).service == "x"
    assert methods("grpc.health.v1.Health")["Watch"].server_streaming


def test_a_message_of_another_name_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        message("grpc.health.v1.Nothing")
