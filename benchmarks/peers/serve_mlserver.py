"""MLServer: a runtime of our own for the v2 protocol, with its adaptive batching."""

from __future__ import annotations

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from peer_model import open_model, run


class Mlp(MLModel):
    """`images` to `scores`."""

    async def load(self) -> bool:
        self._session = open_model()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        x = NumpyCodec.decode_input(payload.inputs[0])
        scores = NumpyCodec.encode_output("scores", run(self._session, x))
        return InferenceResponse(model_name=self.name, outputs=[scores])
