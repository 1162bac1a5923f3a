"""`stag://host[:port]/path`: where a file is on a stag server.

The path is relative to the served directory and percent-decoded; `?` and `#` stand for themselves
(there are no queries here), so that most names can be typed as they are. An IPv6 address stands
in brackets. A second slash after the host makes the path absolute, which servers refuse.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

from steertag.transfer.errors import ExitCode, TransferError
from steertag.transfer.names import escape

SCHEME: Final = "stag://"
DEFAULT_PORT: Final = 7824  # S-T-A-G on a telephone's keys
"""The port when a URL or `--bind` names none."""

_AUTHORITY: Final = re.compile(
    r"(?:\[(?P<six>[^\[\]]+)\]|(?P<host>[^:\[\]@]+))(?::(?P<port>[0-9]{1,5}))?"
)


@dataclass(frozen=True, slots=True)
class Url:
    """A parsed URL. `path` is decoded as `os.fsdecode` does."""

    host: str
    port: int
    path: str

    def __str__(self) -> str:
        return f"{SCHEME}{format_address(self.host, self.port)}/{_quote(self.path)}"


def _quote(path: str) -> str:
    return quote_from_bytes(os.fsencode(path), safe="/")


def format_address(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_url(text: str) -> Url:
    """Parse `stag://host[:port]/path`.

    Raises:
        TransferError: USAGE, with what is wrong in one line.
    """
    if not text.startswith(SCHEME):
        raise _usage(text, "a URL begins with stag://, as in stag://host:7824/file")
    authority, _, path = text[len(SCHEME) :].partition("/")
    host, port = parse_address(authority)
    if port == 0:
        raise _usage(text, "port 0 is no port to connect to")
    decoded = os.fsdecode(unquote_to_bytes(os.fsencode(path)))
    if "\0" in decoded:
        raise _usage(text, "a file name cannot hold a NUL octet")
    return Url(host, port, decoded)


def parse_address(text: str, default_port: int = DEFAULT_PORT) -> tuple[str, int]:
    """Parse `host[:port]` or `[v6][:port]`; for `--bind` and URLs.

    Raises:
        TransferError: USAGE.
    """
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        hint = "put an IPv6 address in brackets" if text.count(":") > 1 else "write host:port"
        raise _usage(text, hint)
    port = int(match["port"]) if match["port"] else default_port
    if port > 65535:
        raise _usage(text, "a port is a number from 0 to 65535")
    return match["six"] or match["host"], port


def _usage(text: str, problem: str) -> TransferError:
    return TransferError(ExitCode.USAGE, f"{escape(text)!r}: {problem}")
