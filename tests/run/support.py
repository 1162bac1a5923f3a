"""The control side of a data process, as tests need it: requests that wait for their answer."""

from __future__ import annotations

import itertools
import os
import select
import socket as std
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from steertag.run.channel import Channel, DataClient
from steertag.run.data import start
from steertag.run.families import family_number
from steertag.run.launch import RunConfig
from steertag.run.sockaddr import emit

LIMIT = 30.0
LOCAL = emit(std.AF_INET, ("127.0.0.1", 0))


class Refused(OSError):
    """What the data process answered."""


class Control:
    """A control process for tests: keeps what is said unasked, and waits for answers.

    Attributes:
        pendings: (listener, token, local, peer) of connections that wait.
        ended: socket -> errno of those that have gone.
        resets: (socket, errno) that wait for an octet and a close.
        sources: socket -> addresses said.
    """

    def __init__(self, pid: int, channel: Channel, family: str = "host") -> None:
        self.pid = pid
        self.channel = channel
        self.client = DataClient(channel, self)
        self.family = family
        self.pendings: list[tuple[int, int, bytes, bytes]] = []
        self.ended: dict[int, int] = {}
        self.resets: list[tuple[int, int]] = []
        self.sources: dict[int, list[bytes]] = {}
        self.dead = False
        self.ids = itertools.count(1)

    # -- Events --------------------------------------------------------------------------------

    def pending(self, listener: int, token: int, local: bytes, peer: bytes) -> None:
        self.pendings.append((listener, token, local, peer))

    def source(self, socket: int, address: bytes) -> None:
        self.sources.setdefault(socket, []).append(address)

    def reset(self, socket: int, error: int) -> None:
        self.resets.append((socket, error))

    def gone(self, socket: int, error: int) -> None:
        self.ended[socket] = error

    def died(self) -> None:
        self.dead = True

    # -- what a program does -------------------------------------------------------------------

    def wait(self, done: Callable[[], object]) -> None:
        """Until `done()`; fails the test after a long time."""
        deadline = time.monotonic() + LIMIT
        poll = select.poll()
        while not done():
            assert time.monotonic() < deadline, "the data process says nothing"
            poll.register(
                self.client.fileno(),
                select.POLLIN | (select.POLLOUT if self.client.wants_write else 0),
            )
            poll.poll(100)
            self.client.flush()
            self.client.dispatch()

    def ask(self, request: Callable[..., int], *args: object) -> Any:  # noqa: ANN401 - the request's
        """The answer to a request. Raises Refused with its errno."""
        answers: list[tuple[int, Any]] = []
        request(*args, lambda error, result: answers.append((error, result)))
        self.wait(lambda: answers)
        error, result = answers[0]
        if error:
            raise Refused(error, os.strerror(error))
        return result

    def socket(self, kind: int = std.SOCK_STREAM, domain: int = std.AF_INET) -> int:
        number = next(self.ids)
        self.client.open(number, family_number(self.family, domain), domain, kind, 0)
        return number

    def pair(self, kind: int = std.SOCK_STREAM) -> tuple[std.socket, int]:
        """The program's end, and the descriptor of ours."""
        packet = kind if kind == std.SOCK_STREAM else std.SOCK_SEQPACKET
        program, ours = std.socketpair(std.AF_UNIX, packet)
        program.settimeout(LIMIT)
        return program, ours.detach()

    def attach(self, number: int, kind: int = std.SOCK_STREAM) -> std.socket:
        program, ours = self.pair(kind)
        self.client.attach(number, ours)
        return program

    def listen(self, backlog: int = 5) -> tuple[int, bytes]:
        """A listener and its address."""
        number = self.socket()
        self.ask(self.client.bind, number, LOCAL)
        return number, self.ask(self.client.listen, number, backlog)

    def connect(self, address: bytes) -> tuple[int, std.socket]:
        """A connection to `address`, and the program's end of it."""
        number = self.socket()
        self.ask(self.client.connect, number, address)
        return number, self.attach(number)

    def accept(self, listener: int) -> tuple[int, std.socket]:
        self.wait(lambda: [each for each in self.pendings if each[0] == listener])
        pending = next(each for each in self.pendings if each[0] == listener)
        self.pendings.remove(pending)
        number = next(self.ids)
        program, ours = self.pair()
        self.client.accept(listener, pending[1], number, ours)
        return number, program

    def stats(self) -> dict[str, int]:
        counts: dict[str, int] = self.ask(self.client.stats)
        return counts

    def finish(self) -> int:
        """Close the channel; the data process's exit status."""
        self.client.close_channel()
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)


@contextmanager
def running(family: str = "host", rtt: float = 0.0) -> Iterator[Control]:
    """A data process, and its control. Fails when it doesn't end well."""
    control = Control(*start(RunConfig(family=family, rtt=rtt)), family)
    try:
        yield control
    finally:
        status = control.finish()
    assert status == 0
