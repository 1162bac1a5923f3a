"""Sockets Direct Protocol: messages (RDMA Consortium SDP 1.0; InfiniBand Architecture annex A4).

Every message begins with the Base Sockets Direct Header (BSDH), 16 octets:

    mid u8 | flags u8 | bufs u16 | len u32 (whole message) | mseq u32 | mseq_ack u32

`docs/reference/sdp-wire.md` shows every message, and says where the layout is our choice.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from steertag.errors import WireError

Buffer = bytes | bytearray | memoryview

HELLO: Final = 0x00
HELLO_ACK: Final = 0x01
DISCONN: Final = 0x02
ABORT_CONN: Final = 0x03
SEND_SM: Final = 0x04
RDMA_WR_COMPL: Final = 0x05
RDMA_RD_COMPL: Final = 0x06
MODE_CHANGE: Final = 0x07
SRC_AVAIL_CANCEL: Final = 0x08
SINK_AVAIL_CANCEL: Final = 0x09
SINK_CANCEL_ACK: Final = 0x0A
CH_RCV_BUF: Final = 0x0B
CH_RCV_BUF_ACK: Final = 0x0C
SUSP_COMM: Final = 0x0D
SUSP_COMM_ACK: Final = 0x0E
SINK_AVAIL: Final = 0xFD
SRC_AVAIL: Final = 0xFE
DATA: Final = 0xFF

NAMES: Final = {
    HELLO: "Hello",
    HELLO_ACK: "HelloAck",
    DISCONN: "DisConn",
    ABORT_CONN: "AbortConn",
    SEND_SM: "SendSm",
    RDMA_WR_COMPL: "RdmaWrCompl",
    RDMA_RD_COMPL: "RdmaRdCompl",
    MODE_CHANGE: "ModeChange",
    SRC_AVAIL_CANCEL: "SrcAvailCancel",
    SINK_AVAIL_CANCEL: "SinkAvailCancel",
    SINK_CANCEL_ACK: "SinkCancelAck",
    CH_RCV_BUF: "ChRcvBuf",
    CH_RCV_BUF_ACK: "ChRcvBufAck",
    SUSP_COMM: "SuspComm",
    SUSP_COMM_ACK: "SuspCommAck",
    SINK_AVAIL: "SinkAvail",
    SRC_AVAIL: "SrcAvail",
    DATA: "Data",
}
MID_COUNT: Final = len(NAMES)
_INDEX: Final = {mid: index for index, mid in enumerate(NAMES)}

OOB_PRES: Final = 1
"""The last octet of the message is out-of-band data."""
OOB_PEND: Final = 2
"""Out-of-band data is on its way."""
REQ_PIPE: Final = 4
"""The sender, as a sink, asks the source for pipelined mode."""
FLAGS_KNOWN: Final = OOB_PRES | OOB_PEND | REQ_PIPE

COMBINED: Final = 0
BUFFERED: Final = 1
PIPELINED: Final = 2

VERSION: Final = 0x22
"""Major version 2, minor version 2, as OFED's and Solaris' implementations send it."""
CAP_INVALIDATE: Final = 1
CAP_EXT_ADVERTS: Final = 2

BSDH: Final = struct.Struct("!BBHIII")
BSDH_LEN: Final = BSDH.size
_HELLO: Final = struct.Struct("!BBBBIIHH16s16sHH")
_HELLO_ACK: Final = struct.Struct("!BBBBI")
_U32: Final = struct.Struct("!I")
SRC_AVAIL_BODY: Final = struct.Struct("!IIQ")
SINK_AVAIL_BODY: Final = struct.Struct("!IIQI")
HELLO_LEN: Final = BSDH_LEN + _HELLO.size
HELLO_ACK_LEN: Final = BSDH_LEN + _HELLO_ACK.size


def mid_index(mid: int) -> int:
    """Place of a MID in tables that have one entry per kind of message."""
    return _INDEX[mid]


@dataclass(frozen=True, slots=True)
class Bsdh:
    """The base header. `length` is the whole message's, `bufs` the sender's posted receives."""

    mid: int
    flags: int
    bufs: int
    length: int
    mseq: int
    mseq_ack: int

    @classmethod
    def parse(cls, data: Buffer) -> Bsdh:
        """Raises WireError for what is too short, or of a kind or with flags that don't exist."""
        if len(data) < BSDH_LEN:
            raise WireError(f"SDP message of {len(data)} octets")
        header = cls(*BSDH.unpack_from(data))
        if header.mid not in NAMES:
            raise WireError(f"SDP message of kind {header.mid:#04x}")
        if header.flags & ~FLAGS_KNOWN:
            raise WireError(f"SDP flags {header.flags:#04x}")
        return header

    def emit(self) -> bytes:
        return BSDH.pack(self.mid, self.flags, self.bufs, self.length, self.mseq, self.mseq_ack)


