"""Where a server listens, how it is entered (TLS, a token), and what is wrong where it is not."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ...errors import EnvironmentProblem, Forbidden, InputError, MserveError, Unauthenticated, UsageError
from ...files import read_text
from ...wire.http2_frames import HEADER, HEADER_BYTES, PREFACE, Kind, settings

ASK_TIMEOUT_S = 5.0
DIAGNOSE_S = 0.5
TOKEN_BYTES_MAX = 1 << 16
SCHEMES = {"http": 80, "https": 443, "grpc": 80, "grpcs": 443}
HINT = "http://HOST:PORT, http://HOST:PORT/v1/models/NAME, /v2/models/NAME, or grpc://HOST:PORT[/NAME]"

_VERSION = r"(/versions/\d+|/labels/[^/:]+)?"
_HTTP_PATH = re.compile(rf"(?:/v[12]/models/([^/:]+){_VERSION}(?::predict|/infer)?|/v[12]/models|/v2)?/?")
_GRPC_PATH = re.compile(rf"(?:/([^/:]+){_VERSION})?/?")
_TLS_ALERT, _TLS_HANDSHAKE = 0x15, 0x16
_UNTRUSTED = (
    "--ca CA.pem names whom to trust: the authority that signed the server's certificate, or that itself"
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server listens. `address` is the numeric one that `host` stands for.

    `ca` is a file of certificates to trust, "" for the system's; `token` what is sent as a
    bearer token, "" for none.
    """

    url: str
    scheme: str
    host: str
    port: int
    address: str = ""
    same_machine: bool = False
    ca: str = ""
    token: str = ""

    @property
    def authority(self) -> str:
        """The Host header's value."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == SCHEMES[self.scheme] else f"{host}:{self.port}"

    @property
    def is_grpc(self) -> bool:
        """Whether it is asked in gRPC."""
        return self.scheme in ("grpc", "grpcs")

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """What goes with every request."""
        return (("Authorization", f"Bearer {self.token}"),) if self.token else ()

    def tls(self) -> ssl.SSLContext | None:
        """What to check the server's certificate with; None without TLS. Raises InputError."""
        if self.scheme not in ("https", "grpcs"):
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca or None)
        except OSError as error:  # ssl.SSLError is one
            found = getattr(error, "reason", None) or error.strerror or error
            raise InputError("no certificates to trust can be read", where=self.ca, found=found) from error
        if self.is_grpc:
            context.set_alpn_protocols(["h2"])
        return context

    def __repr__(self) -> str:  # a token is in no log
        return f"Endpoint({self.url!r})"


def parse_url(url: str) -> tuple[Endpoint, str, str]:
    """The endpoint, the model's name or "", and the `/versions/N` part or "". Raises UsageError."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or SCHEMES[parts.scheme]
    except (ValueError, KeyError) as error:
        raise UsageError("bad URL", expected=HINT, found=f"{url}: {error}") from error
    pattern = _GRPC_PATH if parts.scheme.startswith("grpc") else _HTTP_PATH
    match = pattern.fullmatch(parts.path)
    if match is None or not host:
        raise UsageError("the URL is not one of a model", expected=HINT, found=url)
    root = f"{parts.scheme}://{parts.netloc}"
    return Endpoint(root, parts.scheme, host, port), unquote(match[1] or ""), match[2] or ""


def read_token(path: Path) -> str:
    """The first token of a file: a token a line, lines with # are comments. Raises InputError."""
    lines = [line.strip() for line in read_text(path, TOKEN_BYTES_MAX).splitlines()]
    token = next((line for line in lines if line and not line.startswith("#")), "")
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError("the file holds no token", where=path, expected="a token on a line of its own")
    return token


def locate(endpoint: Endpoint) -> Endpoint:
    """Connect once: learn the address, and whether it is this machine's. Raises EnvironmentProblem."""
    try:
        with socket.create_connection((endpoint.host, endpoint.port), ASK_TIMEOUT_S) as probe:
            peer, own = probe.getpeername()[0], probe.getsockname()[0]
    except UnicodeError as error:
        raise UsageError("bad URL", found=f"{endpoint.url}: {error}") from error
    except OSError as error:
        raise unreachable(endpoint, error) from error
    return replace(endpoint, address=peer, same_machine=peer == own)


