"""UDP, ping and raw sockets of AF_INET_NEW_TCP and of the host kernel, in one process.

`udp_program.py OURS HOSTS`: addresses of one version of IP. It prints one JSON object: what each
script found.
"""

from __future__ import annotations

import errno
import json
import random
import struct
import sys
from collections.abc import Callable
from typing import Any, Final

from steertag import socket
from steertag.inet import const as c

PATIENCE: Final = 30.0
OURS, HOSTS = sys.argv[1:3]
V6: Final = ":" in OURS
HOST_FAMILY: Final = socket.AF_INET6 if V6 else socket.AF_INET
SIZES: Final = (0, 1, 2, 511, 1400, 1472, 1473, 3000, 40001, 65507)


def ours(kind: int = socket.SOCK_DGRAM, proto: int = 0) -> Any:  # noqa: ANN401
    sock = socket.socket(c.AF_INET_NEW_TCP, kind, proto)
    sock.settimeout(PATIENCE)
    return sock


def hosts(kind: int = socket.SOCK_DGRAM, proto: int = 0) -> Any:  # noqa: ANN401
    sock = socket.socket(HOST_FAMILY, kind, proto)
    sock.settimeout(PATIENCE)
    return sock


Make = Callable[..., Any]


def datagrams(server_of: Make, server_at: str, client_of: Make) -> object:
    """Of every size there and back; the names agree."""
    wrong = []
    with server_of() as server, client_of() as client:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 200000)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 200000)
        server.bind((server_at, 0))
        client.connect(server.getsockname()[:2])
        for size in SIZES:
            data = random.Random(size).randbytes(size)
            client.send(data)
            got, name = server.recvfrom(70000)
            server.sendto(got, name)
            if got != data or client.recv(70000) != data or name[:2] != client.getsockname()[:2]:
                wrong.append(size)
    return wrong


def refused(server_of: Make, server_at: str, client_of: Make) -> object:
    """A port that nobody has."""
    with server_of() as server:
        server.bind((server_at, 0))
        port = server.getsockname()[1]
    with client_of() as client:
        client.connect((server_at, port))
        client.send(b"x")
        try:
            client.recv(9)
        except OSError as exc:
            return errno.errorcode[exc.errno or 0]
    return "nothing"


def segments(server_of: Make, server_at: str, client_of: Make) -> object:
    """UDP_SEGMENT and UDP_GRO: octets and sizes."""
    data = random.Random(1).randbytes(30000)
    with server_of() as plain, server_of() as gro, client_of() as client:
        found = []
        for server in (plain, gro):
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 200000)
            server.bind((server_at, 0))
        gro.setsockopt(c.SOL_UDP, c.UDP_GRO, 1)
        client.setsockopt(c.SOL_UDP, c.UDP_SEGMENT, 1000)
        for server in (plain, gro):
            client.sendto(data, (server_at, server.getsockname()[1]))
            got, sizes = b"", set[int]()
            while len(got) < len(data):
                piece, control, _, _ = server.recvmsg(65535, 64)
                got += piece
                sizes |= {struct.unpack("=i", value[:4])[0] for *_, value in control}
                sizes |= {len(piece)} if server is plain else set()
            found.append([got == data, sorted(sizes)])
    return found


def ping(server_of: Make, server_at: str, client_of: Make) -> object:
    """Echo by a ping socket of ours; by a raw one of the host's, which may make no other."""
    proto = socket.IPPROTO_ICMPV6 if V6 else socket.IPPROTO_ICMP
    request, reply = (128, 129) if V6 else (8, 0)
    message = struct.pack("!BBHHH", request, 0, 0, 77, 5) + b"data"
    if client_of is hosts:
        if not V6:
            total = sum(struct.unpack("!6H", message))
            total = (total & 0xFFFF) + (total >> 16)
            message = message[:2] + struct.pack("!H", total ^ 0xFFFF) + message[4:]
        client = hosts(socket.SOCK_RAW, proto)
    else:
        client = ours(socket.SOCK_DGRAM, proto)
    with client:
        client.sendto(message, (server_at, 0))
        while True:
            data, name = client.recvfrom(999)
            body = data[20:] if client_of is hosts and not V6 else data
            if body[0] == reply and name[0] == server_at:
                return [body[6:8].hex(), body[8:].decode()]


def raw(server_of: Make, server_at: str, client_of: Make) -> object:
    """A protocol of nobody's, large enough for fragments."""
    data = random.Random(3).randbytes(5000)
    with server_of(socket.SOCK_RAW, 253) as server, client_of(socket.SOCK_RAW, 253) as client:
        client.sendto(data, (server_at, 0))
        got, name = server.recvfrom(9999)
        return [bool(got[0 if V6 else 20 :] == data), name[0] in (OURS, HOSTS)]


def main() -> None:
    found: dict[str, dict[str, object]] = {}
    for script in (datagrams, refused, segments, ping, raw):
        found[script.__name__] = {
            "to the host": script(hosts, HOSTS, ours),
            "to us": script(ours, OURS, hosts),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
