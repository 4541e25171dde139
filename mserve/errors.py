"""One error tree. An error says what, where, expected and found, and the next step.

    MserveError            exit 70  HTTP 500  our bug
    ├── UsageError         exit 2   HTTP 400  the command line asks for something impossible
    ├── FindingError       exit 1   HTTP 500  a check was made and its answer is "no"
    ├── InputError         exit 3   HTTP 500  a source model or an input file is bad
    ├── BundleError        exit 3   HTTP 503  a bundle is bad; one subclass for each way
    │   ├── NotABundle  BundleIncomplete  DigestMismatch  MetaGraphMalformed
    │   ├── FormatUnsupported  UnsafePath  DuplicateMetadata  NotAFile  ModelRefused
    ├── EnvironmentProblem exit 4   HTTP 503  port taken, disk full, missing extra
    └── RequestError       exit 3   HTTP 400  one request is wrong or cannot be answered now
        ├── NotFound 404   MethodNotAllowed 405   PayloadTooLarge 413   HeadersTooLarge 431
        ├── UnsupportedEncoding 415   Overloaded 429   Unavailable 503   Forbidden 403
        ├── DeadlineExceeded 504      ExecutionFailed 500   ClientLeft 499   Unauthenticated 401
        ├── FailedPrecondition 400    Unimplemented 501
        └── InputsRefused 400 (an ExecutionFailed)

Errors are raised deep, worded once, and shown at two edges only: `mserve.cli` (exit
code) and the server's codecs (HTTP status, gRPC status).
"""

from __future__ import annotations

import re
from typing import ClassVar, Self

# C0 and C1 controls, line and paragraph separators, and what turns the direction of writing.
_CONTROLS = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")


