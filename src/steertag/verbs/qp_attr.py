"""What queue pairs are made of and what they are told (pyverbs: `qp`; `ibv_modify_qp`).

TRANSITIONS is the law for changes of state: for each of them the attributes that have to come with
it and those that may, as the InfiniBand specification has them for RC (Linux: `qp_state_table` in
ib_core's verbs.c).
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from steertag.errors import os_error
from steertag.rdma.constants import ACCESS_KNOWN
from steertag.rdma.qp import QpCap
from steertag.verbs import enums as e
from steertag.verbs.addr import AHAttr
from steertag.verbs.attr import MAX_RD_ATOMIC, PORT

if TYPE_CHECKING:
    from steertag.verbs.cq import CQ
    from steertag.verbs.device import PD
    from steertag.verbs.srq import SRQ

QPCap = QpCap

SEND_OPS: Final = (
    e.IBV_QP_EX_WITH_RDMA_WRITE
    | e.IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM
    | e.IBV_QP_EX_WITH_SEND
    | e.IBV_QP_EX_WITH_RDMA_READ
    | e.IBV_QP_EX_WITH_ATOMIC_CMP_AND_SWP
    | e.IBV_QP_EX_WITH_ATOMIC_FETCH_AND_ADD
    | e.IBV_QP_EX_WITH_LOCAL_INV
    | e.IBV_QP_EX_WITH_BIND_MW
    | e.IBV_QP_EX_WITH_SEND_WITH_INV
)
"""What a `QPEx` can be made for. iWARP has no Send with both payload and immediate data."""


class QPInitAttr:
    """`struct ibv_qp_init_attr`.

    Args:
        qp_type: IBV_QPT_RC: iWARP has no other.
        qp_context: anything; kept.
        scq, rcq: completion queues; None has the CMID make them.
        srq: where receives come from, in the place of a queue of the QP's own.
        cap: limits.
        sq_sig_all: every request completes visibly, whatever its flags say (the default, as in
            pyverbs).
    """

    def __init__(
        self,
        qp_type: int = e.IBV_QPT_RC,
        qp_context: object = None,
        scq: CQ | None = None,
        rcq: CQ | None = None,
        srq: SRQ | None = None,
        cap: QPCap | None = None,
        sq_sig_all: bool = True,
    ) -> None:
        self.qp_type = qp_type
        self.qp_context = qp_context
        self.scq = scq
        self.rcq = rcq
        self.cap = cap if cap is not None else QPCap()
        self.sq_sig_all = sq_sig_all
        self.srq = srq


class QPInitAttrEx(QPInitAttr):
    """`struct ibv_qp_init_attr_ex`, for a queue pair that a Context makes.

    Args:
        comp_mask: IBV_QP_INIT_ATTR_*: which of the members below count.
        pd: its protection domain.
        send_ops_flags: IBV_QP_EX_WITH_*: what the calls of a `QPEx` will post.
        create_flags, max_tso_header, source_qpn: an RNIC has none: 0.
    """

    def __init__(
        self,
        qp_type: int = e.IBV_QPT_RC,
        qp_context: object = None,
        scq: CQ | None = None,
        rcq: CQ | None = None,
        srq: SRQ | None = None,
        cap: QPCap | None = None,
        sq_sig_all: bool = False,
        comp_mask: int = 0,
        pd: PD | None = None,
        create_flags: int = 0,
        max_tso_header: int = 0,
        source_qpn: int = 0,
        send_ops_flags: int = 0,
    ) -> None:
        super().__init__(qp_type, qp_context, scq, rcq, srq, cap, sq_sig_all)
        self.comp_mask = comp_mask
        self.pd = pd
        self.create_flags = create_flags
        self.max_tso_header = max_tso_header
        self.source_qpn = source_qpn
        self.send_ops_flags = send_ops_flags

    def check(self) -> None:
        """Raises OSError: EOPNOTSUPP for what an RNIC doesn't have."""
        others = e.IBV_QP_INIT_ATTR_PD | e.IBV_QP_INIT_ATTR_SEND_OPS_FLAGS
        if self.comp_mask & ~(others | e.IBV_QP_INIT_ATTR_CREATE_FLAGS):
            raise os_error(errno.EOPNOTSUPP, f"QP attributes {self.comp_mask:#x}")
        if self.comp_mask & e.IBV_QP_INIT_ATTR_CREATE_FLAGS and self.create_flags:
            raise os_error(errno.EOPNOTSUPP, f"QP creation flags {self.create_flags:#x}")
        if self.comp_mask & e.IBV_QP_INIT_ATTR_SEND_OPS_FLAGS and self.send_ops_flags & ~SEND_OPS:
            refused = self.send_ops_flags & ~SEND_OPS
            raise os_error(errno.EOPNOTSUPP, f"send operations {refused:#x}")


