"""A third party's family, number 64, for `--import`: streams that the host carries."""

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


def register(stack: Stack) -> None:
    """Register it with a Stack."""
    prot = host_proto("OWN", __name__)
    ops = host_ops(AF_OWN)
    stack.proto_register(prot)

    def create(stack: Stack, sock: Socket, protocol: int) -> None:
        if sock.type != std.SOCK_STREAM:
            raise os_error(errno.ESOCKTNOSUPPORT)
        if protocol:
            raise os_error(errno.EPROTONOSUPPORT)
        sk = net.sk_alloc(stack, AF_OWN, prot)
        net.sock_init_data(sock, sk)
        host_sk(sk).native = std.socket(std.AF_INET, std.SOCK_STREAM)
        sock.ops = ops

    stack.sock_register(net.NetProtoFamily(family=AF_OWN, create=create, owner=__name__))
