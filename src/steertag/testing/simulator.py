"""A world of Stacks on one clock that nobody waits for: the same seed, the same packets.

A `World` has nodes, each a Stack with AF_INET_NEW_TCP, links between them that lose, reorder,
duplicate, corrupt and delay, and applications: generators that make the system calls of
`steertag.family.net` and yield what they wait for::

    world = World(seed=7)
    left, right = world.node("left"), world.node("right")
    world.link(left, right, latency=0.02, faults=Faults(loss=0.1))
    received = world.spawn(receiver(right.listen(80)))
    world.spawn(sender(left.socket(), right.address(80), bytes(100_000)))
    world.run_until(lambda: received.done, limit=600)

Time passes only where nothing is left to do at a moment: it jumps to the next timer, delivery or
wake-up. Where there is none, and what was waited for has not come, the world hangs and says who
waits for what (`WorldHangs`).
"""

from __future__ import annotations

import gc
import hashlib
import random
import select
import socket as host
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from steertag.device import Device, FaultDevice, Faults, Frame, Offload
from steertag.family.net import kernel_bind, kernel_listen, kernel_setsockopt, sock_poll
from steertag.family.skbuff import Buffer
from steertag.family.socket import Socket
from steertag.family.stack import Stack
from steertag.family.timer import Timer, TimerBase
from steertag.inet import AF_INET_NEW_TCP, inet_net, register

T = TypeVar("T")

START: Final = 1000.0
"""Where the clock of a world begins, seconds."""
NO_FAULTS: Final = Faults()
_ENDS: Final = select.POLLERR | select.POLLHUP
_MOST_STEPS_AT_A_MOMENT: Final = 1_000_000


class WorldError(AssertionError):
    """What was waited for did not come. The message says what everybody waits for."""


class WorldHangs(WorldError):
    """No timer is set, nothing is on its way and nobody can go on."""


class WorldTimeout(WorldError):
    """It took longer than the limit, in the world's own seconds."""


class WorldSpins(WorldError):
    """Things happen for ever and time does not pass."""


@dataclass(frozen=True, slots=True)
class Ready:
    """What an application yields: go on when one of `events` (POLL*) holds, or an error does."""

    sock: Socket
    events: int


Wait = Ready | float
"""What an application yields: a socket's readiness, or seconds to sleep."""
App = Generator[Wait, None, T]


class Task(Generic[T]):
    """An application that runs in a world.

    Attributes:
        name: as shown in reports.
        done: it has returned or raised.
        error: what it raised.
    """

    def __init__(self, world: World, app: App[T], name: str) -> None:
        self.name = name
        self.done = False
        self.error: BaseException | None = None
        self.waits: Wait | None = None
        self._world = world
        self._app = app
        self._value: T | None = None
        self._queued = False
        self._timer = Timer(world.timers, self.ready)

    def result(self) -> T:
        """What it returned; raises what it raised. WorldError while it runs."""
        if self.error is not None:
            raise self.error
        if not self.done:
            raise WorldError(f"{self} runs still")
        return self._value  # type: ignore[return-value]  # set with `done`

    def ready(self, mask: int = 0) -> None:
        """Have it looked at again."""
        if not self._queued and not self.done:
            self._queued = True
            self._world.runnable.append(self)

    def go_on(self) -> None:
        """Run until it waits again, if what it waits for has come."""
        self._queued = False
        if isinstance(self.waits, Ready):
            if not sock_poll(self.waits.sock) & (self.waits.events | _ENDS | select.POLLNVAL):
                return
            self._unwait(self.waits.sock)
        try:
            self.waits = next(self._app)
        except StopIteration as end:
            self.done, self.waits, self._value = True, None, end.value
        except (OSError, WorldError) as error:
            self.done, self.waits, self.error = True, None, error
        else:
            self._wait(self.waits)

    def _wait(self, waits: Wait) -> None:
        if isinstance(waits, Ready):
            with waits.sock.stack.lock:
                waits.sock.wait_queue.append(self.ready)
            if sock_poll(waits.sock) & (waits.events | _ENDS | select.POLLNVAL):
                self.ready()
        else:
            self._timer.mod(self._world.now + waits)

    def _unwait(self, sock: Socket) -> None:
        with sock.stack.lock:
            sock.wait_queue.remove(self.ready)

    def __str__(self) -> str:
        if self.done:
            return f"{self.name}: done" if self.error is None else f"{self.name}: {self.error!r}"
        if isinstance(self.waits, Ready):
            asked, holds = self.waits.events, sock_poll(self.waits.sock)
            lost = ", and it was not woken" if holds & (asked | _ENDS) else ""
            return f"{self.name}: waits for {asked:#x} of {self.waits.sock}, has {holds:#x}{lost}"
        return f"{self.name}: sleeps" if self.waits is not None else f"{self.name}: not started"


