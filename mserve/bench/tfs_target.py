"""A URL target: a server that speaks TensorFlow Serving's REST API.

Nothing but the URL is needed where the server tells the rest: `GET /v1/models` (ours)
names the models, `/v1/models/NAME/example` (ours) holds a request, and `/metadata`
(everyone's) describes one that can be made up.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import ssl
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import orjson

from ..errors import EnvironmentProblem, InputError, MserveError, NotFound, RequestError, UsageError
from ..examples import generate
from ..tensors import DEFAULT_SIGNATURE, DTYPES, Signature, TensorSpec
from ..wire import tfs_json
from .client import Connection, request_bytes
from .connectors import Endpoint, HttpConnector
from .server_view import Counters, read_metrics
from .targets import Ask, Connector, Target, read_inputs

ASK_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 5.0
CONNECTIONS_MAX = 1024
PAGE_BYTES_MAX = 256 << 20
_FILES_RESERVED = 64

_PATH = re.compile(r"(?:/v1/models/([^/:]+)(/versions/\d+|/labels/[^/:]+)?(?::predict)?|/v1/models)?/?")
_DTYPE_OF_TF = {d.tf: d.name for d in DTYPES.values()}


def open_url(url: str, ask: Ask) -> Target:
    """Find out which model a URL means and what to send it.

    Raises UsageError (bad URL, several models), EnvironmentProblem (nothing listens, not
    our protocol, model not ready), NotFound (unknown model), InputError or RequestError.
    """
    endpoint, name, rest = parse_url(url)
    if name and ask.model and name != ask.model:
        raise UsageError("--model differs from the URL's model", expected=name, found=ask.model)
    endpoint = locate(endpoint)
    listed = list_models(endpoint)
    name = name or ask.model or _only(listed, endpoint)
    base = f"/v1/models/{quote(name, safe='')}{rest}"
    _check_ready(endpoint, base, name, listed)
    body = url_request(endpoint, base, ask)
    return TfsServer(endpoint, name, base, ask.signature, body)


def parse_url(url: str) -> tuple[Endpoint, str, str]:
    """The endpoint, the model's name or "", and the `/versions/N` part or "". Raises UsageError."""
    hint = "http://HOST:PORT or http://HOST:PORT/v1/models/NAME"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise UsageError("bad URL", expected=hint, found=f"{url}: {error}") from error
    match = _PATH.fullmatch(parts.path)
    if match is None or not host:
        raise UsageError("the URL is not one of a model", expected=hint, found=url)
    root = f"{parts.scheme}://{parts.netloc}"
    return Endpoint(root, parts.scheme, host, port), unquote(match[1] or ""), match[2] or ""


def locate(endpoint: Endpoint) -> Endpoint:
    """Connect once: learn the address, and whether it is this machine's. Raises EnvironmentProblem."""
    try:
        with socket.create_connection((endpoint.host, endpoint.port), ASK_TIMEOUT_S) as probe:
            peer, own = probe.getpeername()[0], probe.getsockname()[0]
    except UnicodeError as error:
        raise UsageError("bad URL", found=f"{endpoint.url}: {error}") from error
    except OSError as error:
        raise _unreachable(endpoint, error) from error
    return Endpoint(endpoint.url, endpoint.scheme, endpoint.host, endpoint.port, peer, peer == own)


def _unreachable(endpoint: Endpoint, error: Exception) -> EnvironmentProblem:
    what, hint = "the server cannot be reached", "check the URL"
    if isinstance(error, ConnectionRefusedError):
        what = "nothing listens there"
        hint = f"start a server: mserve serve BASE_PATH --port {endpoint.port}"
    elif isinstance(error, socket.gaierror):
        what = "no such host"
    elif isinstance(error, ssl.SSLCertVerificationError):
        what, hint = "the server's certificate is not trusted", "SSL_CERT_FILE=CA.pem names whom to trust"
    elif isinstance(error, TimeoutError):
        what, hint = f"no answer within {ASK_TIMEOUT_S:g} s", "is it the right port, and is the server alive?"
    found = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return EnvironmentProblem(what, where=endpoint.url, found=found, hint=hint)


