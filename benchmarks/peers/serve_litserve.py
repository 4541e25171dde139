"""LitServe: JSON with dynamic batching; it reads no raw bodies. PEER_FAST=1: its faster queue.

It looks at annotations while it runs, so they are not postponed here.
"""

import os
from typing import Any

import litserve
import numpy as np
from peer_model import open_model, run


class Mlp(litserve.LitAPI):
    """{"instances": rows} to {"predictions": rows}; the first row of each request."""

    def setup(self, device: str) -> None:
        self._session = open_model()

    def decode_request(self, request: dict[str, Any]) -> Any:
        return np.array(request["instances"][0], np.float32)

    def batch(self, inputs: list[Any]) -> Any:
        return np.stack(inputs)

    def predict(self, x: Any) -> Any:
        return run(self._session, x)

    def unbatch(self, output: Any) -> Any:
        return list(output)

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"predictions": [output.tolist()]}


if __name__ == "__main__":
    server = litserve.LitServer(
        Mlp(max_batch_size=64, batch_timeout=0.001),
        accelerator="cpu",
        workers_per_device=1,
        fast_queue="PEER_FAST" in os.environ,
    )
    server.run(
        host="127.0.0.1", port=int(os.environ["PEER_PORT"]), log_level="warning", generate_client_file=False
    )
