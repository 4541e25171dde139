"""TLS for both ports: certificate, key, and for mutual TLS the authority of the clients.

Certificates are replaced while a server runs (they live for weeks, servers for months):
new HTTP connections use what `renew` has loaded, and gRPC asks for what the files hold
when it accepts one. A pair of files that does not fit together keeps the old one.
"""

from __future__ import annotations

import logging
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError

log = logging.getLogger("mserve")

_HTTP1 = ["http/1.1"]


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
    """The TLS side of a server. Raises InputError when the files cannot be used."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.context = _context(files)
        self._seen = self._fingerprint()
        self._pem = self._read()

    def renew(self) -> None:
        """Load the files again if they have changed; on an error keep what is in use, and say so."""
        seen = self._fingerprint()
        if seen == self._seen:
            return
        try:
            # A new one: more authorities can be loaded into a context, none taken out of it.
            context, pem = _context(self.files), self._read()
            self.context, self._pem = context, pem
        except (InputError, OSError) as error:
            log.warning("keeping the certificate in use: %s", error)
        else:
            log.info("a new certificate is in use: %s", self.files.cert)
        self._seen = seen

    def credentials(self) -> Any:
        """gRPC's server credentials, which follow `renew`."""
        import grpc

        def configuration() -> Any:
            chain, key, authority = self._pem
            return grpc.ssl_server_certificate_configuration([(key, chain)], authority)

        mutual = self.files.client_ca is not None
        return grpc.dynamic_ssl_server_credentials(configuration(), configuration, mutual)

    def _read(self) -> tuple[bytes, bytes, bytes | None]:
        authority = self.files.client_ca
        return (
            self.files.cert.read_bytes(),
            self.files.key.read_bytes(),
            None if authority is None else authority.read_bytes(),
        )

    def _fingerprint(self) -> list[tuple[int, int, int] | None]:
        return [_stat(path) for path in self.files.all()]


def _context(files: Files) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(_HTTP1)
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