def get(endpoint: Endpoint, path: str) -> tuple[int, bytes]:
    """Status and body of a page. Raises EnvironmentProblem."""
    connection: http.client.HTTPConnection
    if endpoint.scheme == "https":
        connection = http.client.HTTPSConnection(endpoint.host, endpoint.port, timeout=ASK_TIMEOUT_S)
    else:
        connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=ASK_TIMEOUT_S)
    try:
        connection.request("GET", path, headers={"User-Agent": "mserve-bench"})
        response = connection.getresponse()
        return response.status, response.read(PAGE_BYTES_MAX)
    except ssl.SSLCertVerificationError as error:
        raise _unreachable(endpoint, error) from error
    except (http.client.HTTPException, ConnectionResetError, ssl.SSLError, ValueError) as error:
        found = f"{type(error).__name__}: {str(error)[:80]}".rstrip(": ")
        raise _unknown_protocol(endpoint, f"GET {path}", found) from error
    except OSError as error:
        raise _unreachable(endpoint, error) from error
    finally:
        connection.close()


def _unknown_protocol(endpoint: Endpoint, where: str, found: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        "the server speaks no protocol that bench knows",
        where=f"{endpoint.url}: {where}",
        expected="TensorFlow Serving's REST API: /v1/models/NAME",
        found=found,
        hint="is this the right port? TensorFlow Serving's is 8501, mserve's too",
    )


def _json_page(endpoint: Endpoint, path: str) -> tuple[int, dict[str, Any]]:
    """A page that must hold a JSON object, as every page of the protocol does. Raises EnvironmentProblem."""
    status, body = get(endpoint, path)
    try:
        value = json.loads(body)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise _unknown_protocol(endpoint, f"GET {path}", f"status {status}: {body[:60]!r}")
    return status, value


def list_models(endpoint: Endpoint) -> list[str] | None:
    """The names of the server's models; None where it does not list them. Raises EnvironmentProblem."""
    status, value = _json_page(endpoint, "/v1/models")
    models = value.get("models")
    if status == 200 and isinstance(models, list):
        return [str(m["name"]) for m in models if isinstance(m, dict) and "name" in m]
    if "error" not in value:
        raise _unknown_protocol(endpoint, "GET /v1/models", f"status {status}: {str(value)[:60]}")
    return None


def _only(listed: list[str] | None, endpoint: Endpoint) -> str:
    if listed is None:
        hint = f"name it: --model NAME, or {endpoint.url}/v1/models/NAME"
        raise UsageError("the server does not list its models", where=endpoint.url, hint=hint)
    if not listed:
        raise EnvironmentProblem("the server has no models", where=endpoint.url)
    if len(listed) > 1:
        raise UsageError(
            "the server has several models", found=", ".join(sorted(listed)), hint="choose one: --model NAME"
        )
    return listed[0]


def _check_ready(endpoint: Endpoint, base: str, name: str, listed: list[str] | None) -> None:
    """Refuse a model that the server does not know, or that cannot answer yet."""
    known = ", ".join(sorted(listed)) if listed else ""
    if listed is not None and name not in listed:
        raise NotFound("no such model", where=endpoint.url, expected=known or "no models", found=repr(name))
    status, value = _json_page(endpoint, base)
    if status != 200:
        raise NotFound(
            "the server does not know the model",
            where=endpoint.url + base,
            expected=known,
            found=f"status {status}: {str(value.get('error', value))[:200]}",
        )
    versions = value.get("model_version_status")
    entries = [v for v in versions if isinstance(v, dict)] if isinstance(versions, list) else []
    if not any(v.get("state") == "AVAILABLE" for v in entries):
        found = [_state(v) for v in entries] or [str(value.get("problem") or "no versions")]
        raise EnvironmentProblem(
            f"model {name!r} is not ready",
            where=endpoint.url + base,
            found="; ".join(found),
            hint="wait until the server's /readyz answers 200, or read its log",
        )


def _state(version: dict[str, Any]) -> str:
    message = (version.get("status") or {}).get("error_message") or ""
    return f"version {version.get('version')}: {version.get('state')}" + (f": {message}" if message else "")


def url_request(endpoint: Endpoint, base: str, ask: Ask) -> bytes:
    """The body of a predict request: given, the server's own example, or made up from its metadata.

    Raises InputError, RequestError or EnvironmentProblem.
    """
    if ask.inputs is not None:
        given = read_inputs(ask.inputs)
        if isinstance(given, bytes):
            return _given_json(given, ask)
        sizes = {x.shape[:1] for x in given.values()}
        return _named(tfs_json.encode_inputs(given, rows=len(sizes) == 1 and sizes != {()}), ask.signature)
    if not ask.signature:
        status, body = get(endpoint, f"{base}/example")
        example = _repeat(body, ask.rows) if status == 200 else None
        if example is not None:
            return example
    status, value = _json_page(endpoint, f"{base}/metadata")
    if status != 200:
        raise EnvironmentProblem(
            "the server tells no inputs",
            where=f"{endpoint.url}{base}/metadata",
            found=f"status {status}: {str(value.get('error', ''))[:200]}",
            hint="give a request: --inputs F.json or F.npz",
        )
    signature = signature_of(value, ask.signature)
    arrays = generate(signature, rows=ask.rows)
    return _named(tfs_json.encode_inputs(arrays, rows=signature.batch_axis is not None), ask.signature)


