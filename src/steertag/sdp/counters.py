"""What SDP streams have counted: one object per stream, or shared by many."""

from __future__ import annotations

from dataclasses import dataclass, field

from steertag.wire.sdp import MID_COUNT


@dataclass(slots=True)
class SdpCounters:
    """Plain integers; octets where the name ends in _bytes.

    Attributes:
        tx_bcopy_bytes, rx_bcopy_bytes: in Data messages.
        tx_read_bytes, rx_read_bytes: moved by the sink's RDMA Reads of advertised sources.
        tx_write_bytes, rx_write_bytes: moved by the source's RDMA Writes to advertised sinks.
        rx_inplace_bytes: of those, read or written straight into the application's buffer.
        tx_messages, rx_messages: by index of the message's MID (`wire.sdp.mid_index`).
        credit_updates: empty messages that gave credits.
        credit_waits: times that data waited for a credit.
        src_adverts, sink_adverts: advertisements made.
        src_cancels, sink_cancels: of those, cancelled.
        sink_void: advertised sinks that other data crossed.
        refused: advertised sources that we refused (SendSm).
        refusals: SendSm of the peer's.
        mode_changes: of our source's mode.
        aborts_sent, aborts_received: AbortConn.
        protocol_errors: of the peer.
        keepalives: signs of life asked for.
    """

    tx_bcopy_bytes: int = 0
    rx_bcopy_bytes: int = 0
    tx_read_bytes: int = 0
    rx_read_bytes: int = 0
    tx_write_bytes: int = 0
    rx_write_bytes: int = 0
    rx_inplace_bytes: int = 0
    credit_updates: int = 0
    credit_waits: int = 0
    src_adverts: int = 0
    sink_adverts: int = 0
    src_cancels: int = 0
    sink_cancels: int = 0
    sink_void: int = 0
    refused: int = 0
    refusals: int = 0
    mode_changes: int = 0
    aborts_sent: int = 0
    aborts_received: int = 0
    protocol_errors: int = 0
    keepalives: int = 0
    tx_messages: list[int] = field(default_factory=lambda: [0] * MID_COUNT)
    rx_messages: list[int] = field(default_factory=lambda: [0] * MID_COUNT)

    def add(self, other: SdpCounters) -> None:
        """Add what another has counted."""
        for name in self.__dataclass_fields__:
            mine, its = getattr(self, name), getattr(other, name)
            if isinstance(mine, list):
                mine[:] = [a + b for a, b in zip(mine, its, strict=True)]
            else:
                setattr(self, name, mine + its)
