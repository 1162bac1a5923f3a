"""The two conventional paths: file data in-line on the control connection.

tcp-buffered is what nearly every program does: file -> buffer -> socket, socket -> buffer -> file,
64 KiB at a time. tcp-sendfile lets the kernel feed the socket from the page cache and gives the
receiver a larger buffer. Both send chunks (`protocol.CHUNK`), so that a sender can stop in the
middle and the connection stays in step.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from steertag.errors import WireError
from steertag.transfer.control import Control
from steertag.transfer.digest import Hasher
from steertag.transfer.errors import TransferError, from_os_error
from steertag.transfer.protocol import CHUNK, MAX_CHUNK, Failed, parse_chunk_header
from steertag.transfer.report import Meter
from steertag.transfer.store import Sink, Source

BUFFERED_STEP: Final = 64 * 1024
"""Octets per read and write of tcp-buffered: what Python's own file copies take."""
SENDFILE_STEP: Final = 1024 * 1024
"""Octets per sendfile(2), and the receiver's buffer, of tcp-sendfile."""

Progress = Callable[[int], None]
"""Told how many more octets have moved."""


def send_buffered(
    control: Control, source: Source, hasher: Hasher, meter: Meter, progress: Progress
) -> None:
    """Send the whole of `source` by read and send."""
    _Sender(control, source, hasher, meter, progress).run(BUFFERED_STEP, sendfile=False)


def send_sendfile(
    control: Control, source: Source, hasher: Hasher, meter: Meter, progress: Progress
) -> None:
    """Send the whole of `source` by sendfile(2); by read and send where the family has none."""
    sendfile = control.stream.can_send_file()
    _Sender(control, source, hasher, meter, progress).run(SENDFILE_STEP, sendfile)


class _Sender:
    def __init__(
        self, control: Control, source: Source, hasher: Hasher, meter: Meter, progress: Progress
    ) -> None:
        self._control = control
        self._stream = control.stream
        self._source = source
        self._hasher = hasher
        self._meter = meter
        self._progress = progress

    def run(self, step: int, sendfile: bool) -> None:
        size = self._source.size
        view = memoryview(bytearray(min(step, max(size, 1))))
        forward = self._forward if sendfile else self._copy
        offset = 0
        while offset < size:
            if self._stream.readable():
                self._stop()
            end = offset + min(MAX_CHUNK, size - offset)
            self._stream.send_all(CHUNK.pack(end - offset), more=True)
            while offset < end:
                part = view[: min(len(view), end - offset)]
                offset += self._read(part, offset, end)
                forward(part, offset - len(part))
                self._progress(len(part))
        self._end()

    def _read(self, view: memoryview, offset: int, end: int) -> int:
        """Fill `view` from the file; when that fails, finish the promised chunk and raise."""
        self._meter.syscalls += 1
        try:
            count = os.preadv(self._source.fd, [view], offset)
            error = self._source.changed(f"shrank below {offset + len(view)} octets")
        except OSError as problem:
            count, error = 0, from_os_error(problem, self._source.name)
        if count == len(view):
            self._hasher.update(view)
            return count
        self._stream.send_all(bytes(end - offset))
        self._end()
        raise error

    def _copy(self, view: memoryview, offset: int) -> None:
        self._stream.send_all(view)
        self._meter.staged_bytes += len(view)

    def _forward(self, view: memoryview, offset: int) -> None:
        """Send by sendfile what was read for the digest only, which sendfile would hide."""
        sent = 0
        while sent < len(view):
            count = self._stream.send_file(self._source.fd, offset + sent, len(view) - sent)
            if not count:
                # It shrank between the two calls; the check at the end tells the receiver.
                self._stream.send_all(view[sent:])
                return
            sent += count

    def _end(self) -> None:
        self._stream.send_all(CHUNK.pack(0))

    def _stop(self) -> None:
        """The receiver speaks in the middle of the stream: it can only have failed."""
        self._end()
        self._control.expect(Failed)


def receive(
    control: Control, sink: Sink, step: int, hasher: Hasher, meter: Meter, progress: Progress
) -> None:
    """Receive chunks into `sink` through a buffer of `step` octets.

    Fewer octets than the file has are no error here: the sender's next message says why.

    Raises:
        WireError: more octets came than the file has.
        TransferError: the file cannot be written; the peer has been told and the connection is in
            step.
    """
    stream = control.stream
    view = memoryview(bytearray(min(step, max(sink.size, CHUNK.size))))
    offset = 0
    failure: TransferError | None = None
    while chunk := parse_chunk_header(stream.recv_exactly(CHUNK.size)):
        if chunk > sink.size - offset:
            raise WireError(f"more than the {sink.size} octets that were announced")
        while chunk:
            count = stream.recv_into(view[: min(len(view), chunk)])
            chunk -= count
            if failure is None:
                failure = _store(view[:count], offset, sink, hasher, meter)
                if failure is not None:
                    control.tell(failure)  # and drain what is still on its way
            offset += count
            progress(count)
    if failure is not None:
        raise failure


def _store(
    view: memoryview, offset: int, sink: Sink, hasher: Hasher, meter: Meter
) -> TransferError | None:
    hasher.update(view)
    meter.staged_bytes += len(view)
    while view:
        meter.syscalls += 1
        try:
            count = os.pwrite(sink.fd, view, offset)
        except OSError as error:
            return from_os_error(error, sink.name)
        view = view[count:]
        offset += count
    return None
