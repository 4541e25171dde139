"""A URL target: a model of a server, by whichever of five protocols it speaks.

    http, https    TensorFlow Serving's REST API; Open Inference, with JSON or binary tensors
    grpc, grpcs    Open Inference's service; TensorFlow Serving's

Which one is seen from the server's answers, or named. What a request looks like is given,
or follows from what the server tells of its model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ...errors import EnvironmentProblem, InputError, MserveError, NotFound, UsageError
from ...readers.requests import Sample, Samples, arrays_of, read_inputs
from ...rows import take
from ...sparse import IDS, LENGTHS, VALUES
from ...tensors import Array, Signature
from ...wire import tfs_json
from ..load import statistics
from ..load.client import Connection
from ..load.connectors import answer, connector
from ..load.recorder import OK
from ..load.server_view import Counters
from ..requests.codecs import CODECS, Asked, check_protocol, named, oip_request, tfs_request
from ..requests.inputs import GOLDEN, made_up, pools
from ..requests.verify import Checker, Outputs
from . import oip_target
from .endpoint import Endpoint, locate, parse_url, read_token, unknown_protocol
from .grpc_target import OipGrpcApi, TfsGrpcApi, speaks_oip, speaks_tfs
from .oip_target import OipApi
from .target import Ask, Connector
from .tfs_target import TfsApi


class Api(Protocol):
    """What a server tells of its models, by one protocol."""

    def models(self) -> list[str] | None:
        """Their names; None where it does not list them."""

    def check_ready(self, asked: Asked) -> None:
        """Refuse a model that the server does not know, or that cannot answer yet."""

    def signature(self, asked: Asked) -> Signature:
        """The signature that is asked for; its inputs only."""

    def example(self, asked: Asked) -> bytes | None:
        """A predict request as JSON that the server offers, if it does."""


def _api(protocol: str, endpoint: Endpoint) -> Api:
    kinds: dict[str, type[TfsApi | OipApi | OipGrpcApi | TfsGrpcApi]] = {
        "tfs": TfsApi,
        "grpc": OipGrpcApi,
        "tfs-grpc": TfsGrpcApi,
    }
    return kinds.get(protocol, OipApi)(endpoint)


def open_url(url: str, ask: Ask, given: Samples | None = None) -> UrlTarget:
    """Find out which model a URL means and what to send it; `given` are requests of its bundle.

    Raises UsageError (bad URL, several models), EnvironmentProblem (nothing listens, no known
    protocol, model not ready), NotFound (unknown model), Unauthenticated, InputError or RequestError.
    """
    endpoint, name, version = parse_url(url)
    if name and ask.model and name != ask.model:
        raise UsageError("--model differs from the URL's model", expected=name, found=ask.model)
    check_protocol(ask.protocol, endpoint)
    if ask.ca is not None and endpoint.scheme not in ("https", "grpcs"):
        hint = f"give the URL as {'grpcs' if endpoint.is_grpc else 'https'}://"
        raise UsageError("--ca is for a URL with TLS", found=endpoint.url, hint=hint)
    token = read_token(ask.token_file) if ask.token_file else ""
    endpoint = replace(endpoint, ca=str(ask.ca or ""), token=token)
    endpoint.tls()
    endpoint = locate(endpoint)
    protocol = detect(endpoint, url) if ask.protocol == "auto" else ask.protocol
    api = _api(protocol, endpoint)
    listed = api.models()
    name = name or ask.model or _only(listed, endpoint)
    if listed is not None and name not in listed:
        known = ", ".join(sorted(listed)) or "no models"
        raise NotFound("no such model", where=endpoint.url, expected=known, found=repr(name))
    asked = Asked(name, version, ask.signature)
    api.check_ready(asked)
    samples = (given or _samples(api, asked, ask)).mixed(ask.seed)
    encoder = Encoder(api, endpoint, asked, protocol)
    encoder.check(samples.requests[0])
    requests = [encoder.encode(sample) for sample in samples.requests]
    return UrlTarget(endpoint, encoder.asked, protocol, Load(samples, requests, ask.verify, ask.streams))


def detect(endpoint: Endpoint, url: str = "") -> str:
    """The protocol that a server speaks, as `--protocol` names it. Raises EnvironmentProblem."""
    if endpoint.is_grpc:
        if speaks_oip(endpoint):
            return "grpc"
        if speaks_tfs(endpoint):
            return "tfs-grpc"
        raise unknown_protocol(endpoint, "gRPC", "UNIMPLEMENTED from both services")
    if "/v1/" in url:
        return "tfs"
    if "/v2" not in url:
        status, listed = _page(endpoint, "/v1/models")
        if status == 200 and isinstance((listed or {}).get("models"), list):
            return "tfs"
    extensions = oip_target.extensions(endpoint)
    if extensions is None:
        return "oip" if "/v2" in url else "tfs"
    return "oip-binary" if oip_target.BINARY in extensions else "oip"


def _page(endpoint: Endpoint, path: str) -> tuple[int, dict[str, Any] | None]:
    from .pages import page

    return page(endpoint, path)


def _only(listed: list[str] | None, endpoint: Endpoint) -> str:
    if listed is None:
        place = f"{endpoint.url}/NAME" if endpoint.is_grpc else f"{endpoint.url}/v1/models/NAME"
        hint = f"name it: --model NAME, or {place}"
        raise UsageError("the server does not list its models", where=endpoint.url, hint=hint)
    if not listed:
        raise EnvironmentProblem("the server has no models", where=endpoint.url)
    if len(listed) > 1:
        raise UsageError(
            "the server has several models", found=", ".join(sorted(listed)), hint="choose one: --model NAME"
        )
    return listed[0]


# the requests


def _samples(api: Api, asked: Asked, ask: Ask) -> Samples:
    """What to send: given, or the server's own example and others that are made up like it."""
    if ask.inputs is not None and ask.inputs != GOLDEN:
        return read_inputs(ask.inputs, ask.rows)
    body, rows = api.example(asked), ask.rows or 1
    if ask.inputs == GOLDEN and body is None:
        raise UsageError(
            "the server offers no golden sample",
            hint="--inputs BUNDLE takes those of a bundle, --inputs FILE any others",
        )
    example = Sample(body=body or b"")
    try:
        signature = api.signature(asked)
    except MserveError:
        if body is None or rows > 1:
            raise
        return Samples([example], "the server's example")
    arrays = _fitting(example, signature)
    if arrays is None:
        return Samples(made_up(signature, rows, ask.distinct, ask.seed, {}), "made up")
    repeated = take(signature, arrays, [0] * rows) if signature.batch_axis is not None else arrays
    first = Sample(repeated)
    if ask.inputs == GOLDEN:
        return Samples([first], "the server's example")
    more = made_up(signature, rows, ask.distinct, ask.seed, pools(signature, arrays))
    return Samples([first, *more[1:]], "the server's example, and others like it")


