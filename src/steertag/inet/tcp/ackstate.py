"""What one acknowledgement has brought so far: handed from step to step of its processing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from steertag.inet.tcp.skb import TcpSkb

# FLAG_* of net/ipv4/tcp_input.c
FLAG_DATA: Final = 0x01
"""The segment carries data."""
FLAG_WIN_UPDATE: Final = 0x02
FLAG_DATA_ACKED: Final = 0x04
FLAG_RETRANS_DATA_ACKED: Final = 0x08
"""Some of what it acknowledges was sent more than once."""
FLAG_SYN_ACKED: Final = 0x10
FLAG_DATA_SACKED: Final = 0x20
FLAG_ECE: Final = 0x40
FLAG_LOST_RETRANS: Final = 0x80
"""A retransmission was found lost."""
FLAG_ORIG_SACK_ACKED: Final = 0x200
"""Octets that were never sent again, of before the recovery, were delivered (F-RTO)."""
FLAG_SND_UNA_ADVANCED: Final = 0x400
FLAG_DSACKING_ACK: Final = 0x800
FLAG_SET_XMIT_TIMER: Final = 0x1000
FLAG_SACK_RENEGING: Final = 0x2000
FLAG_DSACK_TLP: Final = 0x8000
"""The D-SACK is of a tail loss probe."""

FLAG_ACKED: Final = FLAG_DATA_ACKED | FLAG_SYN_ACKED
FLAG_NOT_DUP: Final = FLAG_DATA | FLAG_WIN_UPDATE | FLAG_ACKED
FLAG_CA_ALERT: Final = FLAG_DATA_SACKED | FLAG_ECE | FLAG_DSACKING_ACK
FLAG_FORWARD_PROGRESS: Final = FLAG_ACKED | FLAG_DATA_SACKED

REXMIT_NONE: Final = 0
REXMIT_LOST: Final = 1
REXMIT_NEW: Final = 2


class AckState:
    """One acknowledgement that is not the usual one (struct tcp_sacktag_state, rate_sample).

    Attributes:
        flag: FLAG_*.
        now: seconds. prior_una: snd_una before it.
        prior_fack: the end of the highest octets the peer had before it.
        prior_delivered, prior_lost: octets, the connection's before it.
        first_sackt, last_sackt: when the first and the last of what is newly selectively
            acknowledged, and was sent once only, was sent; 0.0 for none.
        reord: the lowest sequence number that was delivered late, out of order; None for none.
        newest: the piece sent last of those it delivers.
        dup_acks: segments that this duplicate ACK stands for.
        rexmit: REXMIT_*: what is to be sent in answer.
        tsecr: the echoed timestamp, None without.
    """

    __slots__ = (
        "dup_acks",
        "first_sackt",
        "flag",
        "last_sackt",
        "newest",
        "now",
        "prior_delivered",
        "prior_fack",
        "prior_lost",
        "prior_una",
        "reord",
        "rexmit",
        "tsecr",
    )

    def __init__(self, now: float, prior_una: int, delivered: int, lost: int) -> None:
        self.flag = 0
        self.now = now
        self.prior_una = self.prior_fack = prior_una
        self.prior_delivered = delivered
        self.prior_lost = lost
        self.first_sackt = self.last_sackt = 0.0
        self.reord: int | None = None
        self.newest: TcpSkb | None = None
        self.dup_acks = 0
        self.rexmit = REXMIT_NONE
        self.tsecr: int | None = None

    def delivered_one(self, skb: TcpSkb) -> None:
        """Of the pieces it delivers the one sent last is what the rate is measured by."""
        newest = self.newest
        if newest is None or (skb.delivered, skb.sent_at) >= (newest.delivered, newest.sent_at):
            self.newest = skb

    def is_tlp_dsack(self) -> bool:
        return self.flag & FLAG_DSACK_TLP != 0

    def is_pure_dupack(self) -> bool:
        """It says nothing new whatever."""
        return not self.flag & (FLAG_SND_UNA_ADVANCED | FLAG_NOT_DUP | FLAG_DATA_SACKED)
