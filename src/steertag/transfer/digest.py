"""Digests computed while the octets move.

`xxh3_128` by default: at tens of GB/s it costs almost nothing and finds what TCP's 16-bit checksum
lets through. `sha256` for whoever wants a digest that other tools print as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final, Protocol

import xxhash

from steertag.transfer.errors import ExitCode, TransferError

DEFAULT_DIGEST: Final = "xxh3_128"


class Hasher(Protocol):
    """What a transfer needs of a digest."""

    def update(self, data: bytes | memoryview, /) -> None: ...

    def digest(self) -> bytes: ...


_ALGORITHMS: Final[dict[str, Callable[[], Hasher]]] = {
    "xxh3_128": xxhash.xxh3_128,
    "sha256": hashlib.sha256,
}

DIGESTS: Final = tuple(_ALGORITHMS)
"""Names that `--digest` takes."""


def new_digest(name: str) -> Hasher:
    """A fresh digest.

    Raises:
        TransferError: FAILURE when this side does not know `name`.
    """
    try:
        return _ALGORITHMS[name]()
    except KeyError:
        known = ", ".join(DIGESTS)
        raise TransferError(
            ExitCode.FAILURE, f"digest {name!r} is not known here; known are {known}"
        ) from None
