"""What queued data is charged at, and what happens above the marks."""

import errno
import select
import socket as std
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from new_protocol import AF_EXAMPLE, ExampleFamily, register

from steertag import Counter, Stack, device, socket
from steertag.family import (
    SK_MEM_QUANTUM,
    SK_MEM_RECV,
    SK_MEM_SEND,
    sk_schedule,
    sk_stream_alloc_skb,
)
from steertag.family.memory import sk_mem_reclaim
from steertag.testing import expect_errno
from steertag.testing.families import fill, mask_of, outcome_of, read_exactly, wait_mask

ADDRESS = ("node", 1)


class Pair:
    """A connected pair of one Stack, with the pressure hooks recorded."""

    def __init__(self, closing: ExitStack) -> None:
        self.stack = Stack()
        self.family: ExampleFamily = register(self.stack, device.loopback(), "node")
        self.prot = self.family.stream.prot
        self.pressure: list[str] = []
        self.prot.enter_memory_pressure = lambda sk: self.pressure.append("enter")
        self.prot.leave_memory_pressure = lambda sk: self.pressure.append("leave")
        self.server = closing.enter_context(self.make())
        self.server.bind(ADDRESS)
        self.server.listen()
        self.client, self.conn = self.connect(closing)

    def make(self, kind: int = std.SOCK_STREAM) -> socket.socket:
        sock = socket.socket(AF_EXAMPLE, kind, stack=self.stack)
        sock.settimeout(30)
        return sock

    def connect(self, closing: ExitStack) -> tuple[socket.socket, socket.socket]:
        client = closing.enter_context(self.make())
        client.connect(ADDRESS)
        conn, _ = self.server.accept()
        conn.settimeout(30)
        return client, closing.enter_context(conn)

    @property
    def allocated(self) -> int:
        assert self.prot.memory_allocated is not None
        return self.prot.memory_allocated.value


@pytest.fixture
def pair() -> Iterator[Pair]:
    with ExitStack() as closing:
        yield Pair(closing)


def test_queued_octets_are_charged_and_given_back(pair: Pair) -> None:
    assert pair.allocated == 0
    pair.client.sendall(bytes(10_000))
    assert pair.allocated * SK_MEM_QUANTUM >= 10_000
    assert pair.conn.kernel.sk.sk_rmem_alloc >= 10_000
    read_exactly(pair.conn, 10_000)
    assert pair.conn.kernel.sk.sk_rmem_alloc == 0
    assert pair.allocated <= 2  # less than a quantum may stay with each sock


def test_closing_gives_everything_back(pair: Pair) -> None:
    fill(pair.client)
    assert pair.allocated > 0
    for sock in (pair.client, pair.conn, pair.server):
        sock.close()
    assert (pair.allocated, pair.prot.inuse) == (0, 0)
    assert pair.prot.sockets_allocated.value == 0
    assert pair.prot.orphan_count.value == 0


def test_pressure_is_entered_above_the_second_mark_and_left_below_the_first(pair: Pair) -> None:
    pair.stack.sysctl["net.exstream.mem"] = (2, 3, 1000)
    sent = fill(pair.client)
    assert pair.pressure == ["enter"]
    assert pair.prot.memory_pressure.value == 1
    read_exactly(pair.conn, sent)
    assert pair.pressure == ["enter", "leave"]
    assert pair.prot.memory_pressure.value == 0