def _given_json(body: bytes, ask: Ask) -> bytes:
    value = tfs_json.parse(body)
    if ("instances" in value) == ("inputs" in value):
        raise InputError(
            "the inputs are not a predict request",
            where=ask.inputs,
            expected="exactly one of 'instances' and 'inputs'",
            found=", ".join(value) or "an empty object",
        )
    named = value.get("signature_name")
    if named is not None and ask.signature not in ("", named):
        raise UsageError("--signature differs from the inputs' signature_name", found=named)
    return _named(body, "" if named else ask.signature)


def _named(body: bytes, signature: str) -> bytes:
    """The body with a signature's name in it, if one was asked for."""
    if not signature:
        return body
    return b'{"signature_name":' + orjson.dumps(signature) + b"," + body.lstrip()[1:]


def _repeat(body: bytes, rows: int) -> bytes | None:
    """An example of one row, `rows` times; None where it is not in row form."""
    if rows == 1:
        return body
    try:
        value = tfs_json.parse(body)
    except RequestError:
        return None
    instances = value.get("instances")
    return orjson.dumps({"instances": instances[:1] * rows}) if isinstance(instances, list) else None


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
            hint="give a request: --inputs F.json or F.npz",
        ) from error
    batched = all(s.shape is not None and s.shape[:1] == ("batch",) for s in inputs.values())
    return Signature("predict", inputs, {}, 0 if batched else None)


def _spec(alias: str, info: dict[str, Any]) -> TensorSpec:
    dtype = _DTYPE_OF_TF.get(info["dtype"])
    if dtype is None:
        raise InputError(
            "bench cannot make up an input", where=alias, found=info["dtype"], hint="give a request: --inputs"
        )
    shape = info["tensor_shape"]
    if shape.get("unknown_rank"):
        return TensorSpec(info.get("name", alias), dtype, None)
    sizes = [int(d["size"]) for d in shape.get("dim") or ()]
    dims = tuple(("batch" if i == 0 else "?") if n < 0 else n for i, n in enumerate(sizes))
    return TensorSpec(info.get("name", alias), dtype, dims)


class TfsServer:
    """A server's model, asked over as many connections as are needed."""

    shares_loop = False

    def __init__(self, endpoint: Endpoint, name: str, base: str, signature: str, body: bytes) -> None:
        self.endpoint = endpoint
        self.name = name
        self.versions: dict[bytes, int] = {}
        self.connections_max = min(CONNECTIONS_MAX, _files_max() - _FILES_RESERVED)
        self._signature = signature
        self._body = body
        self._path = f"{base}:predict"
        self._request = request_bytes(endpoint.authority, self._path, body)
        self._connector = HttpConnector(endpoint, self._request, self.connections_max, self.versions)

    def describe(self) -> dict[str, Any]:
        """Facts for the report."""
        instances = tfs_json.parse(self._body).get("instances")
        return {
            "kind": "url",
            "url": self.endpoint.url + self._path,
            "protocol": "TensorFlow Serving REST",
            "model": self.name,
            "signature": self._signature or None,
            "rows": len(instances) if isinstance(instances, list) else None,
            "request_bytes": len(self._request),
            "same_machine": self.endpoint.same_machine,
        }

    async def start(self) -> None:
        """Nothing to prepare: connections are opened as they are needed."""

    def description(self) -> Connector:
        """What another process needs to ask the same."""
        return HttpConnector(self.endpoint, self._request, self.connections_max)

    async def connect(self) -> Connection:
        """Open one more connection. Raises OSError."""
        return await self._connector.connect()

    async def counters(self) -> Counters | None:
        """The model's counters at `/metrics`, or None."""
        try:
            status, body = await asyncio.to_thread(get, self.endpoint, "/metrics")
        except EnvironmentProblem:
            return None
        return read_metrics(body.decode("utf-8", "replace"), self.name) if status == 200 else None

    async def close(self) -> None:
        """Nothing to free: the driver closes its connections."""


def _files_max() -> int:
    try:
        import resource
    except ImportError:
        return CONNECTIONS_MAX + _FILES_RESERVED
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return limit if limit > 0 else CONNECTIONS_MAX + _FILES_RESERVED
