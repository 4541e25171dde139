"""The limit of a front in Python: uvloop and httptools, a constant answer, the body not looked at.

    python benchmarks/front_bare.py ANSWER_FILE

The file holds the whole answer, head and body. Prints `port N` when it listens.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import httptools
import uvloop


class Bare(asyncio.Protocol):
    """Parses requests and answers each with the same bytes."""

    answer = b""

    def __init__(self) -> None:
        # uvloop looks this up before it says that the connection is made.
        self.data_received = httptools.HttpRequestParser(self).feed_data  # type: ignore[method-assign]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._write = transport.write  # type: ignore[attr-defined]

    def on_message_complete(self) -> None:
        self._write(self.answer)


async def forever() -> None:
    """Listen on a free port."""
    server = await asyncio.get_running_loop().create_server(Bare, "127.0.0.1", 0)
    print("port", server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    Bare.answer = Path(sys.argv[1]).read_bytes()
    uvloop.run(forever())
