"""What SDP asks of its surroundings: streams, and whoever moves their octets.

Nothing under sdp/ opens a stream; steertag.runtime.sdp hands these in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from steertag.family.msg import Address, MsgHdr
    from steertag.family.proto_ops import Direct, ProtoOps
    from steertag.family.socket import Socket
    from steertag.sdp.engine import Engine
    from steertag.sdp.sock import SdpSock
    from steertag.sdp.tuning import Tuning


class Transport(Protocol):
    """A stream socket of the transport's family. Its calls never wait; they raise OSError.

    Attributes:
        family: its number.
    """

    @property
    def family(self) -> int: ...
    def bind(self, address: Address) -> None: ...
    def listen(self, backlog: int) -> None: ...
    def getsockname(self) -> Address: ...
    def getpeername(self) -> Address: ...
    def setsockopt(self, level: int, name: int, value: int | bytes | None) -> None: ...
    def getsockopt(self, level: int, name: int, size: int) -> int | bytes: ...
    def sendmsg(self, msg: MsgHdr) -> int: ...
    def recvmsg(self, msg: MsgHdr, flags: int) -> int: ...
    def ioctl(self, cmd: int, arg: object) -> int: ...
    def shutdown(self, how: int) -> None: ...
    def poll(self) -> int:
        """POLL* bits that hold now."""
        ...

    def watch(self, sk: SdpSock, mask: int) -> None:
        """Wake the sock's waiters, once, when one of these POLL* bits holds."""
        ...

    def watch_edges(self, sk: SdpSock) -> None:
        """Wake the sock's waiters from now on, with each arrival and whenever there is room."""
        ...

    def close(self) -> None: ...
    def abort(self) -> None:
        """Close it by a reset."""
        ...


class Link(Protocol):
    """A stream with an engine on it, and what moves its octets."""

    @property
    def engine(self) -> Engine: ...
    @property
    def tuning(self) -> Tuning: ...

    def flush(self) -> None:
        """The engine has something to send."""
        ...

    def take(self) -> None:
        """Take in what the stream has, with one look at it."""
        ...

    def look(self) -> bool:
        """Take in what the stream has, without waiting; whether to look again soon."""
        ...

    def figures(self) -> dict[str, int | str]:
        """For SDP_INFO and `stag sockets -i`."""
        ...

    def close(self) -> None:
        """End it at once, and everything that belongs to it."""
        ...


class Attempt(Protocol):
    """A connection that is being made."""

    def cancel(self) -> None: ...


class Fabric(Protocol):
    """One Stack's.

    Attributes:
        carrier, zcopy_thresh: what a fresh sock has.
        fallback: "never" or "auto", for socks of which nobody has said so.
        ops: the family's.
        plain_ops: the same, for a connection that has fallen back.
    """

    ops: ProtoOps
    plain_ops: ProtoOps

    @property
    def carrier(self) -> str: ...
    @property
    def zcopy_thresh(self) -> int: ...
    @property
    def fallback(self) -> str: ...

    def check_carrier(self, carrier: str) -> None:
        """Raises EAFNOSUPPORT: the transport isn't there."""
        ...

    @property
    def direct(self) -> Direct:
        """`ProtoOps.direct`."""
        ...

    def resolve(self, sock: Socket, address: Address) -> Address:
        """`ProtoOps.resolve`."""
        ...

    def transport(self, sk: SdpSock, family: int) -> Transport:
        """A fresh socket of the sock's transport for addresses of `family`, with its options."""
        ...

    def family_of(self, sk: SdpSock, address: Address) -> int:
        """AF_INET or AF_INET6. Raises TypeError for what is no address of either."""
        ...

    def connect(self, sk: SdpSock, address: Address) -> Attempt:
        """Begin; `sdp.proto.sdp_connected` or `sdp_failed` end it. Raises what fails at once."""
        ...

    def listen(self, sk: SdpSock) -> Attempt:
        """Take connections from the sock's transport, `sdp.proto.sdp_accepted` for each."""
        ...

    def accepted(self, sk: SdpSock) -> None:
        """There is room in the accept queue again."""
        ...