def _fitting(example: Sample, signature: Signature) -> Mapping[str, Array] | None:
    """An example's arrays; None where there is none, or the page was something else."""
    try:
        return arrays_of(example, signature) if example.body else None
    except MserveError:
        return None


class Encoder:
    """Makes requests of samples; the signature is asked for when JSON must become something else."""

    def __init__(self, api: Api, endpoint: Endpoint, asked: Asked, protocol: str) -> None:
        self.asked = asked
        self._api = api
        self._endpoint = endpoint
        self._protocol = protocol
        self._signatures: dict[str, Signature] = {}

    def check(self, sample: Sample) -> None:
        """Whether the model has inputs of these names, as far as the server tells. Raises InputError."""
        asked = replace(self.asked, signature=sample.signature or self.asked.signature)
        try:
            known = self._signature(asked).inputs if sample.form == "arrays" else sample.arrays
        except MserveError:
            return
        strange = [name for name in sample.arrays if name not in known]
        if strange:
            raise InputError(
                "the model has no such input", expected=", ".join(known), found=", ".join(strange)
            )

    def encode(self, sample: Sample) -> bytes:
        """A request's bytes. Raises MserveError."""
        asked = self.asked
        if sample.signature and asked.signature not in ("", sample.signature):
            raise UsageError("--signature differs from the inputs' signature_name", found=sample.signature)
        asked = replace(asked, signature=sample.signature or asked.signature)
        if sample.form == "tfs" and self._protocol == "tfs":
            body = sample.body if sample.signature else named(sample.body, asked.signature)
            return tfs_request(self._endpoint, asked, body)
        if sample.form == "oip" and self._protocol in ("oip", "oip-binary"):
            return oip_request(self._endpoint, asked, sample.body)
        made = sample.form == "arrays"
        arrays = sample.arrays if made else arrays_of(sample, self._signature(asked))
        rows = {x.shape[:1] for x in arrays.values()}
        asked = replace(asked, rows=len(rows) == 1 and rows != {()} and _lengths(arrays) is None)
        return CODECS[self._protocol].encode(self._endpoint, asked, arrays)

    def _signature(self, asked: Asked) -> Signature:
        if asked.signature not in self._signatures:
            self._signatures[asked.signature] = self._api.signature(asked)
        return self._signatures[asked.signature]


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent: samples, and the bytes of each one's request."""

    samples: Samples
    requests: Sequence[bytes]
    verify: bool = False
    streams: int = 16

    @property
    def rows(self) -> int | None:
        """Rows of a request, None where they are not known or differ."""
        found = {_rows(sample) for sample in self.samples.requests}
        return found.pop() if len(found) == 1 else None