@dataclass(frozen=True, slots=True)
class Hello:
    """What the active side says of itself, in the private data of its MPA Request.

    Attributes:
        bufs: its posted receive buffers.
        max_adverts: advertisements that it takes at once.
        desired_size: octets that it would like the peer's receive buffers to have.
        local_size: octets of each of its own, headers included.
        port: its local port.
        source, destination: packed addresses, 4 or 16 octets.
        capabilities: CAP_*.
    """

    bufs: int
    max_adverts: int
    desired_size: int
    local_size: int
    port: int = 0
    source: bytes = bytes(4)
    destination: bytes = bytes(4)
    capabilities: int = 0
    version: int = VERSION

    @classmethod
    def parse(cls, data: Buffer) -> Hello:
        """Raises WireError for what is no Hello. Octets behind it are ignored."""
        header = _set_up(data, HELLO, HELLO_LEN)
        version, ip, _, adverts, desired, local, port, _, src, dst, _, extended = (
            _HELLO.unpack_from(data, BSDH_LEN)
        )
        if ip >> 4 not in (4, 6):
            raise WireError(f"Hello with addresses of IP version {ip >> 4}")
        skip = 12 if ip >> 4 == 4 else 0
        if ip & CAP_EXT_ADVERTS:
            adverts = extended
        return cls(
            header.bufs, adverts, desired, local, port, src[skip:], dst[skip:], ip & 15, version
        )

    def emit(self) -> bytes:
        ip = (4 if len(self.source) == 4 else 6) << 4 | self.capabilities
        extended = self.max_adverts if self.capabilities & CAP_EXT_ADVERTS else 0
        return BSDH.pack(HELLO, 0, self.bufs, HELLO_LEN, 0, 0) + _HELLO.pack(
            self.version,
            ip,
            0,
            min(self.max_adverts, 255),
            self.desired_size,
            self.local_size,
            self.port,
            0,
            self.source.rjust(16, b"\0"),
            self.destination.rjust(16, b"\0"),
            0,
            extended,
        )


@dataclass(frozen=True, slots=True)
class HelloAck:
    """The passive side's answer, in the private data of its MPA Reply.

    Attributes:
        bufs: its posted receive buffers.
        max_adverts: advertisements that it takes at once.
        actual_size: octets of each of its receive buffers, headers included.
    """

    bufs: int
    max_adverts: int
    actual_size: int
    version: int = VERSION

    @classmethod
    def parse(cls, data: Buffer) -> HelloAck:
        """Raises WireError for what is no HelloAck. Octets behind it are ignored."""
        header = _set_up(data, HELLO_ACK, HELLO_ACK_LEN)
        version, _, _, adverts, actual = _HELLO_ACK.unpack_from(data, BSDH_LEN)
        return cls(header.bufs, adverts, actual, version)

    def emit(self) -> bytes:
        header = BSDH.pack(HELLO_ACK, 0, self.bufs, HELLO_ACK_LEN, 0, 0)
        return header + _HELLO_ACK.pack(self.version, 0, 0, self.max_adverts, self.actual_size)


def _set_up(data: Buffer, mid: int, length: int) -> Bsdh:
    header = Bsdh.parse(data)
    if header.mid != mid:
        raise WireError(f"{NAMES[header.mid]} in the place of {NAMES[mid]}")
    if header.length < length or header.length > len(data):
        raise WireError(f"{NAMES[mid]} of {header.length} octets, {len(data)} are here")
    if header.flags:
        raise WireError(f"{NAMES[mid]} with flags {header.flags:#04x}")
    return header


