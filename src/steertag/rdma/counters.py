"""What a queue pair has counted since it was made. All plain integers, octets where not named."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Attributes:
    tx_fpdus, rx_fpdus: FPDUs handed to the stream, and taken from it whole.
    tx_bytes, rx_bytes: octets of the stream, headers and trailers included.
    placed_bytes: payload that the stream's own system call wrote into registered memory.
    staged_bytes: payload copied once in user space on its way: small FPDUs parsed many to a
        read, and small messages gathered into one buffer before they are sent.
    syscalls: calls to the stream and waits for it, made by the driver.
    crc_errors: FPDUs whose CRC32C was wrong.
    protocol_errors: errors of the peer found here, CRC errors included.
    terminates_sent, terminates_received: Terminate messages.
    """

    tx_fpdus: int = 0
    rx_fpdus: int = 0
    tx_bytes: int = 0
    rx_bytes: int = 0
    placed_bytes: int = 0
    staged_bytes: int = 0
    syscalls: int = 0
    crc_errors: int = 0
    protocol_errors: int = 0
    terminates_sent: int = 0
    terminates_received: int = 0

    def add(self, other: Counters) -> None:
        """Add what another has counted."""
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))
