"""Proof of a shared token without sending it: an HMAC challenge in both directions.

Each proof is HMAC-SHA256 with the token as its key, over a role string, both nonces and the
session's id. The client proves first, the server second, so that a stranger's server learns a
MAC over nonces it saw anyway and a stranger's client learns nothing. The role strings keep one
side's proof from being played back as the other's (RFC 2104 for HMAC; the exchange is the
classical mutual challenge-response of ISO/IEC 9798-4). It authenticates; it encrypts nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from steertag.transfer.errors import ExitCode, TransferError, from_os_error
from steertag.transfer.names import escape

NONCE_OCTETS: Final = 32
SESSION_OCTETS: Final = 16
BINDING_OCTETS: Final = 16
MIN_TOKEN_OCTETS: Final = 16
TOKEN_FILE_VARIABLE: Final = "STAG_TOKEN_FILE"

_CLIENT: Final = b"stag/1 client"
_SERVER: Final = b"stag/1 server"
_RDMA: Final = b"stag/1 rdma"


@dataclass(frozen=True, slots=True)
class Challenge:
    """What both sides sign: fresh from each, and the session it is for."""

    client_nonce: bytes
    server_nonce: bytes
    session: bytes

    def client_proof(self, token: bytes) -> bytes:
        """What a client that knows `token` sends."""
        return self._mac(token, _CLIENT)

    def server_proof(self, token: bytes) -> bytes:
        """What a server that knows `token` answers."""
        return self._mac(token, _SERVER)

    def rdma_binding(self, token: bytes, serial: int) -> bytes:
        """Ties an RDMA connection to attempt `serial` of this session (MPA private data)."""
        return self._mac(token, _RDMA, serial.to_bytes(8, "big"))[:BINDING_OCTETS]

    def _mac(self, token: bytes, role: bytes, extra: bytes = b"") -> bytes:
        message = b"\0".join((role, self.client_nonce + self.server_nonce + self.session + extra))
        return hmac.digest(token, message, hashlib.sha256)


def same(a: bytes, b: bytes) -> bool:
    """Compare in a time that does not depend on where they differ."""
    return hmac.compare_digest(a, b)


def read_token_file(path: Path) -> bytes:
    """The token in `path`, without surrounding white space.

    Raises:
        TransferError: AUTHENTICATION when others can read the file or the token is too short;
            what the file system says otherwise.
    """
    name = str(path)
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            token = file.read(4096).strip()
    except OSError as error:
        raise from_os_error(error, name) from error
    if stat.S_ISREG(status.st_mode) and status.st_mode & 0o077:
        raise TransferError(
            ExitCode.AUTHENTICATION,
            f"{escape(name)}: other users can read this token; run: chmod 600 {escape(name)}",
        )
    if len(token) < MIN_TOKEN_OCTETS:
        raise TransferError(
            ExitCode.AUTHENTICATION,
            f"{escape(name)}: a token has {MIN_TOKEN_OCTETS} octets or more, this {len(token)}",
        )
    return token


def default_token_path() -> Path:
    """Where `stag serve` keeps the token that it made (XDG base directories)."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "steertag" / "token"


def make_token_file(path: Path) -> bytes:
    """The token in `path`; a fresh one is made, readable by its owner only, if there is none."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        return read_token_file(path)
    except OSError as error:
        raise from_os_error(error, str(path)) from error
    token = secrets.token_urlsafe(32).encode()
    with os.fdopen(fd, "wb") as file:
        file.write(token + b"\n")
    return token
