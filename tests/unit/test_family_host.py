"""The host's families through the interface that other kernel-level users have: no socket object,
no waiting, `ProtoOps` alone."""

import errno
import select
import socket as std
import termios
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from steertag import MsgHdr, Stack
from steertag.family import Socket, SocketState, net
from steertag.host import register
from steertag.testing import expect_errno
from steertag.testing.families import PATIENCE


@pytest.fixture
def stack() -> Stack:
    stack = Stack(load_family=None)
    register(stack)
    return stack


@contextmanager
def created(stack: Stack, *args: int) -> Iterator[Socket]:
    sock = stack.sock_create(*args)
    try:
        yield sock
    finally:
        net.sock_release(sock)


def when(sock: Socket, event: int) -> Socket:
    """Wait for what ops.poll says, on the host's own descriptor."""
    passthrough = sock.ops.passthrough
    assert passthrough is not None
    poller = select.poll()
    poller.register(passthrough(sock), event)
    assert poller.poll(PATIENCE * 1000)
    assert net.sock_poll(sock) & event
    return sock


def send(sock: Socket, *parts: bytes, **more: object) -> int:
    return net.sock_sendmsg(sock, MsgHdr([memoryview(part) for part in parts], **more))


def receive(sock: Socket, size: int, flags: int = 0) -> tuple[bytes, MsgHdr]:
    buffer = bytearray(size)
    msg = MsgHdr([memoryview(buffer)])
    count = net.sock_recvmsg(sock, msg, flags)
    return bytes(buffer[:count]), msg


@pytest.mark.parametrize(("family", "host"), [(std.AF_INET, "127.0.0.1"), (std.AF_INET6, "::1")])
def test_a_stream_entirely_through_proto_ops(stack: Stack, family: int, host: str) -> None:
    with (
        created(stack, family, std.SOCK_STREAM) as server,
        created(stack, family, std.SOCK_STREAM) as client,
    ):
        net.kernel_setsockopt(server, std.SOL_SOCKET, std.SO_REUSEADDR, 1)
        net.kernel_bind(server, (host, 0))
        net.kernel_listen(server, 5)
        expect_errno(lambda: net.kernel_accept(server), errno.EAGAIN)
        expect_errno(
            lambda: net.kernel_connect(client, net.kernel_getname(server, False)),
            errno.EINPROGRESS,
        )
        assert client.state == SocketState.SS_CONNECTING
        conn = net.kernel_accept(when(server, select.POLLIN))
        when(client, select.POLLOUT)
        assert net.kernel_getsockopt(client, std.SOL_SOCKET, std.SO_ERROR) == 0
        assert net.kernel_getname(conn, True) == net.kernel_getname(client, False)
        assert send(client, b"through ", b"ops") == 11
        assert net.sock_ioctl(when(conn, select.POLLIN), termios.FIONREAD) == 11
        assert receive(conn, 100)[0] == b"through ops"
        expect_errno(lambda: receive(conn, 1), errno.EAGAIN)
        net.kernel_sock_shutdown(client, std.SHUT_WR)
        assert receive(when(conn, select.POLLIN), 1)[0] == b""
        net.sock_release(conn)
        expect_errno(lambda: receive(conn, 1), errno.EBADF)


def test_datagrams_entirely_through_proto_ops(stack: Stack) -> None:
    with (
        created(stack, std.AF_INET, std.SOCK_DGRAM) as left,
        created(stack, std.AF_INET, std.SOCK_DGRAM) as right,
    ):
        for sock in (left, right):
            net.kernel_bind(sock, ("127.0.0.1", 0))
        send(left, b"hello", name=net.kernel_getname(right, False))
        data, msg = receive(when(right, select.POLLIN), 3)
        assert data == b"hel"
        assert msg.msg_flags & std.MSG_TRUNC
        assert msg.msg_name == net.kernel_getname(left, False)
        net.kernel_connect(left, net.kernel_getname(right, False))
        assert left.state == SocketState.SS_CONNECTED
        net.kernel_connect(left, None)
        expect_errno(lambda: net.kernel_getname(left, True), errno.ENOTCONN)


def test_a_unix_pair_entirely_through_proto_ops(stack: Stack) -> None:
    with (
        created(stack, std.AF_UNIX, std.SOCK_SEQPACKET) as left,
        created(stack, std.AF_UNIX, std.SOCK_SEQPACKET) as right,
    ):
        net.kernel_socketpair(left, right)
        send(left, b"one")
        send(left, b"two")
        assert [receive(right, 10)[0] for _ in range(2)] == [b"one", b"two"]


def test_the_hosts_refusals_come_through(stack: Stack) -> None:
    expect_errno(lambda: stack.sock_create(std.AF_INET, std.SOCK_SEQPACKET), errno.ESOCKTNOSUPPORT)
    expect_errno(
        lambda: stack.sock_create(std.AF_INET, std.SOCK_STREAM, std.IPPROTO_UDP),
        errno.EPROTONOSUPPORT,
    )
    with (
        created(stack, std.AF_INET, std.SOCK_STREAM) as one,
        created(stack, std.AF_INET, std.SOCK_STREAM) as other,
    ):
        expect_errno(lambda: net.kernel_socketpair(one, other), errno.EOPNOTSUPP)
        expect_errno(lambda: net.kernel_accept(one), errno.EINVAL)
    assert [prot.inuse for prot in stack.protocols] == [0] * 9


def test_registering_twice_changes_nothing(stack: Stack) -> None:
    before = list(stack.protocols)
    register(stack)
    assert stack.protocols == before
