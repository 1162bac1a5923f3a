"""Looking into another process: its memory, its descriptors, which socket one of them is."""

from __future__ import annotations

import ctypes
import errno
import os
import socket as std
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from steertag.run.syscalls import of_machine
from steertag.run.target import Target, set_nonblocking


@contextmanager
def child() -> Iterator[int]:
    """A process with our memory and our descriptors, which does nothing."""
    waits, ends = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ends)
        os.read(waits, 1)
        os._exit(0)
    os.close(waits)
    try:
        yield pid
    finally:
        os.close(ends)
        os.waitpid(pid, 0)


@pytest.fixture
def target() -> Target:
    return Target(of_machine())


def allowed(target: Target, pid: int) -> None:
    try:
        target.getfd(pid, 0)
    except PermissionError as exc:
        pytest.skip(f"not possible here: {exc}")
    except OSError:
        return


@pytest.mark.parametrize("size", [1, 100, 4096, 4097, 300_000])
def test_memory_that_is_written_is_what_is_read(target: Target, size: int) -> None:
    place = ctypes.create_string_buffer(size)
    address = ctypes.addressof(place)
    data = os.urandom(size)
    with child() as pid:
        allowed(target, pid)
        target.poke(pid, address, data)
        assert target.peek(pid, address, size) == data
    assert place.raw == bytes(size)  # ours is another process's


def test_an_int_is_read_with_its_sign(target: Target) -> None:
    place = ctypes.create_string_buffer(struct.pack("=i", -5))
    with child() as pid:
        allowed(target, pid)
        assert target.peek_int(pid, ctypes.addressof(place)) == -5


def test_memory_that_is_not_there_is_a_fault(target: Target) -> None:
    with child() as pid:
        allowed(target, pid)
        for call in (
            lambda: target.peek(pid, 8, 16),
            lambda: target.poke(pid, 8, b"x"),
            lambda: target.peek(pid, 8, 1 << 20),
        ):
            with pytest.raises(OSError) as caught:  # noqa: PT011 - by its errno
                call()
            assert caught.value.errno == errno.EFAULT


def test_no_octets_are_read_from_anywhere(target: Target) -> None:
    assert target.peek(1, 0, 0) == b""


def test_more_than_a_message_has_is_not_copied(target: Target) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - by its errno
        target.peek(os.getpid(), 0, 1 << 30)
    assert caught.value.errno == errno.EMSGSIZE


def test_a_descriptor_and_its_duplicates_are_the_same_socket(target: Target) -> None:
    one, other = std.socketpair()
    with one, other, child() as pid:
        copy = os.dup(one.fileno())
        key = target.identity(os.getpid(), one.fileno())
        assert key == f"socket:[{os.fstat(one.fileno()).st_ino}]"
        assert target.identity(os.getpid(), copy) == key
        assert target.identity(pid, one.fileno()) == key
        assert target.identity(pid, other.fileno()) != key
        assert target.identity(os.getpid(), copy + 500) is None
        assert sorted(target.holding(os.getpid(), {str(key)})) == sorted([one.fileno(), copy])
        os.close(copy)


def test_the_mode_is_that_of_the_moment(target: Target) -> None:
    one, other = std.socketpair()
    with one, other, child() as pid:
        assert not target.nonblocking(pid, one.fileno())
        set_nonblocking(one.fileno(), True)
        assert target.nonblocking(pid, one.fileno())  # one open file, in both processes
        set_nonblocking(one.fileno(), False)
        assert not target.nonblocking(pid, one.fileno())
        assert target.flags(os.getpid(), one.fileno()) & os.O_CLOEXEC


def test_a_duplicate_of_a_descriptor_is_the_same_open_file(target: Target) -> None:
    one, other = std.socketpair()
    with one, other, child() as pid:
        allowed(target, pid)
        with target.socket(pid, one.fileno()) as copy:
            copy.send(b"through the copy")
        assert other.recv(100) == b"through the copy"
        with pytest.raises(OSError) as caught:  # noqa: PT011 - by its errno
            target.getfd(pid, 5000)
        assert caught.value.errno == errno.EBADF


def test_a_process_that_has_ended_is_no_error_to_look_for(target: Target) -> None:
    with child() as pid:
        assert target.process(pid) == pid
        assert target.visible(pid)
    assert target.identity(pid, 0) is None
    assert target.executable(pid) == ""
    assert not target.catches_signals(pid)
    with pytest.raises(OSError) as caught:  # noqa: PT011 - by its errno
        target.process(pid)
    assert caught.value.errno == errno.ESRCH