@dataclass
class QPAttr:
    """`struct ibv_qp_attr`: what `QP.modify` sets and `QP.query` gives.

    Attributes:
        qp_state, cur_qp_state: IBV_QPS_*.
        qp_access_flags: IBV_ACCESS_REMOTE_*: what the peer may do at all.
        ah_attr, dest_qp_num: where the peer is, for a QP that no CMID connects.
        max_rd_atomic, max_dest_rd_atomic: Reads and atomic operations made and taken at once.
        en_sqd_async_notify: with IBV_QPS_SQD, an event when the send queue is drained.

    The rest belongs to transports that lose and retry packets; it is checked and kept.
    """

    qp_state: int = e.IBV_QPS_INIT
    cur_qp_state: int = e.IBV_QPS_RESET
    port_num: int = PORT
    path_mtu: int = e.IBV_MTU_1024
    path_mig_state: int = e.IBV_MIG_MIGRATED
    qkey: int = 0
    rq_psn: int = 0
    sq_psn: int = 0
    dest_qp_num: int = 0
    qp_access_flags: int = 0
    cap: QPCap = field(default_factory=QPCap)
    ah_attr: AHAttr = field(default_factory=AHAttr)
    alt_ah_attr: AHAttr = field(default_factory=AHAttr)
    pkey_index: int = 0
    alt_pkey_index: int = 0
    en_sqd_async_notify: int = 0
    sq_draining: int = 0
    max_rd_atomic: int = 0
    max_dest_rd_atomic: int = 0
    min_rnr_timer: int = 0
    timeout: int = 0
    retry_cnt: int = 0
    rnr_retry: int = 0
    alt_port_num: int = 0
    alt_timeout: int = 0
    rate_limit: int = 0


MEMBERS: Final = {
    e.IBV_QP_EN_SQD_ASYNC_NOTIFY: ("en_sqd_async_notify",),
    e.IBV_QP_ACCESS_FLAGS: ("qp_access_flags",),
    e.IBV_QP_PKEY_INDEX: ("pkey_index",),
    e.IBV_QP_PORT: ("port_num",),
    e.IBV_QP_AV: ("ah_attr",),
    e.IBV_QP_PATH_MTU: ("path_mtu",),
    e.IBV_QP_TIMEOUT: ("timeout",),
    e.IBV_QP_RETRY_CNT: ("retry_cnt",),
    e.IBV_QP_RNR_RETRY: ("rnr_retry",),
    e.IBV_QP_RQ_PSN: ("rq_psn",),
    e.IBV_QP_MAX_QP_RD_ATOMIC: ("max_rd_atomic",),
    e.IBV_QP_ALT_PATH: ("alt_ah_attr", "alt_pkey_index", "alt_port_num", "alt_timeout"),
    e.IBV_QP_MIN_RNR_TIMER: ("min_rnr_timer",),
    e.IBV_QP_SQ_PSN: ("sq_psn",),
    e.IBV_QP_MAX_DEST_RD_ATOMIC: ("max_dest_rd_atomic",),
    e.IBV_QP_PATH_MIG_STATE: ("path_mig_state",),
    e.IBV_QP_DEST_QPN: ("dest_qp_num",),
}
"""Which members of a QPAttr each bit of a mask stands for, but for the states."""

_R, _I, _RTR, _RTS = e.IBV_QPS_RESET, e.IBV_QPS_INIT, e.IBV_QPS_RTR, e.IBV_QPS_RTS
_SQD, _SQE, _ERR = e.IBV_QPS_SQD, e.IBV_QPS_SQE, e.IBV_QPS_ERR
# What must come along to INIT, from there to RTR, and from there to RTS.
INIT_MASK: Final = e.IBV_QP_PKEY_INDEX | e.IBV_QP_PORT | e.IBV_QP_ACCESS_FLAGS
RTR_MASK: Final = (
    e.IBV_QP_AV
    | e.IBV_QP_PATH_MTU
    | e.IBV_QP_DEST_QPN
    | e.IBV_QP_RQ_PSN
    | e.IBV_QP_MAX_DEST_RD_ATOMIC
    | e.IBV_QP_MIN_RNR_TIMER
)
RTS_MASK: Final = (
    e.IBV_QP_TIMEOUT
    | e.IBV_QP_RETRY_CNT
    | e.IBV_QP_RNR_RETRY
    | e.IBV_QP_SQ_PSN
    | e.IBV_QP_MAX_QP_RD_ATOMIC
)
_RUNNING: Final = (
    e.IBV_QP_CUR_STATE
    | e.IBV_QP_ACCESS_FLAGS
    | e.IBV_QP_ALT_PATH
    | e.IBV_QP_PATH_MIG_STATE
    | e.IBV_QP_MIN_RNR_TIMER
)
_PAUSED: Final = (
    _RUNNING & ~e.IBV_QP_CUR_STATE
    | e.IBV_QP_PORT
    | e.IBV_QP_AV
    | e.IBV_QP_TIMEOUT
    | e.IBV_QP_RETRY_CNT
    | e.IBV_QP_RNR_RETRY
    | e.IBV_QP_MAX_QP_RD_ATOMIC
    | e.IBV_QP_MAX_DEST_RD_ATOMIC
    | e.IBV_QP_PKEY_INDEX
)
_STATES: Final = (_R, _I, _RTR, _RTS, _SQD, _SQE, _ERR)

