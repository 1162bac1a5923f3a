"""Drives one RDMA connection over one byte stream: the only place where its octets move."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final, Protocol

from steertag.rdma.connection import Connection, Engine
from steertag.rdma.counters import Counters
from steertag.runtime.loop import READ, WRITE, Loop
from steertag.runtime.stream import Buffer, Stream

_ROUNDS: Final = 16
"""Sends and reads in one `pump`, so that one connection doesn't starve the others."""
LINGER: Final = 1.0
"""Seconds to wait for the peer's FIN after ours, so that closing doesn't reset the stream and
with it what the peer hasn't read yet (a Terminate, say)."""


class Tap(Protocol):
    """Sees every octet of a stream, for a capture."""

    def sent(self, data: bytes) -> None: ...
    def received(self, data: bytes) -> None: ...


class StreamDriver:
    """Args:
    loop: where it registers itself.
    connection: set-up or established; it is handed the stream's octets.
    stream: connected; made non-blocking, closed at the end.
    tap: sees every octet, where one is given (this costs a copy).
    on_closed: called once when the stream is closed.
    """

    def __init__(
        self,
        loop: Loop,
        connection: Connection,
        stream: Stream,
        *,
        tap: Tap | None = None,
        on_closed: Callable[[], None] | None = None,
    ) -> None:
        self.connection = connection
        self.closed = False
        self._loop = loop
        self._stream = stream
        self._tap = tap
        self._on_closed = on_closed
        self._fd = stream.fileno()
        self._blocked = False
        self._shut = False
        self._linger_until: float | None = None
        self._sink = memoryview(bytearray(65536))
        stream.setblocking(False)
        loop.add(self)
        with loop.lock:
            self.flush()

    def fileno(self) -> int:
        return self._fd

    @property
    def deadline(self) -> float | None:
        return self._linger_until if self._shut else self.connection.deadline

    def handle_timer(self, now: float) -> None:
        if self._shut:
            self.close()
            return
        self.connection.handle_timer(now)
        self._after()

    def pump(self) -> bool:
        """Send what is to be sent, read what is there. True if anything moved."""
        moved = False
        for _ in range(_ROUNDS):
            engine = self.connection.engine
            sent = self._send(engine) if engine.wants_to_send else False
            received, drained = self._receive(self.connection.engine)
            if not (sent or received):
                break
            moved = True
            if drained and not self.connection.engine.wants_to_send:
                break
            if self.closed:
                return True
        self._after()
        return moved

    def flush(self) -> None:
        """Send what is to be sent, without reading: the doorbell of a post."""
        if not self.closed and not self._blocked and self.connection.engine.wants_to_send:
            self._send(self.connection.engine)
            self._after()

    def settle(self) -> None:
        """The engine was told to close: begin with it if nothing is left to send."""
        self._after()

    def close(self) -> None:
        """Close the stream now."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove(self)
        self._stream.close()
        self.connection.engine.stream_lost("closed")
        if self._on_closed is not None:
            self._on_closed()
        self._loop.notify()

    # -- inside --------------------------------------------------------------------------------

    def _send(self, engine: Engine) -> bool:
        """One round of sends, until the engine has nothing more or the stream takes no more."""
        sent = False
        counters = self._counters()
        while engine.wants_to_send and not self._shut:
            parts = engine.data_to_send()
            if not parts:
                break
            try:
                octets = (
                    self._stream.send(parts[0]) if len(parts) == 1 else self._stream.sendmsg(parts)
                )
            except BlockingIOError:
                self._blocked = True
                return sent
            except OSError as exc:
                self._lost(exc)
                return True
            if counters is not None:
                counters.syscalls += 1
            if self._tap is not None:
                self._tap.sent(_first(parts, octets))
            engine.sent(octets)
            sent = True
            if self.connection.engine is not engine:
                break
        self._blocked = False
        return sent

    def _receive(self, engine: Engine) -> tuple[bool, bool]:
        """One read. Gives whether anything came, and whether that was all there is for now."""
        if self.closed:
            return False, True
        buffers = [self._sink] if self._shut else engine.buffers()
        if not buffers:
            return False, True
        counters = self._counters()
        if counters is not None:
            counters.syscalls += 1
        try:
            octets = self._stream.recvmsg_into(buffers)[0]
        except BlockingIOError:
            return False, True
        except OSError as exc:
            self._lost(exc)
            return True, True
        if not octets:
            engine.eof()
            if self._shut or self.connection.engine.closing:
                self.close()
            return True, True
        if self._shut:
            return True, False
        if self._tap is not None:
            self._tap.received(_first(buffers, octets))
        drained = octets < sum(map(len, buffers))
        engine.received(octets)
        return True, drained

    def _after(self) -> None:
        """Wait for the right things; begin to close once the engine is done with the stream."""
        if self.closed:
            return
        engine = self.connection.engine
        if engine.closing and not self._shut:
            self._shut = True
            try:
                self._stream.shutdown(socket.SHUT_WR)
            except OSError:
                # The peer was faster: there is no stream left to shut.
                self.close()
                return
            self._linger_until = self._loop.clock() + LINGER
            self._loop.wake()
            self._loop.notify()
        setting_up = engine is self.connection and not self._shut
        readable = READ if not setting_up or engine.buffers() else 0
        self._loop.wait_on(self, readable | (WRITE if self._blocked else 0))

    def _lost(self, exc: OSError) -> None:
        self.connection.engine.stream_lost(exc.strerror or str(exc))
        self.close()

    def _counters(self) -> Counters | None:
        qp = self.connection.qp
        return None if qp is None else qp.counters


def _first(parts: list[Buffer] | list[memoryview], octets: int) -> bytes:
    """The first `octets` octets of `parts`."""
    return b"".join(parts)[:octets]
