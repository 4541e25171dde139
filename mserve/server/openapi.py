"""The OpenAPI document of the REST API, made anew at each asking.

Three tables say what the server answers: the schemas, the operations, and which statuses
an operation has besides its good one. A model that is loaded has paths of its own, since
a path without a variable wins over one with: their request bodies are described by the
model's signatures. Inputs that the JSON schema lets pass may still be refused with 400:
it has no word for a size that two inputs share.

Source: https://spec.openapis.org/oas/v3.1.0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

import orjson

from .. import __version__
from ..errors import MserveError
from ..loader.reconciler import Model
from ..loader.servable import Servable
from ..tensors import TensorSpec
from ..wire import oip_json, tfs_json
from ..wire.http1 import JSON
from ..wire.http1 import TEXT as PLAIN
from .exposition import CONTENT_TYPE
from .json_schemas import (
    ANY,
    COUNT,
    FLAG,
    PARAMETERS,
    PORT,
    TENSOR,
    TEXT,
    WANTED,
    Schema,
    array_of,
    infer_body,
    object_of,
    predict_body,
)

# An example with more elements, or of more bytes, is left out.
EXAMPLE_ELEMENTS, EXAMPLE_BYTES = 256, 2000


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_SERIES = object_of("count ns", count=COUNT, ns=COUNT)
_STATUS = object_of(
    "version state status",
    version=TEXT,
    state={"enum": ["START", "LOADING", "AVAILABLE", "UNLOADING", "END"]},
    status=object_of("error_code error_message", error_code=TEXT, error_message=TEXT),
)
_STATES = object_of(
    "model_version_status",
    model_version_status=array_of(_STATUS),
    labels={"type": "object", "additionalProperties": {"type": "integer"}},
    labels_waiting={"type": "object", "additionalProperties": TEXT},
    problem=TEXT,
)
_SIGNATURE = object_of(
    "inputs outputs method_name",
    inputs={"type": "object"},
    outputs={"type": "object"},
    method_name=TEXT,
)
_SIGNATURES = {"type": "object", "additionalProperties": _SIGNATURE}

SCHEMAS: dict[str, Schema] = {
    "Error": object_of("error", error=TEXT),
    "Server": object_of(
        "server version models", server=TEXT, version=TEXT, models=TEXT, configuration_problem=TEXT
    ),
    # TensorFlow Serving
    "Predict": {
        **object_of(
            signature_name=TEXT, instances=array_of(ANY), inputs=ANY, outputs=array_of(TEXT, minItems=1)
        ),
        "oneOf": [{"required": ["instances"]}, {"required": ["inputs"]}],
    },
    "Predictions": {
        "type": "object",
        "oneOf": [
            object_of("predictions", predictions=array_of(ANY)),
            object_of("outputs", outputs=ANY),
        ],
    },
    "Examples": object_of(
        "examples",
        signature_name=TEXT,
        context={"type": "object"},
        examples=array_of({"type": "object"}),
    ),
    "Classes": object_of(
        "results",
        results=array_of(
            array_of({"type": "array", "prefixItems": [TEXT, {"type": "number"}], "minItems": 2})
        ),
    ),
    "Values": object_of("results", results=array_of({"type": "number"})),
    "Status": _STATES,
    "Statuses": object_of(
        "models",
        models=array_of({**_STATES, "properties": {"name": TEXT, **_STATES["properties"]}}),
    ),
    "Signatures": object_of(
        "model_spec metadata",
        model_spec=object_of("name version", name=TEXT, signature_name=TEXT, version=TEXT),
        metadata=object_of(
            "signature_def", signature_def=object_of("signature_def", signature_def=_SIGNATURES)
        ),
    ),
    # Open Inference Protocol
    "ServerMetadata": object_of(
        "name version extensions", name=TEXT, version=TEXT, extensions=array_of(TEXT)
    ),
    "Live": object_of("live", live=FLAG),
    "Ready": object_of("ready live", ready=FLAG, live=FLAG),
    "ModelReady": object_of("name ready", name=TEXT, ready=FLAG),
    "ModelNames": object_of("models", models=array_of(TEXT)),
    "ModelMetadata": object_of(
        "name versions platform",
        name=TEXT,
        versions=array_of(TEXT),
        platform=TEXT,
        inputs=array_of(PORT),
        outputs=array_of(PORT),
        signatures={"type": "object"},
    ),
    "ModelConfig": object_of(
        "name platform max_batch_size", name=TEXT, platform=TEXT, backend=TEXT, max_batch_size=COUNT
    ),
    "Statistics": object_of(
        "model_stats",
        model_stats=array_of(
            object_of(
                "name version inference_stats",
                name=TEXT,
                version=TEXT,
                last_inference=COUNT,
                inference_count=COUNT,
                execution_count=COUNT,
                inference_stats={"type": "object", "additionalProperties": _SERIES},
                batch_stats=array_of({"type": "object"}),
            )
        ),
    ),
    "Infer": object_of(
        "inputs",
        id={"type": ["string", "null"]},
        inputs=array_of(TENSOR),
        outputs={"type": ["array", "null"], "items": WANTED},
        parameters=PARAMETERS,
    ),
    "Inferred": object_of(
        "model_name model_version outputs",
        id=TEXT,
        model_name=TEXT,
        model_version=TEXT,
        outputs=array_of(TENSOR),
    ),
    "IndexRequest": object_of(ready=FLAG),
    "Index": array_of(
        object_of("name version state reason", name=TEXT, version=TEXT, state=TEXT, reason=TEXT)
    ),
    "LoadRequest": object_of(parameters=PARAMETERS),
    "Document": {"type": "object"},
}


class Operation(NamedTuple):
    """What one path answers to one method.

    `body` is the schema of the request; `answer` that of a good answer, or a media type, or
    "" for nothing; `kind` a key of _STATUSES. The operation exists once for each path of
    `at`, which stands where the path says {at}.
    """

    method: str
    path: str
    id: str
    summary: str
    answer: str = ""
    body: str = ""
    kind: str = "page"
    at: Mapping[str, str] = {"": ""}


# What stands behind a model's name, and what that adds to an operation's id.
_TFS_AT = {"": "", "/versions/{version}": "OfVersion", "/labels/{label}": "OfLabel"}
_OIP_AT = {"": "", "/versions/{name_or_number}": "OfVersion", "/labels/{label}": "OfLabel"}
_V1, _V2 = "/v1/models/{model}{at}", "/v2/models/{model}{at}"

OPERATIONS = (
    Operation("get", _V1, "status", "State of each version, and why", "Status", "", "model", _TFS_AT),
    Operation("get", f"{_V1}/metadata", "signatures", "Signatures", "Signatures", "", "model", _TFS_AT),
    Operation(
        "get", f"{_V1}/example", "example", "A request that can be posted", "Predict", "", "model", _TFS_AT
    ),
    Operation("post", f"{_V1}:predict", "predict", "Predict", "Predictions", "Predict", "call", _TFS_AT),
    Operation("post", f"{_V1}:classify", "classify", "Classify", "Classes", "Examples", "call", _TFS_AT),
    Operation("post", f"{_V1}:regress", "regress", "Regress", "Values", "Examples", "call", _TFS_AT),
    Operation("get", "/v1/models", "statuses", "All models with their versions", "Statuses"),
    Operation("get", "/v2", "server", "The server", "ServerMetadata"),
    Operation("get", "/v2/health/live", "live", "Whether the server is alive", "Live", "", "probe"),
    Operation(
        "get",
        "/v2/health/ready",
        "ready",
        "Whether all models have a version that answers",
        "Ready",
        "",
        "probe",
    ),
    Operation("get", "/v2/models", "modelNames", "Names of the models", "ModelNames"),
    Operation("get", "/v2/models/stats", "allStatistics", "Counters of all models", "Statistics"),
    Operation("get", _V2, "metadata", "Inputs and outputs", "ModelMetadata", "", "model", _OIP_AT),
    Operation(
        "get", f"{_V2}/ready", "modelReady", "Whether it can answer", "ModelReady", "", "model", _OIP_AT
    ),
    Operation("get", f"{_V2}/config", "config", "Configuration", "ModelConfig", "", "model", _OIP_AT),
    Operation("get", f"{_V2}/stats", "statistics", "Counters", "Statistics", "", "model", _OIP_AT),
    Operation("post", f"{_V2}/infer", "infer", "Infer", "Inferred", "Infer", "call", _OIP_AT),
    Operation(
        "post", "/v2/repository/index", "index", "All versions of all models", "Index", "IndexRequest", "form"
    ),
    Operation("post", "/v2/repository/models/{model}/load", "load", "Load", "", "LoadRequest", "admin"),
    Operation("post", "/v2/repository/models/{model}/unload", "unload", "Unload", "", "", "admin"),
    Operation("get", "/metrics", "metrics", "Counters for Prometheus", CONTENT_TYPE),
    Operation("get", "/livez", "livez", "Whether the server is alive", PLAIN, "", "probe"),
    Operation(
        "get", "/readyz", "readyz", "Whether all models have a version that answers", PLAIN, "", "probe"
    ),
    Operation("get", "/openapi.json", "openapi", "This document", "Document"),
    Operation("get", "/", "root", "The server's name and version", "Server"),
)

_MEANINGS = {
    400: "The request is wrong",
    401: "The request carries no token that the server knows",
    403: "Administrative calls are not allowed to this client",
    404: "No such model, version, or page",
    408: "The request did not come in time",
    413: "The body is too large",
    415: "The body's Content-Encoding is not one that is read",
    429: "The server has too much to do",
    431: "The header section is too large",
    500: "The model failed on these inputs",
    503: "Nothing can answer now",
    504: "The request waited longer than it may",
}
# Any connection can be refused with these, whatever it asks for.
_ALWAYS = (400, 408, 413, 429, 431, 503)
_STATUSES: dict[str, tuple[int, ...]] = {
    "probe": (),
    "page": (),
    "form": (415,),
    "model": (404,),
    "call": (404, 415, 500, 504),
    "admin": (403, 404, 415, 504),
}
_VARIABLES = {
    "model": {"type": "string", "minLength": 1},
    "label": {"type": "string", "minLength": 1},
    "version": {"type": "integer", "minimum": 0, "maximum": 2**63 - 1},
    "name_or_number": {"type": "string", "minLength": 1},
}


def document(models: Mapping[str, Model], *, tokens: bool = False, admin_tokens: bool = False) -> Schema:
    """The document, with the request bodies of the models that are loaded.

    `tokens` and `admin_tokens` tell whether requests, and administrative ones, need a token.
    """
    secured = {"page", "form", "model", "call", "admin"} if tokens else set[str]()
    secured |= {"admin"} if admin_tokens else set()
    paths: dict[str, Schema] = {}
    for operation in OPERATIONS:
        for at, suffix in operation.at.items():
            path = operation.path.replace("{at}", at)
            made = _operation(operation, path, suffix, secured)
            paths.setdefault(path, {})[operation.method] = made
    for name, model in sorted(models.items()):
        if model.default is not None:
            paths.update(_model_paths(name, model.default, secured))
    components: Schema = {"schemas": SCHEMAS, "responses": _responses()}
    if secured:
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "mserve",
            "version": __version__,
            "description": "TensorFlow Serving's REST API, and the Open Inference Protocol's.",
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in ("TensorFlow Serving", "Open Inference Protocol", "Server")],
        "paths": paths,
        "components": components,
    }


def _responses() -> Schema:
    content = {JSON: {"schema": _ref("Error")}}
    return {str(status): {"description": text, "content": content} for status, text in _MEANINGS.items()}


def _operation(operation: Operation, path: str, suffix: str, secured: set[str]) -> Schema:
    statuses = {*_ALWAYS, *_STATUSES[operation.kind]}
    made: Schema = {"operationId": operation.id + suffix, "summary": operation.summary, "tags": [_tag(path)]}
    if operation.kind in secured:
        made["security"] = [{"bearer": []}]
        statuses.add(401)
    names = [part.split("}")[0] for part in path.split("{")[1:]]
    if names:
        made["parameters"] = [
            {"name": n, "in": "path", "required": True, "schema": _VARIABLES[n]} for n in names
        ]
    if operation.body:
        needed = operation.kind == "call"
        made["requestBody"] = {"required": needed, "content": {JSON: {"schema": _ref(operation.body)}}}
    good: Schema = {"description": operation.summary}
    if operation.answer:
        good["content"] = _content(operation.answer)
    answers: Schema = {str(s): {"$ref": f"#/components/responses/{s}"} for s in sorted(statuses)}
    if operation.answer == PLAIN:
        answers["503"] = {"description": _MEANINGS[503], "content": {**_content(PLAIN), **_content("Error")}}
    made["responses"] = {"200": good, **answers}
    return made


def _tag(path: str) -> str:
    tags = {"/v1": "TensorFlow Serving", "/v2": "Open Inference Protocol"}
    return tags.get(path[:3], "Server")


def _content(answer: str) -> Schema:
    if answer in SCHEMAS:
        raw: Schema = {oip_json.BINARY: {"schema": {}}} if answer == "Inferred" else {}
        return {JSON: {"schema": _ref(answer)}, **raw}
    return {answer: {"schema": TEXT}}


def _model_paths(name: str, servable: Servable, secured: set[str]) -> Iterator[tuple[str, Schema]]:
    """The paths of one model's inference calls, whose bodies are those that it takes."""
    for operation in OPERATIONS:
        if operation.id not in ("predict", "infer"):
            continue
        path = operation.path.replace("{at}", "").replace("{model}", quote(name, safe=""))
        made = _operation(operation, path, f"By{quote(name, safe='')}", secured)
        made["requestBody"]["content"][JSON] = _body(operation.id, servable)
        yield path, {"post": made}


