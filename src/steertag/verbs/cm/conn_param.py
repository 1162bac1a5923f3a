"""Parameters of a connection (pyverbs: `cmid.ConnParam`; `struct rdma_conn_param`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from steertag.rdma.connection import DEFAULT_IRD, DEFAULT_ORD, Offer
from steertag.rdma.rtr import RTR_KINDS, RtrKind
from steertag.wire import mpa

MAX_RETRY: Final = 7


class ConnParam:
    """`struct rdma_conn_param`, and what iWARP adds to it.

    Args:
        resources: Read Requests of the peer taken at once (IRD). Also: `responder_resources`.
        depth: Read Requests made at once (ORD). Also: `initiator_depth`.
        flow_control, rnr_retry: kept; TCP controls the flow, and iWARP has no "receiver not
            ready".
        retry: with `RDMA_OPTION_ID_ACK_TIMEOUT`, how often that time may pass before the
            connection is lost.
        srq: kept: whether the QP named by `qp_num` has a shared receive queue.
        qp_num: the QP to connect, where the CMID has none of its own.
        data_len: room for `set_private_data`; 0 is as much as there is.
        private_data: octets for the peer, at most 508; towards Linux's siw at most 251.
        crc: ask for CRC32C; it is in use as soon as one side asks.
        mpa_revision: 2, or 1 for a peer that knows no other.
        max_ulpdu: octets of a ULPDU sent at most; some hardware takes no more than 16 KiB.
        crc_required: ask for CRC32C, and connect to no peer whose Reply leaves it out.
        markers: have the peer put MPA markers into what it sends (RFC 5044 section 4.3).
        peer_to_peer: the connecting side's RNIC sends a first message of its own, so that the
            accepting side's program can be the first to send (RFC 6581 section 9.2).
        rtr: the kinds of first message that this side knows, the preferred one first: "write",
            "read", "send"; None: these three. The connecting side offers, the accepting chooses.
        revision_fallback: connect again in MPA revision 1, with a warning, where the peer turns out
            not to know revision 2.
    """

    def __init__(
        self,
        resources: int = DEFAULT_IRD,
        depth: int = DEFAULT_ORD,
        flow_control: int = 0,
        retry: int = 5,
        rnr_retry: int = 5,
        srq: int = 0,
        qp_num: int = 0,
        data_len: int = 0,
        *,
        responder_resources: int | None = None,
        initiator_depth: int | None = None,
        private_data: bytes = b"",
        crc: bool = True,
        mpa_revision: int = 2,
        max_ulpdu: int = mpa.MAX_ULPDU - 1,
        crc_required: bool = False,
        markers: bool = False,
        peer_to_peer: bool = False,
        rtr: Sequence[RtrKind] | RtrKind | None = None,
        revision_fallback: bool = False,
    ) -> None:
        self.responder_resources = resources if responder_resources is None else responder_resources
        self.initiator_depth = depth if initiator_depth is None else initiator_depth
        self.flow_control = flow_control
        self.retry_count = retry
        self.rnr_retry_count = rnr_retry
        self.srq = srq
        self.qp_num = qp_num
        self.data_len = data_len
        self.private_data = private_data
        self.crc = crc
        self.mpa_revision = mpa_revision
        self.max_ulpdu = max_ulpdu
        self.crc_required = crc_required
        self.markers = markers
        self.peer_to_peer = peer_to_peer
        # One kind may stand for itself: a string is a sequence too, of letters.
        self.rtr = RTR_KINDS if rtr is None else (rtr,) if isinstance(rtr, str) else tuple(rtr)
        self.revision_fallback = revision_fallback

    @property
    def qpn(self) -> int:
        """pyverbs' name of `qp_num`."""
        return self.qp_num

    @qpn.setter
    def qpn(self, value: int) -> None:
        self.qp_num = value

    def set_private_data(self, data: bytes) -> None:
        """Private data; where `data_len` was given, its first `data_len` octets, as in pyverbs."""
        self.private_data = bytes(data[: self.data_len] if self.data_len else data)

    def offer(self) -> Offer:
        """What the set-up is given. Raises ValueError for what no frame can hold."""
        return Offer(
            private_data=self.private_data,
            crc=self.crc,
            ird=self.responder_resources,
            ord=self.initiator_depth,
            revision=self.mpa_revision,
            max_ulpdu=self.max_ulpdu,
            crc_required=self.crc_required,
            markers=self.markers,
            peer_to_peer=self.peer_to_peer,
            rtr=self.rtr,
            revision_fallback=self.revision_fallback,
        )

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"ConnParam({fields})"
