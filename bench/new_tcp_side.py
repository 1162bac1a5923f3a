"""The processes of bench/new_tcp.py: the peer on the host's TCP, and who is measured against it.

    python new_tcp_side.py serve PORT
    python new_tcp_side.py mirror NAME ADDRESS/LEN HOST/LEN
    python new_tcp_side.py measure DEVICE|host ADDRESS PORT JOB [ARGUMENT]...

A connection opens with `HEADER`: what the peer is to do with it, in calls of how many octets, and
for how many seconds.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import socket as std
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, Final, Protocol, Self

HEADER: Final = struct.Struct("!cxxxId")
RESULT: Final = struct.Struct("!Qd")
SINK, SOURCE, ECHO, HOLD = b"S", b"G", b"E", b"H"
MANY_BLOCK: Final = 1 << 16
MANY_ROUND_TRIPS: Final = 2000
Figures = dict[str, float]


class Conn(Protocol):
    """A stream socket, the host's or ours."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
    def recv(self, count: int, /) -> bytes: ...
    def recv_into(self, buffer: memoryview, /) -> int: ...
    def sendall(self, data: bytes, /) -> None: ...
    def setsockopt(self, level: int, name: int, value: int, /) -> None: ...
    def shutdown(self, how: int, /) -> None: ...
    def close(self) -> None: ...


Connect = Callable[[], Conn]


# -- the peer -----------------------------------------------------------------------------------


