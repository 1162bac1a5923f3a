"""Who drives a Stack with devices that have descriptors, and that nobody has to be told."""

import errno
import gc
import logging
import os
import select
import signal
import socket as std
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import pytest
from new_protocol import AF_EXAMPLE, register

from steertag import Stack, socket
from steertag.device import Device, register_netdevice, unregister_netdevice
from steertag.device.frame import Frame
from steertag.errors import os_error
from steertag.family.skbuff import Buffer
from steertag.family.timer import Timer
from steertag.runtime.netdev import ensure_driver
from steertag.testing.families import PATIENCE, outcome_of, read_exactly, wait_mask
from tests.support import PROJECT


class PipeDevice(Device):
    """One end of a link that goes through the kernel: a device with a descriptor."""

    def __init__(self, name: str, end: std.socket) -> None:
        super().__init__(name, 16384)
        self.end = end
        self.takers: set[str] = set()
        self.broken: Exception | None = None
        end.setblocking(False)

    def fileno(self) -> int:
        return self.end.fileno()

    def transmit(self, parts: Sequence[Buffer], offload: object = None) -> None:
        if self.end.fileno() == -1:
            raise os_error(errno.ENETDOWN)
        with suppress(BrokenPipeError, ConnectionResetError):  # the other end is gone
            self.end.sendmsg(parts)

    def receive(self) -> Frame | None:
        if self.broken is not None:
            raise self.broken
        try:
            frame = self.end.recv(16384)
        except (BlockingIOError, ConnectionResetError):
            return None
        if not frame:
            raise os_error(errno.ENETDOWN, "the other end is gone")
        self.takers.add(threading.current_thread().name)
        return Frame(memoryview(frame))

    def close(self) -> None:
        self.end.close()


class Node:
    """A Stack of its own with AF_EXAMPLE over one end of a link."""

    def __init__(
        self, name: str, end: std.socket, clock: Callable[[], float] | None = None
    ) -> None:
        self.name = name
        self.stack = Stack(clock=clock or time.monotonic, load_observers=None)
        self.device = PipeDevice("pipe", end)
        register(self.stack, self.device, name)

    def open(self, kind: int = std.SOCK_STREAM) -> socket.socket:
        sock = socket.socket(AF_EXAMPLE, kind, stack=self.stack)
        sock.settimeout(PATIENCE)
        return sock

    def listener(self, port: int = 7) -> socket.socket:
        sock = self.open()
        sock.bind((self.name, port))
        sock.listen(64)
        return sock


@pytest.fixture
def nodes() -> Iterator[tuple[Node, Node]]:
    ends = std.socketpair(std.AF_UNIX, std.SOCK_SEQPACKET)
    left, right = Node("left", ends[0]), Node("right", ends[1])
    yield left, right
    for node in (left, right):
        node.stack.close()


@pytest.fixture
def pair(nodes: tuple[Node, Node]) -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = nodes
    with right.listener() as listener, left.open() as client:
        client.connect(("right", 7))
        conn, _ = listener.accept()
        conn.settimeout(PATIENCE)
        with conn:
            yield client, conn


def started(call: Callable[[], object], name: str) -> tuple[threading.Thread, list[object]]:
    outcomes: list[object] = []
    thread = threading.Thread(target=lambda: outcomes.append(outcome_of(call)), name=name)
    thread.start()
    return thread, outcomes


def test_a_thread_that_waits_takes_the_frames_itself(
    nodes: tuple[Node, Node], pair: tuple[socket.socket, socket.socket]
) -> None:
    client, conn = pair
    echo, _ = started(lambda: [conn.sendall(conn.recv(1)) for _ in range(200)], "echo")
    for number in range(200):
        client.sendall(bytes([number]))
        assert client.recv(1) == bytes([number])
    echo.join(PATIENCE)
    assert threading.current_thread().name in nodes[0].device.takers
    assert "echo" in nodes[1].device.takers


def test_nobody_waits_and_frames_are_taken_all_the_same(
    nodes: tuple[Node, Node], pair: tuple[socket.socket, socket.socket]
) -> None:
    client, conn = pair
    nodes[1].device.takers.clear()
    with select.epoll() as epoll:
        epoll.register(conn, select.EPOLLIN)
        client.sendall(b"x")
        assert epoll.poll(PATIENCE)
    assert conn.recv(1) == b"x"
    assert "steertag-net" in nodes[1].device.takers


