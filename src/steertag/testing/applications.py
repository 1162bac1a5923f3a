"""Applications for a simulated world: what programs do with a stream, as generators.

Each yields what it waits for (`steertag.testing.simulator`); `yield from` makes larger ones of
them. What a system call raises they raise.
"""

from __future__ import annotations

import hashlib
import random
import select
import socket as host
from dataclasses import dataclass
from typing import Final

from steertag.errors import os_error
from steertag.family.msg import Address, MsgHdr
from steertag.family.net import (
    kernel_accept,
    kernel_connect,
    kernel_getsockopt,
    kernel_sock_shutdown,
    sock_recvmsg,
    sock_release,
    sock_sendmsg,
)
from steertag.family.socket import Socket
from steertag.testing.simulator import App, Ready

_CHUNK: Final = 65536


@dataclass(frozen=True, slots=True)
class Octets:
    """How many came, and a digest of them."""

    count: int
    digest: str


def octets_of(size: int, seed: int) -> bytes:
    """A stream's contents: the same for the same arguments."""
    return random.Random(seed).randbytes(size)


def digest_of(octets: bytes) -> Octets:
    """What a receiver of just that should say."""
    return Octets(len(octets), hashlib.blake2b(octets, digest_size=16).hexdigest())


def connect(sock: Socket, address: Address) -> App[None]:
    """Connect, and wait until it is. Raises what the connection's error is."""
    try:
        kernel_connect(sock, address)
        return
    except BlockingIOError:
        yield Ready(sock, select.POLLOUT)
    error = kernel_getsockopt(sock, host.SOL_SOCKET, host.SO_ERROR)
    if error:
        raise os_error(int(error))


def accept(listener: Socket) -> App[Socket]:
    """The next connection."""
    while True:
        try:
            return kernel_accept(listener)
        except BlockingIOError:
            yield Ready(listener, select.POLLIN)


def send_all(sock: Socket, octets: bytes, chunk: int = _CHUNK) -> App[None]:
    """Send everything, at most `chunk` octets a call."""
    rest = memoryview(octets)
    while rest:
        try:
            rest = rest[sock_sendmsg(sock, MsgHdr([rest[:chunk]])) :]
        except BlockingIOError:
            yield Ready(sock, select.POLLOUT)


def recv(sock: Socket, size: int = _CHUNK) -> App[bytes]:
    """Some octets; b"" is the end of the stream."""
    buffer = bytearray(size)
    while True:
        try:
            count = sock_recvmsg(sock, MsgHdr([memoryview(buffer)]))
            return bytes(buffer[:count])
        except BlockingIOError:
            yield Ready(sock, select.POLLIN)


def recv_to_end(sock: Socket, size: int = _CHUNK, pause: float = 0.0) -> App[Octets]:
    """Everything up to the end of the stream; `pause` seconds after each call."""
    digest, count = hashlib.blake2b(digest_size=16), 0
    while octets := (yield from recv(sock, size)):
        digest.update(octets)
        count += len(octets)
        if pause:
            yield pause
    return Octets(count, digest.hexdigest())


def sender(sock: Socket, address: Address, octets: bytes, chunk: int = _CHUNK) -> App[None]:
    """A client that sends, closes and is gone."""
    yield from connect(sock, address)
    yield from send_all(sock, octets, chunk)
    sock_release(sock)


def receiver(listener: Socket, size: int = _CHUNK, pause: float = 0.0) -> App[Octets]:
    """A server of one connection, which reads it to its end."""
    sock = yield from accept(listener)
    received = yield from recv_to_end(sock, size, pause)
    sock_release(sock)
    return received


def echo(listener: Socket, size: int = _CHUNK) -> App[int]:
    """A server of one connection, which gives back what it gets; returns how many octets."""
    sock = yield from accept(listener)
    count = 0
    while octets := (yield from recv(sock, size)):
        yield from send_all(sock, octets)
        count += len(octets)
    sock_release(sock)
    return count


def half_close(sock: Socket) -> None:
    """Nothing more is sent; the other direction goes on."""
    kernel_sock_shutdown(sock, host.SHUT_WR)
