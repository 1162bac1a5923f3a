"""Queue pairs that connect with an address handle: two of one process, a Context each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from steertag.verbs import (
    CQ,
    MR,
    PD,
    QP,
    SGE,
    SRQ,
    WC,
    AHAttr,
    Context,
    GlobalRoute,
    QPAttr,
    QPCap,
    QPEx,
    QPInitAttrEx,
    RecvWR,
    SendWR,
    SrqAttr,
    SrqInitAttr,
)
from steertag.verbs import enums as e
from tests.sim.verbs import TIMEOUT

SIZE = 1 << 16
REMOTE = e.IBV_ACCESS_REMOTE_WRITE | e.IBV_ACCESS_REMOTE_READ | e.IBV_ACCESS_REMOTE_ATOMIC
RIGHTS = e.IBV_ACCESS_LOCAL_WRITE | REMOTE | e.IBV_ACCESS_MW_BIND
CAP = QPCap(64, 64, 32, 32, 256)
ALL_OPERATIONS = (1 << 10) - 1 & ~e.IBV_QP_EX_WITH_SEND_WITH_IMM


@dataclass
class Player:
    """A queue pair with a region of `SIZE` octets.

    Args:
        access: what its peer may do.
        shared: receives of its shared receive queue; 0: it has none.
    """

    context: Context
    access: int = REMOTE
    shared: int = 0
    cap: QPCap = CAP
    sq_sig_all: bool = False
    pd: PD = field(init=False)
    cq: CQ = field(init=False)
    memory: bytearray = field(init=False)
    mr: MR = field(init=False)
    srq: SRQ | None = field(init=False)
    qp: QPEx = field(init=False)

    def __post_init__(self) -> None:
        self.pd = PD(self.context)
        self.cq = CQ(self.context, 256)
        self.memory = bytearray(SIZE)
        self.mr = MR(self.pd, self.memory, RIGHTS)
        self.srq = SRQ(self.pd, SrqInitAttr(SrqAttr(self.shared))) if self.shared else None
        init = QPInitAttrEx(
            scq=self.cq,
            rcq=self.cq,
            srq=self.srq,
            cap=self.cap,
            sq_sig_all=self.sq_sig_all,
            pd=self.pd,
            comp_mask=e.IBV_QP_INIT_ATTR_PD | e.IBV_QP_INIT_ATTR_SEND_OPS_FLAGS,
            send_ops_flags=ALL_OPERATIONS,
        )
        self.qp = QPEx(self.context, init, QPAttr(qp_access_flags=self.access))

    def towards(self, peer: QP, reads: int = 4) -> QPAttr:
        route = GlobalRoute(dgid=self.context.query_gid())
        return QPAttr(
            dest_qp_num=peer.qp_num,
            ah_attr=AHAttr(is_global=1, gr=route),
            qp_access_flags=self.access,
            max_rd_atomic=reads,
            max_dest_rd_atomic=reads,
        )

    def sge(self, length: int, offset: int = 0) -> SGE:
        return SGE(self.mr.buf + offset, length, self.mr.lkey)

    def request(self, opcode: int, length: int, peer: Player | None = None) -> SendWR:
        """A signalled request on the first octets of its region, and of the peer's."""
        wr = SendWR(opcode, sg=[self.sge(length)], opcode=opcode)
        if peer is not None:
            wr.set_wr_rdma(peer.mr.rkey, peer.mr.buf)
        return wr

    def receive(self, wr_id: int = 0, length: int = 1024, offset: int = 0) -> None:
        wr = RecvWR(wr_id, sg=[self.sge(length, offset)])
        (self.qp if self.srq is None else self.srq).post_recv(wr)

    def complete(self) -> WC:
        """The next completion."""
        taken = self.cq.wait(1, TIMEOUT)
        assert taken, "no completion"
        return taken[0]

    def do(self, wr: SendWR) -> WC:
        self.qp.post_send(wr)
        return self.complete()


@contextmanager
def players(
    access: int = REMOTE,
    shared: int = 0,
    cap: QPCap = CAP,
    *,
    sq_sig_all: bool = False,
    joined: bool = True,
) -> Iterator[tuple[Player, Player]]:
    """Two of them, both in RTS unless `joined` is False."""
    with ExitStack() as stack:
        here, there = (
            Player(stack.enter_context(Context()), access, shared, cap, sq_sig_all)
            for _ in range(2)
        )
        if joined:
            here.qp.to_rts(here.towards(there.qp))
            there.qp.to_rts(there.towards(here.qp))
        yield here, there