@dataclass(frozen=True, slots=True)
class SrcAvail:
    """An advertised source: `length` octets at offset `addr` of STag `rkey`, to be read.

    Octets that follow in the message are the first ones of the source, once more.
    """

    length: int
    rkey: int
    addr: int

    @classmethod
    def parse(cls, body: Buffer) -> SrcAvail:
        """Raises WireError where it is too short, or the source empty or beyond 64 bits."""
        if len(body) < SRC_AVAIL_BODY.size:
            raise WireError(f"SrcAvail with {len(body)} octets behind the base header")
        length, rkey, addr = SRC_AVAIL_BODY.unpack_from(body)
        _check_place(length, addr)
        if len(body) - SRC_AVAIL_BODY.size > length:
            raise WireError(f"SrcAvail of {length} octets with more of them inline")
        return cls(length, rkey, addr)

    def emit(self) -> bytes:
        return SRC_AVAIL_BODY.pack(self.length, self.rkey, self.addr)


@dataclass(frozen=True, slots=True)
class SinkAvail:
    """An advertised sink, to be written.

    Attributes:
        length, rkey, addr: where.
        non_discards: low 32 bits of the number of octets of the stream that were received, or
            advertised to the sink, before it.
    """

    length: int
    rkey: int
    addr: int
    non_discards: int

    @classmethod
    def parse(cls, body: Buffer) -> SinkAvail:
        """Raises WireError where its length is another, or the sink empty or beyond 64 bits."""
        if len(body) != SINK_AVAIL_BODY.size:
            raise WireError(f"SinkAvail with {len(body)} octets behind the base header")
        length, rkey, addr, non_discards = SINK_AVAIL_BODY.unpack_from(body)
        _check_place(length, addr)
        return cls(length, rkey, addr, non_discards)

    def emit(self) -> bytes:
        return SINK_AVAIL_BODY.pack(self.length, self.rkey, self.addr, self.non_discards)


def _check_place(length: int, addr: int) -> None:
    if not length:
        raise WireError("advertisement of nothing")
    if addr + length > 1 << 64:
        raise WireError(f"advertisement of {length} octets at {addr:#x}")


@dataclass(frozen=True, slots=True)
class ModeChange:
    """Attributes:
    of_source: the sender speaks as the data source, else as the sink.
    mode: COMBINED, BUFFERED or PIPELINED.
    """

    of_source: bool
    mode: int

    @classmethod
    def parse(cls, body: Buffer) -> ModeChange:
        """Raises WireError."""
        word = parse_u32(body)
        mode = word >> 28 & 7
        if mode > PIPELINED or word & 0x0FFFFFFF:
            raise WireError(f"ModeChange {word:#010x}")
        return cls(bool(word >> 31), mode)

    def emit(self) -> bytes:
        return _U32.pack(self.of_source << 31 | self.mode << 28)


def parse_u32(body: Buffer) -> int:
    """The body of RdmaWrCompl, RdmaRdCompl, ChRcvBuf, ChRcvBufAck: a number of octets.

    Raises WireError where the body isn't 4 octets.
    """
    if len(body) != _U32.size:
        raise WireError(f"{len(body)} octets in the place of a number of 32 bits")
    return int(_U32.unpack_from(body)[0])


def emit_u32(value: int) -> bytes:
    """The inverse of `parse_u32`."""
    return _U32.pack(value)


@dataclass(frozen=True, slots=True)
class SuspComm:
    """The sender wants to go on over another connection.

    Attributes:
        service_id: where it would be found.
    """

    service_id: int

    @classmethod
    def parse(cls, body: Buffer) -> SuspComm:
        """Raises WireError."""
        if len(body) != 8:
            raise WireError(f"SuspComm with {len(body)} octets behind the base header")
        return cls(int.from_bytes(body, "big"))

    def emit(self) -> bytes:
        return self.service_id.to_bytes(8, "big")


Body = SrcAvail | SinkAvail | ModeChange | SuspComm | int | None
_BODY: Final[dict[int, Callable[[Buffer], Body]]] = {
    RDMA_WR_COMPL: parse_u32,
    RDMA_RD_COMPL: parse_u32,
    MODE_CHANGE: ModeChange.parse,
    CH_RCV_BUF: parse_u32,
    CH_RCV_BUF_ACK: parse_u32,
    SUSP_COMM: SuspComm.parse,
    SINK_AVAIL: SinkAvail.parse,
    SRC_AVAIL: SrcAvail.parse,
}


def parse_body(mid: int, body: Buffer) -> Body:
    """What stands behind the base header of any message but Hello, HelloAck and Data.

    Gives None for those without a body. Raises WireError.
    """
    parser = _BODY.get(mid)
    if parser is not None:
        return parser(body)
    if len(body):
        raise WireError(f"{NAMES.get(mid, mid)} with {len(body)} octets behind the base header")
    return None
