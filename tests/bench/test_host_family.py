"""What a steertag socket of a host family costs beside the bare one: ratios, printed.

    uv run pytest -m bench -s tests/bench/test_host_family.py

Both kinds send through the same connected pair, in turns, so that a noisy machine troubles both
alike; a figure is a ratio of times (1.00: no difference).
"""

import socket as std
import statistics
import time
from collections.abc import Callable

import pytest

from steertag import socket

ROUNDS = 100

pytestmark = pytest.mark.bench


def ratio(ours: Callable[[], float], bare: Callable[[], float]) -> float:
    """Seconds of ours over seconds of the bare socket: the first deciles of interleaved rounds.

    Whatever else the machine does only ever adds time, so the low end is where the cost shows.
    """
    ours(), bare()
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(ROUNDS):
        for which in ((0, 1), (1, 0))[turn % 2]:
            times[which].append((ours, bare)[which]())
    low = [statistics.quantiles(column, n=10)[0] for column in times]
    return low[0] / low[1]


@pytest.mark.parametrize("size", [64, 65536])
def test_send(size: int) -> None:
    """Over TCP; each send is read again, outside of the time, so that none finds a full buffer."""
    data = bytes(size)
    sink = bytearray(size)

    def sending(sock: socket.socket, conn: std.socket) -> Callable[[], float]:
        def run() -> float:
            total = 0.0
            for _ in range(200):
                start = time.perf_counter()
                sent = sock.send(data)
                total += time.perf_counter() - start
                assert conn.recv_into(sink, sent, std.MSG_WAITALL) == size
            return total

        return run

    with (
        std.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
        std.socket(fileno=std.dup(client.fileno())) as bare,
        server.accept()[0] as conn,
    ):
        figure = ratio(sending(client, conn), sending(bare, conn))
    print(f"\nhost family: send of {size} octets: {figure:.3f} of the bare socket's time")
    assert figure > 0


@pytest.mark.parametrize("size", [64, 65536])
def test_recv(size: int) -> None:
    """A datagram socket pair: each receive is matched by one send of the same bare socket."""
    left, right = socket.socketpair(type=std.SOCK_DGRAM)
    data = bytes(size)
    with left, right, std.socket(fileno=std.dup(right.fileno())) as bare:

        def receive(recv: Callable[[int], bytes]) -> Callable[[], float]:
            def run() -> float:
                total = 0.0
                for _ in range(200):
                    left.send(data)
                    start = time.perf_counter()
                    recv(size)
                    total += time.perf_counter() - start
                return total

            return run

        figure = ratio(receive(right.recv), receive(bare.recv))
    print(f"\nhost family: recv of {size} octets: {figure:.3f} of the bare socket's time")
    assert figure > 0


def test_connect() -> None:
    """connect() alone, on sockets made before, and the whole of socket(), connect(), close()."""
    with std.create_server(("127.0.0.1", 0), backlog=1024) as server:
        address = server.getsockname()

        def connecting(make: Callable[[], std.socket]) -> tuple[Callable[[], float], ...]:
            def alone() -> float:
                socks = [make() for _ in range(100)]
                start = time.perf_counter()
                for sock in socks:
                    sock.connect(address)
                took = time.perf_counter() - start
                for sock in socks:
                    sock.close()
                    server.accept()[0].close()
                return took

            def whole() -> float:
                start = time.perf_counter()
                for _ in range(100):
                    sock = make()
                    sock.connect(address)
                    sock.close()
                took = time.perf_counter() - start
                for _ in range(100):
                    server.accept()[0].close()
                return took

            return alone, whole

        ours = connecting(lambda: socket.socket(std.AF_INET, std.SOCK_STREAM))
        bare = connecting(lambda: std.socket(std.AF_INET, std.SOCK_STREAM))
        figures = [ratio(a, b) for a, b in zip(ours, bare, strict=True)]
    print(f"\nhost family: connect: {figures[0]:.3f} of the bare socket's time")
    print(f"host family: socket, connect, close: {figures[1]:.3f} of the bare socket's time")
    assert min(figures) > 0
