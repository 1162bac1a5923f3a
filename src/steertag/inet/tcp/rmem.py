"""The receive buffer's memory: charging it, and making room (net/ipv4/tcp_input.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steertag.family.const import SK_MEM_RECV
from steertag.family.memory import sk_forced_mem_schedule, sk_mem_charge, sk_schedule
from steertag.family.sock import sock_rfree
from steertag.inet.tcp.ofo import RcvSkb

if TYPE_CHECKING:
    from steertag.inet.tcp.sock import TcpSock


def skb_set_owner_r(sk: TcpSock, skb: RcvSkb) -> None:
    """Charge the piece to the receive buffer, until it is freed."""
    skb.sk = sk
    skb.destructor = sock_rfree
    sk.sk_rmem_alloc += skb.truesize
    sk_mem_charge(sk, skb.truesize)


def tcp_try_rmem_schedule(sk: TcpSock, skb: RcvSkb) -> bool:
    """May it be queued? If not, something less needed is thrown away first (tcp_prune_queue)."""
    size = skb.truesize
    if sk.sk_rmem_alloc <= sk.sk_rcvbuf and sk_schedule(sk, size, SK_MEM_RECV):
        return True
    if not len(sk.sk_receive_queue) and not len(sk.ofo):
        # Without it the reader would never read, and nothing would ever come back.
        sk_forced_mem_schedule(sk, size)
        return True
    sk.mib["TcpExtPruneCalled"] += 1
    tcp_collapse(sk)
    if sk.sk_rmem_alloc <= sk.sk_rcvbuf and sk_schedule(sk, size, SK_MEM_RECV):
        return True
    pruned = False
    while (last := sk.ofo.drop_last()) is not None:
        last.free()
        pruned = True
        if sk.sk_rmem_alloc <= sk.sk_rcvbuf and sk_schedule(sk, size, SK_MEM_RECV):
            break
    if pruned:
        sk.mib["TcpExtOfoPruned"] += 1
        if sk.sk_rmem_alloc <= sk.sk_rcvbuf and sk_schedule(sk, size, SK_MEM_RECV):
            return True
    sk.mib["TcpExtRcvPruned"] += 1
    sk.pred_ok = False
    return False


def tcp_collapse(sk: TcpSock) -> None:
    """Join many small pieces of the receive queue: their bookkeeping is what fills the buffer."""
    queue = sk.sk_receive_queue
    pieces = [piece for piece in queue if isinstance(piece, RcvSkb)]
    octets = sum(map(len, pieces))
    if len(pieces) < 2 or octets > 65536 * len(pieces) // 8:
        return
    joined = b"".join(piece.data for piece in pieces)
    start, end = pieces[0].seq, pieces[-1].end_seq
    queue.purge()
    skb = RcvSkb(memoryview(joined), start, end, False)
    sk_forced_mem_schedule(sk, skb.truesize)
    skb_set_owner_r(sk, skb)
    queue.append(skb)
    sk.mib["TcpExtTCPRcvCollapsed"] += len(pieces)
