"""Two Stacks on a link; and the host kernel beside a Stack, asked the same questions."""

from __future__ import annotations

import errno
import random
import socket as std
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from steertag.device import memory_link
from steertag.device.base import Device
from steertag.family.stack import Stack
from steertag.inet import AF_INET_NEW_TCP, InetNet, inet_net, register
from steertag.socket import socket

SECRET: Final = bytes(range(16))
NEAR4, FAR4, NEAR6, FAR6 = "10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Host:
    """One Stack of a test, its clock, and the sockets that the test has made."""

    stack: Stack
    clock: Clock
    sockets: list[Any] = field(default_factory=list)

    @property
    def net(self) -> InetNet:
        return inet_net(self.stack)

    @property
    def mib(self) -> dict[str, int]:
        return {
            group + name: value
            for group, counters in self.net.mib.groups()
            for name, value in counters.items()
        }

    def device(self, name: str) -> Device:
        found = self.stack.devices[name]
        assert isinstance(found, Device)
        return found

    def socket(self, kind: int = std.SOCK_DGRAM, proto: int = 0) -> Any:  # noqa: ANN401  # as std's
        sock = socket(AF_INET_NEW_TCP, kind, proto, stack=self.stack)
        sock.setblocking(False)
        self.sockets.append(sock)
        return sock

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


def host(seed: int = 1) -> Host:
    """A Stack with "lo" alone."""
    clock = Clock()
    stack = Stack(clock=clock, rng=random.Random(seed), load_family=None, load_observers=None)
    register(stack, secret=SECRET)
    return Host(stack, clock)


@contextmanager
def two_hosts(
    mtu: int = 1500, wrap: Callable[[Device], Device] = lambda device: device
) -> Iterator[tuple[Host, Host]]:
    """10.0.0.1, fd00::1 and 10.0.0.2, fd00::2 on one link; `wrap` goes around the first's end."""
    near, far = host(1), host(2)
    one, other = memory_link(("mem0", "mem1"), mtu=mtu)
    near.net.add_device(wrap(one), (f"{NEAR4}/24", f"{NEAR6}/64"))
    far.net.add_device(other, (f"{FAR4}/24", f"{FAR6}/64"))
    try:
        yield near, far
    finally:
        near.close()
        far.close()


class Side:
    """Sockets over loopback, of the host kernel or of a Stack, and what their calls came to."""

    def __init__(self, family: int, stack: Stack | None = None) -> None:
        self.family = family
        self.stack = stack
        self.kernel = stack is None
        self.local = "::1" if family == std.AF_INET6 else "127.0.0.1"
        self.any = "::" if family == std.AF_INET6 else "0.0.0.0"
        self._sockets: list[Any] = []
        self._ports: list[int] = []

    def socket(self, kind: int = std.SOCK_DGRAM, proto: int = 0) -> Any:  # noqa: ANN401  # as std's
        sock: Any
        if self.stack is None:
            sock = std.socket(self.family, kind, proto)
        else:
            sock = socket(AF_INET_NEW_TCP, kind, proto, stack=self.stack)
        sock.setblocking(False)
        self._sockets.append(sock)
        return sock

    def bound(self, kind: int = std.SOCK_DGRAM, proto: int = 0) -> Any:  # noqa: ANN401
        sock = self.socket(kind, proto)
        sock.bind((self.local, 0))
        return sock

    def closed_port(self) -> int:
        """A port that nobody has."""
        with self.bound() as sock:
            return int(sock.getsockname()[1])

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


def outcome(call: Callable[[], object]) -> object:
    """What a call returns, or the name of the errno or the exception that it raises."""
    try:
        return call()
    except OSError as exc:
        return errno.errorcode.get(exc.errno or 0, repr(exc))
    except (TypeError, OverflowError, ValueError) as exc:
        return type(exc).__name__


def ask_both(family: int, script: Callable[[Side], object]) -> tuple[object, object]:
    """What a script finds over a Stack's loopback, and over the host kernel's."""
    ours, theirs = Side(family, host().stack), Side(family)
    try:
        return script(ours), script(theirs)
    finally:
        ours.close()
        theirs.close()
