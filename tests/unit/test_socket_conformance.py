"""The same claims, checked on the standard library's sockets, on ours over the host, and on a
family that lives in this process."""

import socket as std
from collections.abc import Callable

import pytest
from new_protocol import AF_EXAMPLE, register

from steertag import Stack, device, socket
from steertag.testing import DATAGRAM_CHECKS, STREAM_CHECKS, Endpoints

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
