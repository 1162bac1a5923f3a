"""Sends and receives between two queue pairs, with completion events; written for pyverbs.

    python pingpong.py [ROUNDS]

It knows nothing of steertag: on a machine with RDMA it runs on the first device, elsewhere with
`python -m steertag.compat.pyverbs pingpong.py`.
"""

import select
import sys

from pyverbs import device, enums
from pyverbs.addr import AHAttr, GlobalRoute
from pyverbs.cq import CQ, CompChannel
from pyverbs.mr import MR
from pyverbs.pd import PD
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
from pyverbs.wr import SGE, RecvWR, SendWR

SIZE = 64


class Player:
    def __init__(self, name: str) -> None:
        self.context = device.Context(name=name)
        self.pd = PD(self.context)
        self.mr = MR(self.pd, SIZE, enums.IBV_ACCESS_LOCAL_WRITE)
        self.channel = CompChannel(self.context)
        self.cq = CQ(self.context, 16, None, self.channel)
        self.cq.req_notify()
        cap = QPCap(max_send_wr=4, max_recv_wr=4)
        init = QPInitAttr(qp_type=enums.IBV_QPT_RC, scq=self.cq, rcq=self.cq, cap=cap)
        self.qp = QP(self.pd, init, QPAttr(port_num=1))

    def connect(self, peer: "Player") -> None:
        attr = QPAttr(port_num=1)
        route = GlobalRoute(dgid=peer.context.query_gid(1, 0), sgid_index=0)
        attr.ah_attr = AHAttr(port_num=1, is_global=1, gr=route)
        attr.dest_qp_num = peer.qp.qp_num
        attr.path_mtu = enums.IBV_MTU_1024
        attr.max_rd_atomic = attr.max_dest_rd_atomic = 1
        attr.min_rnr_timer, attr.timeout, attr.retry_cnt, attr.rnr_retry = 12, 14, 7, 7
        self.qp.to_rts(attr)

    def sge(self) -> SGE:
        return SGE(self.mr.buf, SIZE, self.mr.lkey)

    def receive(self) -> None:
        self.qp.post_recv(RecvWR(wr_id=1, num_sge=1, sg=[self.sge()]))

    def send(self, text: str) -> None:
        self.mr.write(text.ljust(SIZE), SIZE)
        self.qp.post_send(SendWR(wr_id=2, num_sge=1, sg=[self.sge()]))

    def complete(self, opcode: int) -> None:
        """Sleep on the channel's descriptor until the next completion, which is a success."""
        while True:
            number, completions = self.cq.poll()
            if number:
                break
            select.select([self.channel.fd], [], [])
            self.channel.get_cq_event(self.cq)
            self.cq.req_notify()
        if completions[0].status != enums.IBV_WC_SUCCESS or completions[0].opcode != opcode:
            sys.exit(str(completions[0]))

    def text(self) -> str:
        return self.mr.read(SIZE, 0).decode().rstrip()


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    name = device.get_device_list()[0].name.decode()
    ann, bob = Player(name), Player(name)
    ann.connect(bob)
    bob.connect(ann)
    for n in range(rounds):
        bob.receive()
        ann.send(f"ping {n}")
        ann.complete(enums.IBV_WC_SEND)
        bob.complete(enums.IBV_WC_RECV)
        ann.receive()
        bob.send(f"pong {n} to {bob.text()}")
        bob.complete(enums.IBV_WC_SEND)
        ann.complete(enums.IBV_WC_RECV)
        print(ann.text())


if __name__ == "__main__":
    main()
