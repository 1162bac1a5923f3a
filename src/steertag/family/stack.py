"""The Stack: families, protocols, devices, memory accounts and parameters, as a network namespace.

There is no table outside of it: two Stacks in a process know nothing of each other.
"""

from __future__ import annotations

import errno
import random
import re
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol
from weakref import WeakSet

from steertag.errors import StateError, os_error
from steertag.family import modules
from steertag.family.const import NPROTO, SOCK_MAX, SOCK_TYPE_MASK
from steertag.family.lock import StackLock
from steertag.family.socket import Socket
from steertag.family.sysctl import CtlTable, Sysctl, ascending, core_tables
from steertag.family.timer import TimerBase

if TYPE_CHECKING:
    import socket as host

    from steertag.family.proto import Proto
    from steertag.family.proto_ops import NetProtoFamily
    from steertag.family.sock import Sock


NETDEV_REGISTER: Final = 5
NETDEV_UNREGISTER: Final = 6
"""Events of `Stack.netdev_chain` (linux/netdevice.h)."""


class Driver(Protocol):
    """What drives a Stack, takes frames from its devices and runs its timers."""

    def close(self) -> None: ...


class Closable(Protocol):
    """Of a device, what the Stack itself has to know."""

    def close(self) -> None: ...


class Stack:
    """One network subsystem.

    Args:
        clock: seconds, for protocols that keep time.
        rng: source of randomness for protocols and for ephemeral ports; seed it for a run that
            can be repeated. Secrets do not come from it.
        load_family: called as `(stack, family)` when a family is asked for that is not
            registered; it may register it. Default: the installed packages' entry points.
            None: no such thing, unknown stays unknown.
        load_observers: called once with the Stack when the first RNIC is opened over it, or its
            devices are driven; it may append to `observers`. Default: the installed packages'
            entry points. None: nobody.

    Attributes:
        lock: see steertag.family.lock for its law.
        sysctl: the parameters.
        timers: see steertag.family.timer; run by whoever drives the Stack.
        protocols: registered protocols, newest first, as /proc/net/protocols has them.
        socks: every sock alive, those without a user included.
        devices: registered devices, by name (steertag.device).
        netdev_chain: called as `(event, device)`, with the lock held, behind the registration of
            a device (NETDEV_REGISTER) and its end (NETDEV_UNREGISTER).
        driver: who drives it; None for one whose owner does (steertag.runtime.netdev).
        sockfs: the SOCKET layer's open descriptors, by inode.
        observers: called with every RNIC (`verbs.Context`) that is opened over the Stack, before
            it has a connection, and with the driver once it drives devices. They may keep it, give
            an RNIC a `tap_for`, and may not raise.
        generic: what other subsystems keep per Stack, by their name (Linux: `net_generic`).
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        load_family: Callable[[Stack, int], None] | None = modules.request_module,
        load_observers: Callable[[Stack], None] | None = modules.request_observers,
    ) -> None:
        self.lock = StackLock()
        self.clock = clock
        self.rng = rng if rng is not None else random.Random()
        self.sysctl = Sysctl()
        self.timers = TimerBase()
        for table in core_tables():
            self.sysctl.register(table)
        self.protocols: list[Proto] = []
        self.socks: WeakSet[Sock] = WeakSet()
        self.devices: dict[str, Closable] = {}
        self.netdev_chain: list[Callable[[int, object], None]] = []
        self.driver: Driver | None = None
        self.sockfs: dict[int, object] = {}
        self.observers: list[Callable[[object], None]] = []
        self.generic: dict[str, object] = {}
        self._families: dict[int, NetProtoFamily] = {}
        self._users: dict[int, int] = {}
        self._load_family = load_family
        self._load_observers = load_observers
        self._loading = threading.RLock()

    def close(self) -> None:
        """End it: nobody drives it any more, and its devices are closed.

        What sockets still had to deliver is lost, and their connections with it. Calling it again
        does nothing.
        """
        driver, self.driver = self.driver, None
        if driver is not None:
            driver.close()
        with self.lock:
            devices = list(self.devices.values())
        for device in devices:
            device.close()

    # -- protocols ----------------------------------------------------------------------------

    def proto_register(self, prot: Proto) -> None:
        """Enter a protocol; its memory marks become sysctls `net.<name>.mem`, `wmem`, `rmem`.

        Raises:
            OSError: EEXIST, a protocol or its sysctls of that name are there; EBUSY, the Proto
                is registered with some Stack; EINVAL, memory hooks without `memory_pressure`,
                or marks that are not three ascending integers.
        """
        _check_memory_members(prot)
        with self.lock:
            if prot.stack is not None:
                raise os_error(errno.EBUSY, f"protocol {prot.name} is registered already")
            if any(other.name == prot.name for other in self.protocols):
                raise os_error(errno.EEXIST, f"protocol {prot.name}")
            tables = _proto_tables(prot)
            for table in tables:
                if table.name in self.sysctl:
                    raise os_error(errno.EEXIST, f"sysctl {table.name}")
            for table in tables:
                self.sysctl.register(table)
            prot.stack = self
            self.protocols.insert(0, prot)

    def proto_unregister(self, prot: Proto) -> None:
        """Take a protocol out.

        Raises:
            OSError: ENOENT, it is not registered here; EBUSY, it has socks, closed ones with data
                to deliver included.
        """
        with self.lock:
            if prot.stack is not self:
                raise os_error(errno.ENOENT, f"protocol {prot.name}")
            if prot.inuse:
                raise os_error(errno.EBUSY, f"protocol {prot.name} has {prot.inuse} sockets")
            prot.stack = None
            self.protocols.remove(prot)
            for table in _proto_tables(prot):
                self.sysctl.unregister(table.name)

    # -- families -----------------------------------------------------------------------------

    def sock_register(self, family: NetProtoFamily) -> None:
        """Enter a family.

        Raises:
            OSError: ENOBUFS, its number is not in 0..NPROTO-1; EEXIST, the number is taken.
        """
        number = family.family
        with self.lock:
            if not 0 <= number < NPROTO:
                raise os_error(errno.ENOBUFS, f"family {number} is not below NPROTO ({NPROTO})")
            if number in self._families:
                raise os_error(errno.EEXIST, f"family {number}")
            self._families[number] = family
            self._users[number] = 0

    def sock_unregister(self, family: int) -> None:
        """Take a family out.

        Raises:
            OSError: EINVAL, no such number; ENOENT, not registered; EBUSY, it has sockets, or one
                is being made at this moment.
        """
        with self.lock:
            if not 0 <= family < NPROTO:
                raise os_error(errno.EINVAL, f"family {family}")
            if family not in self._families:
                raise os_error(errno.ENOENT, f"family {family}")
            if self._users[family]:
                users, owner = self._users[family], self._families[family].owner
                raise os_error(errno.EBUSY, f"family {family} of {owner} has {users} sockets")
            del self._families[family]
            del self._users[family]

    @property
    def families(self) -> dict[int, NetProtoFamily]:
        """The registered families, by number (a copy)."""
        with self.lock:
            return dict(self._families)

    def load_announced_families(self) -> list[int]:
        """Register every family that an installed package brings; returns the new numbers."""
        added = []
        for number in sorted(modules.announced()):
            with self.lock:
                known = number in self._families
            if not known:
                modules.request_module(self, number)
                added.append(number)
        return added

    # -- observers ----------------------------------------------------------------------------

    def opened(self, context: object) -> None:
        """An RNIC is opened over this Stack, or its devices are driven: tell the observers.

        Raises:
            OSError: ENOEXEC, an installed package's observer is broken.
        """
        with self._loading:
            load, self._load_observers = self._load_observers, None
            if load is not None:
                load(self)
        for observer in self.observers:
            observer(context)

    # -- sockets ------------------------------------------------------------------------------

    def sock_create(self, family: int, type: int, protocol: int = 0) -> Socket:
        """A new socket, unconnected (`__sock_create`). Flag bits in `type` are ignored.

        Raises:
            OSError: EAFNOSUPPORT, ESOCKTNOSUPPORT, EPROTONOSUPPORT; EINVAL for numbers that can't
                be; what the family's `create` raises.
        """
        kind = type & SOCK_TYPE_MASK
        if not 0 <= family < NPROTO:
            raise os_error(errno.EAFNOSUPPORT, f"family {family}")
        if not 0 < kind < SOCK_MAX:
            raise os_error(errno.EINVAL, f"socket type {type}")
        if protocol < 0:
            raise os_error(errno.EINVAL, f"protocol {protocol}")
        entry = self._hold_family(family)
        sock = Socket(self, family, kind, protocol)
        return self._made(sock, lambda: entry.create(self, sock, protocol))

    def sock_adopt(self, native: host.socket) -> Socket:
        """A socket around one of the host kernel's that exists already.

        Raises:
            OSError: EAFNOSUPPORT, its family is not registered or does not adopt.
        """
        entry = self._hold_family(native.family)
        adopt = entry.adopt
        if adopt is None:
            self._put_family(native.family)
            raise os_error(errno.EAFNOSUPPORT, f"family {native.family} adopts no sockets")
        sock = Socket(self, native.family, native.type, native.proto)
        return self._made(sock, lambda: adopt(self, sock, native))

    def sock_alloc(self, like: Socket) -> Socket:
        """An empty socket of the same family and type, for `accept` to fill."""
        self._hold_family(like.family)
        sock = Socket(self, like.family, like.type, like.protocol)
        sock.ops = like.ops
        return sock

    def sock_put(self, sock: Socket) -> None:
        """The socket is gone; its family has one user less (module_put). With the lock held."""
        if not sock.released:
            sock.released = True
            self._users[sock.family] -= 1

    def _made(self, sock: Socket, create: Callable[[], None]) -> Socket:
        try:
            with self.lock:
                create()
                if sock.sk is None:
                    raise StateError(f"create of family {sock.family} made no sock")
            return sock
        except BaseException:
            with self.lock:
                self.sock_put(sock)
            raise

    def _hold_family(self, family: int) -> NetProtoFamily:
        """The family, with one user more, asked for from installed packages if need be."""
        if family not in self._families and self._load_family is not None:
            # Without the Stack's lock: loading a module may take long, and may use this Stack.
            with self._loading:
                if family not in self._families:
                    self._load_family(self, family)
        with self.lock:
            entry = self._families.get(family)
            if entry is None:
                raise os_error(errno.EAFNOSUPPORT, f"family {family}")
            self._users[family] += 1
            return entry

    def _put_family(self, family: int) -> None:
        with self.lock:
            self._users[family] -= 1


def _check_memory_members(prot: Proto) -> None:
    hooks = prot.enter_memory_pressure or prot.leave_memory_pressure
    if hooks and (prot.memory_pressure is None or prot.memory_allocated is None):
        raise os_error(
            errno.EINVAL,
            f"protocol {prot.name}: pressure hooks need memory_pressure and memory_allocated",
        )
    for row in (prot.sysctl_mem, prot.sysctl_wmem, prot.sysctl_rmem):
        if row is None:
            continue
        if len(row) != 3:
            raise os_error(errno.EINVAL, f"protocol {prot.name}: marks are three, not {len(row)}")
        ascending(row)


def _proto_tables(prot: Proto) -> list[CtlTable]:
    base = "net." + re.sub(r"\W+", "_", prot.name.lower())
    rows = (
        ("mem", prot.sysctl_mem, "low, pressure and high marks, in quanta of 4096 octets"),
        ("wmem", prot.sysctl_wmem, "send buffer: minimum, default, maximum, octets"),
        ("rmem", prot.sysctl_rmem, "receive buffer: minimum, default, maximum, octets"),
    )
    return [
        CtlTable(f"{base}.{suffix}", data, doc, check=ascending)
        for suffix, data, doc in rows
        if data is not None
    ]
