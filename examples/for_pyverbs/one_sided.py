"""One-sided operations: Write, Read, atomics, a memory window; written for pyverbs.

python one_sided.py
"""

import struct
import sys
import time

from pyverbs import device, enums
from pyverbs.addr import AHAttr, GlobalRoute
from pyverbs.base import inc_rkey
from pyverbs.cq import CQEX, CqInitAttrEx, PollCqAttr
from pyverbs.mr import MR, MW, MWBindInfo
from pyverbs.pd import PD
from pyverbs.qp import QPAttr, QPCap, QPEx, QPInitAttrEx
from pyverbs.wr import SGE

SIZE = 4096
ACCESS = (
    enums.IBV_ACCESS_LOCAL_WRITE
    | enums.IBV_ACCESS_REMOTE_WRITE
    | enums.IBV_ACCESS_REMOTE_READ
    | enums.IBV_ACCESS_REMOTE_ATOMIC
)
OPERATIONS = (
    enums.IBV_QP_EX_WITH_RDMA_WRITE
    | enums.IBV_QP_EX_WITH_RDMA_READ
    | enums.IBV_QP_EX_WITH_ATOMIC_FETCH_AND_ADD
    | enums.IBV_QP_EX_WITH_BIND_MW
)


class Player:
    def __init__(self, context: device.Context) -> None:
        self.pd = PD(context)
        self.mr = MR(self.pd, SIZE, ACCESS | enums.IBV_ACCESS_MW_BIND)
        self.cq = CQEX(context, CqInitAttrEx(cqe=16, wc_flags=enums.IBV_WC_STANDARD_FLAGS))
        init = QPInitAttrEx(
            qp_type=enums.IBV_QPT_RC,
            scq=self.cq,
            rcq=self.cq,
            pd=self.pd,
            cap=QPCap(max_send_wr=8, max_recv_wr=1),
            comp_mask=enums.IBV_QP_INIT_ATTR_PD | enums.IBV_QP_INIT_ATTR_SEND_OPS_FLAGS,
            send_ops_flags=OPERATIONS,
        )
        attr = QPAttr(port_num=1)
        attr.qp_access_flags = ACCESS
        self.qp = QPEx(context, init, attr)

    def connect(self, context: device.Context, peer: "Player") -> None:
        attr = QPAttr(port_num=1)
        attr.ah_attr = AHAttr(is_global=1, gr=GlobalRoute(dgid=context.query_gid(1, 0)))
        attr.dest_qp_num = peer.qp.qp_num
        attr.path_mtu = enums.IBV_MTU_1024
        attr.max_rd_atomic = attr.max_dest_rd_atomic = 4
        attr.min_rnr_timer, attr.timeout, attr.retry_cnt, attr.rnr_retry = 12, 14, 7, 7
        self.qp.to_rts(attr)

    def begin(self, wr_id: int) -> None:
        self.qp.wr_start()
        self.qp.wr_id = wr_id
        self.qp.wr_flags = enums.IBV_SEND_SIGNALED

    def finish(self, length: int | None = None) -> int:
        """Post the batch; the status of its one completion."""
        if length is not None:
            self.qp.wr_set_sge(SGE(self.mr.buf, length, self.mr.lkey))
        self.qp.wr_complete()
        end = time.monotonic() + 60
        while self.cq.start_poll(PollCqAttr()):
            if time.monotonic() > end:
                sys.exit("no completion")
        status = self.cq.status
        self.cq.end_poll()
        return status


def main() -> None:
    context = device.Context(name=device.get_device_list()[0].name.decode())
    here, there = Player(context), Player(context)
    here.connect(context, there)
    there.connect(context, here)

    here.mr.write(b"written", 7)
    here.begin(1)
    here.qp.wr_rdma_write(there.mr.rkey, there.mr.buf)
    print("write", here.finish(7), there.mr.read(7, 0).decode())

    there.mr.write(b"to be read", 10)
    here.begin(2)
    here.qp.wr_rdma_read(there.mr.rkey, there.mr.buf)
    print("read", here.finish(10), here.mr.read(10, 0).decode())

    there.mr.write(struct.pack("=Q", 40), 8, 64)
    here.begin(3)
    here.qp.wr_atomic_fetch_add(there.mr.rkey, there.mr.buf + 64, 2)
    status = here.finish(8)
    before, after = here.mr.read(8, 0), there.mr.read(8, 64)
    print("fetch and add", status, *struct.unpack("=Q", before), *struct.unpack("=Q", after))

    window = MW(there.pd, enums.IBV_MW_TYPE_2)
    key = inc_rkey(window.rkey)
    there.begin(4)
    info = MWBindInfo(there.mr, there.mr.buf, 16, enums.IBV_ACCESS_REMOTE_READ)
    there.qp.wr_bind_mw(window, key, info)
    print("bind", there.finish())
    here.begin(5)
    here.qp.wr_rdma_read(key, there.mr.buf)
    print("read by the window", here.finish(5), here.mr.read(5, 0).decode())
    here.begin(6)
    here.qp.wr_rdma_write(key, there.mr.buf)
    refused = here.finish(5) == enums.IBV_WC_REM_ACCESS_ERR
    print("write by the window", "refused" if refused else "done")


if __name__ == "__main__":
    main()
