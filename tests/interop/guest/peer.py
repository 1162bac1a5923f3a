"""What scripts in the guest begin with: librdmacm through pyverbs, over siw.

Not imported on the host: `Guest.python(PEER + script)`.
"""

import hashlib  # noqa: F401 - for the scripts
import struct

import pyverbs.cm_enums as ce
import pyverbs.cmid as cm
import pyverbs.enums as e
from pyverbs.mr import MR
from pyverbs.qp import QPCap, QPInitAttr

ADVERTISEMENT = struct.Struct("!QII")  # address, rkey, octets
ALL = e.IBV_ACCESS_LOCAL_WRITE | e.IBV_ACCESS_REMOTE_READ | e.IBV_ACCESS_REMOTE_WRITE


def _init() -> QPInitAttr:
    return QPInitAttr(
        qp_type=e.IBV_QPT_RC,
        cap=QPCap(max_send_wr=16, max_recv_wr=16, max_send_sge=1, max_recv_sge=1),
        sq_sig_all=1,
    )


def listen(port: int) -> cm.CMID:
    address = cm.AddrInfo(
        src="10.0.2.15", src_service=str(port), port_space=ce.RDMA_PS_TCP, flags=ce.RAI_PASSIVE
    )
    listener = cm.CMID(creator=address, qp_init_attr=_init())
    listener.listen(backlog=8)
    return listener


def _parameters() -> cm.ConnParam:
    return cm.ConnParam(resources=8, depth=8)


class End:
    """One connection: an inbox with a receive posted, an outbox, a region for the peer."""

    def __init__(self, cmid: cm.CMID, size: int, access: int, receives: int) -> None:
        self.cmid = cmid
        self.inbox = cmid.reg_msgs(4096)
        self.outbox = cmid.reg_msgs(4096)
        self.region = MR(cmid.pd, size, access)
        for _ in range(receives):
            cmid.post_recv(self.inbox, 4096)

    def advertise(self) -> None:
        octets = ADVERTISEMENT.pack(self.region.buf, self.region.rkey, self.region.length)
        self.send(octets)

    def send(self, octets: bytes) -> int:
        """Send a message; its status."""
        self.outbox.write(octets, len(octets))
        self.cmid.post_send(self.outbox, 0, len(octets))
        return self.cmid.get_send_comp().status

    def receive(self) -> bytes:
        """The next message; posts another receive."""
        wc = self.cmid.get_recv_comp()
        if wc.status != e.IBV_WC_SUCCESS:
            raise SystemExit(f"receive: status {wc.status}")
        octets = self.inbox.read(wc.byte_len, 0)
        self.cmid.post_recv(self.inbox, 4096)
        return octets

    def ended(self) -> int:
        """Wait for the end of the connection: the status of a receive that is posted."""
        return self.cmid.get_recv_comp().status

    def rdma(self, kind: str, address: int, rkey: int, length: int) -> int:
        """A Write or a Read between the region and the peer's memory; its status."""
        post = self.cmid.post_write if kind == "write" else self.cmid.post_read
        post(self.region, length, address, rkey, e.IBV_SEND_SIGNALED)
        return self.cmid.get_send_comp().status


def accept(listener: cm.CMID, size: int = 4096, access: int = ALL, receives: int = 2) -> End:
    request = listener.get_request()
    end = End(request, size, access, receives)
    request.accept(_parameters())
    return end


def connect(port: int, size: int = 4096, access: int = ALL, receives: int = 2) -> End:
    address = cm.AddrInfo(dst="10.0.2.2", dst_service=str(port), port_space=ce.RDMA_PS_TCP)
    cmid = cm.CMID(creator=address, qp_init_attr=_init())
    end = End(cmid, size, access, receives)
    cmid.connect(_parameters())
    return end