def serve(port: int) -> None:
    """Until standard input ends. The connections to the port after the given one are only held."""
    held: list[std.socket] = []
    for number, handle in ((port, talk), (port + 1, held.append)):
        listener = std.create_server(("", number), backlog=4096)
        threading.Thread(target=accept, args=(listener, handle), daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()


def accept(listener: std.socket, handle: Callable[[std.socket], Any]) -> None:
    while True:
        conn, _ = listener.accept()
        if handle == talk:
            threading.Thread(target=talk, args=(conn,), daemon=True).start()
        else:
            handle(conn)


def talk(conn: std.socket) -> None:
    with conn, suppress(OSError):  # whoever is measured may have gone
        job, block, seconds = HEADER.unpack(exactly(conn, HEADER.size))
        if job == SINK:
            conn.sendall(RESULT.pack(*drain(conn, block)))
        elif job == SOURCE:
            pour(conn, block, seconds)
        else:
            conn.setsockopt(std.IPPROTO_TCP, std.TCP_NODELAY, 1)
            while data := conn.recv(1):
                conn.sendall(data)


# -- what either side does ------------------------------------------------------------------------


def exactly(conn: Conn, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = conn.recv(count - len(data))
        if not more:
            raise EOFError("the peer closed early")
        data += more
    return data


def pour(conn: Conn, block: int, seconds: float) -> None:
    """Send for so long, then close for sending."""
    data = bytes(block)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        conn.sendall(data)
    conn.shutdown(std.SHUT_WR)


def drain(conn: Conn, block: int) -> tuple[int, float]:
    """Receive to the end: octets, and seconds from the first of them to the last."""
    buffer = memoryview(bytearray(block))
    total = conn.recv_into(buffer)
    began = time.perf_counter()
    while octets := conn.recv_into(buffer):
        total += octets
    return total, time.perf_counter() - began


# -- measuring ------------------------------------------------------------------------------------


def throughput(connect: Connect, job: bytes, block: int, seconds: float) -> Figures:
    """MB/s as the receiver sees it, and the seconds of CPU for each GB on this side."""
    with connect() as conn:
        conn.sendall(HEADER.pack(job, block, seconds))
        before = cpu()
        if job == SINK:
            pour(conn, block, seconds)
            octets, took = RESULT.unpack(exactly(conn, RESULT.size))
        else:
            octets, took = drain(conn, block)
        spent = cpu() - before
    return {"MB/s": octets / took / 1e6, "CPU s/GB": spent / octets * 1e9}


def latency(connect: Connect, rounds: int) -> Figures:
    """Microseconds of a round trip of one octet."""
    with connect() as conn:
        conn.setsockopt(std.IPPROTO_TCP, std.TCP_NODELAY, 1)
        conn.sendall(HEADER.pack(ECHO, 1, 0.0))
        times = []
        before = cpu()
        for _ in range(rounds):
            began = time.perf_counter()
            conn.sendall(b"x")
            conn.recv(1)
            times.append(time.perf_counter() - began)
        spent = cpu() - before
    times.sort()
    return {
        "median us": median(times) * 1e6,
        "p99 us": times[len(times) * 99 // 100] * 1e6,
        "CPU us": spent / rounds * 1e6,
    }


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def resident() -> int:
    """Octets of this process in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def busy(connect: Connect, seconds: float) -> tuple[float, float]:
    """MB/s received, and the median microseconds of a round trip."""
    bulk = throughput(connect, SOURCE, MANY_BLOCK, seconds)
    return bulk["MB/s"], latency(connect, MANY_ROUND_TRIPS)["median us"]


def many(connect: Connect, hold: Connect, count: int, seconds: float) -> Figures:
    """What so many open sockets take, and what they make a segment of another one cost."""
    alone = [
        throughput(connect, SOURCE, MANY_BLOCK, seconds)["MB/s"],
        latency(connect, 2000)["median us"],
    ]
    before = resident()
    held = [hold() for _ in range(count)]
    each = (resident() - before) / count
    among = [
        throughput(connect, SOURCE, MANY_BLOCK, seconds)["MB/s"],
        latency(connect, 2000)["median us"],
    ]
    for conn in held:
        conn.close()
    return {
        "KiB each": each / 1024,
        "MB/s alone": alone[0],
        "MB/s among them": among[0],
        "us alone": alone[1],
        "us among them": among[1],
    }


def measure(device: str, address: str, port: int, job: str, arguments: list[float]) -> Figures:
    """`device`: a description (steertag.runtime.interfaces), or "host"."""
    if device == "host":

        def connect() -> Conn:
            return std.create_connection((address, port))

        def hold() -> Conn:
            return std.create_connection((address, port + 1))
    else:
        from steertag import Stack
        from steertag.inet import AF_INET_NEW_TCP
        from steertag.runtime.interfaces import open_new_tcp, parse_devices
        from steertag.socket import create_connection

        stack = Stack()
        open_new_tcp(stack, parse_devices(device))

        def connect() -> Conn:
            return create_connection((address, port), family=AF_INET_NEW_TCP, stack=stack)

        def hold() -> Conn:
            return create_connection((address, port + 1), family=AF_INET_NEW_TCP, stack=stack)

    hold().close()  # what the first connection alone costs: imports, routes, observers
    for thread in threading.enumerate():
        if thread.name == "steertag-observers":
            thread.join()
    if job == "send":
        return throughput(connect, SINK, int(arguments[0]), arguments[1])
    if job == "receive":
        return throughput(connect, SOURCE, int(arguments[0]), arguments[1])
    if job == "latency":
        return latency(connect, int(*arguments))
    count, seconds = arguments
    return many(connect, hold, int(count), seconds)


# -- the host's TCP over the same kind of device -------------------------------------------------


def mirror(name: str, address: str, host: str) -> None:
    """A TUN device whose far end sends every packet back from the address it went to.

    So the host's TCP talks to itself through the device: a connection to the far end's address
    arrives at the host's own, as one from there. Swapping addresses changes no checksum.
    """
    from steertag.device.hostside import configure
    from steertag.device.tun import TunDevice

    device = TunDevice(name, offload=True)
    configure(device.name, addresses=[host], up=True)
    print("ready", flush=True)
    fd = device.fileno()
    os.set_blocking(fd, True)
    while True:
        frame = bytearray(os.read(fd, 65600))
        if frame[10] >> 4 == 4:
            frame[22:26], frame[26:30] = frame[26:30], frame[22:26]
            os.write(fd, frame)


def main(words: list[str]) -> None:
    match words:
        case ["serve", port]:
            serve(int(port))
        case ["mirror", name, address, host]:
            mirror(name, address, host)
        case ["measure", device, address, port, job, *arguments]:
            figures = measure(device, address, int(port), job, [float(each) for each in arguments])
            print(json.dumps(figures), flush=True)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
