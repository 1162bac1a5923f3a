"""What a seed says: a link, two Stacks' settings, and what their applications do."""

from __future__ import annotations

import random
import socket as std
from collections.abc import Callable
from dataclasses import dataclass, field

from steertag.device import Faults
from steertag.family.net import kernel_bind, kernel_setsockopt, sock_release
from steertag.family.socket import Socket
from steertag.testing.applications import (
    Octets,
    accept,
    connect,
    digest_of,
    half_close,
    octets_of,
    recv_to_end,
    send_all,
)
from steertag.testing.simulator import START, App, Node, Task, World

PORT = 80
CLIENT_PORT = 50_000
LIMIT = 20_000.0
"""Seconds of the world's that a scenario may take: thirty per cent loss makes long time-outs."""
TICK = 64e-9
"""Seconds in which an initial sequence number advances by one (RFC 6528)."""

Program = Callable[[Socket, "Scenario", int], App[Octets]]


@dataclass
class Scenario:
    """What happens in one world. Sizes are octets, times seconds.

    Attributes:
        sysctls: of the client and of the server, as of `Node.set`.
        link, faults: of `World.link`.
        sizes: what each side sends, the client first.
        program: what both sides do.
        wrap: the client's sequence numbers begin so many before 2**32; None: anywhere.
    """

    seed: int
    sysctls: tuple[dict[str, int], dict[str, int]]
    link: dict[str, int | float]
    faults: Faults
    sizes: tuple[int, int]
    program: str
    version: int = 4
    wrap: int | None = None
    options: tuple[tuple[int, int, int | bytes], ...] = ()
    chunks: tuple[int, int] = (65536, 65536)
    pause: float = 0.0
    ends: list[Task[Octets]] = field(default_factory=list)

    def contents(self, side: int) -> bytes:
        """What that side sends."""
        return octets_of(self.sizes[side], self.seed * 2 + side)


def scenario_of(seed: int) -> Scenario:
    """A scenario, of every kind that there is."""
    rng = random.Random(f"scenario {seed}")
    harsh = rng.random() < 0.3
    loss = rng.choice([0.0, 0.01, 0.05, 0.1, 0.3 if harsh else 0.2])
    faults = Faults(
        loss=loss,
        burst_exit=rng.choice([0.0, 0.5]) if loss < 0.1 else 0.0,
        reorder=rng.choice([0.0, 0.0, 0.05, 0.3]),
        duplicate=rng.choice([0.0, 0.0, 0.02, 0.2]),
        corrupt=rng.choice([0.0, 0.0, 0.0, 0.02, 0.1]),
        jitter=rng.choice([0.0, 0.0, 0.01, 0.1]),
    )
    link = {
        "mtu": rng.choice([1500, 1500, 1280, 9000, 600, 296]),
        "latency": rng.choice([0.0, 0.001, 0.02, 0.2]),
        "rate": rng.choice([0, 0, 100_000, 1_000_000]),
        "buffer": rng.choice([0, 20_000, 100_000]),
    }
    version = rng.choice([4, 6]) if link["mtu"] >= 1280 else 4
    most = 4_000 if harsh else 100_000
    if link["mtu"] < 1280:
        most = min(most, 20_000)
    options: list[tuple[int, int, int | bytes]] = []
    if rng.random() < 0.4:
        options.append((std.SOL_SOCKET, std.SO_RCVBUF, rng.choice([2048, 8192, 65536])))
    if rng.random() < 0.3:
        options.append((std.SOL_SOCKET, std.SO_SNDBUF, rng.choice([4096, 16384])))
    if rng.random() < 0.3:
        options.append((std.IPPROTO_TCP, std.TCP_NODELAY, 1))
    if rng.random() < 0.4:
        options.append((std.IPPROTO_TCP, std.TCP_CONGESTION, b"reno"))
    program = rng.choice(["one way", "both at once", "both at once", "half-close"])
    back = rng.choice([0, rng.randint(0, most)])
    return Scenario(
        seed=seed,
        sysctls=(_sysctls(rng), _sysctls(rng)),
        link=link,
        faults=faults,
        sizes=(rng.randint(0, most), back if program != "one way" else 0),
        program=program,
        version=version,
        wrap=rng.choice([None, rng.randint(1, most + 2)]),
        options=tuple(options),
        chunks=(rng.choice([1000, 65536]), rng.choice([100, 65536])),
        pause=rng.choice([0.0, 0.0, 0.0, 0.05]),
    )


