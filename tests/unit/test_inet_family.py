"""AF_INET_NEW_TCP as a family: entered and taken out again, and what its rows lead to."""

from __future__ import annotations

import errno
import random
import socket as std

import pytest

import steertag
from steertag import Stack
from steertag import socket as steertag_socket
from steertag.inet import AF_INET_NEW_TCP, inet_net, register, unregister
from steertag.socket import socket
from steertag.testing.families import DATAGRAM_CHECKS, STREAM_CHECKS, Endpoints, expect_errno
from tests.unit.inet_sides import host, outcome


def fresh() -> Stack:
    return Stack(load_family=None, load_observers=None, rng=random.Random(1))


def test_the_number_is_the_first_that_linux_has_not_given_away() -> None:
    assert steertag.AF_INET_NEW_TCP == steertag_socket.AF_INET_NEW_TCP == AF_INET_NEW_TCP == 46


def test_a_default_stack_finds_the_family_by_itself() -> None:
    stack = Stack(load_observers=None)
    with socket(AF_INET_NEW_TCP, std.SOCK_DGRAM, stack=stack) as sock:
        assert sock.getsockname() == ("0.0.0.0", 0)
    assert "lo" in stack.devices


def test_what_is_registered_is_taken_out_again() -> None:
    stack = fresh()
    before = set(stack.sysctl), dict(stack.generic), list(stack.protocols)
    for _ in range(2):
        register(stack)
        names = {prot.name for prot in stack.protocols}
        assert names == {"NEW-TCP", "NEW-UDP", "NEW-RAW", "NEW-PING"}
        unregister(stack)
        assert (set(stack.sysctl), stack.generic, stack.protocols) == before
        assert (stack.devices, stack.families, stack.timers.pending) == ({}, {}, 0)


def test_it_is_registered_once() -> None:
    stack = fresh()
    expect_errno(lambda: unregister(stack), errno.ENOENT)
    register(stack)
    expect_errno(lambda: register(stack), errno.EEXIST)


def test_it_stays_while_it_has_sockets() -> None:
    stack = fresh()
    register(stack)
    sock = socket(AF_INET_NEW_TCP, std.SOCK_DGRAM, stack=stack)
    expect_errno(lambda: unregister(stack), errno.EBUSY)
    sock.bind(("127.0.0.1", 0))
    sock.close()
    unregister(stack)
    expect_errno(lambda: socket(AF_INET_NEW_TCP, std.SOCK_DGRAM, stack=stack), errno.EAFNOSUPPORT)
    expect_errno(lambda: inet_net(stack), errno.ENETDOWN)


def test_a_number_that_is_taken_leaves_nothing_behind() -> None:
    stack = fresh()
    taken = steertag.NetProtoFamily(family=46, create=lambda *_: None, owner="acme")
    stack.sock_register(taken)
    before = set(stack.sysctl), dict(stack.generic)
    expect_errno(lambda: register(stack), errno.EEXIST)
    assert (set(stack.sysctl), stack.generic, stack.protocols, stack.devices) == (*before, [], {})


@pytest.mark.parametrize(
    ("kind", "proto", "want"),
    [
        (std.SOCK_STREAM, 0, 6),
        (std.SOCK_STREAM, std.IPPROTO_TCP, 6),
        (std.SOCK_STREAM, std.IPPROTO_UDP, "EPROTONOSUPPORT"),
        (std.SOCK_DGRAM, 0, 17),
        (std.SOCK_DGRAM, std.IPPROTO_UDP, 17),
        (std.SOCK_DGRAM, std.IPPROTO_ICMP, 1),
        (std.SOCK_DGRAM, std.IPPROTO_ICMPV6, 58),
        (std.SOCK_DGRAM, std.IPPROTO_TCP, "EPROTONOSUPPORT"),
        (std.SOCK_RAW, 0, "EPROTONOSUPPORT"),
        (std.SOCK_RAW, std.IPPROTO_ICMP, 1),
        (std.SOCK_RAW, 255, 255),
        (std.SOCK_RAW, 256, "EINVAL"),
        (std.SOCK_SEQPACKET, 0, "ESOCKTNOSUPPORT"),
    ],
)
def test_type_and_protocol_lead_to_a_row(kind: int, proto: int, want: object) -> None:
    near = host()

    def protocol() -> int:
        return int(near.socket(kind, proto).getsockopt(std.SOL_SOCKET, std.SO_PROTOCOL))

    assert outcome(protocol) == want
    near.close()
    assert all(not prot.inuse for prot in near.stack.protocols)


# -- the public conformance suites ----------------------------------------------------------------


def endpoints(kind: int, address: tuple[str, int]) -> tuple[Stack, Endpoints]:
    stack = fresh()
    register(stack)
    return stack, Endpoints(
        make=lambda: socket(AF_INET_NEW_TCP, kind, stack=stack), address=address
    )


@pytest.mark.parametrize("address", [("127.0.0.1", 0), ("::1", 0)], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("check", DATAGRAM_CHECKS, ids=lambda check: check.__name__)
def test_udp_keeps_what_datagram_sockets_promise(check, address) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    stack, ends = endpoints(std.SOCK_DGRAM, address)
    check(ends)
    stack.close()


@pytest.mark.parametrize("address", [("127.0.0.1", 0), ("::1", 0)], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("check", STREAM_CHECKS, ids=lambda check: check.__name__)
def test_tcp_keeps_what_stream_sockets_promise(check, address) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    stack, ends = endpoints(std.SOCK_STREAM, address)
    check(ends)
    stack.close()
