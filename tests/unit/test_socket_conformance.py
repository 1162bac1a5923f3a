"""The same claims, checked on the standard library's sockets, on ours over the host, and on a
family that lives in this process; what not every stream family has, on those that have it."""

import socket as std
from collections.abc import Callable

import pytest
import trio
from new_protocol import AF_EXAMPLE, register

from steertag import AF_INET_NEW_TCP, AF_INET_SDP, Stack, device, inet, socket
from steertag.runtime.sdp import register as sdp_register
from steertag.testing import DATAGRAM_CHECKS, OOB_CHECKS, STREAM_CHECKS, Endpoints
from steertag.testing.trio_stream import check_trio_stream

LOOPBACK = ("127.0.0.1", 0)


def standard_library(kind: int) -> Endpoints:
    return Endpoints(make=lambda: std.socket(std.AF_INET, kind), address=LOOPBACK)


def host_family(kind: int) -> Endpoints:
    return Endpoints(make=lambda: socket.socket(std.AF_INET, kind), address=LOOPBACK)


def host_family_inet6(kind: int) -> Endpoints:
    return Endpoints(make=lambda: socket.socket(std.AF_INET6, kind), address=("::1", 0))


def example_loopback(kind: int) -> Endpoints:
    stack = Stack()
    register(stack, device.loopback(), "node")
    return Endpoints(make=lambda: socket.socket(AF_EXAMPLE, kind, stack=stack), address=("node", 0))


def example_link(kind: int) -> Endpoints:
    left, right = Stack(), Stack()
    for stack, end, node in zip(
        (left, right), device.memory_link(), ("left", "right"), strict=True
    ):
        register(stack, end, node)
    return Endpoints(
        make=lambda: socket.socket(AF_EXAMPLE, kind, stack=right),
        make_client=lambda: socket.socket(AF_EXAMPLE, kind, stack=left),
        address=("right", 0),
    )


def new_tcp(kind: int) -> Endpoints:
    stack = Stack()
    inet.register(stack)
    return Endpoints(
        make=lambda: socket.socket(AF_INET_NEW_TCP, kind, stack=stack), address=LOOPBACK
    )


def sdp(kind: int) -> Endpoints:
    stack = Stack()
    sdp_register(stack)
    return Endpoints(make=lambda: socket.socket(AF_INET_SDP, kind, stack=stack), address=LOOPBACK)


SUBJECTS = [standard_library, host_family, host_family_inet6, example_loopback, example_link]
Subject = Callable[[int], Endpoints]


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("check", STREAM_CHECKS, ids=lambda check: check.__name__)
def test_stream(check: Callable[[Endpoints], None], subject: Subject) -> None:
    check(subject(std.SOCK_STREAM))  # raises AssertionError


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("check", DATAGRAM_CHECKS, ids=lambda check: check.__name__)
def test_datagram(check: Callable[[Endpoints], None], subject: Subject) -> None:
    check(subject(std.SOCK_DGRAM))  # raises AssertionError


@pytest.mark.parametrize("subject", [standard_library, host_family, new_tcp, sdp])
@pytest.mark.parametrize("check", OOB_CHECKS, ids=lambda check: check.__name__)
def test_urgent_data(check: Callable[[Endpoints], None], subject: Subject) -> None:
    check(subject(std.SOCK_STREAM))  # raises AssertionError


@pytest.mark.parametrize("subject", [*SUBJECTS, new_tcp, sdp])
def test_trio_holds_it_for_a_stream_that_can_be_half_closed(subject: Subject) -> None:
    trio.run(check_trio_stream, subject(std.SOCK_STREAM))  # raises AssertionError