def test_several_threads_wait_and_each_gets_its_own(nodes: tuple[Node, Node]) -> None:
    left, right = nodes
    count, rounds = 12, 40
    with right.listener() as listener:
        clients = []
        for _ in range(count):
            client = left.open()
            client.connect(("right", 7))
            clients.append((client, listener.accept()[0]))
        threads = []
        for number, (client, conn) in enumerate(clients):
            conn.settimeout(PATIENCE)

            def talk(client: socket.socket = client, number: int = number) -> list[bytes]:
                answers = []
                for turn in range(rounds):
                    client.sendall(b"%02d%02d" % (number, turn))
                    answers.append(read_exactly(client, 4))
                return answers

            def answer(conn: socket.socket = conn) -> None:
                for _ in range(rounds):
                    conn.sendall(read_exactly(conn, 4))

            threads.append((started(answer, f"answer{number}"), None))
            threads.append((started(talk, f"talk{number}"), number))
        for (thread, outcomes), number in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
            if number is not None:
                assert outcomes == [[b"%02d%02d" % (number, turn) for turn in range(rounds)]]
        for client, conn in clients:
            client.close()
            conn.close()


def test_a_leader_that_leaves_hands_over_to_who_still_waits(nodes: tuple[Node, Node]) -> None:
    left, right = nodes
    with right.listener() as listener:
        first, second = left.open(), left.open()
        first.connect(("right", 7))
        second.connect(("right", 7))
        peers = [listener.accept()[0] for _ in range(2)]
        one, one_got = started(lambda: first.recv(1), "one")
        two, two_got = started(lambda: second.recv(1), "two")
        for conn, thread, got in ((peers[0], one, one_got), (peers[1], two, two_got)):
            conn.sendall(b"x")
            thread.join(PATIENCE)
            assert got == [b"x"]
        for sock in (first, second, *peers):
            sock.close()


def test_closing_wakes_a_leader_and_a_follower(
    nodes: tuple[Node, Node], pair: tuple[socket.socket, socket.socket]
) -> None:
    client, _ = pair
    with nodes[0].open(std.SOCK_DGRAM) as datagrams:
        datagrams.bind(("left", 9))
        waits = [started(lambda: datagrams.recv(1), "one"), started(lambda: client.recv(1), "two")]
        for thread, _ in waits:
            # Both are in the call, or will find the sockets closed when they come to it.
            assert thread.is_alive()
        datagrams.close()
        client.close()
        for thread, outcomes in waits:
            thread.join(PATIENCE)
            assert [getattr(outcome, "errno", None) for outcome in outcomes] == [errno.EBADF]


def test_a_timeout_ends_the_wait_of_a_leader_and_of_a_follower(
    nodes: tuple[Node, Node], pair: tuple[socket.socket, socket.socket]
) -> None:
    client, _ = pair
    with nodes[0].listener(8) as listener:
        client.settimeout(0.2)
        listener.settimeout(0.1)
        waits = [started(lambda: client.recv(1), "one"), started(listener.accept, "two")]
        for thread, outcomes in waits:
            thread.join(PATIENCE)
            assert [type(outcome) for outcome in outcomes] == [TimeoutError]


def test_a_timeout_of_months_is_longer_than_one_sleep_and_no_error(
    nodes: tuple[Node, Node], pair: tuple[socket.socket, socket.socket]
) -> None:
    client, conn = pair
    client.settimeout(4e6)  # epoll_wait takes 24 days at most
    for number in range(20):  # the answer comes while it sleeps, in most of them
        thread, outcomes = started(lambda: client.recv(1), "patient")
        thread.join(0.01)
        conn.sendall(bytes([number]))
        thread.join(PATIENCE)
        assert outcomes == [bytes([number])]


def test_an_interrupted_leader_leaves_the_devices_to_others(
    nodes: tuple[Node, Node], pair: tuple[socket.socket, socket.socket]
) -> None:
    client, conn = pair

    class Interrupt(Exception):
        pass

    def interrupt(signum: int, frame: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Interrupt):
            client.recv(1)
    finally:
        signal.signal(signal.SIGALRM, before)
    reader, got = started(lambda: client.recv(1), "reader")
    conn.sendall(b"y")
    reader.join(PATIENCE)
    assert got == [b"y"]


def test_blocking_sockets_have_no_descriptor(nodes: tuple[Node, Node]) -> None:
    left, right = nodes
    with right.listener() as listener:
        sockets = [left.open()]  # each Stack's driver has its own descriptors from here on
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            client = left.open()
            client.connect(("right", 7))
            conn, _ = listener.accept()
            conn.settimeout(PATIENCE)
            client.sendall(b"x")
            assert conn.recv(1) == b"x"
            sockets += [client, conn]
        assert len(os.listdir("/proc/self/fd")) == before
        for sock in sockets:
            sock.close()


