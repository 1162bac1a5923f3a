"""Options of AF_INET_NEW_TCP beside the host kernel's: accepted, refused and read back alike."""

from __future__ import annotations

import errno
import socket as std
import struct

import pytest

from steertag.inet import const as c
from steertag.testing.families import expect_errno
from tests.unit.inet_sides import Side, ask_both, host, outcome, two_hosts

# level, name, values to set one after the other
V4 = [
    (c.SOL_IP, c.IP_TOS, (0x10, 0, 300, b"\x20")),
    (c.SOL_IP, c.IP_TTL, (1, 255, 0, 256, -1, b"\x07")),
    (c.SOL_IP, c.IP_MTU_DISCOVER, (0, 1, 2, 3, 4, 5, 6, -1)),
    (c.SOL_IP, c.IP_RECVERR, (1, 0)),
    (c.SOL_IP, c.IP_PKTINFO, (1, 0)),
    (c.SOL_IP, c.IP_RECVTTL, (1, 0)),
    (c.SOL_IP, c.IP_RECVTOS, (1, 0)),
    (c.SOL_IP, c.IP_RECVORIGDSTADDR, (1, 0)),
    (c.SOL_IP, c.IP_FREEBIND, (1, 0)),
    (c.SOL_IP, c.IP_MINTTL, (0, 255, 256)),
    (c.SOL_IP, c.IP_BIND_ADDRESS_NO_PORT, (1, 0)),
    (c.SOL_IP, c.IP_MULTICAST_TTL, (0, 255, -1, 256)),
    (c.SOL_IP, c.IP_HDRINCL, (1,)),
    (c.SOL_IP, c.IP_MTU, ()),
    (c.SOL_IP, 999, (1,)),
    (c.SOL_UDP, 999, (1,)),
]
V6 = [
    (c.SOL_IPV6, c.IPV6_UNICAST_HOPS, (1, 255, 256, -1, -2)),
    (c.SOL_IPV6, c.IPV6_TCLASS, (0x10, 255, 256, -1, -2)),
    (c.SOL_IPV6, c.IPV6_V6ONLY, (1, 0)),
    (c.SOL_IPV6, c.IPV6_MTU_DISCOVER, (0, 1, 2, 3, 4, 5, 6, -1)),
    (c.SOL_IPV6, c.IPV6_RECVERR, (1, 0)),
    (c.SOL_IPV6, c.IPV6_DONTFRAG, (1, 0)),
    (c.SOL_IPV6, c.IPV6_FREEBIND, (1, 0)),
    (c.SOL_IPV6, c.IPV6_MINHOPCOUNT, (0, 255, 256)),
    (c.SOL_IPV6, c.IPV6_RECVPKTINFO, (1, 0)),
    (c.SOL_IPV6, c.IPV6_RECVHOPLIMIT, (1, 0)),
    (c.SOL_IPV6, c.IPV6_RECVTCLASS, (1, 0)),
    (c.SOL_IPV6, c.IPV6_MULTICAST_HOPS, (0, 255, -1, 256)),
    (c.SOL_IPV6, 999, (1,)),
]
ANY_VERSION = [
    (std.SOL_SOCKET, std.SO_BROADCAST, (1, 0)),
    (std.SOL_SOCKET, std.SO_REUSEPORT, (1, 0)),
    (std.SOL_SOCKET, std.SO_KEEPALIVE, (1, 0)),
    (std.SOL_SOCKET, std.SO_OOBINLINE, (1, 0)),
    (std.SOL_SOCKET, c.SO_NO_CHECK, (1, 0)),
    (std.SOL_SOCKET, c.SO_RXQ_OVFL, (1, 0)),
    (std.SOL_SOCKET, c.SO_BINDTOIFINDEX, (0, -1, 99999)),
    (std.SOL_SOCKET, 9999, (1,)),
    (c.SOL_UDP, c.UDP_CORK, (1, 0)),
    (c.SOL_UDP, c.UDP_SEGMENT, (1400, 0, 65536)),
    (c.SOL_UDP, c.UDP_GRO, (1, 0)),
    (c.SOL_UDP, c.UDP_NO_CHECK6_TX, (1, 0)),
    (c.SOL_UDP, c.UDP_NO_CHECK6_RX, (1, 0)),
]
CASES = [
    *((std.AF_INET, *case) for case in V4 + ANY_VERSION),
    *((std.AF_INET6, *case) for case in V6 + ANY_VERSION),
]


