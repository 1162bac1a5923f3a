"""The sock of AF_INET_SDP: a stream over RDMA, or over its transport alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steertag.errors import StateError
from steertag.family.inet_hash import InetSock
from steertag.family.sock import Sock

if TYPE_CHECKING:
    from steertag.family.msg import Address, MsgHdr
    from steertag.sdp.engine import Engine
    from steertag.sdp.fabric import Attempt, Fabric, Link, Transport
    from steertag.sdp.fallback import Reason
    from steertag.sdp.transfer import Transfer

Option = tuple[int, int, int | bytes | None]
"""Level, name and value, as setsockopt had them."""


class SdpSock(InetSock):
    """Attributes:
    fabric: the Stack's.
    transport: the transport's socket, from bind, connect, accept or an option of its on.
    link: the stream with its engine, of a connection over SDP.
    engine: the link's.
    plain: the transport's socket, of a connection that has fallen back; the calls go there.
    reason: why it has.
    attempt: the connection that is being made, or what takes connections in.
    local, peer: addresses, once it has them.
    bound: the user has bound it.
    fallback: "never" or "auto"; "" where neither the user nor a rule has said so.
    carrier: "host" or "new_tcp".
    zcopy_thresh: as SDP_ZCOPY_THRESH.
    nodelay: TCP_NODELAY, for a transport without SDP. SDP holds nothing back.
    oob_inline: SO_OOBINLINE.
    replay: options of the transport that were set, for another socket of it.
    receiving, sending: the call whose buffers a transfer has, and that transfer.
    spare: octets that a call had received, and couldn't report.
    """

    __slots__ = (
        "attempt",
        "bound",
        "carrier",
        "engine",
        "fabric",
        "fallback",
        "link",
        "local",
        "nodelay",
        "oob_inline",
        "peer",
        "plain",
        "reason",
        "receiving",
        "replay",
        "sending",
        "spare",
        "transport",
        "zcopy_thresh",
    )

    fabric: Fabric

    def __init__(self) -> None:
        super().__init__()
        self.transport: Transport | None = None
        self.link: Link | None = None
        self.engine: Engine | None = None
        self.plain: Transport | None = None
        self.reason: Reason | None = None
        self.attempt: Attempt | None = None
        self.local: Address = None
        self.peer: Address = None
        self.bound = False
        self.fallback = ""
        self.carrier = "host"
        self.zcopy_thresh = 0
        self.nodelay = False
        self.oob_inline = False
        self.replay: list[Option] = []
        self.receiving: tuple[MsgHdr, Transfer] | None = None
        self.sending: tuple[MsgHdr, Transfer] | None = None
        self.spare = b""


def sdp_sk(sk: Sock | None) -> SdpSock:
    """The sock as one of AF_INET_SDP. Raises StateError: it is none."""
    if not isinstance(sk, SdpSock):
        raise StateError(f"{sk!r} is no sock of AF_INET_SDP")
    return sk
