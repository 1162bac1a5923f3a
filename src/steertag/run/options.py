"""Socket options of a program that runs over a family: who answers each.

One table for both processes and for the manual. What it says of an option:

* NATIVE: the host's kernel, for the program's end of the pair: it is about calls that the program
  makes there (time-outs of send and recv).
* CONTROL: the control process, from what it keeps of the socket.
* FAMILY: the family's socket, which takes it or refuses it by itself. So is every option that is
  not in the table, of any level.
* REFUSE: an errno, as it would be accepted and not kept: its effect would have to show in calls
  that the host makes for the pair, in ancillary data, or in the program's own memory.
"""

from __future__ import annotations

import errno
import socket as std
from enum import IntEnum
from typing import Final, NamedTuple


class How(IntEnum):
    """Who answers."""

    NATIVE = 1
    CONTROL = 2
    FAMILY = 3
    REFUSE = 4


class Option(NamedTuple):
    """A row of the table.

    Attributes:
        level, number: as in the call.
        name: the C library's.
        set, get: who answers setsockopt and getsockopt.
        error: the errno where one of them is REFUSE.
        note: for the manual: what differs, or why it is refused.
    """

    level: int
    number: int
    name: str
    set: How
    get: How
    error: int = 0
    note: str = ""


SOL_SOCKET: Final = int(std.SOL_SOCKET)
SOL_IP: Final = int(std.IPPROTO_IP)
SOL_TCP: Final = int(std.IPPROTO_TCP)
SOL_UDP: Final = int(std.IPPROTO_UDP)
SOL_IPV6: Final = int(std.IPPROTO_IPV6)
SOL_TLS: Final = 282
LEVELS: Final = {
    SOL_SOCKET: "SOL_SOCKET",
    SOL_TCP: "IPPROTO_TCP",
    SOL_UDP: "IPPROTO_UDP",
    SOL_IP: "IPPROTO_IP",
    SOL_IPV6: "IPPROTO_IPV6",
    SOL_TLS: "SOL_TLS",
}

_N, _C, _F, _R = How.NATIVE, How.CONTROL, How.FAMILY, How.REFUSE
_PROTO: Final = errno.ENOPROTOOPT
_NOTSUPP: Final = errno.EOPNOTSUPP
_CMSG: Final = "ancillary data of the family does not reach the program"
_POINTER: Final = "its value points into the program's memory"
_FIXED: Final = "what the socket was made as"