@pytest.mark.parametrize(("kind", "row"), [(SK_MEM_SEND, "wmem"), (SK_MEM_RECV, "rmem")])
def test_under_pressure_a_socket_gets_its_share_of_the_third_mark_or_its_minimum(
    kind: int, row: str, pair: Pair
) -> None:
    def granted(quanta: int) -> bool:
        with pair.stack.lock:
            sk = pair.client.kernel.sk
            answer = sk_schedule(sk, quanta * SK_MEM_QUANTUM, kind)
            sk_mem_reclaim(sk)
            return answer

    pair.stack.sysctl["net.exstream.mem"] = (0, 0, 12)
    pair.stack.sysctl[f"net.exstream.{row}"] = (0, 16384, 32768)
    assert pair.prot.sockets_allocated.value == 3
    assert [granted(3), granted(4)] == [True, False]
    with pair.make():
        assert not granted(3), "four sockets share what three did"
    assert granted(3)
    pair.stack.sysctl[f"net.exstream.{row}"] = (1, 16384, 32768)
    assert granted(4), "it holds less than its minimum"
    assert pair.allocated == 0


def test_above_the_third_mark_a_sender_that_does_not_block_gets_eagain(pair: Pair) -> None:
    pair.stack.sysctl["net.exstream.mem"] = (2, 3, 4)
    fill(pair.client)
    assert pair.allocated <= 5  # the first buffer of an empty receive queue is always taken
    pair.client.setblocking(False)
    expect_errno(lambda: pair.client.send(b"x" * 8192), errno.EAGAIN)
    assert not mask_of(pair.client) & select.POLLOUT


def test_above_the_third_mark_a_blocking_sender_waits_for_the_reader(pair: Pair) -> None:
    pair.stack.sysctl["net.exstream.mem"] = (2, 3, 4)
    data = bytes(range(256)) * 400
    sender = threading.Thread(target=pair.client.sendall, args=(data,))
    sender.start()
    assert read_exactly(pair.conn, len(data)) == data
    sender.join(30)
    assert not sender.is_alive()


def test_memory_that_another_socket_frees_wakes_the_sender(pair: Pair) -> None:
    pair.stack.sysctl["net.exstream.mem"] = (12, 16, 16)
    with ExitStack() as closing:
        other, other_conn = pair.connect(closing)
        held = fill(other)
        pair.client.setsockopt(std.SOL_SOCKET, std.SO_SNDBUF, 65536)
        fill(pair.client)
        assert pair.client.kernel.sk.sk_wmem_queued < 65536, "its own buffer is not what is full"
        assert not mask_of(pair.client) & select.POLLOUT
        read_exactly(other_conn, held)
        wait_mask(pair.client, select.POLLOUT)
        assert pair.client.send(b"x" * 100) == 100


def test_a_datagram_is_refused_with_enobufs(pair: Pair) -> None:
    with pair.make(std.SOCK_DGRAM) as receiver, pair.make(std.SOCK_DGRAM) as sender:
        receiver.bind(ADDRESS)
        pair.stack.sysctl["net.exdgram.mem"] = (1, 1, 2)
        sender.settimeout(None)  # it is refused all the same: waiting is not for datagrams
        outcomes = [outcome_of(lambda: sender.sendto(bytes(1000), ADDRESS)) for _ in range(9)]
        assert [getattr(outcome, "errno", outcome) for outcome in outcomes[-2:]] == [
            errno.ENOBUFS,
            errno.ENOBUFS,
        ]
        assert receiver.recv(2000) == receiver.recv(2000) == bytes(1000)
        assert sender.sendto(bytes(1000), ADDRESS) == 1000
    assert pair.family.dgram.memory_allocated.value == 0


def test_a_full_receive_buffer_loses_datagrams_and_no_memory(pair: Pair) -> None:
    with pair.make(std.SOCK_DGRAM) as receiver, pair.make(std.SOCK_DGRAM) as sender:
        receiver.setsockopt(std.SOL_SOCKET, std.SO_RCVBUF, 2304)
        receiver.bind(ADDRESS)
        for _ in range(20):
            sender.sendto(bytes(1000), ADDRESS)
        assert 0 < receiver.kernel.sk.sk_rmem_alloc <= 4608
    assert pair.family.dgram.memory_allocated.value == 0


