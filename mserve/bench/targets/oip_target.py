"""What a server of the Open Inference Protocol tells of its models over REST, before one is measured.

Sources: the protocol, https://github.com/kserve/open-inference-protocol; lists of models
are KServe's page `/v2/models`. A server that is ours also has a page with an example.
"""

from __future__ import annotations

from typing import Any

from ...errors import EnvironmentProblem, InputError, NotFound
from ...tensors import Signature, TensorSpec
from ...wire.oip import DATATYPES
from ..requests.codecs import Asked, oip_path
from .endpoint import Endpoint, unknown_protocol
from .pages import get, page
from .tfs_target import GIVE_INPUTS, READY_HINT, dims, example, of_inputs

# What a server's metadata says when it takes raw tensors behind the JSON.
BINARY = "binary_tensor_data"


def extensions(endpoint: Endpoint) -> list[str] | None:
    """The protocol's extensions that the server has; None where it does not speak it."""
    status, value = page(endpoint, "/v2")
    if status != 200 or value is None or not isinstance(value.get("name"), str):
        return None
    found = value.get("extensions")
    return [str(e) for e in found] if isinstance(found, list) else []


class OipApi:
    """The models of a server that speaks Open Inference over REST."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def models(self) -> list[str] | None:
        """The names of the server's models; None where it does not list them."""
        if extensions(self._endpoint) is None:
            raise unknown_protocol(self._endpoint, "GET /v2", "no metadata of a server")
        status, value = page(self._endpoint, "/v2/models")
        models = value.get("models") if value and status == 200 else None
        if not isinstance(models, list):
            return None
        return [str(m.get("name")) if isinstance(m, dict) else str(m) for m in models]

    def check_ready(self, asked: Asked) -> None:
        """Refuse a model that the server does not know, or that cannot answer yet."""
        status, body = get(self._endpoint, f"{oip_path(asked)}/ready")
        if status == 200:
            return
        where, found = self._endpoint.url + oip_path(asked), body[:200].decode("utf-8", "replace")
        if status == 404:
            raise NotFound("the server does not know the model", where=where, found=found)
        raise EnvironmentProblem(
            f"model {asked.model!r} is not ready", where=where, found=f"status {status}: {found}",
            hint=READY_HINT,
        )  # fmt: skip

    def signature(self, asked: Asked) -> Signature:
        """The signature that is asked for; its inputs only. Raises MserveError."""
        status, value = page(self._endpoint, oip_path(asked))
        if status != 200 or value is None:
            raise EnvironmentProblem(
                "the server tells no inputs",
                where=self._endpoint.url + oip_path(asked),
                found=f"status {status}",
                hint=GIVE_INPUTS,
            )
        return signature_of(value, asked.signature)

    def example(self, asked: Asked) -> bytes | None:
        """A request to the default signature that the server offers, if it is ours."""
        return example(self._endpoint, asked)


def signature_of(page: dict[str, Any], name: str) -> Signature:
    """A signature in a model's metadata; its inputs only. Raises NotFound or InputError."""
    try:
        ports = page["inputs"]
        if name:
            others = page.get("signatures") or {}
            if others and name not in others:
                raise NotFound("no such signature", expected=", ".join(others), found=repr(name))
            ports = others[name]["inputs"] if name in others else ports
        return of_inputs({str(port["name"]): _spec(port) for port in ports})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            "the server's metadata is not understood",
            found=f"{type(error).__name__}: {error}",
            hint=GIVE_INPUTS,
        ) from error


def _spec(port: dict[str, Any]) -> TensorSpec:
    dtype = DATATYPES.get(port["datatype"])
    if dtype is None:
        found = str(port["datatype"])
        raise InputError("bench cannot make up an input", where=port["name"], found=found, hint=GIVE_INPUTS)
    return TensorSpec(port["name"], dtype, dims([int(size) for size in port["shape"]]))