def test_timers_fire_with_no_device_that_has_a_descriptor() -> None:
    stack = Stack()
    fired = threading.Event()
    driver = ensure_driver(stack)
    timer = Timer(stack.timers, fired.set)
    with stack.lock:
        timer.mod(time.monotonic() + 0.01)
    assert fired.wait(PATIENCE)
    assert not driver.drives_devices
    stack.close()


def test_an_earlier_timer_is_not_kept_waiting_by_a_later_one() -> None:
    stack = Stack()
    ensure_driver(stack)
    fired = threading.Event()
    late, early = Timer(stack.timers, lambda: None), Timer(stack.timers, fired.set)
    with stack.lock:
        late.mod(time.monotonic() + 3600)
    with stack.lock:
        early.mod(time.monotonic() + 0.01)
    assert fired.wait(PATIENCE)
    stack.close()


def test_timers_fire_while_a_leader_waits(
    nodes: tuple[Node, Node], pair: tuple[socket.socket, socket.socket]
) -> None:
    client, conn = pair
    stack = nodes[0].stack
    reader, got = started(lambda: client.recv(1), "reader")
    for _ in range(3):
        fired = threading.Event()
        timer = Timer(stack.timers, fired.set)
        with stack.lock:
            timer.mod(time.monotonic() + 0.005)
        assert fired.wait(PATIENCE)
    conn.sendall(b"z")
    reader.join(PATIENCE)
    assert got == [b"z"]