TABLE: Final[tuple[Option, ...]] = (
    Option(SOL_SOCKET, 3, "SO_TYPE", _R, _C, _PROTO, _FIXED),
    Option(SOL_SOCKET, 39, "SO_DOMAIN", _R, _C, _PROTO, _FIXED),
    Option(SOL_SOCKET, 38, "SO_PROTOCOL", _R, _C, _PROTO, _FIXED),
    Option(SOL_SOCKET, 30, "SO_ACCEPTCONN", _R, _C, _PROTO),
    Option(SOL_SOCKET, 4, "SO_ERROR", _R, _C, _PROTO, "of connecting, and of a reset"),
    Option(SOL_SOCKET, 20, "SO_RCVTIMEO", _N, _N, 0, "kept for accept, too"),
    Option(SOL_SOCKET, 21, "SO_SNDTIMEO", _N, _N, 0, "kept for connect, too"),
    Option(SOL_SOCKET, 66, "SO_RCVTIMEO_NEW", _N, _N, 0, "kept for accept, too"),
    Option(SOL_SOCKET, 67, "SO_SNDTIMEO_NEW", _N, _N, 0, "kept for connect, too"),
    Option(SOL_SOCKET, 18, "SO_RCVLOWAT", _N, _N),
    Option(SOL_SOCKET, 10, "SO_OOBINLINE", _N, _N),
    Option(SOL_SOCKET, 29, "SO_TIMESTAMP", _N, _N, 0, "when a datagram reached the pair"),
    Option(SOL_SOCKET, 35, "SO_TIMESTAMPNS", _N, _N, 0, "when a datagram reached the pair"),
    Option(SOL_SOCKET, 2, "SO_REUSEADDR", _F, _F),
    Option(SOL_SOCKET, 15, "SO_REUSEPORT", _F, _F),
    Option(SOL_SOCKET, 9, "SO_KEEPALIVE", _F, _F),
    Option(SOL_SOCKET, 6, "SO_BROADCAST", _F, _F),
    Option(SOL_SOCKET, 13, "SO_LINGER", _F, _F, 0, "with a time, close does not wait that long"),
    Option(SOL_SOCKET, 7, "SO_SNDBUF", _F, _F, 0, "of the family's socket; the pair holds more"),
    Option(SOL_SOCKET, 8, "SO_RCVBUF", _F, _F, 0, "of the family's socket; the pair holds more"),
    Option(SOL_SOCKET, 16, "SO_PASSCRED", _R, _R, _NOTSUPP, "of AF_UNIX alone"),
    Option(SOL_SOCKET, 17, "SO_PEERCRED", _R, _R, _PROTO, "would name `stag run` itself"),
    Option(SOL_SOCKET, 31, "SO_PEERSEC", _R, _R, _PROTO, "would name `stag run` itself"),
    Option(SOL_SOCKET, 59, "SO_PEERGROUPS", _R, _R, _PROTO, "would name `stag run` itself"),
    Option(SOL_SOCKET, 77, "SO_PEERPIDFD", _R, _R, _PROTO, "would name `stag run` itself"),
    Option(SOL_SOCKET, 26, "SO_ATTACH_FILTER", _R, _R, _PROTO, _POINTER),
    Option(SOL_SOCKET, 27, "SO_DETACH_FILTER", _R, _R, errno.ENOENT, "there is none"),
    Option(SOL_SOCKET, 50, "SO_ATTACH_BPF", _R, _R, _PROTO, "a program of the host's"),
    Option(SOL_SOCKET, 51, "SO_ATTACH_REUSEPORT_CBPF", _R, _R, _PROTO, _POINTER),
    Option(SOL_SOCKET, 52, "SO_ATTACH_REUSEPORT_EBPF", _R, _R, _PROTO, "a program of the host's"),
    Option(SOL_SOCKET, 44, "SO_LOCK_FILTER", _R, _R, _PROTO, "there is none"),
    Option(SOL_SOCKET, 37, "SO_TIMESTAMPING", _R, _R, _NOTSUPP, _CMSG),
    Option(SOL_SOCKET, 40, "SO_RXQ_OVFL", _R, _R, _PROTO, _CMSG),
    Option(SOL_SOCKET, 42, "SO_PEEK_OFF", _R, _R, _NOTSUPP, "the pair peeks by itself"),
    Option(SOL_SOCKET, 45, "SO_SELECT_ERR_QUEUE", _R, _R, _PROTO, _CMSG),
    Option(SOL_SOCKET, 60, "SO_ZEROCOPY", _R, _R, _NOTSUPP, "the pair copies"),
    Option(SOL_SOCKET, 61, "SO_TXTIME", _R, _R, _NOTSUPP, _CMSG),
    Option(SOL_TCP, 1, "TCP_NODELAY", _F, _F),
    Option(SOL_TCP, 2, "TCP_MAXSEG", _F, _F),
    Option(
        SOL_TCP, 3, "TCP_CORK", _F, _F, 0, "what is on its way to the family goes by the new one"
    ),
    Option(SOL_TCP, 4, "TCP_KEEPIDLE", _F, _F),
    Option(SOL_TCP, 5, "TCP_KEEPINTVL", _F, _F),
    Option(SOL_TCP, 6, "TCP_KEEPCNT", _F, _F),
    Option(SOL_TCP, 9, "TCP_DEFER_ACCEPT", _F, _F),
    Option(SOL_TCP, 11, "TCP_INFO", _F, _F, 0, "the family's connection"),
    Option(SOL_TCP, 12, "TCP_QUICKACK", _F, _F),
    Option(SOL_TCP, 13, "TCP_CONGESTION", _F, _F, 0, "where the family has that algorithm"),
    Option(SOL_TCP, 18, "TCP_USER_TIMEOUT", _F, _F),
    Option(SOL_TCP, 14, "TCP_MD5SIG", _R, _R, _PROTO),
    Option(SOL_TCP, 38, "TCP_MD5SIG_EXT", _R, _R, _PROTO),
    Option(SOL_TCP, 19, "TCP_REPAIR", _R, _R, errno.EPERM, "the connection is not the host's"),
    Option(SOL_TCP, 23, "TCP_FASTOPEN", _R, _R, _PROTO, "nothing is sent before connect has ended"),
    Option(SOL_TCP, 30, "TCP_FASTOPEN_CONNECT", _R, _R, _PROTO, "likewise"),
    Option(SOL_TCP, 33, "TCP_FASTOPEN_KEY", _R, _R, _PROTO, "likewise"),
    Option(SOL_TCP, 34, "TCP_FASTOPEN_NO_COOKIE", _R, _R, _PROTO, "likewise"),
    Option(SOL_TCP, 25, "TCP_NOTSENT_LOWAT", _R, _R, _PROTO, "the pair's poll knows nothing of it"),
    Option(SOL_TCP, 31, "TCP_ULP", _R, _R, _PROTO, "kTLS would act on the pair"),
    Option(SOL_TCP, 35, "TCP_ZEROCOPY_RECEIVE", _R, _R, _PROTO, _POINTER),
    Option(SOL_TCP, 36, "TCP_INQ", _R, _R, _PROTO, _CMSG),
    Option(SOL_UDP, 1, "UDP_CORK", _F, _F),
    Option(SOL_UDP, 103, "UDP_SEGMENT", _F, _F),
    Option(SOL_UDP, 100, "UDP_ENCAP", _R, _R, _PROTO, "of the host's IPsec"),
    Option(SOL_UDP, 104, "UDP_GRO", _R, _R, _PROTO, _CMSG),
    Option(SOL_IP, 1, "IP_TOS", _F, _F),
    Option(SOL_IP, 2, "IP_TTL", _F, _F),
    Option(SOL_IP, 10, "IP_MTU_DISCOVER", _F, _F),
    Option(
        SOL_IP, 11, "IP_RECVERR", _F, _F, 0, "the error queue itself does not reach the program"
    ),
    Option(SOL_IP, 15, "IP_FREEBIND", _F, _F),
    Option(SOL_IP, 24, "IP_BIND_ADDRESS_NO_PORT", _F, _F),
    Option(SOL_IP, 6, "IP_RECVOPTS", _R, _R, _PROTO, _CMSG),
    Option(SOL_IP, 7, "IP_RETOPTS", _R, _R, _PROTO, _CMSG),
    Option(SOL_IP, 8, "IP_PKTINFO", _R, _R, _PROTO, _CMSG),
    Option(SOL_IP, 12, "IP_RECVTTL", _R, _R, _PROTO, _CMSG),
    Option(SOL_IP, 13, "IP_RECVTOS", _R, _R, _PROTO, _CMSG),
    Option(SOL_IP, 18, "IP_PASSSEC", _R, _R, _PROTO, _CMSG),
    Option(SOL_IP, 20, "IP_RECVORIGDSTADDR", _R, _R, _PROTO, _CMSG),
    Option(SOL_IP, 23, "IP_CHECKSUM", _R, _R, _PROTO, _CMSG),
    Option(SOL_IP, 25, "IP_RECVFRAGSIZE", _R, _R, _PROTO, _CMSG),
    Option(SOL_IPV6, 16, "IPV6_UNICAST_HOPS", _F, _F),
    Option(SOL_IPV6, 25, "IPV6_RECVERR", _F, _F, 0, "as IP_RECVERR"),
    Option(SOL_IPV6, 26, "IPV6_V6ONLY", _F, _F),
    Option(SOL_IPV6, 67, "IPV6_TCLASS", _F, _F),
    Option(SOL_IPV6, 49, "IPV6_RECVPKTINFO", _R, _R, _PROTO, _CMSG),
    Option(SOL_IPV6, 51, "IPV6_RECVHOPLIMIT", _R, _R, _PROTO, _CMSG),
    Option(SOL_IPV6, 53, "IPV6_RECVHOPOPTS", _R, _R, _PROTO, _CMSG),
    Option(SOL_IPV6, 56, "IPV6_RECVRTHDR", _R, _R, _PROTO, _CMSG),
    Option(SOL_IPV6, 58, "IPV6_RECVDSTOPTS", _R, _R, _PROTO, _CMSG),
    Option(SOL_IPV6, 60, "IPV6_RECVPATHMTU", _R, _R, _PROTO, _CMSG),
    Option(SOL_IPV6, 66, "IPV6_RECVTCLASS", _R, _R, _PROTO, _CMSG),
    Option(SOL_IPV6, 74, "IPV6_RECVORIGDSTADDR", _R, _R, _PROTO, _CMSG),
    Option(SOL_IPV6, 77, "IPV6_RECVFRAGSIZE", _R, _R, _PROTO, _CMSG),
    Option(SOL_TLS, 1, "TLS_TX", _R, _R, _PROTO, "kTLS would act on the pair"),
    Option(SOL_TLS, 2, "TLS_RX", _R, _R, _PROTO, "kTLS would act on the pair"),
)
_BY_NUMBER: Final = {(option.level, option.number): option for option in TABLE}


def find(level: int, number: int) -> Option | None:
    """Its row, if it has one."""
    return _BY_NUMBER.get((level, number))


def setting(level: int, number: int) -> tuple[How, int]:
    """Who answers setsockopt, and the errno where that is REFUSE."""
    option = _BY_NUMBER.get((level, number))
    return (How.FAMILY, 0) if option is None else (option.set, option.error)


def getting(level: int, number: int) -> tuple[How, int]:
    """Who answers getsockopt, and the errno where that is REFUSE."""
    option = _BY_NUMBER.get((level, number))
    return (How.FAMILY, 0) if option is None else (option.get, option.error)


def markdown() -> str:
    """The table as the manual has it."""
    lines = ["| level | option | set | get | |", "|---|---|---|---|---|"]
    for option in TABLE:
        cells = (LEVELS[option.level], option.name)
        answers = (_said(option, option.set), _said(option, option.get))
        lines.append(f"| {cells[0]} | {cells[1]} | {answers[0]} | {answers[1]} | {option.note} |")
    return "\n".join(lines) + "\n"


def _said(option: Option, how: How) -> str:
    return errno.errorcode[option.error] if how is How.REFUSE else how.name.lower()
