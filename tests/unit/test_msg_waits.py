"""A call that is waited for leaves its buffers with the family, and can be given up."""

from __future__ import annotations

import errno
import select
import signal
import socket as std
import threading

import pytest

from steertag import Stack, family, socket
from steertag.errors import os_error
from steertag.family import MsgHdr, NetProtoFamily, Proto, ProtoOps, Sock, Socket

AF_LENDING = 99
PATIENCE = 30.0


class Lending:
    """A family that keeps the buffers of calls that wait, and fills them when it is told to.

    Attributes:
        lent: the message whose buffers it has.
        asked: set when it has got one.
        cancels: how often it was asked to let go.
        holds: cancels that it answers with "not yet" first.
        kept: what it was left with, when a caller could not be told.
    """

    def __init__(self) -> None:
        self.lent: MsgHdr | None = None
        self.asked = threading.Event()
        self.cancels = self.holds = 0
        self.done = 0
        self.kept = b""
        self.waits: list[bool] = []
        self.prot = Proto(name="LENDING", owner=__name__, busy_loop=self.busy_loop)
        self.looks = 0
        self.ops = ProtoOps(
            family=AF_LENDING,
            owner=__name__,
            release=family.inet_release,
            sendmsg=self.sendmsg,
            recvmsg=self.recvmsg,
            cancel=self.cancel,
            poll=lambda sock: select.POLLIN | select.POLLOUT,
        )
        self.stack = Stack()
        self.stack.proto_register(self.prot)
        self.stack.sock_register(
            NetProtoFamily(family=AF_LENDING, create=self.create, owner=__name__)
        )

    def create(self, stack: Stack, sock: Socket, protocol: int) -> None:
        sock.ops = self.ops
        family.sock_init_data(sock, family.sk_alloc(stack, sock.family, self.prot))

    def open(self, timeout: float | None) -> socket.socket:
        sock = socket.socket(AF_LENDING, std.SOCK_STREAM, stack=self.stack)
        sock.settimeout(timeout)
        return sock

    def busy_loop(self, sk: Sock) -> bool:
        self.looks += 1
        return False

    def recvmsg(self, sock: Socket, msg: MsgHdr, flags: int) -> int:
        return self.call(msg)

    def sendmsg(self, sock: Socket, msg: MsgHdr) -> int:
        return self.call(msg)

    def call(self, msg: MsgHdr) -> int:
        self.waits.append(msg.msg_waits)
        if self.lent is msg and self.done:
            self.lent, done, self.done = None, self.done, 0
            return done
        if msg.msg_waits:
            assert self.lent in (None, msg)
            self.lent = msg
        self.asked.set()
        raise os_error(errno.EAGAIN)

    def cancel(self, sock: Socket, msg: MsgHdr) -> int:
        assert msg is self.lent
        self.cancels += 1
        if self.holds:
            self.holds -= 1
            # As if a peer had answered: there is news, a moment later.
            sock.stack.lock.raise_work(lambda: sock.wake(select.POLLIN | select.POLLOUT))
            raise os_error(errno.EAGAIN)
        self.lent, done, self.done = None, self.done, 0
        if not msg.msg_waits:
            self.kept = msg.read(0, done)
            return 0
        return done

    def fill(self, sock: socket.socket, data: bytes) -> None:
        with self.stack.lock:
            assert self.lent is not None
            self.lent.msg_iov[0][: len(data)] = data
            self.done = len(data)
            sock.kernel.wake(select.POLLIN)


def test_a_buffer_that_is_waited_with_is_filled_while_its_caller_sleeps() -> None:
    world = Lending()
    with world.open(PATIENCE) as sock:
        received: list[bytes] = []
        thread = threading.Thread(target=lambda: received.append(sock.recv(100)))
        thread.start()
        assert world.asked.wait(PATIENCE)
        world.fill(sock, b"filled")
        thread.join(PATIENCE)
    assert received == [b"filled"]
    assert world.waits == [True, True]
    assert world.cancels == 0


def test_a_call_that_does_not_wait_lends_nothing() -> None:
    world = Lending()
    with world.open(0.0) as sock:
        for call in (lambda: sock.recv(10), lambda: sock.send(b"x"), lambda: sock.sendall(b"x")):
            with pytest.raises(BlockingIOError):
                call()
        sock.settimeout(None)
        for call in (
            lambda: sock.recv(10, std.MSG_DONTWAIT),
            lambda: sock.send(b"x", std.MSG_DONTWAIT),
            lambda: sock.sendall(b"x", std.MSG_DONTWAIT),
        ):
            with pytest.raises(BlockingIOError):
                call()
    assert world.waits == [False] * 6
    assert world.lent is None


@pytest.mark.parametrize("holds", [0, 3])
def test_a_timeout_gets_its_buffers_back(holds: int) -> None:
    world = Lending()
    world.holds = holds
    with world.open(0.01) as sock:
        for call in (lambda: sock.recv(10), lambda: sock.send(b"x"), lambda: sock.sendall(b"x")):
            with pytest.raises(TimeoutError):
                call()
            assert world.lent is None
    assert world.cancels == 3 + holds


def test_what_was_moved_by_the_time_of_a_timeout_is_the_calls_answer() -> None:
    world = Lending()
    with world.open(0.01) as sock:
        cancel = world.cancel
        buffer = bytearray(10)

        def moved(sock: Socket, msg: MsgHdr) -> int:
            msg.msg_iov[0][:4] = b"late"
            world.done = 4
            return cancel(sock, msg)

        object.__setattr__(world.ops, "cancel", moved)
        assert sock.recv_into(buffer) == 4
        assert buffer[:4] == b"late"
        assert sock.send(bytearray(10)) == 4


def test_an_exception_gets_the_buffers_back_and_the_family_keeps_what_it_had_moved() -> None:
    world = Lending()

    class Interrupted(Exception):
        pass

    over = threading.Event()
    raised: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        if not raised:
            raised.append(number)
            raise Interrupted

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with world.open(PATIENCE) as sock:
            main = threading.main_thread().ident
            assert main is not None

            def disturb() -> None:
                assert world.asked.wait(PATIENCE)
                with world.stack.lock:
                    assert world.lent is not None
                    world.lent.msg_iov[0][:4] = b"kept"
                    world.done = 4
                # One that comes just before a system call doesn't end it: another one does.
                while not over.wait(0.01):
                    signal.pthread_kill(main, signal.SIGUSR1)

            thread = threading.Thread(target=disturb)
            thread.start()
            with pytest.raises(Interrupted):
                sock.recv_into(bytearray(10))
            over.set()
            thread.join(PATIENCE)
    finally:
        over.set()
        signal.signal(signal.SIGUSR1, before)
    assert world.lent is None
    assert world.kept == b"kept"


def test_who_is_about_to_sleep_looks_at_its_own_stream_first() -> None:
    world = Lending()
    with world.open(0.01) as sock, pytest.raises(TimeoutError):
        sock.recv(10)
    assert world.looks >= 1


def test_a_kernel_call_given_up_after_the_release_has_done_nothing() -> None:
    world = Lending()
    sock = world.open(0.0)
    kernel = sock.kernel
    sock.close()
    assert family.net.sock_cancel(kernel, MsgHdr((memoryview(b"x"),))) == 0