TRANSITIONS: Final[dict[tuple[int, int], tuple[int, int]]] = {
    (_R, _I): (INIT_MASK, 0),
    (_I, _I): (0, INIT_MASK),
    (_I, _RTR): (RTR_MASK, e.IBV_QP_ALT_PATH | e.IBV_QP_ACCESS_FLAGS | e.IBV_QP_PKEY_INDEX),
    (_RTR, _RTS): (RTS_MASK, _RUNNING),
    (_RTS, _RTS): (0, _RUNNING),
    (_RTS, _SQD): (0, e.IBV_QP_EN_SQD_ASYNC_NOTIFY),
    (_SQD, _RTS): (0, _RUNNING),
    (_SQD, _SQD): (0, _PAUSED),
    **{(state, _R): (0, 0) for state in _STATES},
    **{(state, _ERR): (0, 0) for state in _STATES},
}
"""(from, to) -> attributes that must come along, and those that may."""

FOR_THE_CM: Final = e.IBV_QP_STATE | e.IBV_QP_ACCESS_FLAGS
"""All that the way to RTR takes for a QP that a CMID will connect (Linux: iwcm.c): not the peer."""


def check_modify(attr: QPAttr, mask: int, now: int) -> int:
    """The state that `modify` leads to from `now`.

    Raises:
        OSError: EINVAL for a change that there is none of, attributes that are missing or don't
            belong to it, and values that can't be.
    """
    after = attr.qp_state if mask & e.IBV_QP_STATE else now
    if mask & e.IBV_QP_CUR_STATE and attr.cur_qp_state != now:
        raise os_error(errno.EINVAL, f"the QP is in state {now}, not {attr.cur_qp_state}")
    law = TRANSITIONS.get((now, after))
    if law is None:
        raise os_error(errno.EINVAL, f"there is no way from state {now} to {after}")
    required, optional = law
    given = mask & ~e.IBV_QP_STATE
    if (now, after) in ((_I, _I), (_R, _I), (_I, _RTR)) and not mask & ~FOR_THE_CM:
        required, optional = 0, optional | e.IBV_QP_ACCESS_FLAGS
    optional |= e.IBV_QP_CUR_STATE
    if required & ~given or given & ~(required | optional):
        raise os_error(
            errno.EINVAL,
            f"attributes {given:#x} from state {now} to {after}: it takes {required:#x}, and"
            f" may take {optional:#x}",
        )
    _check_values(attr, mask)
    return after


def _check_values(attr: QPAttr, mask: int) -> None:
    if mask & e.IBV_QP_PORT and attr.port_num != PORT:
        raise os_error(errno.EINVAL, f"port {attr.port_num}; there is {PORT}")
    if mask & e.IBV_QP_PKEY_INDEX and attr.pkey_index:
        raise os_error(errno.EINVAL, f"P_Key index {attr.pkey_index}; there is 0")
    if mask & e.IBV_QP_PATH_MTU and not e.IBV_MTU_256 <= attr.path_mtu <= e.IBV_MTU_4096:
        raise os_error(errno.EINVAL, f"path MTU {attr.path_mtu}")
    if mask & e.IBV_QP_ACCESS_FLAGS and attr.qp_access_flags & ~ACCESS_KNOWN:
        raise os_error(errno.EINVAL, f"access flags {attr.qp_access_flags:#x}")
    for bit, requests in (
        (e.IBV_QP_MAX_QP_RD_ATOMIC, attr.max_rd_atomic),
        (e.IBV_QP_MAX_DEST_RD_ATOMIC, attr.max_dest_rd_atomic),
    ):
        if mask & bit and not 0 <= requests <= MAX_RD_ATOMIC:
            raise os_error(errno.EINVAL, f"{requests} Reads at once, at most {MAX_RD_ATOMIC}")
    if mask & e.IBV_QP_AV:
        attr.ah_attr.check()
