"""Records every RDMA connection of a program in one capture: what `--pcap` does.

It sits inside the stack, where the octets of a stream pass, and so needs no privileges; see
`observe.pcap` for what the packets are.
"""

from __future__ import annotations

import io
import itertools
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from steertag.observe.pcap import Endpoint, PcapWriter, StreamTap
from steertag.runtime.stream import Stream
from steertag.verbs.device import Context

Buffer = bytes | bytearray | memoryview

MSS: Final = 65480
"""Octets to a packet at most: what a loopback of the usual MTU carries, so that there are few."""
_NOWHERE: Final = ("192.0.2.1", "192.0.2.2")
"""The ends of a stream that has no addresses (RFC 5737: for documentation)."""
_PORTS: Final = 49152


class Recorder:
    """A capture file that several connections and threads write to.

    What is recorded is in the file before the call that brought it returns: a process that is
    killed leaves a file that can be read.

    Args:
        path: created, or emptied.
        clock: seconds since the epoch, for the packets.

    Attributes:
        failure: why recording has stopped, where it has. Connections go on without it.

    Raises:
        OSError: the file can't be created.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.failure: OSError | None = None
        self._lock = threading.Lock()
        self._ports = itertools.count()
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._whole = 0  # octets of the file that end with a whole packet
        self._buffer = io.BytesIO()
        self._writer: PcapWriter | None = PcapWriter(self._buffer, clock=clock)
        self._flush()

    def watch(self, context: object) -> None:
        """Record what connections are made in a Context; for `Stack.observers`."""
        if isinstance(context, Context):
            context.tap_for = self.tap_for

    def tap_for(self, stream: Stream) -> RecordedStream:
        return RecordedStream(self, *self._ends(stream))

    def close(self) -> None:
        """Connections that still are open go unrecorded from here on."""
        with self._lock:
            if self._writer is not None:
                self._writer = None
                os.close(self._fd)

    def record(self, write: Callable[[PcapWriter], None]) -> None:
        """Let `write` write packets, and put them into the file. Never raises OSError."""
        with self._lock:
            if self._writer is None or self.failure is not None:
                return
            write(self._writer)
            self._flush()

    def _flush(self) -> None:
        done = 0
        with self._buffer.getbuffer() as octets:
            try:
                while done < len(octets):
                    done += os.write(self._fd, octets[done:])
            except OSError as exc:
                self.failure = exc
                with suppress(OSError):  # a pipe: its reader has what it has
                    os.ftruncate(self._fd, self._whole)
        self._whole += done
        self._buffer.seek(0)
        self._buffer.truncate()

    def _ends(self, stream: Stream) -> tuple[Endpoint, Endpoint]:
        """The addresses of a stream, or made-up ones where it has none."""
        local, remote = _name(stream, "getsockname"), _name(stream, "getpeername")
        if local is not None and remote is not None:
            return local, remote
        port = _PORTS + next(self._ports) % (0x10000 - _PORTS)
        return Endpoint(_NOWHERE[0], port), Endpoint(_NOWHERE[1], port)


class RecordedStream:
    """The tap of one stream. Whoever's octets come first has opened it, as MPA demands."""

    def __init__(self, recorder: Recorder, local: Endpoint, remote: Endpoint) -> None:
        self._recorder = recorder
        self._ends = (local, remote)
        self._tap: StreamTap | None = None

    def sent(self, data: Buffer) -> None:
        self._recorder.record(lambda writer: self._of(writer, initiator=True).sent(data))

    def received(self, data: Buffer) -> None:
        self._recorder.record(lambda writer: self._of(writer, initiator=False).received(data))

    def close(self) -> None:
        tap = self._tap
        if tap is not None:
            self._recorder.record(lambda _: tap.close())

    def _of(self, writer: PcapWriter, *, initiator: bool) -> StreamTap:
        if self._tap is None:
            self._tap = writer.tap(*self._ends, initiator=initiator, mss=MSS)
        return self._tap


def _name(stream: Stream, method: str) -> Endpoint | None:
    ask: Callable[[], object] | None = getattr(stream, method, None)
    if ask is None:
        return None
    try:
        name = ask()
    except OSError:
        return None  # the peer is gone already
    if not isinstance(name, tuple) or len(name) < 2:
        return None
    try:
        ip_address(str(name[0]).partition("%")[0])
    except ValueError:
        return None  # of a family with addresses of another kind
    return Endpoint(str(name[0]), int(name[1]))
