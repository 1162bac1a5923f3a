"""Numbers of the family: protocols, options, flags (linux/in.h, in6.h, tcp.h, udp.h, socket.h).

They are here, not taken from the standard library, since nothing under inet/ may import `socket`,
and because it lacks a good many of them.
"""

from typing import Final

AF_INET_NEW_TCP: Final = 46
"""The family's number: the first that Linux has not given away."""

OWNER: Final = "steertag.inet"
"""The module that brings it, as /proc/net/protocols lists one."""

# The host's families, as they stand in the ancillary data that the kernel's headers define.
AF_UNSPEC: Final = 0
AF_INET: Final = 2
AF_INET6: Final = 10

SOCK_STREAM: Final = 1
SOCK_DGRAM: Final = 2
SOCK_RAW: Final = 3

IPPROTO_IP: Final = 0
IPPROTO_HOPOPTS: Final = 0
IPPROTO_ICMP: Final = 1
IPPROTO_TCP: Final = 6
IPPROTO_UDP: Final = 17
IPPROTO_IPV6: Final = 41
IPPROTO_ROUTING: Final = 43
IPPROTO_FRAGMENT: Final = 44
IPPROTO_ESP: Final = 50
IPPROTO_AH: Final = 51
IPPROTO_ICMPV6: Final = 58
IPPROTO_NONE: Final = 59
IPPROTO_DSTOPTS: Final = 60
IPPROTO_RAW: Final = 255

SOL_IP: Final = 0
SOL_SOCKET: Final = 1
SOL_TCP: Final = 6
SOL_UDP: Final = 17
SOL_IPV6: Final = 41
SOL_ICMPV6: Final = 58
SOL_RAW: Final = 255

# -- flags of a call (linux/socket.h) -----------------------------------------------------------

MSG_OOB: Final = 0x1
MSG_PEEK: Final = 0x2
MSG_DONTROUTE: Final = 0x4
MSG_CTRUNC: Final = 0x8
MSG_PROBE: Final = 0x10
MSG_TRUNC: Final = 0x20
MSG_DONTWAIT: Final = 0x40
MSG_EOR: Final = 0x80
MSG_WAITALL: Final = 0x100
MSG_CONFIRM: Final = 0x800
MSG_ERRQUEUE: Final = 0x2000
MSG_NOSIGNAL: Final = 0x4000
MSG_MORE: Final = 0x8000
MSG_ZEROCOPY: Final = 0x4000000
MSG_FASTOPEN: Final = 0x20000000

# -- ioctls (asm-generic/ioctls.h) --------------------------------------------------------------

SIOCINQ: Final = 0x541B
SIOCOUTQ: Final = 0x5411
SIOCATMARK: Final = 0x8905
SIOCOUTQNSD: Final = 0x894B

# -- what poll tells (asm-generic/poll.h) -------------------------------------------------------

POLLIN: Final = 0x1
POLLPRI: Final = 0x2
POLLOUT: Final = 0x4
POLLERR: Final = 0x8
POLLHUP: Final = 0x10

# -- SOL_SOCKET (asm-generic/socket.h) ----------------------------------------------------------

SO_BROADCAST: Final = 6
SO_OOBINLINE: Final = 10
SO_NO_CHECK: Final = 11
SO_PRIORITY: Final = 12
SO_REUSEPORT: Final = 15
SO_BINDTODEVICE: Final = 25
SO_RXQ_OVFL: Final = 40
SO_BINDTOIFINDEX: Final = 62

# -- IPPROTO_IP (linux/in.h) --------------------------------------------------------------------

IP_TOS: Final = 1
IP_TTL: Final = 2
IP_HDRINCL: Final = 3
IP_OPTIONS: Final = 4
IP_ROUTER_ALERT: Final = 5
IP_RECVOPTS: Final = 6
IP_RETOPTS: Final = 7
IP_PKTINFO: Final = 8
IP_MTU_DISCOVER: Final = 10
IP_RECVERR: Final = 11
IP_RECVTTL: Final = 12
IP_RECVTOS: Final = 13
IP_MTU: Final = 14
IP_FREEBIND: Final = 15
IP_TRANSPARENT: Final = 19
IP_RECVORIGDSTADDR: Final = 20
IP_ORIGDSTADDR: Final = 20
IP_MINTTL: Final = 21
IP_CHECKSUM: Final = 23
IP_BIND_ADDRESS_NO_PORT: Final = 24
IP_MULTICAST_IF: Final = 32
IP_MULTICAST_TTL: Final = 33
IP_MULTICAST_LOOP: Final = 34
IP_ADD_MEMBERSHIP: Final = 35
IP_DROP_MEMBERSHIP: Final = 36
IP_UNICAST_IF: Final = 50
IP_LOCAL_PORT_RANGE: Final = 51

