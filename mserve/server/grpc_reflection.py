"""gRPC's server reflection: which services there are, and the descriptions of their messages.

Both versions of the protocol, which differ in name only.
Source: https://github.com/grpc/grpc/blob/master/doc/server-reflection.md
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from functools import partial
from typing import Any

from ..errors import RequestError
from ..wire.grpc_wire import STATUS
from ..wire.messages import files, message
from .rpc import Methods, Rpc

PACKAGES = ("grpc.reflection.v1", "grpc.reflection.v1alpha")
SERVICES = tuple(f"{package}.ServerReflection" for package in PACKAGES)


def methods(services: Collection[str]) -> Methods:
    """The methods that tell of the given services, and of themselves."""
    names = sorted({*services, *SERVICES})
    return Methods(
        {}, {f"{p}.ServerReflection/ServerReflectionInfo": partial(_info, p, names) for p in PACKAGES}
    )


async def _info(
    package: str, services: Collection[str], messages: AsyncIterator[bytes], rpc: Rpc
) -> AsyncIterator[bytes]:
    async for data in messages:
        yield _answer(package, services, data)


def _answer(package: str, services: Collection[str], data: bytes) -> bytes:
    """The answer to one question. Raises RequestError for bytes that are none."""
    from google.protobuf.message import DecodeError

    try:
        asked = message(f"{package}.ServerReflectionRequest").FromString(data)
    except (DecodeError, UnicodeDecodeError) as error:
        raise RequestError("the message is not a ServerReflectionRequest", found=error) from error
    answer = message(f"{package}.ServerReflectionResponse")(valid_host=asked.host, original_request=asked)
    kind = asked.WhichOneof("message_request")
    if kind == "list_services":
        for name in services:
            answer.list_services_response.service.add(name=name)
    elif kind in ("file_by_filename", "file_containing_symbol"):
        _describe(answer, getattr(asked, kind))
    elif kind is None:
        _refuse(answer, "INVALID_ARGUMENT", "the message asks for nothing")
    else:
        _refuse(answer, "NOT_FOUND", "nothing here has extensions")
    return bytes(answer.SerializeToString())


def _describe(answer: Any, name: str) -> None:
    try:
        answer.file_descriptor_response.file_descriptor_proto.extend(files(name))
    except KeyError:
        _refuse(answer, "NOT_FOUND", f"nothing is called {name[:200]!r}")


def _refuse(answer: Any, code: str, text: str) -> None:
    answer.error_response.error_code = STATUS[code]
    answer.error_response.error_message = text
