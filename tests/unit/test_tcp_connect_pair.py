"""Opening between two Stacks: what only both ends together show."""

from __future__ import annotations

import errno
import random
import socket as std
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, TypeAlias

import pytest

import steertag.socket
from steertag.device import memory_link
from steertag.family.stack import Stack
from steertag.inet import AF_INET_NEW_TCP, inet_net, register

MSG_FASTOPEN, TCP_FASTOPEN = 0x20000000, 23
Sock: TypeAlias = Any


class Pair:
    """Two Stacks on a link: 10.0.0.1 and 10.0.0.2, fe80::1 and fe80::2; one clock, set by hand."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.exit = ExitStack()
        self.stacks = []
        self.devices = memory_link(("near", "far"), mtu=1500, features=0)
        for host, device in enumerate(self.devices, 1):
            stack = Stack(clock=lambda: self.time, rng=random.Random(host), load_family=None)
            register(stack, secret=bytes([host]) * 16)
            addresses = (f"10.0.0.{host}/24", f"fd00::{host}/64", f"fe80::{host}/64")
            inet_net(stack).add_device(device, addresses)
            self.stacks.append(stack)

    def socket(self, end: int) -> Sock:
        sock = steertag.socket.socket(AF_INET_NEW_TCP, std.SOCK_STREAM, stack=self.stacks[end])
        self.exit.enter_context(sock)
        sock.setblocking(False)
        return sock

    def listener(self, address: tuple[Any, ...], backlog: int = 16) -> Sock:
        sock = self.socket(1)
        sock.bind(address)
        sock.listen(backlog)
        return sock

    def accept(self, listener: Sock) -> Sock:
        conn = self.exit.enter_context(listener.accept()[0])
        conn.setblocking(False)
        return conn

    def mib(self, end: int, name: str) -> int:
        return inet_net(self.stacks[end]).mib["TcpExt" + name]

    def sleep(self, seconds: float) -> None:
        end = self.time + seconds
        while True:
            deadlines = [s.timers.deadline for s in self.stacks]
            due = [d for d in deadlines if d is not None and d <= end]
            self.time = max(self.time, min(due, default=end))
            if not due:
                return
            for stack in self.stacks:
                with stack.lock:
                    stack.timers.run(self.time)


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    with pair.exit:
        yield pair


def test_link_local_addresses_connect_where_the_interface_is_said(pair: Pair) -> None:
    listener = pair.listener(("", 7000))
    with pytest.raises(OSError, match="link-local") as refused:
        pair.socket(0).connect(("fe80::2", 7000))
    assert refused.value.errno == errno.EINVAL
    sock = pair.socket(0)
    index = pair.devices[0].ifindex
    assert sock.connect_ex(("fe80::2", 7000, 0, index)) in (0, errno.EINPROGRESS)
    conn = pair.accept(listener)
    assert conn.getpeername()[0] == "fe80::1"
    assert conn.getpeername()[3] == pair.devices[1].ifindex
    conn.send(b"hello")
    assert sock.recv(10) == b"hello"


def test_a_socket_of_both_versions_is_reached_by_both(pair: Pair) -> None:
    listener = pair.listener(("::", 7000))
    for address in ("10.0.0.2", "fd00::2"):
        sock = pair.socket(0)
        sock.connect_ex((address, 7000))
        assert pair.accept(listener).getsockname()[0] == address


def test_fast_open_saves_a_round_trip_at_both_ends(pair: Pair) -> None:
    for stack in pair.stacks:
        stack.sysctl["net.ipv4.tcp_fastopen"] = 3
    listener = pair.listener(("10.0.0.2", 7000))
    listener.setsockopt(std.IPPROTO_TCP, TCP_FASTOPEN, 8)
    for turn in range(2):
        sock = pair.socket(0)
        try:
            sent = sock.sendto(b"question", MSG_FASTOPEN, ("10.0.0.2", 7000))
        except BlockingIOError:
            sent = 0
        assert sent == (8 if turn else 0)
        if not sent:
            sock.send(b"question")
        conn = pair.accept(listener)
        assert conn.recv(100) == b"question"
        conn.send(b"answer")
        pair.sleep(0.5)
        assert sock.recv(100) == b"answer"
    assert pair.mib(0, "TCPFastOpenActive") == 1
    assert pair.mib(1, "TCPFastOpenPassive") == 1
    assert pair.mib(1, "TCPFastOpenCookieReqd") == 1


def test_cookies_of_one_stack_satisfy_the_other(pair: Pair) -> None:
    pair.stacks[1].sysctl["net.ipv4.tcp_syncookies"] = 2
    listener = pair.listener(("fd00::2", 7000))
    sock = pair.socket(0)
    sock.connect_ex(("fd00::2", 7000))
    conn = pair.accept(listener)
    sock.send(bytes(50000))
    pair.sleep(1)
    received = 0
    while received < 50000:
        received += len(conn.recv(65536))
    assert pair.mib(1, "SyncookiesRecv") == 1


def test_a_connection_reset_by_a_stack_without_a_listener_is_refused(pair: Pair) -> None:
    sock = pair.socket(0)
    code = sock.connect_ex(("10.0.0.2", 7001))
    if code == errno.EINPROGRESS:
        code = sock.getsockopt(std.SOL_SOCKET, std.SO_ERROR)
    assert code == errno.ECONNREFUSED


def test_hundreds_of_short_connections_leave_nothing_but_time_wait(pair: Pair) -> None:
    listener = pair.listener(("10.0.0.2", 7000))
    for _ in range(300):
        sock = pair.socket(0)
        sock.connect_ex(("10.0.0.2", 7000))
        conn = pair.accept(listener)
        conn.send(b"x")
        assert sock.recv(10) == b"x"
        sock.close()
        assert conn.recv(10) == b""
        conn.close()
    left = [len(stack.socks) for stack in pair.stacks]
    assert left == [0, 1]
    tables = [stack.generic["tcp"].hash for stack in pair.stacks]  # type: ignore[attr-defined]
    assert [table.tw_count for table in tables] == [300, 0]
    pair.sleep(61)
    assert [len(table.ehash) for table in tables] == [0, 0]
    assert [len(table.bhash) for table in tables] == [0, 1]
