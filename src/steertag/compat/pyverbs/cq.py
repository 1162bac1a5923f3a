"""pyverbs' `cq`: completions."""

from __future__ import annotations

import errno
import socket

from steertag import verbs
from steertag.compat.pyverbs import libibverbs_enums as e
from steertag.compat.pyverbs.base import PyverbsCM, PyverbsObject, lines
from steertag.compat.pyverbs.device import Context
from steertag.compat.pyverbs.pyverbs_error import failing, unsupported
from steertag.compat.pyverbs.utils import flags_to_str

_WITH_IMM = int(e.ibv_wc_flags.IBV_WC_WITH_IMM)
_WITH_INV = int(e.ibv_wc_flags.IBV_WC_WITH_INV)
_OPCODES = {
    0x0: "Send",
    0x1: "RDMA write",
    0x2: "RDMA read",
    0x3: "Compare and swap",
    0x4: "Fetch and add",
    0x5: "Bind Memory window",
    0x6: "Local invalidate",
    0x80: "Receive",
    0x81: "Receive RDMA with immediate",
}
_FLAGS = {1: "GRH", 2: "With immediate", 4: "IP csum OK", 8: "With invalidate"}
_WC_FLAGS = {int(flag): flag.name for flag in e.ibv_create_cq_wc_flags}


class CompChannel(PyverbsCM):
    """A completion channel; `fd` becomes readable with an event."""

    close_order = 4
    closing = "Failed to destroy a completion channel"
    core: verbs.CompChannel

    def __init__(self, context: Context) -> None:
        super().__init__()
        with failing("Failed to create a completion channel"):
            self.core = verbs.CompChannel(context.core)
        self._open = True
        self.context = context
        context.add_ref(self)

    def get_cq_event(self, expected_cq: CQ) -> None:
        """Wait for the next event, which is expected to be of that queue."""
        with failing("Failed to get CQ event"):
            self.core.get_cq_event(expected_cq.core)
        expected_cq.num_events += 1

    @property
    def fd(self) -> int:
        return self.core.fd


class CQ(PyverbsCM):
    close_order = 2
    closing = "Failed to close CQ"
    core: verbs.CQ

    def __init__(
        self,
        context: Context,
        cqe: float,
        cq_context: object = None,
        channel: CompChannel | None = None,
        comp_vector: int = 0,
    ) -> None:
        super().__init__()
        with failing("Failed to create a CQ"):
            self.core = verbs.CQ(
                context.core,
                int(cqe),
                cq_context,
                None if channel is None else channel.core,
                comp_vector,
            )
        self._open = True
        self.context = context
        self.channel = channel
        self.num_events = 0
        context.add_ref(self)
        if channel is not None:
            channel.add_ref(self)

    def resize(self, cqe: int) -> None:
        with failing("Failed to resize CQ"):
            self.core.resize(int(cqe))

    def poll(self, num_entries: int = 1) -> tuple[int, list[WC]]:
        number, taken = self.core.poll(num_entries)
        return number, [WC.from_core(wc) for wc in taken]

    def req_notify(self, solicited_only: bool = False) -> None:
        self.core.req_notify(bool(solicited_only))

    def ack_events(self, num_events: int) -> None:
        with failing("Failed to acknowledge CQ events"):
            self.core.ack_events(num_events)
        self.num_events -= num_events

    @property
    def comp_channel(self) -> CompChannel | None:
        return self.channel

    @property
    def cqe(self) -> int:
        return self.core.cqe

    def __str__(self) -> str:
        return lines("CQ", self, ["cqe"])


class CqInitAttrEx(PyverbsObject):
    def __init__(
        self,
        cqe: int = 100,
        channel: CompChannel | None = None,
        comp_vector: int = 0,
        wc_flags: int = 0,
        comp_mask: int = 0,
        flags: int = 0,
        parent_domain: object = None,
    ) -> None:
        super().__init__()
        self.cqe = cqe
        self.comp_channel = channel
        self.comp_vector = comp_vector
        self.wc_flags = wc_flags
        self.comp_mask = comp_mask
        self.flags = flags
        self.parent_domain = parent_domain
        self.cq_context: object = None

    def to_core(self) -> verbs.CqInitAttrEx:
        channel = self.comp_channel
        return verbs.CqInitAttrEx(
            int(self.cqe),
            None if channel is None else channel.core,
            self.comp_vector,
            int(self.wc_flags),
            int(self.comp_mask),
            int(self.flags),
            self.cq_context,
        )

    def __str__(self) -> str:
        return lines("", self, ["cqe", "wc_flags", "comp_mask", "flags"])


class PollCqAttr(PyverbsObject):
    def __init__(self) -> None:
        super().__init__()
        self.comp_mask = 0


