"""Drives one RDMA connection over one byte stream: the only place where its octets move."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Callable
from typing import Final, Protocol

from steertag.rdma.connection import Connection
from steertag.rdma.counters import Counters
from steertag.rdma.qp import QueuePair
from steertag.rdma.qp_state import QpState
from steertag.runtime.loop import HANGUP, READ, WRITE, Registrar
from steertag.runtime.stream import Buffer, Stream

_RTS: Final = QpState.RTS
MSG_DONTWAIT: Final = int(socket.MSG_DONTWAIT)
_ENDED: Final = -1
_TIMEVAL: Final = struct.Struct("@ll")
_READABLE: Final = READ & ~HANGUP
_SINK_OCTETS: Final = 65536
_ROUNDS: Final = 16
"""Sends and reads in one `pump`, so that one connection doesn't starve the others."""
SPIN: Final = 50e-6
"""Seconds to look for a small message before sleeping for it, like the kernel's busy polling."""
_LOOKS: Final = 8
"""Reads in vain before the way around them is gone again: the way costs more than they do."""
LINGER: Final = 1.0
"""Seconds for a Terminate to leave, and for the peer's FIN to come after ours, so that closing
doesn't reset the stream and with it what the peer hasn't read yet."""
CLOSE_TIMEOUT: Final = 30.0
CLOSE_OCTETS: Final = 64 * 1024
"""What is posted when a connection is closed is still sent, but a peer has to take, or send, this
many octets in every so many seconds."""


class Tap(Protocol):
    """Sees every octet of a stream, for a capture."""

    def sent(self, data: bytes) -> None: ...
    def received(self, data: bytes) -> None: ...
    def close(self) -> None: ...


TapFor = Callable[[Stream], Tap | None]
"""Asked for each stream: what sees its octets; None for nothing."""


