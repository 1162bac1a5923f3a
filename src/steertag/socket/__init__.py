"""The SOCKET layer: stands in for the standard library's `socket` module.

`from steertag import socket` is all that a program changes. Everything that the standard library's
module offers is here; what makes sockets makes steertag's, of any family that the default Stack
knows or that an installed package brings.
"""

import socket as _std
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # The names that programs use most, with their types; the rest is there too, untyped, because
    # a star import would give our own names below the standard library's types.
    from socket import (
        AF_INET as AF_INET,
    )
    from socket import (
        AF_INET6 as AF_INET6,
    )
    from socket import (
        AF_UNIX as AF_UNIX,
    )
    from socket import (
        AF_UNSPEC as AF_UNSPEC,
    )
    from socket import (
        AI_NUMERICHOST as AI_NUMERICHOST,
    )
    from socket import (
        AI_PASSIVE as AI_PASSIVE,
    )
    from socket import (
        CMSG_LEN as CMSG_LEN,
    )
    from socket import (
        CMSG_SPACE as CMSG_SPACE,
    )
    from socket import (
        INADDR_ANY as INADDR_ANY,
    )
    from socket import (
        INADDR_LOOPBACK as INADDR_LOOPBACK,
    )
    from socket import (
        IPPROTO_ICMP as IPPROTO_ICMP,
    )
    from socket import (
        IPPROTO_IP as IPPROTO_IP,
    )
    from socket import (
        IPPROTO_IPV6 as IPPROTO_IPV6,
    )
    from socket import (
        IPPROTO_TCP as IPPROTO_TCP,
    )
    from socket import (
        IPPROTO_UDP as IPPROTO_UDP,
    )
    from socket import (
        IPV6_V6ONLY as IPV6_V6ONLY,
    )
    from socket import (
        MSG_CTRUNC as MSG_CTRUNC,
    )
    from socket import (
        MSG_DONTWAIT as MSG_DONTWAIT,
    )
    from socket import (
        MSG_ERRQUEUE as MSG_ERRQUEUE,
    )
    from socket import (
        MSG_MORE as MSG_MORE,
    )
    from socket import (
        MSG_NOSIGNAL as MSG_NOSIGNAL,
    )
    from socket import (
        MSG_OOB as MSG_OOB,
    )
    from socket import (
        MSG_PEEK as MSG_PEEK,
    )
    from socket import (
        MSG_TRUNC as MSG_TRUNC,
    )
    from socket import (
        MSG_WAITALL as MSG_WAITALL,
    )
    from socket import (
        SCM_RIGHTS as SCM_RIGHTS,
    )
    from socket import (
        SHUT_RD as SHUT_RD,
    )
    from socket import (
        SHUT_RDWR as SHUT_RDWR,
    )
    from socket import (
        SHUT_WR as SHUT_WR,
    )
    from socket import (
        SO_ACCEPTCONN as SO_ACCEPTCONN,
    )
    from socket import (
        SO_BROADCAST as SO_BROADCAST,
    )
    from socket import (
        SO_DOMAIN as SO_DOMAIN,
    )
    from socket import (
        SO_ERROR as SO_ERROR,
    )
    from socket import (
        SO_KEEPALIVE as SO_KEEPALIVE,
    )
    from socket import (
        SO_LINGER as SO_LINGER,
    )
    from socket import (
        SO_PROTOCOL as SO_PROTOCOL,
    )
    from socket import (
        SO_RCVBUF as SO_RCVBUF,
    )
    from socket import (
        SO_RCVLOWAT as SO_RCVLOWAT,
    )
    from socket import (
        SO_RCVTIMEO as SO_RCVTIMEO,
    )
    from socket import (
        SO_REUSEADDR as SO_REUSEADDR,
    )
    from socket import (
        SO_REUSEPORT as SO_REUSEPORT,
    )
    from socket import (
        SO_SNDBUF as SO_SNDBUF,
    )
    from socket import (
        SO_SNDTIMEO as SO_SNDTIMEO,
    )
    from socket import (
        SO_TYPE as SO_TYPE,
    )
    from socket import (
        SOCK_CLOEXEC as SOCK_CLOEXEC,
    )
    from socket import (
        SOCK_DGRAM as SOCK_DGRAM,
    )
    from socket import (
        SOCK_NONBLOCK as SOCK_NONBLOCK,
    )
    from socket import (
        SOCK_RAW as SOCK_RAW,
    )
    from socket import (
        SOCK_SEQPACKET as SOCK_SEQPACKET,
    )
    from socket import (
        SOCK_STREAM as SOCK_STREAM,
    )
    from socket import (
        SOL_SOCKET as SOL_SOCKET,
    )
    from socket import (
        SOMAXCONN as SOMAXCONN,
    )
    from socket import (
        TCP_CORK as TCP_CORK,
    )
    from socket import (
        TCP_INFO as TCP_INFO,
    )
    from socket import (
        TCP_MAXSEG as TCP_MAXSEG,
    )
    from socket import (
        TCP_NODELAY as TCP_NODELAY,
    )
    from socket import (
        TCP_QUICKACK as TCP_QUICKACK,
    )
    from socket import (
        AddressFamily as AddressFamily,
    )
    from socket import (
        AddressInfo as AddressInfo,
    )
    from socket import (
        MsgFlag as MsgFlag,
    )
    from socket import (
        SocketIO as SocketIO,
    )
    from socket import (
        SocketKind as SocketKind,
    )
    from socket import (
        dup as dup,
    )
    from socket import (
        gaierror as gaierror,
    )
    from socket import (
        getaddrinfo as getaddrinfo,
    )
    from socket import (
        getdefaulttimeout as getdefaulttimeout,
    )
    from socket import (
        getfqdn as getfqdn,
    )
    from socket import (
        gethostbyaddr as gethostbyaddr,
    )
    from socket import (
        gethostbyname as gethostbyname,
    )
    from socket import (
        gethostname as gethostname,
    )
    from socket import (
        getnameinfo as getnameinfo,
    )
    from socket import (
        getprotobyname as getprotobyname,
    )
    from socket import (
        getservbyname as getservbyname,
    )
    from socket import (
        getservbyport as getservbyport,
    )
    from socket import (
        has_dualstack_ipv6 as has_dualstack_ipv6,
    )
    from socket import (
        has_ipv6 as has_ipv6,
    )
    from socket import (
        herror as herror,
    )
    from socket import (
        htonl as htonl,
    )
    from socket import (
        htons as htons,
    )
    from socket import (
        if_indextoname as if_indextoname,
    )
    from socket import (
        if_nameindex as if_nameindex,
    )
    from socket import (
        if_nametoindex as if_nametoindex,
    )
    from socket import (
        inet_aton as inet_aton,
    )
    from socket import (
        inet_ntoa as inet_ntoa,
    )
    from socket import (
        inet_ntop as inet_ntop,
    )
    from socket import (
        inet_pton as inet_pton,
    )
    from socket import (
        ntohl as ntohl,
    )
    from socket import (
        ntohs as ntohs,
    )
    from socket import (
        recv_fds as recv_fds,
    )
    from socket import (
        send_fds as send_fds,
    )
    from socket import (
        setdefaulttimeout as setdefaulttimeout,
    )
    from typing import Any

    def __getattr__(name: str) -> Any: ...