def test_a_timer_that_raises_is_logged_and_the_others_fire(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stack = Stack()
    ensure_driver(stack)
    fired = threading.Event()

    def fail() -> None:
        raise LookupError("for this test")

    bad, good = Timer(stack.timers, fail), Timer(stack.timers, fired.set)
    with caplog.at_level(logging.ERROR, "steertag.runtime"), stack.lock:
        now = time.monotonic()
        bad.mod(now)
        good.mod(now)
    assert fired.wait(PATIENCE)
    stack.close()
    assert "for this test" in caplog.text


def test_a_device_that_fails_is_taken_down_and_the_others_go_on(
    nodes: tuple[Node, Node],
    pair: tuple[socket.socket, socket.socket],
    caplog: pytest.LogCaptureFixture,
) -> None:
    client, conn = pair
    ours, theirs = std.socketpair(std.AF_UNIX, std.SOCK_SEQPACKET)
    broken = PipeDevice("broken", ours)
    with caplog.at_level(logging.ERROR, "steertag.runtime"):
        register_frames(nodes[0].stack, broken)
        broken.broken = OSError(errno.EIO, "for this test")
        theirs.send(b"frame")
        while ours.fileno() != -1:
            conn.sendall(b"x")
            assert client.recv(1) == b"x"
    assert "device broken is taken down" in caplog.text
    theirs.close()


def test_a_bug_met_by_a_frame_costs_that_frame_alone(
    nodes: tuple[Node, Node],
    pair: tuple[socket.socket, socket.socket],
    caplog: pytest.LogCaptureFixture,
) -> None:
    client, conn = pair
    ours, theirs = std.socketpair(std.AF_UNIX, std.SOCK_SEQPACKET)
    good = threading.Event()

    def receive(frame: object) -> None:
        if good.is_set():
            raise AssertionError("one frame too many")
        good.set()
        raise LookupError("for this test")

    device = PipeDevice("other", ours)
    with caplog.at_level(logging.ERROR, "steertag.runtime"):
        register_frames(nodes[0].stack, device, receive)
        theirs.send(b"frame")
        assert good.wait(PATIENCE)
        conn.sendall(b"x")
        assert client.recv(1) == b"x"
    assert ours.fileno() != -1
    theirs.close()
    unregister_netdevice(nodes[0].stack, device)
    device.close()


def register_frames(
    stack: Stack, device: Device, receive: Callable[[object], None] = lambda frame: None
) -> None:
    register_netdevice(stack, device, receive)


def test_an_unregistered_device_is_left_alone(nodes: tuple[Node, Node]) -> None:
    stack = nodes[0].stack
    driver = ensure_driver(stack)
    assert driver.drives_devices
    unregister_netdevice(stack, nodes[0].device)
    assert not driver.drives_devices
    nodes[0].device.close()


def test_a_stack_with_another_clock_is_not_driven() -> None:
    ours, theirs = std.socketpair(std.AF_UNIX, std.SOCK_SEQPACKET)
    node = Node("left", ours, clock=lambda: 0.0)
    with node.listener() as listener:
        listener.settimeout(0.01)
        with pytest.raises(TimeoutError):
            listener.accept()
    assert not ensure_driver(node.stack).drives_devices
    theirs.close()
    node.stack.close()


def test_close_ends_the_thread_and_the_devices() -> None:
    ours, theirs = std.socketpair(std.AF_UNIX, std.SOCK_SEQPACKET)
    others = threading.enumerate()  # of other Stacks of this process, perhaps
    node = Node("left", ours)
    with node.open():
        threads = [t for t in threading.enumerate() if t not in others]
        assert "steertag-net" in [thread.name for thread in threads]
        node.stack.close()
        assert not any(thread.is_alive() for thread in threads)
        assert ours.fileno() == -1
        node.stack.close()
    theirs.close()


def test_a_stack_that_nobody_uses_any_more_is_collected() -> None:
    stack = Stack()
    ensure_driver(stack)
    gone = weakref.ref(stack)
    del stack
    gc.collect()
    assert gone() is None


def test_a_child_of_a_fork_leaves_the_parents_connections_alone(
    nodes: tuple[Node, Node], pair: tuple[socket.socket, socket.socket]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKING], capture_output=True, text=True, timeout=60, cwd=PROJECT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "child: network down\nparent: pong\n"


FORKING = textwrap.dedent("""
    import os, sys, threading, warnings
    warnings.simplefilter("ignore")
    sys.path[:0] = [".", "examples"]
    import socket as std
    from tests.unit.test_driver import Node
    ends = std.socketpair(std.AF_UNIX, std.SOCK_SEQPACKET)
    left, right = Node("left", ends[0]), Node("right", ends[1])
    listener, client = right.listener(), left.open()
    client.connect(("right", 7))
    conn, _ = listener.accept()
    waiting = threading.Thread(target=lambda: conn.sendall(conn.recv(4).replace(b"i", b"o")))
    waiting.start()
    child = os.fork()
    if not child:
        try:
            client.sendall(b"from the child")
        except OSError:
            print("child: network down")
        client.close()
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(child, 0)
    client.sendall(b"ping")
    print("parent:", client.recv(4).decode())
    waiting.join()
""")


@pytest.mark.parametrize("last", ["client.close()", "pass"])
def test_what_sockets_have_to_deliver_is_delivered_before_the_interpreter_ends(last: str) -> None:
    ours, theirs = std.socketpair(std.AF_UNIX, std.SOCK_SEQPACKET)
    node = Node("right", theirs)
    with node.listener() as listener, ours:
        process = subprocess.Popen(
            [sys.executable, "-c", SENDING + last, str(ours.fileno())],
            pass_fds=[ours.fileno()],
            cwd=PROJECT,
        )
        conn, _ = listener.accept()
        conn.settimeout(PATIENCE)
        with conn:
            octets = 0
            while data := conn.recv(4096):
                octets += len(data)
        assert process.wait(PATIENCE) == 0
    assert octets == 60_000
    node.stack.close()


SENDING = textwrap.dedent("""
    import socket as std, sys
    sys.path[:0] = [".", "examples"]
    from tests.unit.test_driver import Node
    node = Node("left", std.socket(fileno=int(sys.argv[1])))
    client = node.open()
    client.connect(("right", 7))
    client.sendall(bytes(60_000))
""")


def test_the_interpreter_ends_while_threads_wait_and_frames_come() -> None:
    ours, theirs = std.socketpair(std.AF_UNIX, std.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, "-c", ENDING, str(ours.fileno())],
        pass_fds=[ours.fileno()],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
    )
    ours.close()
    theirs.setblocking(False)
    while process.poll() is None:
        try:
            theirs.send(bytes(64))
        except BlockingIOError:
            select.select([], [theirs], [], 0.1)
        except OSError:
            break  # the other end is gone
    assert process.wait(PATIENCE) == 0
    assert process.stdout is not None
    process.stdout.close()
    theirs.close()


ENDING = textwrap.dedent("""
    import socket as std, sys, threading, time
    sys.path[:0] = [".", "examples"]
    from tests.unit.test_driver import Node
    node = Node("left", std.socket(fileno=int(sys.argv[1])))
    listeners = [node.listener(port) for port in (7, 8, 9)]
    for listener in listeners:
        threading.Thread(target=listener.accept, daemon=True).start()
    while "steertag-net" not in [thread.name for thread in threading.enumerate()]:
        pass
""")


def test_asking_a_descriptor_of_a_waiting_socket_shows_what_comes(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    client, conn = pair
    reader, got = started(lambda: client.recv(1), "reader")
    fd = client.fileno()
    conn.sendall(b"ab")
    reader.join(PATIENCE)
    assert got == [b"a"]
    wait_mask(client, select.POLLIN)
    assert fd == client.fileno()
    assert client.recv(1) == b"b"
