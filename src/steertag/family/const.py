"""Numbers that the socket layer and every protocol agree on (net.h, tcp_states.h, sock.h)."""

from enum import IntEnum
from typing import Final

# Families are numbered 0..NPROTO-1.  Numbers that Linux uses keep their meaning; those from
# 46 on are free for families that live in user space.
NPROTO: Final = 128
SOCK_MAX: Final = 11
SOCK_TYPE_MASK: Final = 0xF

RCV_SHUTDOWN: Final = 1
SEND_SHUTDOWN: Final = 2
SHUTDOWN_MASK: Final = 3

# Protocol memory is accounted in quanta of this many octets, as the kernel counts pages.
SK_MEM_QUANTUM: Final = 4096
SK_MEM_SEND: Final = 0
SK_MEM_RECV: Final = 1

# What a buffer costs beside its octets: the bookkeeping that goes with each.
SKB_OVERHEAD: Final = 256
SOCK_MIN_SNDBUF: Final = 2 * (2048 + SKB_OVERHEAD)
SOCK_MIN_RCVBUF: Final = 2048 + SKB_OVERHEAD

# sk_flags
SOCK_DEAD: Final = 1 << 0  # no user holds it any more
SOCK_ORPHAN: Final = 1 << 1  # counted in prot.orphan_count
SOCK_LINGER: Final = 1 << 2
SOCK_NOSPACE: Final = 1 << 3  # a sender was turned away; it wants to hear of room
SOCK_NOMEM: Final = 1 << 4  # ... because of protocol memory, not of its own buffer
SOCK_SNDBUF_LOCK: Final = 1 << 5  # SO_SNDBUF was set by hand: no automatic growth
SOCK_RCVBUF_LOCK: Final = 1 << 6
SOCK_FREED: Final = 1 << 7  # sk_free was called; the last buffer in flight destroys it
SOCK_KEEPOPEN: Final = 1 << 8  # SO_KEEPALIVE
SOCK_BROADCAST: Final = 1 << 9  # SO_BROADCAST
SOCK_URGINLINE: Final = 1 << 10  # SO_OOBINLINE


# `peer` of getname that is neither getsockname's (0) nor getpeername's (1)
PEER_OF_ACCEPTED: Final = 2


class SocketState(IntEnum):
    """`struct socket`'s state: what the user has done with it (linux/net.h)."""

    SS_FREE = 0
    SS_UNCONNECTED = 1
    SS_CONNECTING = 2
    SS_CONNECTED = 3
    SS_DISCONNECTING = 4


class TcpState(IntEnum):
    """`sk_state`: what the protocol has done with it (net/tcp_states.h); not TCP's alone."""

    TCP_ESTABLISHED = 1
    TCP_SYN_SENT = 2
    TCP_SYN_RECV = 3
    TCP_FIN_WAIT1 = 4
    TCP_FIN_WAIT2 = 5
    TCP_TIME_WAIT = 6
    TCP_CLOSE = 7
    TCP_CLOSE_WAIT = 8
    TCP_LAST_ACK = 9
    TCP_LISTEN = 10
    TCP_CLOSING = 11
