"""The queue pair of a CMID, and librdmacm's calls for simple programs (`rdma_verbs.h`)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TypeVar

from steertag.errors import os_error
from steertag.rdma.constants import (
    ACCESS_LOCAL_WRITE,
    ACCESS_REMOTE_READ,
    ACCESS_REMOTE_WRITE,
    SEND_SIGNALED,
    WR_RDMA_READ,
    WR_RDMA_WRITE,
    WR_SEND,
)
from steertag.rdma.cq import WC
from steertag.rdma.wr import SGE, RecvWR, SendWR
from steertag.runtime.driver import StreamDriver
from steertag.verbs.cm.conn_param import ConnParam
from steertag.verbs.cq import CQ
from steertag.verbs.device import PD, Context, Managed
from steertag.verbs.mr import MR
from steertag.verbs.qp import QP, QPInitAttr

_Queue = TypeVar("_Queue", bound=CQ)


class EndpointVerbs(Managed):
    """What a CMID offers for its queue pair and the protection domain it has.

    Attributes:
        qp: the queue pair, once there is one.
    """

    def __init__(self, pd: PD, qp_init_attr: QPInitAttr) -> None:
        super().__init__(pd)
        self.pd = pd
        self.context: Context = pd.context
        self.qp: QP | None = None
        self._qp_init_attr = qp_init_attr
        self._own_cqs: list[CQ] = []
        self._external_qp = False
        self._driver: StreamDriver | None = None

    # -- its queue pair ------------------------------------------------------------------------

    @property
    def qp_init_attr(self) -> QPInitAttr:
        """What its queue pair is, or will be, made of."""
        return self._qp_init_attr

    @property
    def qpn(self) -> int | None:
        """The queue pair's number, once there is one."""
        return None if self.qp is None else self.qp.qp_num

    def create_qp(self, qp_init_attr: QPInitAttr | None = None) -> QP:
        """The QP, made now: receives can be posted before the connection is accepted.

        Raises OSError EINVAL for attributes where it has a QP already; what `QP` raises.
        """
        if qp_init_attr is not None:
            if self.qp is not None:
                raise os_error(errno.EINVAL, "this CMID has a queue pair already")
            self._qp_init_attr = qp_init_attr
        return self._make_qp()

    def destroy_qp(self) -> None:
        """`rdma_destroy_qp`: close its QP, and with it the connection. Nothing without one."""
        with self.context.loop.lock:
            qp, self.qp = self.qp, None
            if qp is not None and not self._external_qp:
                qp.close()
            cqs, self._own_cqs = self._own_cqs, []
        for cq in cqs:
            cq.close()

    def _qp_to_connect(self, param: ConnParam) -> QP:
        """Its own, or with `param.qp_num` that of the program. With the lock held."""
        if self.qp is not None or not param.qp_num:
            return self._make_qp()
        qp = self.context.queue_pairs.get(param.qp_num)
        if isinstance(qp, QP):
            self.qp, self._external_qp = qp, True
            if self._driver is not None:
                qp.drive(self._driver)
            return qp
        raise os_error(errno.EINVAL, f"there is no queue pair {param.qp_num} in the CMID's Context")

    def _make_qp(self) -> QP:
        if self.qp is None:
            init, made = with_queues(self._qp_init_attr, lambda cqe: CQ(self.context, cqe))
            self.qp = QP(self.pd, init)
            self._own_cqs = made
            if self._driver is not None:
                self.qp.drive(self._driver)
        return self.qp

    # -- rdma_verbs.h --------------------------------------------------------------------------

    def reg_msgs(self, size: int) -> MR:
        """`rdma_reg_msgs`: memory for Sends and receives."""
        return MR(self.pd, size, ACCESS_LOCAL_WRITE)

    def reg_read(self, size: int = 0) -> MR:
        """`rdma_reg_read`: memory that the peer may read."""
        return MR(self.pd, size, ACCESS_LOCAL_WRITE | ACCESS_REMOTE_READ)

    def reg_write(self, size: int = 0) -> MR:
        """`rdma_reg_write`: memory that the peer may write."""
        return MR(self.pd, size, ACCESS_LOCAL_WRITE | ACCESS_REMOTE_WRITE)

    def post_recv(self, mr: MR, length: int | None = None) -> None:
        """`rdma_post_recv` into the region's first `length` octets; None or 0: all of them."""
        self.connected_qp().post_recv(recv_wr(mr, length))

    def post_send(self, mr: MR, flags: int = SEND_SIGNALED, length: int | None = None) -> None:
        """`rdma_post_send` of the region's first `length` octets; None or 0: all of them."""
        self.connected_qp().post_send(send_wr(mr, flags, length))

    def post_read(self, mr: MR, length: int, remote_addr: int, rkey: int, flags: int = 0) -> None:
        """`rdma_post_read` of `length` octets at `remote_addr` into the region.

        Without IBV_SEND_SIGNALED it completes visibly where the QP has `sq_sig_all`, the default.
        """
        self.connected_qp().post_send(
            rdma_wr(WR_RDMA_READ, mr, length, remote_addr, rkey, flags),
        )

    def post_write(self, mr: MR, length: int, remote_addr: int, rkey: int, flags: int = 0) -> None:
        """`rdma_post_write` of the region's first `length` octets to `remote_addr`; as
        `post_read`.
        """
        self.connected_qp().post_send(
            rdma_wr(WR_RDMA_WRITE, mr, length, remote_addr, rkey, flags),
        )

    def get_send_comp(self, timeout: float | None = None) -> WC:
        """`rdma_get_send_comp`: wait for the next completion of the send queue.

        Raises TimeoutError after `timeout` seconds.
        """
        return _completion(self.connected_qp().scq, timeout)

    def get_recv_comp(self, timeout: float | None = None) -> WC:
        """`rdma_get_recv_comp`: wait for the next completion of the receive queue; as
        `get_send_comp`.
        """
        return _completion(self.connected_qp().rcq, timeout)

    def connected_qp(self) -> QP:
        """The queue pair. Raises OSError ENOTCONN where there is none yet."""
        if self.qp is None:
            raise os_error(errno.ENOTCONN, "this CMID has no queue pair yet")
        return self.qp


