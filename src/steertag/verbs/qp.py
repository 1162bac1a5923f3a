"""Queue pairs (pyverbs: `qp`, `wr`)."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from steertag.errors import os_error
from steertag.rdma.connection import Connection
from steertag.rdma.constants import ACCESS_REMOTE, QPT_RC, SEND_SIGNALED, WC_OF_WR
from steertag.rdma.counters import Counters
from steertag.rdma.qp_state import QpState
from steertag.rdma.wr import SGE, RecvWR
from steertag.rdma.wr import SendWR as CoreSendWR
from steertag.runtime.driver import StreamDriver
from steertag.runtime.stream import Stream
from steertag.verbs import enums as e
from steertag.verbs.addr import device_gid
from steertag.verbs.device import PD, Context
from steertag.verbs.fabric import Confirmations, Fabric
from steertag.verbs.managed import Managed
from steertag.verbs.mw import MW, MWBind, SendWR
from steertag.verbs.posting import each_of, post_list
from steertag.verbs.qp_attr import (
    INIT_MASK,
    MEMBERS,
    RTR_MASK,
    RTS_MASK,
    QPAttr,
    QPCap,
    QPInitAttr,
    QPInitAttrEx,
    check_modify,
)
from steertag.wire import mpa

__all__ = ["QP", "SGE", "QPAttr", "QPCap", "QPInitAttr", "QPInitAttrEx", "RecvWR", "SendWR"]

_STATE: Final = {
    QpState.RESET: e.IBV_QPS_RESET,
    QpState.INIT: e.IBV_QPS_INIT,
    QpState.RTS: e.IBV_QPS_RTS,
    QpState.SQD: e.IBV_QPS_SQD,
    QpState.CLOSING: e.IBV_QPS_SQD,
    QpState.TERMINATE: e.IBV_QPS_SQE,
    QpState.ERROR: e.IBV_QPS_ERR,
}
"""What a program sees of each state, as siw tells it (siw_verbs.c)."""


class QP(Managed):
    """A queue pair (`ibv_create_qp`). A `CMID` connects it, or `modify` with the peer's number.

    Args:
        creator: its protection domain; a Context, with the domain in a QPInitAttrEx.
        init_attr: what it is made of.
        qp_attr: take it to IBV_QPS_INIT with these (where it is already, on an RNIC).

    Attributes:
        qp_num: its number; no other of its Stack has it.
        qp_type: IBV_QPT_RC.
        counters: octets, FPDUs, errors; `staged_bytes` counts payload copied in user space.

    Raises:
        OSError: EOPNOTSUPP for another type than RC and for what an RNIC doesn't have; EINVAL
            without completion queues or domain, or with capacities over the device's; ENOMEM for
            too many.
    """

    close_rank = 1

    def __init__(
        self,
        creator: PD | Context,
        init_attr: QPInitAttr,
        qp_attr: QPAttr | None = None,
    ) -> None:
        if init_attr.qp_type != QPT_RC:
            raise os_error(errno.EOPNOTSUPP, f"QP type {init_attr.qp_type}; iWARP has RC only")
        pd: PD | None = creator if isinstance(creator, PD) else None
        if isinstance(init_attr, QPInitAttrEx):
            init_attr.check()
            pd = pd if pd is not None else init_attr.pd
        if pd is None:
            raise os_error(errno.EINVAL, "a QP belongs to a protection domain")
        if init_attr.scq is None or init_attr.rcq is None:
            raise os_error(errno.EINVAL, "a QP needs a send and a receive completion queue")
        self.pd = pd
        self.context = pd.context
        self.scq, self.rcq, self.srq = init_attr.scq, init_attr.rcq, init_attr.srq
        self.qp_type = init_attr.qp_type
        self.qp_context = init_attr.qp_context
        self._signal_all = init_attr.sq_sig_all
        self._driver: StreamDriver | None = None
        self._lock = self.context.loop.lock
        self._attr = QPAttr(qp_access_flags=ACCESS_REMOTE, cap=init_attr.cap)
        self._ready_to_receive = False
        self._ready_for_cm = False
        self._awaits_peer = False
        self._confirmations: Confirmations | None = None
        with self._lock:
            self.core = self.context.rnic.create_qp(
                pd.handle,
                self.scq.queue,
                self.rcq.queue,
                init_attr.cap,
                lambda _: self.context.loop.notify(),
                None if self.srq is None else self.srq.core,
            )
            self.qp_num = self.core.qp_num
            self.context.queue_pairs[self.qp_num] = self
        super().__init__(pd)
        if qp_attr is not None:
            self.to_init(qp_attr)

    @property
    def state(self) -> QpState:
        return self.core.state

    @property
    def qp_state(self) -> int:
        """IBV_QPS_*. IBV_QPS_RTR is a state that only `modify` leads to."""
        core = self.core.state
        if (self._ready_to_receive and core is QpState.RTS) or (
            self._ready_for_cm and core is QpState.INIT
        ):
            return e.IBV_QPS_RTR
        return _STATE[core]

    @property
    def cap(self) -> QPCap:
        return self.core.cap

    @property
    def counters(self) -> Counters:
        return self.core.counters

    @property
    def end_reason(self) -> str:
        """Why the QP is in ERROR; empty before."""
        return self.core.end_reason

    def drive(self, driver: StreamDriver) -> None:
        """The stream's driver, whose doorbell a post rings. For `CMID`."""
        self._driver = driver

    # -- posting -------------------------------------------------------------------------------

    def post_send(self, wr: CoreSendWR | Iterable[CoreSendWR], bad_wr: object = None) -> None:
        """Post a request and those linked behind it, or all of an iterable, with one doorbell.

        Raises:
            OSError: EINVAL, ENOMEM, EOPNOTSUPP: see `QueuePair.post_send`; EINVAL too in RTR.
                `bad_wr` of the error is the first request that was not posted.
        """
        flags = SEND_SIGNALED if self._signal_all else 0
        with self._lock:
            if self._ready_to_receive:
                self._check_may_send()
            try:
                if isinstance(wr, CoreSendWR):
                    self.core.post_list(wr, flags)
                else:
                    for one in each_of(wr):
                        self._post_one(one, flags)
            finally:
                if self._driver is not None:
                    self._driver.flush()

    def _post_one(self, wr: CoreSendWR, flags: int) -> None:
        try:
            self.core.post_send(wr, flags)
        except OSError as exc:
            exc.bad_wr = wr  # type: ignore[attr-defined]
            raise

    def post_recv(self, wr: RecvWR | Iterable[RecvWR], bad_wr: object = None) -> None:
        """Post a receive and those linked behind it. Raises as `post_send`."""
        post_list(self._lock, self.core.post_recv, wr)

    def bind_mw(self, mw: MW, mw_bind: MWBind) -> None:
        """Bind a window of type 1 (`ibv_bind_mw`); its `rkey` is another from here on.

        Raises:
            OSError: EINVAL for a window of another type or domain, else as `post_send`.
        """
        if mw.type != e.IBV_MW_TYPE_1 or mw.pd is not self.pd:
            raise os_error(errno.EINVAL, "bind_mw takes a window of type 1, of the QP's domain")
        with self._lock:
            bind = mw.next_bind(mw_bind.info)
            wr = SendWR(mw_bind.wr_id, opcode=e.IBV_WR_BIND_MW, bind=bind)
            wr.send_flags = mw_bind.send_flags
            self.post_send(wr)
            mw.posted(bind)

    def query_data_in_order(self, op: int, flags: int = 0) -> int:
        """Whether data becomes visible in order (`ibv_query_qp_data_in_order`).

        0: of a message that several segments carry, the order of placement isn't promised.
        """
        if flags & ~e.IBV_QUERY_QP_DATA_IN_ORDER_RETURN_CAPS or op not in WC_OF_WR:
            raise os_error(errno.EINVAL, f"operation {op}, flags {flags:#x}")
        return 0

    def _check_may_send(self) -> None:
        if self._ready_to_receive and self.core.state is QpState.RTS:
            raise os_error(errno.EINVAL, "post_send on a QP in state RTR")

    # -- states --------------------------------------------------------------------------------

    def query(self, attr_mask: int = 0) -> tuple[QPAttr, QPInitAttr]:
        """State and attributes, all of them whatever the mask says, and what it was made of."""
        with self._lock:
            state = self.qp_state
            attr = replace(
                self._attr,
                qp_state=state,
                cur_qp_state=state,
                sq_draining=int(self.core.state is QpState.SQD and not self.core.tx.drained),
            )
        init = QPInitAttr(
            self.qp_type,
            self.qp_context,
            self.scq,
            self.rcq,
            self.srq,
            self.core.cap,
            self._signal_all,
        )
        return attr, init

    def modify(self, attr: QPAttr, comp_mask: int) -> None:
        """Change state or attributes (`ibv_modify_qp`); `comp_mask` (IBV_QP_*) says which count.

        To IBV_QPS_RTR with a peer's address and number: the two find each other among the queue
        pairs of this process, over any Contexts of one Stack, whoever comes first. From
        IBV_QPS_RTS on both may send; what is posted before the other is there waits.

        To IBV_QPS_RESET what is posted is forgotten, and what has completed and was not polled.
        To IBV_QPS_ERR it is flushed.

        Raises:
            OSError: EINVAL: see `check_modify`; ENETUNREACH for a GID that isn't this device's.
        """
        if not comp_mask:
            return
        with self._lock:
            before = self.qp_state
            after = check_modify(attr, comp_mask, before)
            joins = bool(comp_mask & e.IBV_QP_DEST_QPN)
            if joins:
                self._check_peer(attr)
            kept, self._attr = self._attr, replace(self._attr)
            for bit, members in MEMBERS.items():
                if comp_mask & bit:
                    for member in members:
                        setattr(self._attr, member, getattr(attr, member))
            if after != before:
                try:
                    self._enter(before, after, joins=joins)
                except OSError:
                    self._attr = kept
                    raise
            self._apply_access()
            if after in (e.IBV_QPS_RTS, e.IBV_QPS_SQD) and self._confirmations is not None:
                self.core.tx.ord = self._attr.max_rd_atomic
            self.context.loop.notify()
            if self._driver is not None and not self._driver.closed:
                self._driver.flush()
                self._driver.settle()
            waits = self._awaits_peer
        if waits:
            Fabric.of(self.context.the_stack).wait(self)

    def to_init(self, qp_attr: QPAttr) -> None:
        """`modify` to INIT with port, P_Key index and access flags of `qp_attr`."""
        qp_attr.qp_state = e.IBV_QPS_INIT
        self.modify(qp_attr, e.IBV_QP_STATE | INIT_MASK)

    def to_rtr(self, qp_attr: QPAttr) -> None:
        """`modify` to RTR, by way of INIT where it isn't there."""
        if self.qp_state != e.IBV_QPS_INIT:
            self.to_init(qp_attr)
        qp_attr.qp_state = e.IBV_QPS_RTR
        self.modify(qp_attr, e.IBV_QP_STATE | RTR_MASK)

    def to_rts(self, qp_attr: QPAttr) -> None:
        """`modify` to RTS, by way of RTR where it isn't there."""
        if self.qp_state != e.IBV_QPS_RTR:
            self.to_rtr(qp_attr)
        qp_attr.qp_state = e.IBV_QPS_RTS
        self.modify(qp_attr, e.IBV_QP_STATE | RTS_MASK)

    def _check_peer(self, attr: QPAttr) -> None:
        route = attr.ah_attr.gr
        if route is None or route.dgid != device_gid():
            raise os_error(errno.ENETUNREACH, "a QP that no CMID connects reaches its own device")
        if attr.dest_qp_num == self.qp_num:
            raise os_error(errno.EINVAL, "a QP is connected to another one")

    def _enter(self, before: int, after: int, *, joins: bool) -> None:
        """The change of state itself. With the lock held."""
        core = self.core
        if after == e.IBV_QPS_RESET:
            self._leave()
            core.modify(QpState.ERROR)
            core.modify(QpState.RESET)
            for cq in {self.scq, self.rcq}:
                cq.discard(self.qp_num)
            self._attr = QPAttr(cap=core.cap)
        elif after == e.IBV_QPS_INIT:
            core.modify(QpState.INIT)
        elif after == e.IBV_QPS_RTR:
            if not joins:
                self._ready_for_cm = True
            else:
                self._ready_to_receive = True
                ird = self._attr.max_dest_rd_atomic
                core.connected(crc=False, ird=ird, ord=0, held=False, max_ulpdu=mpa.MAX_ULPDU - 1)
                self._awaits_peer = True
        elif after == e.IBV_QPS_RTS and before == e.IBV_QPS_RTR:
            if core.state is not QpState.RTS:
                raise os_error(errno.EINVAL, "a QP gets to RTS by a CMID, or with a peer's number")
            self._ready_to_receive = False
            core.tx.ord = self._attr.max_rd_atomic
        elif after == e.IBV_QPS_RTS:
            core.modify(QpState.RTS)
        elif after == e.IBV_QPS_SQD:
            core.modify(QpState.SQD)
        else:
            self._awaits_peer = self._ready_to_receive = False
            Fabric.of(self.context.the_stack).leave(self)
            core.modify(QpState.ERROR)

    def _apply_access(self) -> None:
        self.core.inbound.access = self._attr.qp_access_flags & ACCESS_REMOTE

    # -- the peer of the same process ----------------------------------------------------------

    @property
    def peer(self) -> int:
        return self._attr.dest_qp_num

    def make_confirmations(self) -> Confirmations:
        return Confirmations(self._confirmed)

    def join(self, stream: Stream, mine: Confirmations, peers: Confirmations) -> None:
        """The peer is there, at the other end of the stream."""
        loop = self.context.loop
        with self._lock:
            if not self._awaits_peer or loop.closed:
                stream.close()
                mine.close()
                return
            self._awaits_peer = False
            self._confirmations = mine
            self.core.tx.confirmed = mine.octets
            self.core.rx.tell_taken(peers.report)
            loop.add(mine)
            connection = Connection.established(self.core, loop.clock())
            tap_for = self.context.tap_for
            self._driver = StreamDriver(loop, connection, stream, tap_for=tap_for)

    def _confirmed(self) -> None:
        """The peer has dealt with more of what was sent. With the lock held."""
        self.core.tx.complete_ready()
        self.context.loop.notify()

    def _leave(self) -> None:
        """Give up peer and stream. With the lock held."""
        self._awaits_peer = self._ready_to_receive = self._ready_for_cm = False
        Fabric.of(self.context.the_stack).leave(self)
        if self._driver is not None:
            self._driver.close()
            self._driver = None
        if self._confirmations is not None:
            self.context.loop.remove(self._confirmations)
            self._confirmations.close()
            self._confirmations = None

    def flush(self) -> None:
        if self._driver is not None:
            self._driver.flush()

    def _close(self) -> None:
        with self._lock:
            self._leave()
            self.context.rnic.destroy_qp(self.core)
            self.context.queue_pairs.pop(self.qp_num, None)
            self.context.events.forget(self)

    def __repr__(self) -> str:
        return f"<QP {self.qp_num} {self.core.state.name}>"
