"""Whatever a program does with sockets: octets arrive in order, the descriptor tells the truth,
and every octet of memory that was charged is given back."""

import errno
import select
import socket as std
from contextlib import suppress

from example_stream import RST, Frame
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from new_protocol import AF_EXAMPLE, register

from steertag import Stack, device, socket
from steertag.family import MsgHdr
from steertag.testing.families import mask_of, outcome_of


class StreamMachine(RuleBasedStateMachine):
    """One connection, driven without blocking from both ends, over tight memory marks."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = Stack()
        self.family = register(self.stack, device.loopback(), "node")
        with socket.socket(AF_EXAMPLE, std.SOCK_STREAM, stack=self.stack) as server:
            server.bind(("node", 1))
            server.listen()
            client = socket.socket(AF_EXAMPLE, std.SOCK_STREAM, stack=self.stack)
            client.connect(("node", 1))
            conn, _ = server.accept()
        self.ends = [client, conn]
        for end in self.ends:
            end.setblocking(False)
        self.sent = [bytearray(), bytearray()]
        self.received = [bytearray(), bytearray()]
        self.shut = [False, False]
        self.count = 0

    @rule(marks=st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(2, 64)))
    def set_marks(self, marks: tuple[int, int, int]) -> None:
        self.stack.sysctl["net.exstream.mem"] = sorted(marks)

    @rule(which=st.integers(0, 1), size=st.integers(1, 40_000))
    def send(self, which: int, size: int) -> None:
        data = bytes((self.count + i) & 0xFF for i in range(size))
        try:
            taken = self.ends[which].send(data)
        except BlockingIOError:
            return
        except BrokenPipeError:
            assert self.shut[which]
            return
        self.count += taken
        self.sent[which] += data[:taken]

    @rule(which=st.integers(0, 1), size=st.integers(1, 60_000), peek=st.booleans())
    def receive(self, which: int, size: int, peek: bool) -> None:
        try:
            data = self.ends[which].recv(size, std.MSG_PEEK if peek else 0)
        except BlockingIOError:
            return
        at = len(self.received[which])
        assert data == self.sent[1 - which][at : at + len(data)]
        if not data:
            assert self.shut[1 - which]
            assert at == len(self.sent[1 - which])
        if not peek:
            self.received[which] += data

    @precondition(lambda self: not all(self.shut))
    @rule(which=st.integers(0, 1))
    def shut_down(self, which: int) -> None:
        with suppress(OSError):
            self.ends[which].shutdown(std.SHUT_WR)
            self.shut[which] = True

    @invariant()
    def the_descriptor_tells_the_truth(self) -> None:
        for end in self.ends:
            readable = bool(mask_of(end) & select.POLLIN)
            try:
                end.recv(1, std.MSG_PEEK)
            except BlockingIOError:
                assert not readable
            else:
                assert readable

    @invariant()
    def the_account_is_what_the_socks_hold(self) -> None:
        held = 0
        for sk in self.stack.socks:
            if sk.sk_prot is self.family.stream.prot:
                held += sk.sk_forward_alloc + sk.sk_rmem_alloc + sk.sk_wmem_queued
        assert self.family.stream.prot.memory_allocated.value * 4096 == held

    def teardown(self) -> None:
        for which in (0, 1):
            end = self.ends[which]
            while True:
                try:
                    data = end.recv(1 << 20)
                except (BlockingIOError, ConnectionResetError):
                    break
                if not data:
                    break
        for end in self.ends:
            end.close()
        self.family.unregister()  # EBUSY if a sock was left, an orphan even
        prot = self.family.stream.prot
        left = (prot.memory_allocated.value, prot.sockets_allocated.value, prot.orphan_count.value)
        assert left == (0, 0, 0)


TestStreamMachine = StreamMachine.TestCase
TestStreamMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(frames=st.lists(st.binary(max_size=200), max_size=20))
def test_hostile_frames_are_counted_and_break_nothing(frames: list[bytes]) -> None:
    stack = Stack()
    near, far = device.memory_link()
    register(stack, near, "node")
    with socket.socket(AF_EXAMPLE, std.SOCK_DGRAM, stack=stack) as receiver:
        receiver.bind(("node", 1))
        for frame in frames:
            far.transmit([frame])
        assert near.stats.rx_packets == len(frames)
        assert near.stats.rx_errors <= len(frames)
    assert [prot.inuse for prot in stack.protocols] == [0, 0]


KINDS = st.integers(1, 7)
NUMBERS = st.one_of(st.integers(0, 5), st.integers(0, 2**32 - 1))


@given(
    frames=st.lists(
        st.tuples(KINDS, NUMBERS, NUMBERS, NUMBERS, st.binary(max_size=50)), max_size=30
    )
)
def test_a_peer_that_breaks_every_rule_breaks_its_own_connection_at_most(
    frames: list[tuple[int, int, int, int, bytes]],
) -> None:
    stack = Stack()
    near, far = device.memory_link()
    family = register(stack, near, "node")
    with (
        socket.socket(AF_EXAMPLE, std.SOCK_STREAM, stack=stack) as client,
        socket.socket(AF_EXAMPLE, std.SOCK_STREAM, stack=stack) as server,
    ):
        server.bind(("node", 1))
        server.listen()
        client.bind(("node", 2))
        client.setblocking(False)
        client.connect_ex(("evil", 9))
        for kind, seq, ack, window, payload in frames:
            for dport in (1, 2):
                frame = Frame(kind, 9, dport, "evil", "node", seq, ack, window)
                far.transmit([frame.emit(), payload])
            for call in (lambda: client.send(bytes(3000)), lambda: client.recv(10)):
                outcome_of(call)
    for dport in (1, 2):  # the peer is gone: whoever still delivers to it gives up
        far.transmit([Frame(RST, 9, dport, "evil", "node").emit()])
    family.unregister()  # EBUSY if anything was left
    assert family.stream.prot.memory_allocated.value == 0


@given(
    parts=st.lists(st.binary(max_size=20), max_size=6),
    offset=st.integers(0, 130),
    count=st.integers(0, 130),
)
def test_a_message_reads_and_writes_across_its_parts(
    parts: list[bytes], offset: int, count: int
) -> None:
    whole = b"".join(parts)
    msg = MsgHdr([memoryview(part) for part in parts])
    assert msg.length == len(whole)
    assert msg.read(offset, count) == whole[offset : offset + count]
    places = [bytearray(len(part)) for part in parts]
    into = MsgHdr([memoryview(place) for place in places])
    data = bytes(range(count))
    fits = max(min(count, len(whole) - offset), 0)
    assert into.write(offset, data) == fits
    expected = bytearray(len(whole))
    expected[offset : offset + fits] = data[:fits]
    assert b"".join(places) == expected


@given(values=st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=4))
def test_a_row_is_taken_whole_or_not_at_all(values: list[int]) -> None:
    stack = Stack()
    register(stack, device.loopback(), "node")
    before = stack.sysctl.read("net.exstream.mem")
    right = len(values) == 3 and values == sorted(values) and 0 <= values[0] <= values[2] < 2**31
    outcome = outcome_of(lambda: stack.sysctl.write("net.exstream.mem", " ".join(map(str, values))))
    if right:
        assert outcome is None
    else:
        assert isinstance(outcome, OSError)
        assert outcome.errno == errno.EINVAL
    assert stack.sysctl.read("net.exstream.mem") == (tuple(values) if right else before)
