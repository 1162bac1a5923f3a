"""AF_INET_SDP does what socket(7) promises, whichever way its octets go."""

from __future__ import annotations

import socket as std
from collections.abc import Callable, Iterator

import pytest

from steertag import AF_INET_SDP, Stack, inet, socket
from steertag.family.rules import Rules
from steertag.runtime.sdp import SdpConfig, register
from steertag.testing import STREAM_CHECKS, Endpoints

LOOPBACK = ("127.0.0.1", 0)
PLAIN = Rules.parse("use tcp * * *:*")


_opened: list[Stack] = []


def opened() -> Stack:
    """A Stack that is closed after the test."""
    _opened.append(Stack())
    return _opened[-1]


@pytest.fixture(autouse=True)
def close_stacks() -> Iterator[None]:
    yield
    while _opened:
        _opened.pop().close()


def endpoints(stack: Stack, address: tuple[str, int] = LOOPBACK) -> Endpoints:
    return Endpoints(
        make=lambda: socket.socket(AF_INET_SDP, std.SOCK_STREAM, stack=stack), address=address
    )


def over_host() -> Endpoints:
    stack = opened()
    register(stack)
    return endpoints(stack)


def over_host_inet6() -> Endpoints:
    stack = opened()
    register(stack)
    return endpoints(stack, ("::1", 0))


def with_crc() -> Endpoints:
    stack = opened()
    register(stack)
    stack.sysctl["net.sdp.crc"] = 1
    return endpoints(stack)


def over_new_tcp() -> Endpoints:
    stack = opened()
    inet.register(stack)
    register(stack, SdpConfig(carrier="new_tcp"))
    return endpoints(stack)


def fallen_back() -> Endpoints:
    stack = opened()
    register(stack, SdpConfig(rules=PLAIN))
    return endpoints(stack)


def fallen_back_to_new_tcp() -> Endpoints:
    stack = opened()
    inet.register(stack)
    register(stack, SdpConfig(carrier="new_tcp", rules=PLAIN))
    return endpoints(stack)


def sdp_client_plain_server() -> Endpoints:
    """The client finds the server to be without SDP each time."""
    stack = opened()
    register(stack)
    stack.sysctl["net.sdp.hello_timeout"] = 20
    return Endpoints(
        make=lambda: socket.socket(std.AF_INET, std.SOCK_STREAM, stack=stack),
        make_client=lambda: socket.socket(AF_INET_SDP, std.SOCK_STREAM, stack=stack),
        address=LOOPBACK,
    )


def plain_client_sdp_server() -> Endpoints:
    """The server finds its clients to be without SDP each time."""
    stack = opened()
    register(stack)
    stack.sysctl["net.sdp.listen_grace"] = 20
    return Endpoints(
        make=lambda: socket.socket(AF_INET_SDP, std.SOCK_STREAM, stack=stack),
        make_client=lambda: socket.socket(std.AF_INET, std.SOCK_STREAM, stack=stack),
        address=LOOPBACK,
    )


SUBJECTS = [
    over_host,
    over_host_inet6,
    with_crc,
    over_new_tcp,
    fallen_back,
    fallen_back_to_new_tcp,
    plain_client_sdp_server,
]


NOT_THE_HOSTS = {"a_refused_socket_connects_elsewhere"}
"""Claims about a client, which a client of the host's, with a time-out, doesn't meet."""


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("check", STREAM_CHECKS, ids=lambda check: check.__name__)
def test_stream(check: Callable[[Endpoints], None], subject: Callable[[], Endpoints]) -> None:
    if subject is plain_client_sdp_server and check.__name__ in NOT_THE_HOSTS:
        pytest.skip("the client is the host's")
    check(subject())  # raises AssertionError


@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_octets_go_the_way_that_is_meant(subject: Callable[[], Endpoints]) -> None:
    way = b"path sdp" if subject in (over_host, over_host_inet6, with_crc, over_new_tcp) else b"tcp"
    with subject().connected() as (_, conn):
        assert way in conn.getsockopt(socket.SOL_SDP, socket.SDP_INFO, 1024)
