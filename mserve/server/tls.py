"""TLS for both ports: certificate, key, and for mutual TLS the authority of the clients.

Certificates are replaced while a server runs (they live for weeks, servers for months):
new connections use what `renew` has loaded. A pair of files that does not fit together keeps the old one.
"""

from __future__ import annotations

import logging
import os
import ssl
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError

log = logging.getLogger("mserve")


@dataclass(frozen=True, slots=True)
class Files:
    """PEM files: the server's chain and key, and the authority that signs clients, None for any client."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    def all(self) -> list[Path]:
        """The files there are."""
        return [p for p in (self.cert, self.key, self.client_ca) if p is not None]


class Tls:
    """The TLS side of a server: `context` for HTTP/1.1, `h2` for gRPC.

    Raises InputError when the files cannot be used.
    """

    def __init__(self, files: Files) -> None:
        self.files = files
        self.context, self.h2 = _contexts(files)
        self._seen = self._fingerprint()
        self._pem = self._read()

    def renew(self) -> None:
        """Load the files again if they have changed; on an error keep what is in use, and say so."""
        seen = self._fingerprint()
        if seen == self._seen:
            return
        try:
            # A new one: more authorities can be loaded into a context, none taken out of it.
            contexts, pem = _contexts(self.files), self._read()
            (self.context, self.h2), self._pem = contexts, pem
        except (InputError, OSError) as error:
            log.warning("keeping the certificate in use: %s", error)
        else:
            log.info("a new certificate is in use: %s", self.files.cert)
        self._seen = seen

    def pem(self) -> list[str]:
        """What the files in use hold: chain, key and, for mutual TLS, the clients' authority."""
        return [part.decode("latin-1") for part in self._pem]

    def _read(self) -> list[bytes]:
        return [path.read_bytes() for path in self.files.all()]

    def _fingerprint(self) -> list[tuple[int, int, int] | None]:
        return [_stat(path) for path in self.files.all()]


def of_pem(parts: Sequence[str]) -> Tls:
    """The TLS side of a server from what `pem()` of another one gives, without a look at its files.

    OpenSSL reads files only: these have no name that others could open. Raises InputError.
    """
    with ExitStack() as stack:
        paths = []
        for part in parts:
            file = stack.enter_context(tempfile.TemporaryFile())
            file.write(part.encode("latin-1"))
            file.flush()
            file.seek(0)
            paths.append(Path(f"/dev/fd/{file.fileno()}"))
        return Tls(Files(*paths))


def _contexts(files: Files) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """For HTTP/1.1, and for HTTP/2."""
    return _context(files, "http/1.1"), _context(files, "h2")


def _context(files: Files, protocol: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols([protocol])
    try:
        context.load_cert_chain(files.cert, files.key)
        if files.client_ca is not None:
            context.load_verify_locations(files.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:  # ssl.SSLError is one
        raise InputError(
            "the TLS files cannot be used",
            where=", ".join(str(p) for p in files.all()),
            expected="a PEM certificate chain and its key",
            found=error.strerror or error,
        ) from error
    return context


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
