"""Queue pairs (pyverbs: `qp`, `wr`)."""

from __future__ import annotations

import errno
from collections.abc import Iterable

from steertag.errors import os_error
from steertag.rdma.constants import QPT_RC, SEND_SIGNALED
from steertag.rdma.counters import Counters
from steertag.rdma.qp import QpCap as QPCap
from steertag.rdma.qp_state import QpState
from steertag.rdma.wr import SGE, RecvWR, SendWR
from steertag.runtime.driver import StreamDriver
from steertag.verbs.cq import CQ
from steertag.verbs.device import PD, Managed

__all__ = ["QP", "SGE", "QPCap", "QPInitAttr", "RecvWR", "SendWR"]


class QPInitAttr:
    """`struct ibv_qp_init_attr`.

    Args:
        qp_type: IBV_QPT_RC: iWARP has no other.
        qp_context: anything; kept.
        scq, rcq: completion queues; None has the CMID make them.
        cap: limits.
        sq_sig_all: every request completes visibly, whatever its flags say (the default, as in
            pyverbs).
    """

    def __init__(
        self,
        qp_type: int = QPT_RC,
        qp_context: object = None,
        scq: CQ | None = None,
        rcq: CQ | None = None,
        cap: QPCap | None = None,
        sq_sig_all: bool = True,
    ) -> None:
        self.qp_type = qp_type
        self.qp_context = qp_context
        self.scq = scq
        self.rcq = rcq
        self.cap = cap if cap is not None else QPCap()
        self.sq_sig_all = sq_sig_all


class QP(Managed):
    """A queue pair (`ibv_create_qp`). A `CMID` connects it.

    Attributes:
        qp_num: its number on the device.
        counters: octets, FPDUs, errors; `staged_bytes` counts payload copied in user space.

    Raises:
        OSError: EOPNOTSUPP for another type than RC; EINVAL without completion queues or with
            capacities over the device's; ENOMEM for too many.
    """

    close_rank = 1

    def __init__(self, creator: PD, init_attr: QPInitAttr) -> None:
        if init_attr.qp_type != QPT_RC:
            raise os_error(errno.EOPNOTSUPP, f"QP type {init_attr.qp_type}; iWARP has RC only")
        if init_attr.scq is None or init_attr.rcq is None:
            raise os_error(errno.EINVAL, "a QP needs a send and a receive completion queue")
        self.pd = creator
        self.context = creator.context
        self.scq, self.rcq = init_attr.scq, init_attr.rcq
        self.qp_context = init_attr.qp_context
        self._signal_all = init_attr.sq_sig_all
        self._driver: StreamDriver | None = None
        self._lock = self.context.loop.lock
        with self.context.loop.lock:
            self.core = self.context.rnic.create_qp(
                creator.handle,
                self.scq.queue,
                self.rcq.queue,
                init_attr.cap,
                lambda _: self.context.loop.notify(),
            )
        self.qp_num = self.core.qp_num
        super().__init__(creator)

    @property
    def state(self) -> QpState:
        return self.core.state

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

    def post_send(self, wr: SendWR | Iterable[SendWR]) -> None:
        """Post a request and those linked behind it, or all of an iterable, with one doorbell.

        Raises:
            OSError: EINVAL, ENOMEM: see `QueuePair.post_send`; `bad_wr` of the error is the first
                request that was not posted.
        """
        post, flags = self.core.post_send, SEND_SIGNALED if self._signal_all else 0
        one: SendWR | None = None
        with self._lock:
            try:
                if isinstance(wr, SendWR):
                    one = wr
                    while one is not None:
                        post(one, flags)
                        one = one.next_wr
                else:
                    for one in wr:
                        post(one, flags)
            except OSError as exc:
                exc.bad_wr = one  # type: ignore[attr-defined]
                raise
            finally:
                if self._driver is not None:
                    self._driver.flush()

    def post_recv(self, wr: RecvWR | Iterable[RecvWR]) -> None:
        """Post a receive and those linked behind it. Raises as `post_send`."""
        one: RecvWR | None = None
        with self._lock:
            try:
                if isinstance(wr, RecvWR):
                    one = wr
                    while one is not None:
                        self.core.post_recv(one)
                        one = one.next_wr
                else:
                    for one in wr:
                        self.core.post_recv(one)
            except OSError as exc:
                exc.bad_wr = one  # type: ignore[attr-defined]
                raise

    def flush(self) -> None:
        if self._driver is not None:
            self._driver.flush()

    def _close(self) -> None:
        with self.context.loop.lock:
            if self._driver is not None:
                self._driver.close()
            self.context.rnic.destroy_qp(self.core)

    def __repr__(self) -> str:
        return f"<QP {self.qp_num} {self.core.state.name}>"
