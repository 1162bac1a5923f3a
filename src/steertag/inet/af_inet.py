"""The family itself: what its numbers lead to, and the calls of its sockets (net/ipv4/af_inet.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steertag.family.stack import Stack


def register(stack: Stack, *, secret: bytes | None = None) -> None:
    """Enter the family, its protocols, its network layer and the device "lo" into a Stack.

    Args:
        secret: 16 octets that sequence numbers, cookies and ports depend on; None: random ones.
            A run that is to be repeated gives its own.

    Raises:
        OSError: EEXIST, it is registered already.
    """
    raise NotImplementedError


def unregister(stack: Stack) -> None:
    """Take it out again, network layer and all. Raises EBUSY while it has sockets."""
    raise NotImplementedError
