"""Who may ask: bearer tokens from files, one scope for requests and one for administration.

A file has one token a line; lines that begin with # are comments. It is read again when it
has changed and two looks have found it the same, since many tools empty a file and then
write it. One that cannot be read keeps the tokens it had; one without a token revokes
them all: it would be worse to let in whom somebody means to keep out than to keep out all
for a while. Tokens are kept and compared as digests, in constant time, and never logged.
"""

from __future__ import annotations

import codecs
import hashlib
import hmac
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import Forbidden, InputError, MserveError, Unauthenticated
from ..files import read_input

log = logging.getLogger("mserve")

FILE_BYTES_MAX = 1 << 20
_SCHEME = b"bearer "


@dataclass(slots=True)
class TokenFile:
    """The tokens of one file, as digests."""

    path: Path
    digests: list[bytes] = field(default_factory=list)
    _seen: tuple[int, int, int] | None = None
    _looked: tuple[int, int, int] | None = None

    def read(self) -> None:
        """Read the file. Raises InputError: no file, or no token in it; then nothing has changed."""
        digests = self._read()
        if not digests:
            raise InputError("the file holds no token", where=self.path, expected="a token a line")
        self.digests = digests

    def _read(self) -> list[bytes]:
        self._seen = self._fingerprint()
        lines = read_input(self.path, FILE_BYTES_MAX).removeprefix(codecs.BOM_UTF8).splitlines()
        tokens = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith(b"#")]
        return [hashlib.sha256(token).digest() for token in tokens]

    def follow(self) -> None:
        """Read the file again if it has changed, and is the same as at the last look.

        Where it cannot be read, what is known is kept; where it holds no token, nobody is known.
        """
        before, self._looked = self._looked, self._fingerprint()
        if self._looked == self._seen or self._looked != before:
            return
        try:
            self.digests = self._read()
            if self.digests:
                log.info("%s: %d tokens", self.path, len(self.digests))
            else:
                log.warning("%s holds no token any more: all are revoked", self.path)
        except MserveError as error:
            log.warning("keeping the tokens known so far: %s", error)

    def holds(self, digest: bytes) -> bool:
        """Whether a token of this digest is in the file, in a time that does not depend on which."""
        found = False
        for known in self.digests:
            found |= hmac.compare_digest(known, digest)
        return found

    def _fingerprint(self) -> tuple[int, int, int] | None:
        try:
            status = os.stat(self.path)
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns


class Access:
    """Admits requests by their Authorization header.

    Without token files every request is admitted. `admin` turns administrative calls on;
    with a file of their own they need a token from it.
    """

    def __init__(self, tokens: Path | None = None, admins: Path | None = None, admin: bool = False) -> None:
        self.admin = admin
        self._tokens = None if tokens is None else TokenFile(tokens)
        self._admin = None if admins is None else TokenFile(admins)
        for file in self.files():
            file.read()

    def rules(self) -> dict[str, Any]:
        """What is admitted, as values: the digests of tokens in hex, None where no token is needed."""
        known = [f and [d.hex() for d in f.digests] for f in (self._tokens, self._admin)]
        return {"tokens": known[0], "admins": known[1], "admin": self.admin}

    @classmethod
    def of(cls, rules: Mapping[str, Any]) -> Access:
        """An Access that admits what `rules()` of another one says, and reads no file."""
        access = cls(admin=rules["admin"])
        files = [
            None if known is None else TokenFile(Path(), [bytes.fromhex(d) for d in known])
            for known in (rules["tokens"], rules["admins"])
        ]
        access._tokens, access._admin = files
        return access

    @property
    def tokens_asked(self) -> bool:
        """Whether requests need a token."""
        return self._tokens is not None

    @property
    def admin_tokens_asked(self) -> bool:
        """Whether administrative calls need a token, of their own or any."""
        return bool(self.files())

    def files(self) -> list[TokenFile]:
        """The token files there are."""
        return [file for file in (self._tokens, self._admin) if file is not None]

    def follow(self) -> None:
        """Read changed files again."""
        for file in self.files():
            file.follow()

    def knows(self, authorization: bytes) -> bool:
        """Whether the client may see what only clients may see: it has a token, or needs none."""
        try:
            self.admit(authorization)
        except Unauthenticated:
            return False
        return True

    def admit(self, authorization: bytes) -> bool:
        """Whether the client may make administrative calls. Raises Unauthenticated."""
        if self._tokens is None and self._admin is None:
            return self.admin
        if authorization[: len(_SCHEME)].lower() != _SCHEME:
            if self._tokens is None:
                return False
            raise Unauthenticated("the request carries no token", expected="Authorization: Bearer TOKEN")
        digest = hashlib.sha256(authorization[len(_SCHEME) :].strip()).digest()
        if self._admin is not None and self._admin.holds(digest):
            return self.admin
        if self._tokens is not None and not self._tokens.holds(digest):
            raise Unauthenticated("the server does not know this token")
        return self.admin and self._admin is None


def require_admin(admin: bool) -> None:
    """Refuse an administrative call that may not be made. Raises Forbidden."""
    if not admin:
        raise Forbidden(
            "administrative calls are not allowed",
            expected="a server started with --admin, and its administrator's token if it asks for one",
        )