class CQEX(PyverbsCM):
    close_order = 2
    closing = "Failed to destroy CQEX"
    core: verbs.CQEX

    def __init__(self, context: Context, init_attr: CqInitAttrEx | None = None) -> None:
        super().__init__()
        attr = CqInitAttrEx() if init_attr is None else init_attr
        if attr.parent_domain is not None:
            raise unsupported("Failed to create extended CQ of a parent domain")
        with failing("Failed to create extended CQ"):
            self.core = verbs.CQEX(context.core, attr.to_core())
        self._open = True
        self._status: int = e.ibv_wc_status.IBV_WC_SUCCESS
        self._wr_id = 0
        self.context = context
        context.add_ref(self)
        if attr.comp_channel is not None:
            attr.comp_channel.add_ref(self)

    def start_poll(self, attr: PollCqAttr | None = None) -> int:
        try:
            return self._took(
                self.core.start_poll(verbs.PollCqAttr(0 if attr is None else attr.comp_mask))
            )
        except OSError as exc:
            return exc.errno or errno.EINVAL

    def poll_next(self) -> int:
        return self._took(self.core.next_poll())

    def _took(self, rc: int) -> int:
        if not rc:
            self._status = e.ibv_wc_status(self.core.status)
            self._wr_id = self.core.wr_id
        return rc

    def end_poll(self) -> None:
        self.core.end_poll()

    @property
    def status(self) -> int:
        return self._status

    @status.setter
    def status(self, val: int) -> None:
        self._status = val

    @property
    def wr_id(self) -> int:
        return self._wr_id

    @wr_id.setter
    def wr_id(self, val: int) -> None:
        self._wr_id = val

    def read_opcode(self) -> int:
        return self.core.read_opcode()

    def read_vendor_err(self) -> int:
        return self.core.read_vendor_err()

    def read_byte_len(self) -> int:
        return self.core.read_byte_len()

    def read_imm_data(self) -> int:
        """In network byte order; the key, where the peer invalidated one."""
        return _immediate(self.core.current)

    def read_qp_num(self) -> int:
        return self.core.read_qp_num()

    def read_src_qp(self) -> int:
        return self.core.read_src_qp()

    def read_wc_flags(self) -> int:
        return self.core.read_wc_flags()

    def read_slid(self) -> int:
        return self.core.read_slid()

    def read_sl(self) -> int:
        return self.core.read_sl()

    def read_dlid_path_bits(self) -> int:
        return self.core.read_dlid_path_bits()

    def read_timestamp(self) -> int:
        raise unsupported("A completion's time stamp")

    read_completion_wallclock_ns = read_timestamp

    def read_cvlan(self) -> int:
        raise unsupported("A completion's VLAN")

    def read_flow_tag(self) -> int:
        raise unsupported("A completion's flow tag")

    def read_tm_info(self) -> WcTmInfo:
        raise unsupported("A completion's tag")

    def __str__(self) -> str:
        return lines("Extended CQ:", self.core, ["cqe"])


class WC(PyverbsObject):
    """A completion.

    `imm_data` is in network byte order; where the peer invalidated a key, that (C's union).
    """

    def __init__(
        self,
        wr_id: int = 0,
        status: int = 0,
        opcode: int = 0,
        vendor_err: int = 0,
        byte_len: int = 0,
        qp_num: int = 0,
        src_qp: int = 0,
        imm_data: int = 0,
        wc_flags: int = 0,
        pkey_index: int = 0,
        slid: int = 0,
        sl: int = 0,
        dlid_path_bits: int = 0,
    ) -> None:
        super().__init__()
        self.wr_id = wr_id
        self.status = status
        self.opcode = opcode
        self.vendor_err = vendor_err
        self.byte_len = byte_len
        self.qp_num = qp_num
        self.src_qp = src_qp
        self.imm_data = imm_data
        self.wc_flags = wc_flags
        self.pkey_index = pkey_index
        self.slid = slid
        self.sl = sl
        self.dlid_path_bits = dlid_path_bits

    @classmethod
    def from_core(cls, wc: verbs.WC) -> WC:
        return cls(
            wc.wr_id,
            int(wc.status),
            wc.opcode,
            wc.vendor_err,
            wc.byte_len,
            wc.qp_num,
            imm_data=_immediate(wc),
            wc_flags=wc.wc_flags,
        )

    def __str__(self) -> str:
        return (
            f"{'status':22}: {cqe_status_to_str(self.status):<20}\n"
            f"{'opcode':22}: {cqe_opcode_to_str(self.opcode):<20}\n"
        ) + lines("", self, ["wr_id", "vendor_err", "byte_len", "qp_num", "wc_flags", "imm_data"])


class WcTmInfo(PyverbsObject):
    def __init__(self) -> None:
        super().__init__()
        self.tag = 0
        self.priv = 0


def _immediate(wc: verbs.WC) -> int:
    if wc.wc_flags & _WITH_INV:
        return wc.invalidated_rkey
    return socket.htonl(wc.imm_data) if wc.wc_flags & _WITH_IMM else 0


def cqe_status_to_str(status: int) -> str:
    return verbs.wc_status_to_str(status)


def cqe_opcode_to_str(opcode: int) -> str:
    return _OPCODES.get(opcode, f"Unknown CQE opcode {opcode}")


def cqe_flags_to_str(flags: int) -> str:
    return flags_to_str(flags, _FLAGS)


def create_wc_flags_to_str(flags: int) -> str:
    return flags_to_str(flags, _WC_FLAGS)
