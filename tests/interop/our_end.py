"""Our end of a connection with a script in the guest (`guest/peer.py` is the other)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager

from steertag import verbs as v

TIMEOUT = 60.0
ADVERTISEMENT = struct.Struct("!QII")  # address, rkey, octets
ALL = v.IBV_ACCESS_LOCAL_WRITE | v.IBV_ACCESS_REMOTE_READ | v.IBV_ACCESS_REMOTE_WRITE


class OurEnd:
    """A connection with an inbox, an outbox and a region for the peer.

    Args:
        receives: how many are posted.
    """

    def __init__(self, cmid: v.CMID, size: int, access: int, receives: int) -> None:
        self.cmid = cmid
        self.qp = cmid.create_qp()
        self.memory = bytearray(size)
        self.region = v.MR(cmid.pd, self.memory, access)
        self.inbox = v.MR(cmid.pd, 4096, v.IBV_ACCESS_LOCAL_WRITE)
        self.outbox = v.MR(cmid.pd, 4096, v.IBV_ACCESS_LOCAL_WRITE)
        for _ in range(receives):
            cmid.post_recv(self.inbox)

    def send(self, octets: bytes) -> v.WC:
        self.outbox.write(octets, len(octets))
        self.cmid.post_send(self.outbox, v.IBV_SEND_SIGNALED, len(octets))
        return self.cmid.get_send_comp(TIMEOUT)

    def receive(self) -> bytes:
        wc = self.cmid.get_recv_comp(TIMEOUT)
        assert wc.status == v.WcStatus.SUCCESS, self.qp.end_reason
        octets = self.inbox.read(wc.byte_len)
        self.cmid.post_recv(self.inbox)
        return octets

    def advertise(self) -> None:
        self.send(ADVERTISEMENT.pack(self.region.buf, self.region.rkey, self.region.length))

    def advertised(self) -> tuple[int, int, int]:
        """What the peer advertises: address, rkey, octets."""
        found: tuple[int, int, int] = ADVERTISEMENT.unpack(self.receive())
        return found

    def rdma(self, kind: str, address: int, rkey: int, length: int) -> v.WC:
        """A Write or a Read between the region and the peer's memory."""
        post = self.cmid.post_write if kind == "write" else self.cmid.post_read
        post(self.region, length, address, rkey, v.IBV_SEND_SIGNALED)
        return self.cmid.get_send_comp(TIMEOUT)

    def ended(self) -> str:
        """Wait for the end of the connection; why it ended."""
        assert self.cmid.wait_disconnected(TIMEOUT)
        return self.qp.end_reason

    def close(self) -> None:
        self.cmid.disconnect()
        self.cmid.wait_disconnected(TIMEOUT)


def _attr() -> v.QPInitAttr:
    return v.QPInitAttr(cap=v.QPCap(max_send_wr=16, max_recv_wr=16))


@contextmanager
def connected(
    port: int, *, size: int = 4096, access: int = ALL, crc: bool = True, receives: int = 2
) -> Iterator[OurEnd]:
    """A connection to `port` of the loopback, which QEMU forwards."""
    address = v.AddrInfo(dst="127.0.0.1", dst_service=port)
    with v.CMID(address, _attr()) as cmid:
        end = OurEnd(cmid, size, access, receives)
        cmid.connect(v.ConnParam(8, 8, crc=crc), TIMEOUT)
        yield end


class OurListener:
    """A listener on a free port of the loopback."""

    def __init__(self) -> None:
        address = v.AddrInfo(src="127.0.0.1", src_service=0, flags=v.RAI_PASSIVE)
        self._cmid = v.CMID(address, _attr())
        self._cmid.listen()
        self.port = self._cmid.getsockname()[1]

    @contextmanager
    def accepted(
        self, *, size: int = 4096, access: int = ALL, receives: int = 2
    ) -> Iterator[OurEnd]:
        with self._cmid.get_request(TIMEOUT) as request:
            end = OurEnd(request, size, access, receives)
            request.accept(v.ConnParam(8, 8, crc=False))
            yield end

    def __enter__(self) -> OurListener:
        return self

    def __exit__(self, *exc: object) -> None:
        self._cmid.close()