def _rows(sample: Sample) -> int | None:
    if (lengths := _lengths(sample.arrays)) is not None:
        return len(lengths)
    if sample.form == "arrays":
        sizes = {x.shape[0] if x.ndim else 1 for x in sample.arrays.values()}
        return int(sizes.pop()) if len(sizes) == 1 else None
    instances = tfs_json.parse(sample.body).get("instances")
    return len(instances) if isinstance(instances, list) else None


def _lengths(arrays: Mapping[str, Array]) -> Array | None:
    """How many entries the rows of a sparse input have; None where no input is sparse."""
    ends = [name.removesuffix(f".{LENGTHS}") for name in arrays if name.endswith(f".{LENGTHS}")]
    parts = (
        f"{alias}.{LENGTHS}" for alias in ends if {f"{alias}.{IDS}", f"{alias}.{VALUES}"} & arrays.keys()
    )
    return next((arrays[name] for name in parts), None)


class UrlTarget:
    """A server's model, asked over as many connections as are needed."""

    shares_loop = False

    def __init__(self, endpoint: Endpoint, asked: Asked, protocol: str, load: Load) -> None:
        self.endpoint = endpoint
        self.asked = asked
        self.protocol = protocol
        self._load = load
        outputs = [sample.outputs for sample in load.samples.requests]
        known = load.verify and any(found is not None for found in outputs)
        self._checker = Checker(protocol, outputs) if known else None
        self._connector = connector(endpoint, protocol, load.requests, self._checker, load.streams)
        self.versions = self._connector.versions
        self.connections_max = self._connector.connections_max

    def describe(self) -> dict[str, Any]:
        """Facts for the report."""
        load, sizes = self._load, [len(request) for request in self._load.requests]
        facts = {
            "kind": "url",
            "url": self.endpoint.url,
            "protocol": CODECS[self.protocol].title,
            "model": self.asked.model,
            "version": self.asked.version_name or None,
            "signature": self.asked.signature or None,
            "rows": load.rows,
            "request_bytes": round(sum(sizes) / len(sizes)),
            "inputs": load.samples.source,
            "distinct": len(sizes),
            "same_machine": self.endpoint.same_machine,
            "verified": None,
        }
        if self._checker is not None:
            facts["verified"] = (
                "golden outputs"
                if self._load.samples.requests[0].outputs is not None
                else "answers before the load"
            )
        return facts

    async def start(self) -> None:
        """Where answers are verified and nothing is known of them: ask each request alone."""
        if self._load.verify and self._checker is None:
            expected = await self._alone()
            self._checker = Checker(self.protocol, expected)
            load = self._load
            source = connector(self.endpoint, self.protocol, load.requests, self._checker, load.streams)
            source.versions = self.versions
            self._connector = source

    async def _alone(self) -> list[Outputs | None]:
        """What each request is answered while nothing else is asked, the second time: the first warms up."""
        load, bodies = self._load, dict[int, tuple[bytes, bytes | None]]()

        def keep(number: int, body: bytes, header: bytes | None) -> str:
            bodies[number] = body, header
            return ""

        source = connector(self.endpoint, self.protocol, load.requests, keep, 1)
        expected: list[Outputs | None] = []
        for number in range(len(load.requests)):
            for _ in range(2):
                connection = await self._connected(source)
                outcome = await answer(source, number, connection)
                connection.abort()
            decode = CODECS[self.protocol].decode
            expected.append(decode(*bodies[number]) if outcome == OK else None)
        return expected

    async def _connected(self, source: Connector) -> Connection:
        try:
            return await source.connect()
        except OSError as error:
            raise EnvironmentProblem(
                "the server takes no connection", where=self.endpoint.url, found=error
            ) from error

    def description(self) -> Connector:
        """What opens connections, here or in another process."""
        return self._connector

    async def connect(self) -> Connection:
        """Open one more connection. Raises OSError."""
        return await self._connector.connect()

    async def counters(self) -> Counters | None:
        """The model's counters, or None."""
        return await statistics.read(self.endpoint, self.asked.model)

    async def close(self) -> None:
        """Nothing to free: the driver closes its connections."""
