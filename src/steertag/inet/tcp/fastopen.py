"""TCP Fast Open (RFC 7413), both sides."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steertag.family.msg import MsgHdr
    from steertag.inet.tcp.sock import TcpSock


def tcp_sendmsg_fastopen(sk: TcpSock, msg: MsgHdr) -> int:
    """`sendmsg` with MSG_FASTOPEN, or the first after TCP_FASTOPEN_CONNECT: octets that went with
    the SYN; what does not fit is the caller's to queue. Raises as connect(2) does; EINPROGRESS
    when a SYN without data is out."""
    raise NotImplementedError


def tcp_fastopen_synack_timer(sk: TcpSock, now: float) -> None:
    """The retransmit timer of a child whose SYN-ACK is not acknowledged (`sk.fastopen_rsk`)."""
    raise NotImplementedError


def reqsk_fastopen_remove(sk: TcpSock, *, reset: bool) -> None:
    """The child's handshake is over, by its ACK or (reset) by RST or time-out."""
    raise NotImplementedError