def test_a_closed_socket_with_data_to_deliver_is_an_orphan(pair: Pair) -> None:
    sent = fill(pair.client)
    pair.client.close()
    assert pair.prot.orphan_count.value == 1
    expect_errno(lambda: pair.stack.proto_unregister(pair.prot), errno.EBUSY)
    assert len(read_exactly(pair.conn, sent)) == sent
    assert pair.conn.recv(1) == b""
    assert pair.prot.orphan_count.value == 0


def test_above_max_orphans_a_closed_socket_is_aborted(pair: Pair) -> None:
    pair.stack.sysctl["net.core.max_orphans"] = 0
    fill(pair.client)
    pair.client.close()
    assert pair.prot.orphan_count.value == 0
    with pytest.raises(ConnectionResetError):
        read_exactly(pair.conn, 10**9)


def test_a_send_buffer_grows_to_its_maximum_and_no_further(pair: Pair) -> None:
    sk = pair.client.kernel.sk
    start = sk.sk_sndbuf
    assert start == pair.prot.sysctl_wmem[1]
    data = bytes(4_000_000)
    reader = threading.Thread(target=read_exactly, args=(pair.conn, len(data)))
    reader.start()
    pair.client.sendall(data)
    reader.join(30)
    assert start < sk.sk_sndbuf <= pair.prot.sysctl_wmem[2]


def test_a_receive_buffer_grows_to_its_maximum_and_no_further(pair: Pair) -> None:
    sk = pair.conn.kernel.sk
    sizes = [sk.sk_rcvbuf]
    for _ in range(8):
        read_exactly(pair.conn, fill(pair.client))
        sizes.append(sk.sk_rcvbuf)
    _, default, most = pair.prot.sysctl_rmem
    assert (sizes[0], sizes[1], sizes[-1]) == (default, 2 * default, most)


def test_under_pressure_no_buffer_grows(pair: Pair) -> None:
    pair.stack.sysctl["net.exstream.mem"] = (0, 0, 1000)
    sent = fill(pair.client)
    assert pair.prot.memory_pressure.value == 1
    read_exactly(pair.conn, sent)
    assert pair.client.kernel.sk.sk_sndbuf == pair.prot.sysctl_wmem[1]
    assert pair.conn.kernel.sk.sk_rcvbuf == pair.prot.sysctl_rmem[1]


def test_a_sender_that_is_refused_memory_keeps_a_smaller_buffer_unless_it_was_set(
    pair: Pair,
) -> None:
    pair.stack.sysctl["net.exstream.mem"] = (2, 3, 4)
    for by_hand in (True, False):
        with ExitStack() as closing:
            client, _ = pair.connect(closing)
            if by_hand:
                client.setsockopt(std.SOL_SOCKET, std.SO_SNDBUF, 16384)
            sk = client.kernel.sk
            before = sk.sk_sndbuf
            fill(client)
            assert (sk.sk_sndbuf == before) is by_hand


def test_headers_go_into_the_headroom_that_the_protocol_asked_for(pair: Pair) -> None:
    sk = pair.client.kernel.sk
    with pair.stack.lock:
        skb = sk_stream_alloc_skb(sk, 100)
        assert skb.headroom == pair.prot.max_header == 42
        skb.put(b"payload")
        skb.push(b"h" * 42)
        assert bytes(skb.data) == b"h" * 42 + b"payload"


def test_protocols_may_share_an_account() -> None:
    shared = Counter()
    stack = Stack()
    first = register(stack, device.loopback("lo0"), "node")
    assert first.stream.prot.memory_allocated is not shared
    first.dgram.memory_allocated = first.stream.prot.memory_allocated
    with socket.socket(AF_EXAMPLE, std.SOCK_DGRAM, stack=stack) as sock:
        sock.bind(ADDRESS)
        sock.sendto(bytes(100), ADDRESS)
        assert first.stream.prot.memory_allocated.value > 0
    assert first.stream.prot.memory_allocated.value == 0