class Node:
    """One Stack of a world, with AF_INET_NEW_TCP registered. Made by `World.node`.

    Attributes:
        name: as shown in reports.
        stack: the Stack. Its secret and its randomness come from the world's seed.
        net: its network layer.
        addresses: what `World.link` gave it, IPv4 and IPv6 in turn.
    """

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.world = world
        rng = random.Random(f"{world.seed}/{name}")
        self.stack = Stack(clock=world.clock, rng=rng, load_family=None)
        register(self.stack, secret=random.Random(f"{world.seed}/{name}/secret").randbytes(16))
        self.net = inet_net(self.stack)
        self.addresses: list[str] = []

    def address(self, port: int, family: int = 4) -> tuple[str, int]:
        """Where a peer on the first link finds this node."""
        return next(text for text in self.addresses if (":" in text) == (family == 6)), port

    def socket(self, kind: int = host.SOCK_STREAM) -> Socket:
        """A new socket."""
        return self.stack.sock_create(AF_INET_NEW_TCP, kind, 0)

    def listen(self, port: int, backlog: int = 128) -> Socket:
        """A listening socket on every address, IPv4 and IPv6."""
        sock = self.socket()
        kernel_setsockopt(sock, host.SOL_SOCKET, host.SO_REUSEADDR, 1)
        kernel_bind(sock, ("", port))
        kernel_listen(sock, backlog)
        return sock

    def set(self, **sysctls: int) -> None:
        """Write sysctls, named without their `net.ipv4.`: `node.set(tcp_sack=0)`."""
        for name, value in sysctls.items():
            self.stack.sysctl.write(f"net.ipv4.{name}", str(value))

    def charged(self) -> dict[str, int]:
        """Quanta of memory that each protocol has taken, those without any left out."""
        accounts = ((prot.name, prot.memory_allocated) for prot in self.stack.protocols)
        return {name: account.value for name, account in accounts if account and account.value}

    def left_over(self) -> list[str]:
        """What has not ended: timers set, socks alive, memory charged. Empty: nothing."""
        if not (left := self._left_over()):
            return left
        gc.collect()  # what nobody refers to any more is no sock that is alive
        return self._left_over()

    def _left_over(self) -> list[str]:
        left = [f"{self.name}: {sk!r}" for sk in self.stack.socks]
        left += [f"{self.name}: {count} quanta of {name}" for name, count in self.charged().items()]
        if self.stack.timers.pending:
            left.append(f"{self.name}: {self.stack.timers.pending} timers")
        return left


class Wire(Device):
    """One end of a link: what it takes comes out of its peer later, in order.

    Attributes:
        latency, rate, buffer: as of `World.link`; they may be changed while it runs.
        cut: nothing that is sent arrives.
    """

    def __init__(
        self, world: World, name: str, mtu: int, latency: float, rate: float, buffer: int
    ) -> None:
        super().__init__(name, mtu)
        self.latency, self.rate, self.buffer = latency, rate, buffer
        self.cut = False
        self.peer = self
        self._world = world
        self._free_at = 0.0  # when the last of what waits is on its way
        self._coming: deque[tuple[float, bytes]] = deque()
        self._timer = Timer(world.timers, self._arrived)

    def transmit(self, parts: Sequence[Buffer], offload: Offload | None = None) -> None:
        packet = b"".join(parts)
        self.count_transmit(len(packet))
        now = self._world.now
        self._world.sent(self, packet)
        leaves = now
        if self.rate:
            waits = max(self._free_at - now, 0.0)
            if self.cut or (self.buffer and waits * self.rate + len(packet) > self.buffer):
                self.stats.tx_dropped += 1
                return
            leaves = self._free_at = now + waits + len(packet) / self.rate
        elif self.cut:
            self.stats.tx_dropped += 1
            return
        self.peer.comes(leaves + self.latency, packet)

    def comes(self, at: float, packet: bytes) -> None:
        """A packet that will be here at that time."""
        if self._coming:
            at = max(at, self._coming[-1][0])
        self._coming.append((at, packet))
        if not self._timer.pending:
            self._timer.mod(at)

    def _arrived(self) -> None:
        if self.on_receive is not None:
            self.on_receive()
        if self._coming:
            self._timer.mod(self._coming[0][0])

    def receive(self) -> Frame | None:
        if not self._coming or self._coming[0][0] > self._world.now:
            return None
        return Frame(memoryview(self._coming.popleft()[1]))

    def close(self) -> None:
        self._coming.clear()
        self._timer.delete()


