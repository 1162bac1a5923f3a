"""What control knows of one socket of the program's that a family serves."""

from __future__ import annotations

import errno
import itertools
import socket as std
from collections import deque
from enum import IntEnum, auto
from typing import Final

from steertag.run.notify import Notification

_USUAL: Final = {int(std.SOCK_STREAM): std.IPPROTO_TCP, int(std.SOCK_DGRAM): std.IPPROTO_UDP}
_INET: Final = (std.AF_INET, std.AF_INET6)
FILL: Final = bytes(32768)
_SINK: Final = bytearray(1 << 18)
_ids: Final = itertools.count(1)


class State(IntEnum):
    NEW = auto()  # bound or not
    CONNECTING = auto()
    CONNECTED = auto()
    LISTENING = auto()
    FAILED = auto()  # nothing is behind the program's end any more; its next connect has a new pair
    CLOSED = auto()  # the program has closed its last descriptor


class Waiting:
    """A call that was not answered yet.

    Attributes:
        call: its notification.
    """

    __slots__ = ("call",)

    def __init__(self, call: Notification) -> None:
        self.call = call


class Emulated:
    """One socket. The program's descriptors for it, however many and in whichever processes, are
    one open file: one end of a socketpair, known by its inode.

    Attributes:
        ident: the number that the data process knows it by.
        domain, kind, protocol: what the program asked for; kind is SOCK_STREAM and so on.
        family: who serves it; -1 while rules wait for an address.
        key: the program's end, "socket:[inode]".
        former: other ends that it had, which descriptors of the program's may still be.
        own: our end; None once it is the data process's, or closed.
        where: thread and descriptor of the program's that it was seen in last.
        error: what SO_ERROR is to say.
        local, peer: `struct sockaddr`; None: not known.
        options: what was set, by (level, name).
        opened: the data process has a socket for it.
        filled: octets of ours in the program's send buffer, which keep it unwritable.
        connect: the connect() that waits.
        accepters: the accept()s that wait.
        pending: connections that nobody accepted yet: token, local, peer.
        requests: calls of which the data process has been told, by (number, thread).
        replay: a call that was done, but whose answer came too late; and the answer.
        source: datagrams that come next are from there.
        mapped: the peer that the program asked for, where --map replaced it.
        use: the word of the rule that chose the family.
        reported: connect has said that it is connected; the first one after waiting otherwise does.
        announced: octets in a listener's end, for connections that wait.
        asking: calls for SO_ERROR that wait for the end of connecting.
    """

    __slots__ = (
        *("accepters", "announced", "asking", "backlog", "connect", "domain", "error", "family"),
        *(
            "filled",
            "former",
            "ident",
            "key",
            "kind",
            "local",
            "mapped",
            "opened",
            "options",
            "own",
        ),
        *("peer", "pending", "protocol", "replay", "reported", "requests", "source", "state"),
        *("use", "where"),
    )

    def __init__(self, domain: int, kind: int, protocol: int, family: int) -> None:
        self.ident = next(_ids)
        self.domain = domain
        self.kind = kind
        self.protocol = protocol
        self.family = family
        self.key = ""
        self.former: list[str] = []
        self.own: std.socket | None = None
        self.where = (0, -1)
        self.state = State.NEW
        self.error = 0
        self.local: bytes | None = None
        self.peer: bytes | None = None
        self.mapped: bytes | None = None
        self.options: dict[tuple[int, int], bytes] = {}
        self.opened = False
        self.backlog = 0
        self.filled = 0
        self.connect: Waiting | None = None
        self.accepters: deque[Waiting] = deque()
        self.pending: deque[tuple[int, bytes, bytes]] = deque()
        self.requests: dict[tuple[int, int], Waiting] = {}
        self.replay: tuple[tuple[int, ...], int] | None = None
        self.source: bytes | None = None
        self.use = ""
        self.reported = True
        self.announced = 0
        self.asking: list[Notification] = []

    def rename(self) -> None:
        """Another number for the data process: what it knew under the old one is no more."""
        self.ident = next(_ids)

    @property
    def usual(self) -> int:
        """The protocol that 0 stands for."""
        return _USUAL.get(self.kind, 0) if self.domain in _INET else 0

    @property
    def stream(self) -> bool:
        return self.kind == std.SOCK_STREAM

    @property
    def connectable(self) -> bool:
        """Connections are made and accepted; else datagrams come and go."""
        return self.kind != std.SOCK_DGRAM

    def fill(self, theirs: std.socket) -> None:
        """Make the program's end, of which `theirs` is a duplicate, unwritable."""
        octets = FILL
        while True:
            try:
                self.filled += theirs.send(octets, std.MSG_DONTWAIT)
            except BlockingIOError:
                return  # full
            except OSError as error:
                if error.errno != errno.EMSGSIZE:
                    raise
                octets = octets[: len(octets) // 8]  # one message is to fit into the buffer

    def drain(self) -> None:
        """Take back exactly that: the program may write at the first octet of room."""
        own, left = self.own, self.filled
        self.filled = 0
        while own is not None and left > 0:
            # Of a SOCK_SEQPACKET, one message at a time, which is as long as it was sent.
            left -= own.recv_into(_SINK, min(left, len(_SINK)), std.MSG_DONTWAIT)