def _sysctls(rng: random.Random) -> dict[str, int]:
    return {
        "tcp_sack": int(rng.random() < 0.8),
        "tcp_timestamps": int(rng.random() < 0.8),
        "tcp_window_scaling": int(rng.random() < 0.8),
        "tcp_dsack": int(rng.random() < 0.9),
        "tcp_ecn": rng.choice([0, 1, 2, 2]),
        # Nobody gives up: what is tested is that everything arrives.
        "tcp_retries2": 100,
        "tcp_syn_retries": 50,
        "tcp_synack_retries": 50,
        "tcp_orphan_retries": 50,
    }


def end(sock: Socket, scenario: Scenario, side: int) -> App[Octets]:
    """One side of a connection that is there: as the scenario's program says."""
    chunk, read = scenario.chunks
    if scenario.program == "one way" and not side:  # closes while its data is on its way
        yield from send_all(sock, scenario.contents(0), chunk)
        sock_release(sock)
        return digest_of(b"")
    if side:  # answers when all has come
        received = yield from recv_to_end(sock, read, scenario.pause)
        yield from send_all(sock, scenario.contents(1), chunk)
    else:
        yield from send_all(sock, scenario.contents(0), chunk)
        half_close(sock)
        received = yield from recv_to_end(sock, read, scenario.pause)
    sock_release(sock)
    return received


def both(world: World, sock: Socket, scenario: Scenario, side: int) -> App[Octets]:
    """One side that sends and receives at the same time."""
    reading = world.spawn(recv_to_end(sock, scenario.chunks[1], scenario.pause))
    yield from send_all(sock, scenario.contents(side), scenario.chunks[0])
    half_close(sock)
    while not reading.done:
        yield 0.01
    received = reading.result()
    sock_release(sock)
    return received


def play(scenario: Scenario, start: float = START) -> World:
    """Run it in a world of its own until both ends have what they came for.

    Raises:
        WorldError: they don't.
    """
    world = World(scenario.seed, start)
    client = world.node("client", **scenario.sysctls[0])
    server = world.node("server", **scenario.sysctls[1])
    world.link(client, server, faults=scenario.faults, **scenario.link)  # type: ignore[arg-type]

    def one(sock: Socket, side: int) -> App[Octets]:
        for level, name, value in scenario.options if side == 0 else ():
            kernel_setsockopt(sock, level, name, value)
        if side == 0:
            address = "10.0.0.1" if scenario.version == 4 else "fd00:0::1"
            kernel_bind(sock, (address, CLIENT_PORT))
            yield from connect(sock, server.address(PORT, scenario.version))
        else:
            sock = yield from accept(sock)
        if scenario.program == "both at once":
            return (yield from both(world, sock, scenario, side))
        return (yield from end(sock, scenario, side))

    listener = _listener(server, scenario)
    scenario.ends = [world.spawn(one(listener, 1), "server")]
    scenario.ends.append(world.spawn(one(client.socket(), 0), "client"))
    scenario.ends.reverse()
    world.run_until(lambda: all(task.done for task in scenario.ends), LIMIT)
    sock_release(listener)
    return world


def _listener(node: Node, scenario: Scenario) -> Socket:
    listener = node.listen(PORT)
    for level, name, value in scenario.options:
        kernel_setsockopt(listener, level, name, value)
    return listener


def client_isn(scenario: Scenario, start: float = START) -> int:
    """With what sequence number the client begins, where the clock begins at `start`."""
    found: list[int] = []
    world = World(scenario.seed, start)
    client, server = (world.node(name) for name in ("client", "server"))
    world.link(client, server)

    def trace(_: float, __: str, packet: bytes) -> None:
        offset = 40 if packet[0] >> 4 == 6 else 20
        if packet[9 if offset == 20 else 6] == std.IPPROTO_TCP:
            found.append(int.from_bytes(packet[offset + 4 : offset + 8], "big"))

    world.trace = trace
    sock = client.socket()
    address = "10.0.0.1" if scenario.version == 4 else "fd00:0::1"
    kernel_bind(sock, (address, CLIENT_PORT))
    task = world.spawn(connect(sock, server.address(PORT, scenario.version)))
    world.run_until(lambda: bool(found) or task.done, 10)
    return found[0]


def start_of(scenario: Scenario) -> float:
    """Where the clock must begin for the client's sequence numbers to begin where they should."""
    if scenario.wrap is None:
        return START
    ahead = (2**32 - scenario.wrap - client_isn(scenario)) % 2**32
    return START + ahead * TICK


def expected(scenario: Scenario) -> list[Octets]:
    """What the client and the server should have received."""
    return [digest_of(scenario.contents(1)), digest_of(scenario.contents(0))]
