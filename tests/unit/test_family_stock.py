"""The stock functions, in families that have little or nothing of their own."""

import errno
import socket as std
import struct
import termios
from collections.abc import Callable

import pytest
from new_protocol import AF_EXAMPLE, register

from steertag import NetProtoFamily, Proto, ProtoOps, Stack, device, socket
from steertag.family import (
    InetProtosw,
    InetSock,
    MsgHdr,
    Socket,
    inet_accept,
    inet_bind,
    inet_create,
    inet_dgram_connect,
    inet_getname,
    inet_ioctl,
    inet_listen,
    inet_release,
    inet_sendmsg,
    inet_shutdown,
    inet_stream_connect,
    sk_free,
    sock_common_getsockopt,
    sock_common_recvmsg,
    sock_common_setsockopt,
)
from steertag.family import net as calls
from steertag.testing import expect_errno

AF_TEST = 100
Call = Callable[[Socket], object]


@pytest.fixture
def stack() -> Stack:
    return Stack(load_family=None)


def ops(**members: object) -> ProtoOps:
    return ProtoOps(family=AF_TEST, owner="test", release=inet_release, **members)


def family_of(stack: Stack, *rows: InetProtosw) -> None:
    for row in rows:
        stack.proto_register(row.prot)
    stack.sock_register(NetProtoFamily(family=AF_TEST, create=inet_create(rows), owner="test"))


def made(stack: Stack, kind: int = std.SOCK_STREAM, protocol: int = 0) -> Socket:
    return stack.sock_create(AF_TEST, kind, protocol)


# -- create out of a table ------------------------------------------------------------------------


def test_create_takes_the_first_row_that_has_the_type_and_the_protocol(stack: Stack) -> None:
    names: list[str] = []
    stream, dgram, raw = (
        Proto(name=name, owner="test", init=lambda sk: names.append(sk.sk_prot.name))
        for name in ("STREAM", "DGRAM", "RAW")
    )
    family_of(
        stack,
        InetProtosw(std.SOCK_STREAM, 6, stream, ops()),
        InetProtosw(std.SOCK_DGRAM, 17, dgram, ops()),
        InetProtosw(std.SOCK_RAW, 0, raw, ops()),
    )
    asked = ((std.SOCK_STREAM, 0), (std.SOCK_STREAM, 6), (std.SOCK_DGRAM, 17), (std.SOCK_RAW, 99))
    sockets = [made(stack, kind, protocol) for kind, protocol in asked]
    assert [sock.sk.sk_protocol for sock in sockets] == [6, 6, 17, 99]
    assert names == ["STREAM", "STREAM", "DGRAM", "RAW"]
    expect_errno(lambda: made(stack, std.SOCK_SEQPACKET), errno.ESOCKTNOSUPPORT)
    expect_errno(lambda: made(stack, std.SOCK_STREAM, 17), errno.EPROTONOSUPPORT)
    for sock in sockets:
        calls.sock_release(sock)
    stack.sock_unregister(AF_TEST)


def test_names_that_make_the_same_sysctl_are_eexist(stack: Stack) -> None:
    stack.proto_register(Proto(name="A-B", owner="test", sysctl_wmem=[1, 2, 3]))
    other = Proto(name="A_B", owner="test", sysctl_mem=[4, 5, 6], sysctl_wmem=[1, 2, 3])
    expect_errno(lambda: stack.proto_register(other), errno.EEXIST)
    assert "net.a_b.mem" not in stack.sysctl, "half of it was registered"


# -- what is left out is refused ------------------------------------------------------------------

LEFT_OUT: dict[str, tuple[Call, int]] = {
    "bind": (lambda s: calls.kernel_bind(s, ("node", 1)), errno.EOPNOTSUPP),
    "connect": (lambda s: calls.kernel_connect(s, ("node", 1)), errno.EOPNOTSUPP),
    "disconnect": (lambda s: calls.kernel_connect(s, None), errno.EOPNOTSUPP),
    "accept": (calls.kernel_accept, errno.EOPNOTSUPP),
    "sendmsg": (lambda s: calls.sock_sendmsg(s, MsgHdr([b"x"])), errno.EOPNOTSUPP),
    "recvmsg": (lambda s: calls.sock_recvmsg(s, MsgHdr([bytearray(1)])), errno.EOPNOTSUPP),
    "ioctl": (lambda s: calls.sock_ioctl(s, termios.FIONREAD), errno.ENOTTY),
    "setsockopt": (lambda s: calls.kernel_setsockopt(s, 264, 1, 1), errno.ENOPROTOOPT),
    "getsockopt": (lambda s: calls.kernel_getsockopt(s, 264, 1), errno.ENOPROTOOPT),
}
OF_OPS_ONLY: dict[str, tuple[Call, int]] = {
    "listen": (lambda s: calls.kernel_listen(s, 1), errno.EOPNOTSUPP),
    "shutdown": (lambda s: calls.kernel_sock_shutdown(s, std.SHUT_WR), errno.EOPNOTSUPP),
    "getname": (lambda s: calls.kernel_getname(s, False), errno.EOPNOTSUPP),
    "socketpair": (lambda s: calls.kernel_socketpair(s, s), errno.EOPNOTSUPP),
}


