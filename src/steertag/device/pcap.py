"""Captures of what passes through a device, for Wireshark, tshark and tcpdump.

A super-segment is no packet of any wire, and its checksum is nowhere: it is recorded with the
checksum that it would have, either whole, as one packet of up to 64 KiB, or cut into its segments.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import BinaryIO, Final, Self

from steertag.device.base import Device
from steertag.device.frame import ARPHRD_ETHER, CHECKSUM_PARTIAL, Frame, Offload
from steertag.device.gso import checksummed, on_the_wire_untrusted, segments, transport_untrusted
from steertag.device.middleware import Middleware
from steertag.family.skbuff import Buffer
from steertag.wire.pcap import LINKTYPE_ETHERNET, LINKTYPE_RAW, file_header, record_header

PathOrFile = str | os.PathLike[str] | BinaryIO

_MICROSECONDS: Final = 1_000_000


class PacketFile:
    """Writes packets into a capture file.

    Args:
        target: a path, which is created or emptied, or a writable binary file, which the caller
            closes.
        linktype: what packets begin with, a LINKTYPE_ number.
        clock: answers seconds since the epoch for a packet's time stamp, e.g. `time.time`. Without
            one the packets are a microsecond apart, so that equal traffic makes equal files.

    Not safe for use from several threads at once.
    """

    def __init__(
        self, target: PathOrFile, linktype: int, *, clock: Callable[[], float] | None = None
    ) -> None:
        if isinstance(target, str | os.PathLike):
            self._file: BinaryIO = open(target, "wb")  # noqa: SIM115 - closed by close()
            self._owned = True
        else:
            self._file, self._owned = target, False
        self._clock = clock
        self._closed = False
        self._packets = 0
        self._file.write(file_header(linktype))

    def write_packet(self, *parts: Buffer) -> None:
        """Append one packet, given in parts. After `close` nothing is recorded any more."""
        if self._closed:
            return
        stamp = self._packets if self._clock is None else round(self._clock() * _MICROSECONDS)
        size = sum(map(len, parts))
        self._file.write(record_header(stamp, size, size))
        for part in parts:
            self._file.write(part)
        self._packets += 1

    def flush(self) -> None:
        """Have what was recorded in the file, for who reads it meanwhile."""
        if not self._closed:
            self._file.flush()

    def close(self) -> None:
        """Flush, and close the file if it was given by its path. It may be called again."""
        if self._closed:
            return
        self._closed = True
        if self._owned:
            self._file.close()
        else:
            self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class PcapDevice(Middleware):
    """Records what is sent and received, in the order in which it passes here.

    What the inner device refuses isn't recorded. A capture that can't be written any more ends and
    leaves the traffic alone: `failure` says why.

    Args:
        inner: any device.
        target: as of `PacketFile`.
        whole: record a super-segment as one packet; else as the segments it stands for.
        clock: as of `PacketFile`.

    Attributes:
        failure: what the capture ended with before its time.
    """

    def __init__(
        self,
        inner: Device,
        target: PathOrFile,
        *,
        whole: bool = True,
        clock: Callable[[], float] | None = time.time,
    ) -> None:
        linktype = LINKTYPE_ETHERNET if inner.type == ARPHRD_ETHER else LINKTYPE_RAW
        self._records = PacketFile(target, linktype, clock=clock)
        super().__init__(inner)
        self._whole = whole
        self.failure: OSError | None = None

    def transmit(self, parts: Sequence[Buffer], offload: Offload | None = None) -> None:
        super().transmit(parts, offload)
        if offload is None:
            self._record(parts)
        elif self._whole or not offload.gso_size:
            self._record(checksummed(parts, offload))
        else:
            for segment in segments(parts, offload, self.hard_header_len):
                self._record(segment)

    def receive(self) -> Frame | None:
        frame = self.inner.receive()
        if frame is None:
            return None
        if frame.csum != CHECKSUM_PARTIAL and (self._whole or not frame.gso_size):
            self._record((frame.data,))
        elif self._whole:
            offload = transport_untrusted(frame.data, self.hard_header_len)
            data = (frame.data,)
            self._record(data if offload is None else checksummed(data, offload))
        else:
            for packet in on_the_wire_untrusted(frame, self.hard_header_len):
                self._record((packet,))
        return frame

    def flush(self) -> None:
        """Have what was recorded so far in the file."""
        self._guarded(self._records.flush)

    def close(self) -> None:
        super().close()
        self._guarded(self._records.close)

    def _record(self, parts: Sequence[Buffer]) -> None:
        if self.failure is None:
            self._guarded(lambda: self._records.write_packet(*parts))

    def _guarded(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            if self.failure is None:
                self.failure = error