@pytest.mark.parametrize(("family", "level", "name", "values"), CASES)
def test_an_option_of_udp_is_taken_and_read_as_the_kernel_does(
    family: int, level: int, name: int, values: tuple[int | bytes, ...]
) -> None:
    def script(side: Side) -> object:
        sock = side.socket()
        found = [outcome(lambda: sock.getsockopt(level, name))]
        for value in values:
            found.append(outcome(lambda v=value: sock.setsockopt(level, name, v)))  # type: ignore[misc]
            found.append(outcome(lambda: sock.getsockopt(level, name)))
            found.append(outcome(lambda: sock.getsockopt(level, name, 4)))
        return found

    ours, theirs = ask_both(family, script)
    assert ours == theirs


def test_what_both_versions_have_is_one_option() -> None:
    sock = host().socket()
    sock.setsockopt(c.SOL_IPV6, c.IPV6_TCLASS, 0x28)
    sock.setsockopt(c.SOL_IP, c.IP_TTL, 9)
    assert sock.getsockopt(c.SOL_IP, c.IP_TOS) == 0x28
    assert sock.getsockopt(c.SOL_IPV6, c.IPV6_UNICAST_HOPS) == 9
    sock.close()


def test_v6only_is_settled_by_bind() -> None:
    sock = host().socket()
    sock.bind(("::", 0))
    expect_errno(lambda: sock.setsockopt(c.SOL_IPV6, c.IPV6_V6ONLY, 1), errno.EINVAL)
    sock.close()


def test_a_stream_keeps_its_ecn_bits() -> None:
    sock = host().socket(std.SOCK_STREAM)
    sock.setsockopt(c.SOL_IP, c.IP_TOS, 0x13)
    assert sock.getsockopt(c.SOL_IP, c.IP_TOS) == 0x10
    sock.close()


def test_the_force_options_go_beyond_the_limits() -> None:
    sock = host().socket()
    most = sock.kernel.stack.sysctl["net.core.rmem_max"]
    sock.setsockopt(std.SOL_SOCKET, std.SO_RCVBUF, 4 * most)
    assert sock.getsockopt(std.SOL_SOCKET, std.SO_RCVBUF) == 2 * most
    for force, plain in ((33, std.SO_RCVBUF), (32, std.SO_SNDBUF)):
        sock.setsockopt(std.SOL_SOCKET, force, 4 * most)
        assert sock.getsockopt(std.SOL_SOCKET, plain) == 8 * most
    sock.close()


def test_a_socket_bound_to_a_device_hears_that_device_alone() -> None:
    with two_hosts() as (near, far):
        sock, everywhere = far.socket(), far.socket()
        sock.setsockopt(std.SOL_SOCKET, std.SO_BINDTODEVICE, b"lo\0")
        sock.bind(("", 5000))
        assert sock.getsockopt(std.SOL_SOCKET, std.SO_BINDTODEVICE, 16) == b"lo\0"
        sender = near.socket()
        sender.sendto(b"x", ("10.0.0.2", 5000))
        expect_errno(lambda: sock.recv(9), errno.EAGAIN)
        sock.setsockopt(std.SOL_SOCKET, std.SO_BINDTODEVICE, b"mem1")
        sender.sendto(b"x", ("10.0.0.2", 5000))
        assert sock.recv(9) == b"x"
        everywhere.sendto(b"y", ("10.0.0.2", 5000))  # over lo
        expect_errno(lambda: sock.recv(9), errno.EAGAIN)
        expect_errno(
            lambda: sock.setsockopt(std.SOL_SOCKET, std.SO_BINDTODEVICE, b"eth9"), errno.ENODEV
        )


def test_the_path_mtu_is_read_of_a_connected_socket() -> None:
    with two_hosts(mtu=1400) as (near, _):
        sock = near.socket()
        expect_errno(lambda: sock.getsockopt(c.SOL_IP, c.IP_MTU), errno.ENOTCONN)
        sock.connect(("10.0.0.2", 9))
        assert sock.getsockopt(c.SOL_IP, c.IP_MTU) == 1400


@pytest.mark.parametrize("version", [4, 6])
def test_drops_are_counted_for_who_asks(version: int) -> None:
    near = host()
    local = "127.0.0.1" if version == 4 else "::1"
    server, client = near.socket(), near.socket()
    server.bind((local, 0))
    server.setsockopt(std.SOL_SOCKET, c.SO_RXQ_OVFL, 1)
    server.setsockopt(std.SOL_SOCKET, std.SO_RCVBUF, 2000)
    for _ in range(5):
        client.sendto(bytes(1500), server.getsockname())
    got = 0
    while got < 9:
        if isinstance(outcome(lambda: server.recv(9)), str):
            break
        got += 1
    client.sendto(b"after", server.getsockname())
    _, control, _, _ = server.recvmsg(9, 100)
    assert control == [(std.SOL_SOCKET, c.SO_RXQ_OVFL, struct.pack("=I", 5 - got))]
    assert near.mib[f"Udp{'6' if version == 6 else ''}RcvbufErrors"] == 5 - got > 0
    near.close()
