"""What TensorFlow Serving's REST API tells of its models, before one is measured.

Nothing but the URL is needed where the server tells the rest: `GET /v1/models` (ours)
names the models, `/v1/models/NAME/example` (ours) holds a request, and `/metadata`
(everyone's) describes one that can be made up.
"""

from __future__ import annotations

from typing import Any

from ...errors import EnvironmentProblem, InputError, MserveError, NotFound
from ...sparse import IDS, LENGTHS, VALUES, Sparse
from ...tensors import ANY_DIM, DEFAULT_SIGNATURE, DTYPES, Signature, TensorSpec
from ..requests.codecs import Asked, tfs_path
from .endpoint import Endpoint, unknown_protocol
from .pages import get, json_page

READY_HINT = "wait until the server's /readyz answers 200, or read its log"
GIVE_INPUTS = "give a request: --inputs F.json or F.npz"
_DTYPE_OF_TF = {d.tf: d.name for d in DTYPES.values()}


class TfsApi:
    """The models of a server that speaks TensorFlow Serving's REST API."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def models(self) -> list[str] | None:
        """The names of the server's models; None where it does not list them. Raises EnvironmentProblem."""
        status, value = json_page(self._endpoint, "/v1/models")
        models = value.get("models")
        if status == 200 and isinstance(models, list):
            return [str(m["name"]) for m in models if isinstance(m, dict) and "name" in m]
        if "error" not in value:
            found = f"status {status}: {str(value)[:60]}"
            raise unknown_protocol(self._endpoint, "GET /v1/models", found)
        return None

    def check_ready(self, asked: Asked) -> None:
        """Refuse a model that the server does not know, or that cannot answer yet."""
        path = tfs_path(asked)
        status, value = json_page(self._endpoint, path)
        if status != 200:
            raise NotFound(
                "the server does not know the model",
                where=self._endpoint.url + path,
                found=f"status {status}: {str(value.get('error', value))[:200]}",
            )
        versions = value.get("model_version_status")
        entries = [v for v in versions if isinstance(v, dict)] if isinstance(versions, list) else []
        if not any(v.get("state") == "AVAILABLE" for v in entries):
            found = [_state(v) for v in entries] or [str(value.get("problem") or "no versions")]
            raise EnvironmentProblem(
                f"model {asked.model!r} is not ready",
                where=self._endpoint.url + path,
                found="; ".join(found),
                hint=READY_HINT,
            )

    def signature(self, asked: Asked) -> Signature:
        """The signature that is asked for; its inputs only. Raises MserveError."""
        path = f"{tfs_path(asked)}/metadata"
        status, value = json_page(self._endpoint, path)
        if status != 200:
            raise EnvironmentProblem(
                "the server tells no inputs",
                where=self._endpoint.url + path,
                found=f"status {status}: {str(value.get('error', ''))[:200]}",
                hint=GIVE_INPUTS,
            )
        return signature_of(value, asked.signature)

    def example(self, asked: Asked) -> bytes | None:
        """A request to the default signature that the server offers (ours does)."""
        return example(self._endpoint, asked)


def example(endpoint: Endpoint, asked: Asked) -> bytes | None:
    """A predict request to the default signature from the page `example`; None where there is none."""
    if asked.signature:
        return None
    status, body = get(endpoint, f"{tfs_path(asked)}/example")
    return body if status == 200 else None


def _state(version: dict[str, Any]) -> str:
    message = (version.get("status") or {}).get("error_message") or ""
    return f"version {version.get('version')}: {version.get('state')}" + (f": {message}" if message else "")


def signature_of(page: dict[str, Any], name: str) -> Signature:
    """A signature in a `/metadata` page; its inputs only. Raises NotFound or InputError."""
    try:
        found = page["metadata"]["signature_def"]["signature_def"]
        usable = {n: s["inputs"] for n, s in found.items() if s.get("inputs")}
        if not name:
            name = next(iter(usable)) if len(usable) == 1 else DEFAULT_SIGNATURE
        if name not in usable:
            raise NotFound("no such signature", expected=", ".join(usable) or "none", found=repr(name))
        inputs = {alias: _spec(alias, info) for alias, info in usable[name].items()}
    except MserveError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            "the server's metadata page is not understood",
            found=f"{type(error).__name__}: {error}",
            hint=GIVE_INPUTS,
        ) from error
    return of_inputs(inputs)


def of_inputs(inputs: dict[str, TensorSpec]) -> Signature:
    """A signature with these inputs; its rows are independent where every first size is open.

    Pages list a sparse input's parts, which are told by their names.
    """
    batched = bool(inputs) and all(s.shape is not None and s.shape[:1] == ("batch",) for s in inputs.values())
    ports: dict[str, TensorSpec | Sparse] = {}
    for name, spec in inputs.items():
        alias = name.rpartition(".")[0]
        sparse = _sparse(alias, inputs)
        ports |= {name: spec} if sparse is None else {alias: sparse}
    return Signature.of("predict", ports, {}, 0 if batched else None)


def _sparse(alias: str, inputs: dict[str, TensorSpec]) -> Sparse | None:
    """The sparse input that the parts of a name are; None where they are not there."""
    names = {part: f"{alias}.{part}" for part in (IDS, VALUES, LENGTHS) if f"{alias}.{part}" in inputs}
    if LENGTHS not in names or len(names) < 2:
        return None
    values = inputs.get(names.get(VALUES, ""))
    entry = (values.shape or ())[1:] if values else ()
    return Sparse(
        "sparse" if IDS in names else "ragged",
        values.dtype if values else "int64",
        names,
        ("batch", ANY_DIM, *entry),
    )


def dims(sizes: list[int]) -> tuple[int | str, ...]:
    """Sizes as a shape: those that are open are -1, and the first of them stands for the rows."""
    return tuple(("batch" if i == 0 else "?") if n < 0 else n for i, n in enumerate(sizes))


def _spec(alias: str, info: dict[str, Any]) -> TensorSpec:
    dtype = _DTYPE_OF_TF.get(info["dtype"])
    if dtype is None:
        raise InputError("bench cannot make up an input", where=alias, found=info["dtype"], hint=GIVE_INPUTS)
    shape = info["tensor_shape"]
    if shape.get("unknown_rank"):
        return TensorSpec(info.get("name", alias), dtype, None)
    sizes = [int(d["size"]) for d in shape.get("dim") or ()]
    return TensorSpec(info.get("name", alias), dtype, dims(sizes))