class World:
    """Stacks, links and applications on one clock.

    Args:
        seed: of everything random: the links' faults, the Stacks' rng and secrets.
        start: where its clock begins, seconds; initial sequence numbers go by it.

    Attributes:
        now: seconds.
        timers: the links' and the applications'.
        nodes: in the order made.
        tasks: every application spawned.
        trace: called with (seconds, the sending device's name, the packet) for every packet that
            a node sends; None: nobody looks.
        packets: how many packets the nodes have sent.
    """

    def __init__(self, seed: int, start: float = START) -> None:
        self.seed = seed
        self.start = self.now = start
        self.timers = TimerBase()
        self.nodes: list[Node] = []
        self.wires: list[Wire] = []
        self.tasks: list[Task[Any]] = []
        self.runnable: deque[Task[Any]] = deque()
        self.trace: Callable[[float, str, bytes], None] | None = None
        self.packets = 0
        self._digest = hashlib.blake2b(digest_size=16)

    def clock(self) -> float:
        return self.now

    def node(self, name: str, **sysctls: int) -> Node:
        """A Stack with nothing but its loopback. Sysctls as of `Node.set`."""
        node = Node(self, name)
        node.set(**sysctls)
        self.nodes.append(node)
        return node

    def spawn(self, app: App[T], name: str = "") -> Task[T]:
        """Run an application from the present moment on."""
        task = Task(self, app, name or f"task {len(self.tasks)}")
        self.tasks.append(task)
        task.ready()
        return task

    def link(
        self,
        left: Node,
        right: Node,
        *,
        mtu: int = 1500,
        latency: float = 0.01,
        rate: float = 0.0,
        buffer: int = 0,
        faults: Faults = NO_FAULTS,
    ) -> tuple[Wire, Wire]:
        """Join two nodes; returns the left and the right end.

        The n-th link of a world, from 0 on, is 10.0.n.0/24 and fd00:n::/64, where the left end is
        1 and the right end 2.

        Args:
            mtu: octets of a packet.
            latency: seconds from one end to the other.
            rate: octets a second, 0: without limit.
            buffer: octets that may wait where packets come faster than that; what comes then is
                lost. 0: without limit.
            faults: what happens to packets, in either direction, before they come to the wire.
        """
        number = len(self.wires) // 2
        ends = []
        for node, host_number in ((left, 1), (right, 2)):
            wire = Wire(self, f"{node.name}{number}", mtu, latency, rate, buffer)
            addresses = (f"10.0.{number}.{host_number}", f"fd00:{number:x}::{host_number}")
            rng = random.Random(f"{self.seed}/{wire.name}")
            device = FaultDevice(
                wire, rng=rng, clock=self.clock, timers=self.timers, transmit=faults
            )
            node.net.add_device(device, (f"{addresses[0]}/24", f"{addresses[1]}/64"))
            node.addresses += addresses
            ends.append(wire)
        ends[0].peer, ends[1].peer = ends[1], ends[0]
        self.wires += ends
        return ends[0], ends[1]

    def sent(self, wire: Wire, packet: bytes) -> None:
        """A node has sent a packet."""
        self.packets += 1
        self._digest.update(f"{self.now!r} {wire.name} {len(packet)} ".encode())
        self._digest.update(packet)
        if self.trace is not None:
            self.trace(self.now, wire.name, packet)

    # -- time -------------------------------------------------------------------------------------

    def run_until(self, predicate: Callable[[], bool], limit: float) -> None:
        """Go on until `predicate()` holds, for at most `limit` seconds of the world.

        Raises:
            WorldHangs, WorldTimeout, WorldSpins: it does not come to hold.
        """
        end = self.now + limit
        steps = 0
        while not predicate():
            before = self.now
            if not self.step(end):
                late = self.now >= end
                raise (WorldTimeout if late else WorldHangs)(self.report())
            steps = steps + 1 if self.now == before else 0
            if steps > _MOST_STEPS_AT_A_MOMENT:
                raise WorldSpins(self.report())

    def run(self, seconds: float) -> None:
        """Let `seconds` pass."""
        end = self.now + seconds
        while self.step(end):
            pass
        self.now = end

    def run_until_quiet(self, limit: float) -> None:
        """Go on until no timer is set and nobody can go on: every connection has ended.

        Raises:
            WorldTimeout: something is set for ever anew.
        """
        self.run_until(lambda: not self.runnable and self._next() is None, limit)

    def step(self, end: float) -> bool:
        """One application's turn, or what comes next in time. False: nothing until `end`."""
        if self.runnable:
            self.runnable.popleft().go_on()
            return True
        soonest = self._next()
        if soonest is None:
            return False
        if soonest > end:
            self.now = end
            return False
        self.now = max(self.now, soonest)
        self.timers.run(self.now)
        for node in self.nodes:
            deadline = node.stack.timers.deadline
            if deadline is not None and deadline <= self.now:
                with node.stack.lock:
                    node.stack.timers.run(self.now)
        return True

    def _next(self) -> float | None:
        deadlines = [node.stack.timers.deadline for node in self.nodes]
        deadlines.append(self.timers.deadline)
        return min((time for time in deadlines if time is not None), default=None)

    # -- what happened ----------------------------------------------------------------------------

    def digest(self) -> str:
        """Of every packet that a node sent, and when."""
        return self._digest.hexdigest()

    def report(self) -> str:
        """What everybody waits for."""
        lines = [f"seed {self.seed}, {self.now - self.start:.6f} s, {self.packets} packets"]
        lines += [str(task) for task in self.tasks if not task.done or task.error is not None]
        for node in self.nodes:
            deadline = node.stack.timers.deadline
            when = "no timer" if deadline is None else f"a timer in {deadline - self.now:.6f} s"
            lines.append(f"{node.name}: {when}, {sorted(map(repr, node.stack.socks))}")
        return "\n".join(lines)

    def left_over(self) -> list[str]:
        """What has not ended, on any node; see `Node.left_over`."""
        return [line for node in self.nodes for line in node.left_over()]
