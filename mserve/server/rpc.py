"""What codecs of gRPC are given, and what they give; how calls are carried is not their business.

A unary handler takes an Rpc and a reply callback, as an HTTP handler takes a Request and
one; a stream handler takes an iterator of messages and is one of answers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

from ..errors import MserveError
from ..wire.context import Context
from .exchange import Cancel


@dataclass(slots=True)
class Rpc:
    """One message of a call: the method's full name without the first slash, the bytes, what came along."""

    method: str
    message: bytes
    context: Context
    metadata: Mapping[str, str | bytes]


RpcReply = Callable[[bytes | MserveError], None]
Unary = Callable[[Rpc, RpcReply], Cancel | None]
Stream = Callable[[AsyncIterator[bytes], Rpc], AsyncIterator[bytes]]
Admit = Callable[[str, Mapping[str, str | bytes]], bool]


@dataclass(frozen=True, slots=True)
class Methods:
    """What a codec answers, by full method name such as "inference.GRPCInferenceService/ModelInfer"."""

    unary: Mapping[str, Unary]
    streams: Mapping[str, Stream]
