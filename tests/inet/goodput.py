"""Goodput of one connection over a bottleneck, by round-trip time, loss and the router's buffer.

    uv run python -m tests.inet.goodput

measures all of it anew and writes `goodput.json`, which is kept: simulated time is exact, so that
a figure changes only where the Stack does, and a change shows in a diff. Whoever changes a figure
on purpose commits the new file and redraws the plot (docs/tools/draw_goodput.py).
"""

from __future__ import annotations

import itertools
import json
import socket as std
from pathlib import Path
from typing import Final

from steertag.device import Faults
from steertag.family.net import kernel_setsockopt, sock_release
from steertag.testing.applications import Octets, connect, octets_of, receiver, send_all
from steertag.testing.simulator import App, Node, World

FILE: Final = Path(__file__).with_name("goodput.json")
RATE: Final = 1_250_000
"""Octets a second of the bottleneck: 10 Mbit/s."""
SIZE: Final = 1_000_000
RTTS: Final = (0.004, 0.02, 0.1, 0.3)
LOSSES: Final = (0.0, 0.005, 0.02, 0.05)
BUFFERS: Final = (15_000, 60_000, 240_000)
ALGORITHMS: Final = ("cubic", "reno")
LIMIT: Final = 3600.0


def _send(node: Node, server: Node, algorithm: str) -> App[None]:
    sock = node.socket()
    kernel_setsockopt(sock, std.IPPROTO_TCP, std.TCP_CONGESTION, algorithm.encode())
    yield from connect(sock, server.address(80))
    yield from send_all(sock, octets_of(SIZE, 1))
    sock_release(sock)


def goodput(algorithm: str, rtt: float, loss: float, buffer: int) -> int:
    """Octets a second that the application got, connection set-up included."""
    world = World(seed=1)
    client, server = world.node("client"), world.node("server")
    link = {"latency": rtt / 2, "rate": RATE, "buffer": buffer}
    world.link(client, server, faults=Faults(loss=loss), **link)  # type: ignore[arg-type]
    got = world.spawn(receiver(server.listen(80)))
    world.spawn(_send(client, server, algorithm))
    world.run_until(lambda: got.done, LIMIT)
    received: Octets = got.result()
    assert received.count == SIZE
    return round(SIZE / (world.now - world.start))


def measure(algorithm: str) -> list[list[float]]:
    """Rows of rtt (s), loss, buffer (octets), goodput (octets a second)."""
    cells = itertools.product(RTTS, LOSSES, BUFFERS)
    return [[*cell, goodput(algorithm, *cell)] for cell in cells]


def kept() -> dict[str, list[list[float]]]:
    """What `goodput.json` says, by algorithm."""
    rows: dict[str, list[list[float]]] = json.loads(FILE.read_text(encoding="utf-8"))
    return rows


def write(measured: dict[str, list[list[float]]]) -> None:
    """Keep it: a row a line."""
    tables = []
    for algorithm, rows in measured.items():
        lines = ",\n".join(f"    {json.dumps(row)}" for row in rows)
        tables.append(f"  {json.dumps(algorithm)}: [\n{lines}\n  ]")
    FILE.write_text("{\n" + ",\n".join(tables) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    write({algorithm: measure(algorithm) for algorithm in ALGORITHMS})
