"""BentoML: JSON with adaptive batching; its binary form is pickles between its own parts."""

from __future__ import annotations

import bentoml
import numpy as np
from peer_model import open_model, run


@bentoml.service(workers=1, traffic={"timeout": 30, "max_concurrency": 1024})
class Mlp:
    """{"instances": rows} to rows."""

    def __init__(self) -> None:
        self._session = open_model()

    @bentoml.api(batchable=True, max_batch_size=64)
    def predict(self, instances: np.ndarray) -> np.ndarray:
        """One batch."""
        return run(self._session, instances.astype(np.float32))
