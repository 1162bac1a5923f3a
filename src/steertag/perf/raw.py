"""The limit to measure against: a plain TCP socket moving the same octets.

Both sides use what Python offers best: one buffer for the whole run, `sendall` and `recv_into`.
"""

from __future__ import annotations

import time
from typing import Final

from steertag.perf.job import Job
from steertag.socket import socket

_DRAIN: Final = 256 * 1024


class RawSocket:
    """One side of a raw TCP connection.

    Args:
        stream: connected, TCP_NODELAY set.
        size: octets of a message.
    """

    def __init__(self, stream: socket, size: int) -> None:
        self._stream = stream
        self._view = memoryview(bytearray(size))
        # Small messages are taken many to a call, as every program that reads a stream does.
        self._drain = self._view if size >= _DRAIN else memoryview(bytearray(_DRAIN))

    def active(self, job: Job) -> float:
        """Move the job's messages (towards us for a read); seconds until the last is there."""
        started = time.perf_counter()
        if job.op == "read":
            self._receive(job.size * job.count)
        else:
            self._send(job.count)
            self._receive_exactly(self._view[:1])
        return time.perf_counter() - started

    def passive(self, job: Job) -> None:
        if job.op == "read":
            self._send(job.count)
        else:
            self._receive(job.size * job.count)
            self._stream.sendall(self._view[:1])

    def ping(self, job: Job) -> list[float]:
        """Round trips, in seconds: the message and its echo; a read asks with one octet."""
        samples = []
        sendall, clock = self._stream.sendall, time.perf_counter
        question = self._view[:1] if job.op == "read" else self._view
        for _ in range(job.count):
            started = clock()
            sendall(question)
            self._receive_exactly(self._view)
            samples.append(clock() - started)
        return samples

    def pong(self, job: Job) -> None:
        sendall = self._stream.sendall
        question = self._view[:1] if job.op == "read" else self._view
        for _ in range(job.count):
            self._receive_exactly(question)
            sendall(self._view)

    def _send(self, count: int) -> None:
        sendall, view = self._stream.sendall, self._view
        for _ in range(count):
            sendall(view)

    def _receive(self, octets: int) -> None:
        recv_into, drain = self._stream.recv_into, self._drain
        whole = len(drain)
        while octets > 0:
            got = recv_into(drain if octets >= whole else drain[:octets])
            if not got:
                raise ConnectionResetError("the peer closed the raw connection")
            octets -= got

    def _receive_exactly(self, view: memoryview) -> None:
        recv_into = self._stream.recv_into
        got = recv_into(view)
        while got < len(view):
            more = recv_into(view[got:])
            if not more:
                raise ConnectionResetError("the peer closed the raw connection")
            got += more