@pytest.mark.parametrize(("call", "code"), [*LEFT_OUT.values(), *OF_OPS_ONLY.values()])
def test_what_proto_ops_leave_out_is_refused(stack: Stack, call: Call, code: int) -> None:
    family_of(stack, InetProtosw(std.SOCK_STREAM, 6, Proto(name="X", owner="test"), ops()))
    sock = made(stack)
    expect_errno(lambda: call(sock), code)
    assert calls.sock_poll(sock) == 0
    calls.sock_release(sock)
    stack.sock_unregister(AF_TEST)


@pytest.mark.parametrize("connect", [inet_stream_connect, inet_dgram_connect])
@pytest.mark.parametrize(("call", "code"), LEFT_OUT.values(), ids=LEFT_OUT.keys())
def test_what_the_protocol_does_not_have_is_refused(
    stack: Stack, call: Call, code: int, connect: Callable[..., None]
) -> None:
    full = ops(
        bind=inet_bind,
        connect=connect,
        accept=inet_accept,
        getname=inet_getname,
        ioctl=inet_ioctl,
        listen=inet_listen,
        shutdown=inet_shutdown,
        setsockopt=sock_common_setsockopt,
        getsockopt=sock_common_getsockopt,
        sendmsg=inet_sendmsg,
        recvmsg=sock_common_recvmsg,
    )
    prot = Proto(name="X", owner="test", obj_size=InetSock)
    family_of(stack, InetProtosw(std.SOCK_STREAM, 6, prot, full))
    sock = made(stack)
    expect_errno(lambda: call(sock), code)
    calls.sock_release(sock)
    assert prot.inuse == 0


# -- the end --------------------------------------------------------------------------------------


def test_without_a_close_the_sock_is_unhashed_and_freed(stack: Stack) -> None:
    done: list[str] = []
    prot = Proto(
        name="X",
        owner="test",
        unhash=lambda sk: done.append("unhash"),
        destroy=lambda sk: done.append("destroy"),
    )
    family_of(stack, InetProtosw(std.SOCK_STREAM, 6, prot, ops()))
    calls.sock_release(made(stack))
    assert (done, prot.inuse) == (["unhash", "destroy"], 0)


@pytest.mark.parametrize(("onoff", "expected"), [(1, 7.0), (0, 0.0)])
def test_close_is_told_how_long_to_linger(stack: Stack, onoff: int, expected: float) -> None:
    told: list[float] = []

    def close(sk: InetSock, timeout: float) -> None:
        told.append(timeout)
        sk_free(sk)

    prot = Proto(name="X", owner="test", close=close)
    family_of(stack, InetProtosw(std.SOCK_STREAM, 6, prot, ops()))
    sock = made(stack)
    calls.kernel_setsockopt(sock, std.SOL_SOCKET, std.SO_LINGER, struct.pack("@ii", onoff, 7))
    calls.sock_release(sock)
    assert told == [expected]


# -- children and ports ---------------------------------------------------------------------------


@pytest.fixture
def example(stack: Stack) -> Stack:
    register(stack, device.loopback(), "node")
    return stack


def reusing(stack: Stack, kind: int, port: int = 7) -> socket.socket:
    sock = socket.socket(AF_EXAMPLE, kind, stack=stack)
    sock.settimeout(30)
    sock.setsockopt(std.SOL_SOCKET, std.SO_REUSEADDR, 1)
    sock.bind(("node", port))
    return sock


def test_an_accepted_socket_has_its_listeners_options(example: Stack) -> None:
    with (
        reusing(example, std.SOCK_STREAM) as server,
        socket.socket(AF_EXAMPLE, std.SOCK_STREAM, stack=example) as client,
    ):
        server.setsockopt(std.SOL_SOCKET, std.SO_RCVLOWAT, 3)
        server.listen()
        client.connect(("node", 7))
        conn, _ = server.accept()
        with conn:
            assert conn.getsockopt(std.SOL_SOCKET, std.SO_REUSEADDR) == 1
            assert conn.getsockopt(std.SOL_SOCKET, std.SO_RCVLOWAT) == 3


def test_of_two_that_share_a_port_one_may_listen(example: Stack) -> None:
    with reusing(example, std.SOCK_STREAM) as first, reusing(example, std.SOCK_STREAM) as second:
        first.listen()
        expect_errno(second.listen, errno.EADDRINUSE)


def test_a_listener_starts_again_while_old_connections_last(example: Stack) -> None:
    with socket.socket(AF_EXAMPLE, std.SOCK_STREAM, stack=example) as client:
        with reusing(example, std.SOCK_STREAM) as server:
            server.listen()
            client.connect(("node", 7))
            conn, _ = server.accept()
        with conn, reusing(example, std.SOCK_STREAM) as again:
            again.listen()
            client.sendall(b"still there")
            assert conn.recv(100) == b"still there"


def test_a_datagram_goes_to_the_socket_that_is_connected_to_its_sender(example: Stack) -> None:
    with (
        reusing(example, std.SOCK_DGRAM, 1) as peer,
        reusing(example, std.SOCK_DGRAM, 2) as stranger,
        reusing(example, std.SOCK_DGRAM) as everybody,
        reusing(example, std.SOCK_DGRAM) as connected,
    ):
        connected.connect(("node", 1))
        peer.sendto(b"of the peer", ("node", 7))
        stranger.sendto(b"of a stranger", ("node", 7))
        assert connected.recv(100) == b"of the peer"
        assert everybody.recv(100) == b"of a stranger"
