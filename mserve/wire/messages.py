"""Protobuf messages of the protocols we speak, made from our own descriptions.

The `.proto` files beside this module say what is on the wire. `messages.binpb` is what
protoc makes of them, a FileDescriptorSet; a test compiles them again and compares. The
classes live in a descriptor pool of their own: the process may hold a client library
that describes messages of the same names (tritonclient, tensorflow), and in the shared
pool the second description of a name is an error.

    python -m grpc_tools.protoc -I mserve/wire/protos --include_imports \
        --descriptor_set_out=mserve/wire/protos/messages.binpb mserve/wire/protos/*.proto
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

DESCRIPTORS = Path(__file__).parent / "protos" / "messages.binpb"


@cache
def _pool() -> Any:
    from google.protobuf.descriptor_pb2 import FileDescriptorSet
    from google.protobuf.descriptor_pool import DescriptorPool

    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file:
        pool.Add(file)
    return pool


@cache
def message(name: str) -> Any:
    """The class of a message by its full name, such as "inference.ModelInferRequest". Raises KeyError."""
    from google.protobuf.message_factory import GetMessageClass

    return GetMessageClass(_pool().FindMessageTypeByName(name))


@cache
def methods(service: str) -> dict[str, Any]:
    """The methods of a service by name, as protobuf describes them. Raises KeyError."""
    return dict(_pool().FindServiceByName(service).methods_by_name)


def files(name: str) -> list[bytes]:
    """The description of a file as bytes, and behind it what it imports, each before its own imports.

    By the file's name or by the full name of anything in it. Raises KeyError.
    """
    try:
        first = _pool().FindFileByName(name)
    except KeyError:
        first = _pool().FindFileContainingSymbol(name)
    found: dict[str, bytes] = {}

    def add(file: Any) -> None:
        if file.name not in found:
            for imported in file.dependencies:
                add(imported)
            found[file.name] = file.serialized_pb

    add(first)
    return list(found.values())[::-1]