def _body(call: str, servable: Servable) -> Schema:
    """A model's request body: what each of its signatures takes, and an example for the default one."""
    make = predict_body if call == "predict" else infer_body
    default = _default(servable)
    schemas = [
        make(signature, name, needed=name != default) for name, signature in servable.signatures.items()
    ]
    body: Schema = {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}
    example = _example(servable, default) if default and call == "predict" else None
    return body | ({"examples": {"one": {"value": example}}} if example else {})


def _default(servable: Servable) -> str:
    """The signature that answers a request without a name, "" where a name is needed."""
    try:
        return servable.signature()[0]
    except MserveError:
        return ""


def _example(servable: Servable, name: str) -> Any:
    """A request that can be posted, None where it would be large."""
    signature = servable.signatures[name]
    if sum(_elements(spec) for spec in signature.inputs.values()) > EXAMPLE_ELEMENTS:
        return None
    try:
        rows = signature.batch_axis is not None
        body = tfs_json.encode_inputs(servable.example(name), rows=rows, signature=signature)
        return orjson.loads(body) if len(body) <= EXAMPLE_BYTES else None
    except (MserveError, orjson.JSONDecodeError):  # NaN, or no rows
        return None


def _elements(spec: TensorSpec) -> int:
    count = 1
    for size in spec.shape or ():
        count *= size if isinstance(size, int) else 1
    return count
