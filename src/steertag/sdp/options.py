"""Numbers of the family as programs see them (Linux's ib_sdp: sdp_socket.h)."""

from typing import Final

AF_INET_SDP: Final = 27
"""What ib_sdp's programs use; Linux calls the number AF_IB today and makes no sockets of it."""
OWNER: Final = "steertag.sdp"

AF_INET: Final = 2
AF_INET6: Final = 10
IPPROTO_IPV6: Final = 41
SOCK_STREAM: Final = 1
IPPROTO_IP: Final = 0
IPPROTO_TCP: Final = 6

SOL_SOCKET: Final = 1
SO_KEEPALIVE: Final = 9
SO_LINGER: Final = 13
SO_RCVTIMEO: Final = 20
SO_SNDTIMEO: Final = 21
SO_DOMAIN: Final = 39
SO_OOBINLINE: Final = 10
TCP_NODELAY: Final = 1

SOL_SDP: Final = 1025
SDP_ZCOPY_THRESH: Final = 80
"""int: octets from which a send is advertised instead of copied; 0: never."""
SDP_FALLBACK: Final = 100
"""b"never" or b"auto"."""
SDP_TRANSPORT: Final = 101
"""b"host" or b"new_tcp": whose TCP carries it; before bind and connect."""
SDP_INFO: Final = 102
"""Read-only: text, lines of "name value": the path, the reason of a fallback, counters."""

MSG_OOB: Final = 0x1
MSG_PEEK: Final = 0x2
MSG_TRUNC: Final = 0x20
MSG_ERRQUEUE: Final = 0x2000

SIOCINQ: Final = 0x541B
SIOCOUTQ: Final = 0x5411
SIOCATMARK: Final = 0x8905

POLLIN: Final = 0x1
POLLPRI: Final = 0x2
POLLOUT: Final = 0x4
POLLERR: Final = 0x8
POLLHUP: Final = 0x10
POLLRDHUP: Final = 0x2000
