"""The limit of grpcio: its asyncio server, one method, a constant answer, the request not looked at.

    python benchmarks/front_grpcio.py ANSWER_FILE

The file holds the serialized message. Prints `port N` when it listens.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import grpc


async def forever(answer: bytes) -> None:
    """Listen on a free port."""

    async def infer(request: bytes, context: Any) -> bytes:
        return answer

    # Without serializers the messages stay bytes.
    methods = {"ModelInfer": grpc.unary_unary_rpc_method_handler(infer)}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("inference.GRPCInferenceService", methods),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print("port", port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(forever(Path(sys.argv[1]).read_bytes()))
