"""Sockets Direct Protocol: messages (RDMA Consortium SDP 1.0; InfiniBand Architecture annex A4).

Every message begins with the Base Sockets Direct Header (BSDH), 16 octets:

    mid u8 | flags u8 | bufs u16 | len u32 (whole message) | mseq u32 | mseq_ack u32

`docs/reference/sdp-wire.md` shows every message, and says where the layout is our choice.
"""

from __future__ import annotations

import struct
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