def with_queues(init: QPInitAttr, make: Callable[[int], _Queue]) -> tuple[QPInitAttr, list[_Queue]]:
    """Attributes with a completion queue for either direction, and those of them that `make` made.

    `make` is given how many completions a queue has to hold.
    """
    made: list[_Queue] = []
    scq, rcq = init.scq, init.rcq
    if scq is None:
        scq = make(init.cap.max_send_wr + 1)
        made.append(scq)
    if rcq is None:
        rcq = make(init.cap.max_recv_wr + 1)
        made.append(rcq)
    whole = QPInitAttr(init.qp_type, init.qp_context, scq, rcq, init.srq, init.cap, init.sq_sig_all)
    return whole, made


def recv_wr(mr: MR, length: int | None = None) -> RecvWR:
    """A receive into a region's first octets."""
    return RecvWR(sg=[_sge(mr, length)])


def send_wr(mr: MR, flags: int = SEND_SIGNALED, length: int | None = None) -> SendWR:
    """A Send of a region's first octets."""
    return SendWR(sg=[_sge(mr, length)], opcode=WR_SEND, send_flags=flags)


def rdma_wr(
    opcode: int, mr: MR, length: int, remote_addr: int, rkey: int, flags: int = 0
) -> SendWR:
    """A Read into, or a Write of, a region's first octets."""
    wr = SendWR(sg=[SGE(mr.buf, length, mr.lkey)], opcode=opcode, send_flags=flags)
    wr.set_wr_rdma(rkey, remote_addr)
    return wr


def _sge(mr: MR, length: int | None) -> SGE:
    return SGE(mr.buf, length or mr.length, mr.lkey)


def _completion(cq: CQ, timeout: float | None) -> WC:
    taken = cq.wait(1, timeout)
    if not taken:
        raise TimeoutError("no completion")
    return taken[0]