else:
    from socket import *  # noqa: F403
    from socket import AddressInfo, MsgFlag, SocketIO, SocketKind  # noqa: F401

from steertag.inet.const import AF_INET_NEW_TCP
from steertag.sdp.options import (
    AF_INET_SDP,
    SDP_FALLBACK,
    SDP_INFO,
    SDP_TRANSPORT,
    SDP_ZCOPY_THRESH,
    SOL_SDP,
)
from steertag.socket.base import socket
from steertag.socket.default import default_stack
from steertag.socket.functions import close, create_connection, create_server, fromfd, socketpair
from steertag.socket.passthrough import PassthroughSocket
from steertag.socket.process import ProcessSocket

socket._for_passthrough = PassthroughSocket
socket._for_process = ProcessSocket

error = OSError
timeout = TimeoutError
SocketType = socket

# Programs use names that are not in __all__ too: http.client's default for a timeout, for one.
globals().update({name: getattr(_std, name) for name in dir(_std) if name not in globals()})

__all__ = [
    *_std.__all__,
    "AF_INET_NEW_TCP",
    "AF_INET_SDP",
    "SDP_FALLBACK",
    "SDP_INFO",
    "SDP_TRANSPORT",
    "SDP_ZCOPY_THRESH",
    "SOL_SDP",
    "SocketType",
    "close",
    "create_connection",
    "create_server",
    "default_stack",
    "fromfd",
]
__all__ += ["socket", "socketpair"]
