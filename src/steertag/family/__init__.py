"""What every protocol family is made of and enters through (Linux: include/net/sock.h, net/core).

The names are the kernel's. A family's author needs `Proto`, `ProtoOps`, `NetProtoFamily`, a sock
class, and from the stock functions whatever fits:

* `sock_no_*`: refuse what the family does not have (the default for what is left out);
* `sock_common_*`, `datagram_poll`, `stream_poll`: go straight on to the protocol;
* `inet_*`: for families with hosts and ports.
"""

from steertag.family.const import (
    NPROTO,
    RCV_SHUTDOWN,
    SEND_SHUTDOWN,
    SHUTDOWN_MASK,
    SK_MEM_QUANTUM,
    SocketState,
    TcpState,
)
from steertag.family.inet import InetProtosw, inet_create
from steertag.family.inet_hash import HashInfo, InetSock
from steertag.family.msg import Address, MsgHdr
from steertag.family.proto import Counter, Proto
from steertag.family.proto_ops import NetProtoFamily, ProtoOps
from steertag.family.skbuff import SkBuff
from steertag.family.sock import Sock, sk_alloc, sk_free, sock_init_data
from steertag.family.socket import Socket
from steertag.family.stack import Stack

__all__ = [
    "NPROTO",
    "RCV_SHUTDOWN",
    "SEND_SHUTDOWN",
    "SHUTDOWN_MASK",
    "SK_MEM_QUANTUM",
    "Address",
    "Counter",
    "HashInfo",
    "InetProtosw",
    "InetSock",
    "MsgHdr",
    "NetProtoFamily",
    "Proto",
    "ProtoOps",
    "SkBuff",
    "Sock",
    "Socket",
    "SocketState",
    "Stack",
    "TcpState",
    "inet_create",
    "sk_alloc",
    "sk_free",
    "sock_init_data",
]
