"""PyTCP's side of bench/new_tcp.py; runs in an environment of its own, where PyTCP is installed.

    python new_tcp_pytcp.py INTERFACE MTU ADDRESS/LEN PEER PORT JOB ARGUMENT

The interface is a TUN device that doesn't exist yet; standard input says when the host's end is up.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from statistics import median

from new_tcp_side import ECHO, HEADER, RESULT, SINK, SOURCE, Figures, cpu
from pmd_net_addr import Ip4IfAddr
from pmd_pytcp import stack
from pmd_pytcp.socket import AddressFamily, SocketType, socket

CHUNK = bytes(1 << 16)
POURED = 4 << 20


async def exactly(conn: socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += await conn.recv(count - len(data))
    return data


async def pour(conn: socket) -> None:
    # Its `send` takes everything, however much is waiting already: so many octets, not so long.
    for _ in range(POURED // len(CHUNK)):
        left = CHUNK
        while left:
            left = left[await conn.send(left) :]
            await asyncio.sleep(0)
    conn.shutdown(1)


async def drain(conn: socket) -> tuple[int, float]:
    total = len(await conn.recv(len(CHUNK)))
    began = time.perf_counter()
    while data := await conn.recv(len(CHUNK)):
        total += len(data)
    return total, time.perf_counter() - began


async def throughput(conn: socket, job: bytes, seconds: float) -> Figures:
    await conn.send(HEADER.pack(job, len(CHUNK), seconds))
    before = cpu()
    if job == SINK:
        await pour(conn)
        octets, took = RESULT.unpack(await exactly(conn, RESULT.size))
    else:
        octets, took = await drain(conn)
    return {"MB/s": octets / took / 1e6, "CPU s/GB": (cpu() - before) / octets * 1e9}


async def latency(conn: socket, rounds: int) -> Figures:
    await conn.send(HEADER.pack(ECHO, 1, 0.0))
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        await conn.send(b"x")
        await conn.recv(1)
        times.append(time.perf_counter() - began)
    return {"median us": median(times) * 1e6, "p99 us": sorted(times)[rounds * 99 // 100] * 1e6}


async def main(name: str, mtu: str, address: str, peer: str, port: str, job: str, arg: str) -> None:
    stack.init()
    interface = stack.initialize_interface__tun(interface_name=name) | {"mtu": int(mtu)}
    own = Ip4IfAddr(address)
    stack.add_interface(**interface, ip4_support=True, ip4_host=own, ip6_support=False)
    print("ready", flush=True)
    sys.stdin.readline()
    await stack.start()
    conn = socket(AddressFamily.INET4, SocketType.STREAM)
    while True:  # its own address is not there at once
        try:
            conn.bind((address.partition("/")[0], 0))
            break
        except OSError:
            await asyncio.sleep(0.1)
    await conn.connect((peer, int(port)))
    if job == "latency":
        figures = await latency(conn, int(arg))
    else:
        figures = await throughput(conn, SINK if job == "send" else SOURCE, float(arg))
    print(json.dumps(figures), flush=True)
    conn.close()
    await stack.stop()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
