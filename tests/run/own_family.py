"""A third party's family, number 64, for `--import`: streams and sequences that the host carries.

Its streams are TCP's, with addresses as AF_INET has them; its sequences of messages, of
SOCK_SEQPACKET, are AF_UNIX's, with names.
"""

from __future__ import annotations

import errno
import socket as std

from steertag import family as net
from steertag.errors import os_error
from steertag.family import Socket, Stack
from steertag.host.ops import host_ops
from steertag.host.proto import host_proto
from steertag.host.sock import host_sk

AF_OWN = 64
CARRIERS = {std.SOCK_STREAM: std.AF_INET, std.SOCK_SEQPACKET: std.AF_UNIX}


def register(stack: Stack) -> None:
    """Register it with a Stack."""
    ops = host_ops(AF_OWN)
    protocols = {
        std.SOCK_STREAM: host_proto("OWN", __name__),
        std.SOCK_SEQPACKET: host_proto("OWN-SEQ", __name__),
    }
    for prot in protocols.values():
        stack.proto_register(prot)

    def create(stack: Stack, sock: Socket, protocol: int) -> None:
        prot = protocols.get(std.SocketKind(sock.type))
        if prot is None:
            raise os_error(errno.ESOCKTNOSUPPORT)
        if protocol:
            raise os_error(errno.EPROTONOSUPPORT)
        sk = net.sk_alloc(stack, AF_OWN, prot)
        net.sock_init_data(sock, sk)
        host_sk(sk).native = std.socket(CARRIERS[std.SocketKind(sock.type)], sock.type)
        sock.ops = ops

    stack.sock_register(net.NetProtoFamily(family=AF_OWN, create=create, owner=__name__))
