"""mosec: a route for JSON, which it reads by itself, and one for raw float32."""

from __future__ import annotations

from typing import Any

import numpy as np
from mosec import Runtime, Server, Worker
from peer_model import open_model, run


class Json(Worker):
    """{"instances": rows} to {"predictions": rows}; the first row of each request."""

    def __init__(self) -> None:
        self._session = open_model()

    def forward(self, data: list[Any]) -> list[Any]:
        rows = run(self._session, np.array([each["instances"][0] for each in data], np.float32))
        return [{"predictions": [row]} for row in rows.tolist()]


class Binary(Worker):
    """784 floats to 10."""

    def __init__(self) -> None:
        self._session = open_model()

    def deserialize(self, data: bytes) -> np.ndarray:
        return np.frombuffer(data, np.float32)

    def serialize(self, data: np.ndarray) -> bytes:
        return data.tobytes()

    def forward(self, data: list[np.ndarray]) -> list[np.ndarray]:
        return list(run(self._session, np.stack(data)))


if __name__ == "__main__":
    server = Server()
    server.register_runtime(
        {
            f"/{name}": [Runtime(worker, num=1, max_batch_size=64, max_wait_time=1)]
            for name, worker in (("json", Json), ("binary", Binary))
        }
    )
    server.run()