class StreamDriver:
    """Args:
    loop: where it registers itself.
    connection: set-up or established; it is handed the stream's octets.
    stream: connected; put into blocking mode, closed at the end.
    tap: sees every octet, where one is given (this costs a copy).
    tap_for: asked for a tap where none is given.

    Attributes:
        on_close: called once when the stream has been closed, where somebody set it.
    """

    def __init__(
        self,
        loop: Registrar,
        connection: Connection,
        stream: Stream,
        *,
        tap: Tap | None = None,
        tap_for: TapFor | None = None,
    ) -> None:
        self.connection = connection
        self.closed = False
        self.on_close: Callable[[], None] | None = None
        self._loop = loop
        self._stream = stream
        self._tap = tap_for(stream) if tap is None and tap_for is not None else tap
        self._fd = stream.fileno()
        self._spins = not _in_process(stream)
        self._blocked = False
        self._shut = False
        self._drained = True
        self._read_timeout: float | None = None
        self._can_time_reads = True
        self._events = READ
        self._linger_until: float | None = None
        self._close_by: float | None = None
        self._close_octets = 0
        self._sink = memoryview(b"")
        # The setting-up has no queue pair, and needs none of its speed.
        self._counters = Counters()
        self._qp: QueuePair | None = None
        if connection.engine is connection.qp:
            self._established()
        stream.setblocking(True)
        loop.add(self)
        with loop.lock:
            self.flush()

    def fileno(self) -> int:
        return self._fd

    @property
    def stream(self) -> Stream:
        return self._stream

    @property
    def deadline(self) -> float | None:
        if self._linger_until is not None:
            return self._linger_until
        return self.connection.deadline if self._close_by is None else self._close_by

    def handle_timer(self, now: float) -> None:
        if self._linger_until is not None:
            self.close()
            return
        if self._close_by is not None:
            if now >= self._close_by:
                self.connection.engine.stream_lost("the peer takes too little to be waited for")
                self.close()
            return
        self.connection.handle_timer(now)
        self.settle()

    def pump(self) -> bool:
        """Send what is to be sent, read what is there. True if anything moved."""
        if not self._events & _READABLE and self._hung_up():
            self._end_of_stream()
            self.settle()
            return True
        sent = self._send()
        received = self._receive(MSG_DONTWAIT, _ROUNDS) != 0
        if received:
            self._send()
        self.settle()
        return sent or received

    def block(self, timeout: float | None) -> bool | None:
        """`pump`, but wait in the stream's own read; None where that can't be done.

        For a program's only connection: one system call instead of three for a message that is
        waited for. With no time to wait (0) it only looks.
        """
        qp = self._qp
        look = timeout == 0
        if (
            qp is None
            or qp.state is not _RTS
            or self._blocked
            or qp.tx.pending()
            or not (look or timeout == self._read_timeout or self._set_read_timeout(timeout))
        ):
            return None
        octets = self._spin(qp) if self._spins and not look and qp.rx.reading_ahead else 0
        if not octets and not self.closed:
            octets = self._look(qp) if look else self._receive(0, 1)
        self._behind_read(qp, octets)
        return octets != 0

    def glance(self, timeout: float | None) -> bool:
        qp = self._qp
        if qp is None or not self._receives_only(qp):
            return False
        spins = self._spins and timeout != 0 and qp.rx.reading_ahead
        octets = self._spin(qp) if spins else self._look(qp)
        self._behind_read(qp, octets)
        return octets != 0

    def _receives_only(self, qp: QueuePair) -> bool:
        """The connection is up and has nothing to send for now."""
        return qp.state is _RTS and not self._blocked and not qp.tx.pending()

    def _behind_read(self, qp: QueuePair, octets: int) -> None:
        """Go on after one read of so many octets."""
        if octets > 0 and not self._drained:
            self.pump()
        elif qp.tx.pending() or qp.state is not _RTS:
            self._send()
            self.settle()

    def _spin(self, qp: QueuePair) -> int:
        """Look for an answer for a moment before going to sleep for it.

        Between small messages the next one is usually a few microseconds away, and waking up
        costs more than that. Bulk data isn't waited for like this: there it would only cost CPU.
        """
        clock = self._loop.clock
        end = clock() + SPIN
        while True:
            octets = self._look(qp)
            if octets or clock() >= end:
                return octets

    def _look(self, qp: QueuePair) -> int:
        """`_receive` once, in fewer steps: what the latency of a message waited for consists of."""
        buffers = qp.buffers()
        if len(buffers) > 1 or self._tap is not None or self.connection.engine is not qp:
            return self._receive(MSG_DONTWAIT, 1)
        into, recv_into = buffers[0], self._stream.recv_into
        counters = self._counters
        for _ in range(_LOOKS):
            counters.syscalls += 1
            try:
                octets = recv_into(into, 0, MSG_DONTWAIT)
            except BlockingIOError:
                continue
            except OSError as exc:
                self._lost(exc)
                return _ENDED
            if not octets:
                self._end_of_stream()
                return _ENDED
            self._drained = octets < len(into)
            qp.received(octets)
            return octets
        self._drained = True
        return 0

    def _set_read_timeout(self, timeout: float | None) -> bool:
        """Have the kernel end a blocking read after so long (SO_RCVTIMEO; 0 is never)."""
        if not self._can_time_reads:
            return timeout is None
        microseconds = 0 if timeout is None else max(1, int(timeout * 1e6))
        value = _TIMEVAL.pack(*divmod(microseconds, 1_000_000))
        self._counters.syscalls += 1
        try:
            self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        except OSError:
            # A family without it waits in `Loop` instead.
            self._can_time_reads = False
            return timeout is None
        self._read_timeout = timeout
        return True

    def flush(self) -> None:
        """Send what is to be sent, without reading: the doorbell of a post."""
        if not (self._blocked or self.closed):
            self._send()
            self.settle()

    def close(self) -> None:
        """Close the stream now."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove(self)
        self._stream.close()
        if self._tap is not None:
            self._tap.close()
        self.connection.engine.stream_lost("closed")
        self._loop.notify()
        if self.on_close is not None:
            self.on_close()

    # -- inside --------------------------------------------------------------------------------

    def _send(self) -> bool:
        """Send until the engine has nothing more or the stream takes no more."""
        if self._shut:
            return False
        engine, stream, counters = self.connection.engine, self._stream, self._counters
        sent, more = False, True
        while more and (parts := engine.data_to_send()):
            counters.syscalls += 1
            try:
                octets = (
                    stream.send(parts[0], MSG_DONTWAIT)
                    if len(parts) == 1
                    else stream.sendmsg(parts, (), MSG_DONTWAIT)
                )
            except BlockingIOError:
                self._blocked = True
                return sent
            except OSError as exc:
                self._lost(exc)
                return True
            if self._tap is not None:
                self._tap.sent(_first(parts, octets))
            more = engine.sent(octets)
            sent = True
            if engine is not self.connection.engine:
                self._established()
                engine, counters, more = self.connection.engine, self._counters, True
        self._blocked = False
        return sent

    def _hung_up(self) -> bool:
        """The peer has closed, as far as that can be told without reading."""
        poller = select.poll()
        poller.register(self._fd, select.POLLRDHUP)
        return bool(poller.poll(0))

    def _receive(self, flags: int, rounds: int) -> int:
        """Read up to `rounds` times: how many octets came, or `_ENDED` at the stream's end.

        `_drained` says whether that was all there is for now.
        """
        stream, counters, tap = self._stream, self._counters, self._tap
        connection = self.connection
        total = 0
        self._drained = self.closed
        while rounds and not self._drained:
            rounds -= 1
            engine = connection.engine
            buffers = [self._sink] if self._shut else engine.buffers()
            if not buffers:
                self._drained = True
                break
            first = buffers[0]
            counters.syscalls += 1
            try:
                if len(buffers) == 1:
                    octets = stream.recv_into(first, 0, flags)
                    self._drained = octets < len(first)
                else:
                    octets = stream.recvmsg_into(buffers, 0, flags)[0]
                    # Where the data ends for now, it usually ends within the payload.
                    self._drained = octets <= len(first)
            except BlockingIOError:
                self._drained = True
                break
            except OSError as exc:
                self._lost(exc)
                return _ENDED
            if not octets:
                self._end_of_stream()
                return _ENDED
            total += octets
            if self._shut:
                continue
            if tap is not None:
                tap.received(_first(buffers, octets))
            engine.received(octets)
            if self._qp is None and engine is not connection.engine:
                self._established()
                counters = self._counters
        return total

    def _end_of_stream(self) -> None:
        self.connection.engine.eof()
        if self._shut or self.connection.engine.closing:
            self.close()

    def _established(self) -> None:
        """The queue pair has the stream from here on."""
        self._qp = qp = self.connection.qp
        if qp is not None:
            qp.counters.syscalls += self._counters.syscalls
            self._counters = qp.counters

    def settle(self) -> None:
        """Wait for the right things; begin to close once the engine is done with the stream.

        Also for whoever told the engine to close.
        """
        qp = self._qp
        if qp is not None and qp.state is _RTS:
            events = READ | WRITE if self._blocked else READ
            if events == self._events:
                return
        elif self.closed:
            return
        else:
            events = self._settle_slowly()
        if events != self._events and not self.closed:
            self._events = events
            self._loop.wait_on(self, events)

    def _settle_slowly(self) -> int:
        """`settle` before and after the queue pair's life; gives the events to wait for."""
        engine, qp = self.connection.engine, self._qp
        if qp is not None and qp.state is QpState.TERMINATE and self._linger_until is None:
            # A peer that doesn't read our Terminate isn't waited for without end.
            self._linger()
        if qp is not None and qp.state is QpState.CLOSING:
            self._hurry(qp)
        if engine.closing and not self._shut:
            self._shut = True
            self._sink = memoryview(bytearray(_SINK_OCTETS))
            try:
                self._stream.shutdown(socket.SHUT_WR)
            except OSError:
                # The peer was faster: there is no stream left to shut.
                self.close()
                return 0
            self._linger()
            self._loop.notify()
        self._loop.schedule(self)
        setting_up = engine is self.connection and not self._shut
        readable = READ if not setting_up or engine.buffers() else HANGUP
        return readable | (WRITE if self._blocked else 0)

    def _linger(self) -> None:
        self._linger_until = self._loop.clock() + LINGER

    def _hurry(self, qp: QueuePair) -> None:
        """Closing waits for a peer that gets on, and not for one that doesn't."""
        octets = qp.counters.tx_bytes + qp.counters.rx_bytes
        if self._close_by is None or octets - self._close_octets >= CLOSE_OCTETS:
            self._close_by = self._loop.clock() + CLOSE_TIMEOUT
            self._close_octets = octets

    def _lost(self, exc: OSError) -> None:
        self.connection.engine.stream_lost(exc.strerror or str(exc))
        self.close()


def _in_process(stream: Stream) -> bool:
    """Is it a socket of a family of this process? Such a one moves while somebody waits in it, and
    not while somebody only looks.
    """
    kernel = getattr(stream, "kernel", None)
    return kernel is not None and kernel.ops.passthrough is None


def _first(parts: list[Buffer] | list[memoryview], octets: int) -> bytes:
    """The first `octets` octets of `parts`."""
    return b"".join(parts)[:octets]
