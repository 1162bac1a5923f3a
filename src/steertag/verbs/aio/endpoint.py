"""librdmacm's calls for simple programs (`rdma_verbs.h`), with completions that are awaited."""

from __future__ import annotations

import asyncio

from steertag.rdma.constants import WR_RDMA_READ, WR_RDMA_WRITE
from steertag.rdma.cq import WC
from steertag.rdma.wr import RecvWR, SendWR
from steertag.verbs.aio.completion import CQ, aio_cq, submit
from steertag.verbs.aio.context import Context
from steertag.verbs.cm import cmid as sync
from steertag.verbs.cm.verbs import rdma_wr, recv_wr, send_wr, with_queues
from steertag.verbs.mr import MR
from steertag.verbs.qp import QP, QPInitAttr


class EndpointVerbs:
    """What a CMID offers for its queue pair and the protection domain it has.

    Attributes:
        cmid: the `steertag.verbs.CMID` beneath.
    """

    def __init__(self, context: Context, cmid: sync.CMID, qp_init_attr: QPInitAttr) -> None:
        self.context = context
        self.cmid = cmid
        self._init = qp_init_attr
        self._own_cqs: list[CQ] = []

    # -- its queue pair ------------------------------------------------------------------------

    @property
    def qp(self) -> QP:
        """The queue pair, made when it is first asked for."""
        return self.create_qp()

    def create_qp(self) -> QP:
        """The queue pair, made now: receives can be posted before the connection is there."""
        if self.cmid.qp is None:
            init, made = with_queues(self._init, lambda cqe: CQ(self.context, cqe))
            self._own_cqs += made
            self.cmid.create_qp(init)
        assert self.cmid.qp is not None
        return self.cmid.qp

    # -- rdma_verbs.h --------------------------------------------------------------------------

    def reg_msgs(self, size: int) -> MR:
        """Memory for Sends and receives."""
        return self.cmid.reg_msgs(size)

    def reg_read(self, size: int) -> MR:
        """Memory that the peer may read."""
        return self.cmid.reg_read(size)

    def reg_write(self, size: int) -> MR:
        """Memory that the peer may write."""
        return self.cmid.reg_write(size)

    def submit(self, wr: SendWR | RecvWR) -> asyncio.Future[WC]:
        """Post a request now; await what this gives for its completion. See `submit`."""
        return submit(self.qp, wr)

    def recv(self, mr: MR, length: int | None = None) -> asyncio.Future[WC]:
        """`submit` a receive into the region's first `length` octets; None: all of them."""
        return self.submit(recv_wr(mr, length))

    def send(self, mr: MR, length: int | None = None, flags: int = 0) -> asyncio.Future[WC]:
        """`submit` a Send of the region's first `length` octets; None: all of them."""
        return self.submit(send_wr(mr, flags, length))

    def read(
        self, mr: MR, length: int, remote_addr: int, rkey: int, flags: int = 0
    ) -> asyncio.Future[WC]:
        """`submit` an RDMA Read of `length` octets at `remote_addr` into the region."""
        return self.submit(
            rdma_wr(WR_RDMA_READ, mr, length, remote_addr, rkey, flags),
        )

    def write(
        self, mr: MR, length: int, remote_addr: int, rkey: int, flags: int = 0
    ) -> asyncio.Future[WC]:
        """`submit` an RDMA Write of the region's first `length` octets to `remote_addr`."""
        return self.submit(
            rdma_wr(WR_RDMA_WRITE, mr, length, remote_addr, rkey, flags),
        )

    async def get_send_comp(self) -> WC:
        """The next completion of the send queue that no `submit` has claimed."""
        return await aio_cq(self.qp.scq).get()

    async def get_recv_comp(self) -> WC:
        """The next completion of the receive queue that no `submit` has claimed."""
        return await aio_cq(self.qp.rcq).get()
