"""Ray Serve: one replica, dynamic batching; JSON at /json, raw float32 at /binary."""

from __future__ import annotations

import os
import signal

import numpy as np
import ray
from peer_model import open_model, run
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response


@serve.deployment(num_replicas=1, max_ongoing_requests=256)
class Mlp:
    """{"instances": rows} to {"predictions": rows}, or 784 floats to 10."""

    def __init__(self) -> None:
        self._session = open_model()

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.001)
    async def batched(self, rows: list[np.ndarray]) -> list[np.ndarray]:
        """The rows of a batch."""
        return list(run(self._session, np.stack(rows)))

    async def __call__(self, request: Request) -> Response:
        if request.url.path == "/binary":
            row = await self.batched(np.frombuffer(await request.body(), np.float32))
            return Response(row.tobytes(), media_type="application/octet-stream")
        row = await self.batched(np.array((await request.json())["instances"][0], np.float32))
        return JSONResponse({"predictions": [row.tolist()]})


if __name__ == "__main__":
    ray.init(include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PEER_PORT"])})
    serve.run(Mlp.bind(), name="mlp", route_prefix="/")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
