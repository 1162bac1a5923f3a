"""The Stack's lock, the work that is raised for it, and many threads at once."""

import socket as std
import threading

from new_protocol import AF_EXAMPLE, register

from steertag import Stack, device, socket
from steertag.family.lock import StackLock
from steertag.testing.families import PATIENCE, read_exactly


def test_raised_work_runs_at_once_when_the_lock_is_free() -> None:
    ran: list[int] = []
    StackLock().raise_work(lambda: ran.append(1))
    assert ran == [1]


def test_raised_work_waits_until_the_lock_is_let_go_for_the_last_time() -> None:
    lock, ran = StackLock(), []
    with lock:
        with lock:
            lock.raise_work(lambda: ran.append(1))
            assert ran == []
        assert ran == []
    assert ran == [1]


def test_work_that_raises_work_does_not_nest() -> None:
    lock, events = StackLock(), []

    def outer() -> None:
        lock.raise_work(lambda: events.append("inner"))
        events.append("outer")

    lock.raise_work(outer)
    assert events == ["outer", "inner"]


def test_work_for_a_lock_that_another_thread_holds_is_done_by_its_holder() -> None:
    lock, ran = StackLock(), []
    held, raised = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            raised.wait(PATIENCE)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(PATIENCE)
    lock.raise_work(lambda: ran.append(threading.current_thread()))
    assert ran == []
    raised.set()
    holder.join()
    assert ran == [holder]


def test_an_error_in_raised_work_leaves_the_lock_free() -> None:
    lock = StackLock()

    def fail() -> None:
        raise ZeroDivisionError

    try:
        lock.raise_work(fail)
    except ZeroDivisionError:
        ran: list[int] = []
        threading.Thread(target=lambda: lock.raise_work(lambda: ran.append(1))).run()
        assert ran == [1]
    else:
        raise AssertionError("the error was lost")


def test_many_threads_over_two_stacks_move_everything_both_ways() -> None:
    left, right = Stack(), Stack()
    ends = device.memory_link()
    families = [register(left, ends[0], "left"), register(right, ends[1], "right")]
    data = bytes(range(256)) * 400
    failures: list[BaseException] = []

    def exchange(sock: socket.socket) -> None:
        try:
            with sock:
                sock.settimeout(PATIENCE)
                sender = threading.Thread(target=sock.sendall, args=(data,))
                sender.start()
                assert read_exactly(sock, len(data)) == data
                sender.join()
                sock.shutdown(std.SHUT_WR)
                assert sock.recv(1) == b""
        except BaseException as exc:  # noqa: BLE001  # reported by the main thread
            failures.append(exc)

    threads = []
    with socket.socket(AF_EXAMPLE, std.SOCK_STREAM, stack=right) as server:
        server.bind(("right", 1))
        server.listen()
        for _ in range(4):
            client = socket.socket(AF_EXAMPLE, std.SOCK_STREAM, stack=left)
            client.connect(("right", 1))
            pair = (client, server.accept()[0])
            threads += [threading.Thread(target=exchange, args=(sock,)) for sock in pair]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert failures == []
    for family in families:
        family.unregister()  # EBUSY if anything was left
        assert family.stream.prot.memory_allocated.value == 0