class MserveError(Exception):
    """Base of every error that mserve words for its user.

    `what` is a sentence; `where` a path, tensor or byte; `expected` and `found` are
    short phrases; `hint` is the next step.
    """

    exit_code: ClassVar[int] = 70
    http_status: ClassVar[int] = 500
    grpc_status: ClassVar[str] = "INTERNAL"
    code: ClassVar[str] = "internal"

    def __init__(
        self, what: str, *, where: object = "", expected: object = "", found: object = "", hint: str = ""
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = str(where)
        self.expected = str(expected)
        self.found = str(found)
        self.hint = hint

    def facts(self) -> list[tuple[str, str]]:
        """The labelled parts that are present, in reading order."""
        parts = [("where", self.where), ("expected", self.expected), ("found", self.found)]
        return [(label, text) for label, text in parts if text]

    def without_frames(self) -> Self:
        """The error itself, to be kept: the frames of its traceback would keep what they worked on."""
        self.__cause__ = self.__context__ = None
        return self.with_traceback(None)

    def __str__(self) -> str:
        text = self.what
        if self.facts():
            text += " (" + "; ".join(f"{label}: {value}" for label, value in self.facts()) + ")"
        return printable(f"{text}. {self.hint}" if self.hint else text)

    def to_json(self) -> dict[str, str]:
        """The error as `--json` prints it: code, message, and the parts that are present."""
        return {"code": self.code, "message": self.what, **dict(self.facts())} | (
            {"hint": self.hint} if self.hint else {}
        )


def printable(text: str) -> str:
    """Text for one line of a log: what a bundle or a client says must not look like other lines."""
    return text if text.isprintable() else _CONTROLS.sub(lambda m: ascii(m[0])[1:-1], text)


class UsageError(MserveError):
    """The command line, or a call from Python, asks for something impossible."""

    exit_code = 2
    http_status = 400
    grpc_status = "INVALID_ARGUMENT"
    code = "usage"


class FindingError(MserveError):
    """A check was made and its answer is "no"."""

    exit_code = 1
    code = "finding"


class InputError(MserveError):
    """A source model or an input file is bad, corrupt or not supported."""

    exit_code = 3
    code = "input"


class EnvironmentProblem(MserveError):
    """The machine says no: port taken, disk full, missing extra, nothing listening."""

    exit_code = 4
    http_status = 503
    grpc_status = "UNAVAILABLE"
    code = "environment"


class BundleError(MserveError):
    """A bundle is bad. `may_complete` tells the loader that the version may still be arriving."""

    exit_code = 3
    http_status = 503
    grpc_status = "UNAVAILABLE"
    code = "bundle"
    may_complete: ClassVar[bool] = False


class NotABundle(BundleError):
    """The path is not a version directory and holds none."""

    code = "not-a-bundle"
    may_complete = True


class BundleIncomplete(BundleError):
    """A file that the bundle names is missing, or its size is not the recorded one."""

    code = "incomplete"
    may_complete = True


class DigestMismatch(BundleError):
    """`export.meta` does not end in the digest of the bytes before it."""

    code = "digest-mismatch"
    may_complete = True


class MetaGraphMalformed(BundleError):
    """`export.meta` carries its digest, and what it says is not well formed."""

    code = "metagraph-malformed"


class FormatUnsupported(BundleError):
    """The bundle was written by a later format version."""

    code = "format-unsupported"


class UnsafePath(BundleError):
    """The bundle names a file outside itself."""

    code = "unsafe-path"


class DuplicateMetadata(BundleError):
    """A metadata key stands twice, so that two readers could see two bundles."""

    code = "duplicate-metadata"


class NotAFile(BundleError):
    """Something that should be a regular file is a link, a directory, a fifo or a device."""

    code = "not-a-file"


class ModelRefused(BundleError):
    """The files are whole, and the engine does not accept what is in them."""

    code = "model-refused"


class RequestError(MserveError):
    """One request is wrong, or cannot be answered now."""

    exit_code = 3
    http_status = 400
    grpc_status = "INVALID_ARGUMENT"
    code = "invalid-request"
    retry_after_s: int = 0


class NotFound(RequestError):
    """No such model, version, label, signature or page."""

    http_status = 404
    grpc_status = "NOT_FOUND"
    code = "not-found"


class MethodNotAllowed(RequestError):
    """The page exists and answers another HTTP method."""

    http_status = 405
    grpc_status = "UNIMPLEMENTED"
    code = "method-not-allowed"


class PayloadTooLarge(RequestError):
    """The request's body is over the limit."""

    http_status = 413
    grpc_status = "RESOURCE_EXHAUSTED"
    code = "payload-too-large"


class UnsupportedEncoding(RequestError):
    """The request's body is encoded in a way the server does not read."""

    http_status = 415
    code = "unsupported-encoding"


class HeadersTooLarge(RequestError):
    """The request's header section is over the limit."""

    http_status = 431
    code = "headers-too-large"


class Overloaded(RequestError):
    """The queue is full; the client may try again."""

    http_status = 429
    grpc_status = "RESOURCE_EXHAUSTED"
    code = "overloaded"
    retry_after_s = 1


class Unavailable(RequestError):
    """The model is known and has no version that can answer now."""

    http_status = 503
    grpc_status = "UNAVAILABLE"
    code = "unavailable"
    retry_after_s = 1


class DeadlineExceeded(RequestError):
    """The request waited longer than it was allowed to."""

    http_status = 504
    grpc_status = "DEADLINE_EXCEEDED"
    code = "deadline-exceeded"


class ClientLeft(RequestError):
    """Nobody waits for the answer any more; only counted and logged."""

    http_status = 499
    grpc_status = "CANCELLED"
    code = "client-left"


class Unauthenticated(RequestError):
    """The request carries no token that the server knows."""

    http_status = 401
    grpc_status = "UNAUTHENTICATED"
    code = "unauthenticated"


class Forbidden(RequestError):
    """The call is administrative, and this client, or any, may not make it."""

    http_status = 403
    grpc_status = "PERMISSION_DENIED"
    code = "forbidden"


class FailedPrecondition(RequestError):
    """The request is well formed, and the model is not in a state to answer it."""

    grpc_status = "FAILED_PRECONDITION"
    code = "failed-precondition"


class Unimplemented(RequestError):
    """The protocol knows the call, and this server does not make it."""

    http_status = 501
    grpc_status = "UNIMPLEMENTED"
    code = "unimplemented"


class ExecutionFailed(RequestError):
    """The model itself raised an error on this request's inputs."""

    http_status = 500
    grpc_status = "INTERNAL"
    code = "execution-failed"


class InputsRefused(ExecutionFailed):
    """The model itself says that the inputs are wrong, such as an index out of range."""

    http_status = 400
    grpc_status = "INVALID_ARGUMENT"
    code = "inputs-refused"