IP_PMTUDISC_DONT: Final = 0
IP_PMTUDISC_WANT: Final = 1
IP_PMTUDISC_DO: Final = 2
IP_PMTUDISC_PROBE: Final = 3
IP_PMTUDISC_INTERFACE: Final = 4
IP_PMTUDISC_OMIT: Final = 5

# -- IPPROTO_IPV6 (linux/in6.h) -----------------------------------------------------------------

IPV6_CHECKSUM: Final = 7
IPV6_UNICAST_HOPS: Final = 16
IPV6_MULTICAST_IF: Final = 17
IPV6_MULTICAST_HOPS: Final = 18
IPV6_MULTICAST_LOOP: Final = 19
IPV6_ADD_MEMBERSHIP: Final = 20
IPV6_DROP_MEMBERSHIP: Final = 21
IPV6_MTU_DISCOVER: Final = 23
IPV6_MTU: Final = 24
IPV6_RECVERR: Final = 25
IPV6_V6ONLY: Final = 26
IPV6_FLOWINFO_SEND: Final = 33
IPV6_RECVPKTINFO: Final = 49
IPV6_PKTINFO: Final = 50
IPV6_RECVHOPLIMIT: Final = 51
IPV6_HOPLIMIT: Final = 52
IPV6_DONTFRAG: Final = 62
IPV6_RECVTCLASS: Final = 66
IPV6_TCLASS: Final = 67
IPV6_MINHOPCOUNT: Final = 73
IPV6_ORIGDSTADDR: Final = 74
IPV6_RECVORIGDSTADDR: Final = 74
IPV6_TRANSPARENT: Final = 75
IPV6_UNICAST_IF: Final = 76
IPV6_FREEBIND: Final = 78

# -- raw sockets (linux/icmp.h, icmpv6.h) -------------------------------------------------------

ICMP_FILTER: Final = 1
ICMPV6_FILTER: Final = 1

# -- IPPROTO_UDP (linux/udp.h) ------------------------------------------------------------------

UDP_CORK: Final = 1
UDP_NO_CHECK6_TX: Final = 101
UDP_NO_CHECK6_RX: Final = 102
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104

# -- IPPROTO_TCP (linux/tcp.h) ------------------------------------------------------------------

TCP_NODELAY: Final = 1
TCP_MAXSEG: Final = 2
TCP_CORK: Final = 3
TCP_KEEPIDLE: Final = 4
TCP_KEEPINTVL: Final = 5
TCP_KEEPCNT: Final = 6
TCP_SYNCNT: Final = 7
TCP_LINGER2: Final = 8
TCP_DEFER_ACCEPT: Final = 9
TCP_WINDOW_CLAMP: Final = 10
TCP_INFO: Final = 11
TCP_QUICKACK: Final = 12
TCP_CONGESTION: Final = 13
TCP_THIN_LINEAR_TIMEOUTS: Final = 16
TCP_USER_TIMEOUT: Final = 18
TCP_FASTOPEN: Final = 23
TCP_TIMESTAMP: Final = 24
TCP_NOTSENT_LOWAT: Final = 25
TCP_CC_INFO: Final = 26
TCP_SAVE_SYN: Final = 27
TCP_SAVED_SYN: Final = 28
TCP_FASTOPEN_CONNECT: Final = 30
TCP_ULP: Final = 31
TCP_FASTOPEN_KEY: Final = 33
TCP_FASTOPEN_NO_COOKIE: Final = 34
TCP_INQ: Final = 36
TCP_CM_INQ: Final = 36

# -- the error queue (linux/errqueue.h) ---------------------------------------------------------

SO_EE_ORIGIN_NONE: Final = 0
SO_EE_ORIGIN_LOCAL: Final = 1
SO_EE_ORIGIN_ICMP: Final = 2
SO_EE_ORIGIN_ICMP6: Final = 3
