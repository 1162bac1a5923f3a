"""`struct socket`: what a user holds, in front of the protocol's sock (linux/net.h)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from steertag.errors import StateError
from steertag.family.const import SocketState

if TYPE_CHECKING:
    from steertag.family.proto_ops import ProtoOps
    from steertag.family.sock import Sock
    from steertag.family.stack import Stack


POLL_LOOK: Final = 1 << 30
"""News for `Socket.wake` that no POLL* bit says: the call itself changed what others may do."""


class Socket:
    """One socket. Made by `Stack.sock_create`; ended by `sock_release`.

    Attributes:
        stack: the Stack it lives in.
        family: number of the family that made it, and holds it in use.
        state: a SocketState.
        type: SOCK_STREAM and so on, without flag bits.
        protocol: the number that `create` was asked for.
        ops: the family's functions.
        sk: the protocol's side; None before `create` and after the release.
        flags: room for the family.
        wait_queue: called with news (POLL* bits, POLL_LOOK), with the Stack's lock held.
        news: how often there was any: who found nothing to do can tell whether that still holds.
    """

    __slots__ = (
        "__weakref__",
        "_ops",
        "family",
        "flags",
        "news",
        "protocol",
        "released",
        "sk",
        "stack",
        "state",
        "type",
        "wait_queue",
    )

    def __init__(self, stack: Stack, family: int, kind: int, protocol: int = 0) -> None:
        self.stack = stack
        self.family = family
        self.state = SocketState.SS_UNCONNECTED
        self.type = kind
        self.protocol = protocol
        self._ops: ProtoOps | None = None
        self.sk: Sock | None = None
        self.flags = 0
        self.news = 0
        self.released = False
        self.wait_queue: list[Callable[[int], None]] = []

    @property
    def ops(self) -> ProtoOps:
        """The family's functions. Raises StateError before `create` has set them."""
        if self._ops is None:
            raise StateError("the family's create did not set sock.ops")
        return self._ops

    @ops.setter
    def ops(self, ops: ProtoOps) -> None:
        self._ops = ops

    def __repr__(self) -> str:
        owner = self._ops.owner if self._ops is not None else "nobody"
        numbers = f"family={self.family:d} type={self.type:d} protocol={self.protocol}"
        return f"<Socket {numbers} {self.state.name} of {owner}>"

    def wake(self, mask: int) -> None:
        """Tell whoever waits that something changed; POLL* bits in `mask` are news.

        Without any (0), less can be done than before: of interest to a descriptor alone.
        """
        if mask:
            self.news += 1
        if self.wait_queue:
            for waiter in tuple(self.wait_queue):
                waiter(mask)