def unreachable(endpoint: Endpoint, error: Exception) -> EnvironmentProblem:
    """What an error of a socket means."""
    what, hint = "the server cannot be reached", "check the URL"
    flag = "--grpc-port" if endpoint.is_grpc else "--port"
    if isinstance(error, ConnectionRefusedError):
        what = "nothing listens there"
        hint = f"start a server: mserve serve BASE_PATH {flag} {endpoint.port}"
    elif isinstance(error, socket.gaierror):
        what = "no such host"
    elif isinstance(error, ssl.SSLCertVerificationError):
        what, hint = "the server's certificate is not trusted", _UNTRUSTED
    elif isinstance(error, TimeoutError):
        what, hint = f"no answer within {ASK_TIMEOUT_S:g} s", "is it the right port, and is the server alive?"
    found = getattr(error, "verify_message", "") or getattr(error, "strerror", None) or str(error)
    return EnvironmentProblem(what, where=endpoint.url, found=found or type(error).__name__, hint=hint)


def refused_entry(endpoint: Endpoint, forbidden: bool, found: object) -> MserveError:
    """The server does not let this client in."""
    if forbidden:
        hint = "what changes a server of ours needs its --admin, and the administrators' token if it has one"
        return Forbidden("the server forbids the call", where=endpoint.url, found=found, hint=hint)
    what = "the server does not know the token" if endpoint.token else "the server asks for a token"
    hint = "--token-file FILE: a file with one of the tokens that the server was given"
    return Unauthenticated(what, where=endpoint.url, found=found, hint=hint)


def unknown_protocol(endpoint: Endpoint, where: str, found: str) -> EnvironmentProblem:
    """Something listens that is not understood; looks what it may be."""
    expected = (
        "gRPC: inference.GRPCInferenceService or tensorflow.serving.PredictionService"
        if endpoint.is_grpc
        else "TensorFlow Serving's REST API, /v1/models/NAME, or Open Inference, /v2"
    )
    other = spoken_instead(endpoint)
    ports = "gRPC's is 8500" if endpoint.is_grpc else "that of REST is 8501"
    hint = f"did you mean {other} ?" if other else f"is this the right port? At mserve and TF Serving {ports}"
    return EnvironmentProblem(
        "the server speaks no protocol that bench knows",
        where=f"{endpoint.url}: {where}",
        expected=expected,
        found=found,
        hint=hint,
    )


def spoken_instead(endpoint: Endpoint) -> str:
    """The URL under which the port can be asked, if it is another one; "" where that is not known."""
    if not endpoint.address:
        return ""
    spoken = next((s for s, speaks in _SPEAKS.items() if s != endpoint.scheme and speaks(endpoint)), "")
    return f"{spoken}://{endpoint.url.split('://', 1)[1]}" if spoken else ""


def _first_bytes(endpoint: Endpoint, hello: bytes) -> bytes:
    """What a plain socket answers to some bytes; b"" for nothing."""
    try:
        with socket.create_connection((endpoint.address, endpoint.port), DIAGNOSE_S) as link:
            link.sendall(hello)
            return link.recv(1 << 12)
    except OSError:
        return b""


def _negotiated(endpoint: Endpoint) -> str | None:
    """What a TLS port agrees to speak, of h2 and http/1.1; None where it speaks no TLS."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is told to the server
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        with (
            closing(socket.create_connection((endpoint.address, endpoint.port), DIAGNOSE_S)) as link,
            context.wrap_socket(link, server_hostname=endpoint.host) as secured,
        ):
            return secured.selected_alpn_protocol() or ""
    except (OSError, ValueError):
        return None


def _is_http2(answer: bytes) -> bool:
    return len(answer) >= HEADER_BYTES and HEADER.unpack_from(answer)[2:4] == (Kind.SETTINGS, 0)


_SPEAKS: dict[str, Callable[[Endpoint], bool]] = {
    "grpc": lambda e: _is_http2(_first_bytes(e, PREFACE + settings({}))),
    "http": lambda e: _first_bytes(e, b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").startswith(
        b"HTTP/1.1 "
    ),
    "grpcs": lambda e: _negotiated(e) == "h2",
    "https": lambda e: _negotiated(e) in ("http/1.1", ""),
}
