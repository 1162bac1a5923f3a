"""What a device says of itself (pyverbs: `DeviceAttr`, `PortAttr`, ...; libibverbs: `verbs.h`).

All of them are records to read. Where an RNIC has no such thing the value is 0, as a kernel driver
without the feature reports it.
"""

from __future__ import annotations

import importlib.metadata
import platform
import zlib
from dataclasses import dataclass, field
from functools import cache
from typing import Final

from steertag.rdma.rnic import RnicLimits
from steertag.verbs import enums as e

PAGE_SIZE: Final = 4096
VENDOR_ID: Final = 0x737467
"""No PCI vendor's: the letters stg."""
MAX_RD_ATOMIC: Final = 128
"""Read and atomic requests at once, each way, that `QP.modify` takes (siw: SIW_MAX_ORD_QP)."""
MAX_CQ: Final = 65536
MAX_AH: Final = 65536
PORT: Final = 1
GID_INDEX: Final = 0
PKEY: Final = 0xFFFF
"""The partition that everybody is in; iWARP has no others."""
_OUI: Final = 0x02_53_54_41
"""Locally administered, then the letters STA: no vendor's."""
_PHYS_LINK_UP: Final = 5
_PORT_CM_SUP: Final = 1 << 16
_PORT_DEVICE_MGMT_SUP: Final = 1 << 19


@cache
def node_guid() -> int:
    """A number of this host, the same in every process."""
    return _OUI << 32 | zlib.crc32(platform.node().encode())


def version() -> str:
    return importlib.metadata.version("steertag")


@dataclass(frozen=True, slots=True)
class DeviceAttr:
    """`struct ibv_device_attr`. Octets, requests, objects."""

    fw_version: str = ""
    node_guid: int = 0
    sys_image_guid: int = 0
    max_mr_size: int = 0
    page_size_cap: int = 0
    vendor_id: int = VENDOR_ID
    vendor_part_id: int = 1
    hw_ver: int = 1
    max_qp: int = 0
    max_qp_wr: int = 0
    device_cap_flags: int = 0
    max_sge: int = 0
    max_sge_rd: int = 1
    """An iWARP Read Request names one local element."""
    max_cq: int = MAX_CQ
    max_cqe: int = 0
    max_mr: int = 0
    max_pd: int = 0
    max_qp_rd_atom: int = MAX_RD_ATOMIC
    max_ee_rd_atom: int = 0
    max_res_rd_atom: int = 0
    max_qp_init_rd_atom: int = MAX_RD_ATOMIC
    max_ee_init_rd_atom: int = 0
    atomic_caps: int = e.IBV_ATOMIC_HCA
    max_ee: int = 0
    max_rdd: int = 0
    max_mw: int = 0
    max_raw_ipv6_qps: int = 0
    max_raw_ethy_qp: int = 0
    max_mcast_grp: int = 0
    max_mcast_qp_attach: int = 0
    max_ah: int = MAX_AH
    max_fmr: int = 0
    max_map_per_fmr: int = 0
    max_srq: int = 0
    max_srq_wr: int = 0
    max_srq_sge: int = 0
    max_pkeys: int = 1
    local_ca_ack_delay: int = 0
    phys_port_cnt: int = 1


def device_attr(limits: RnicLimits) -> DeviceAttr:
    """What an RNIC with these limits reports."""
    return DeviceAttr(
        fw_version=version(),
        node_guid=node_guid(),
        sys_image_guid=node_guid(),
        max_mr_size=(1 << 64) - 1,
        page_size_cap=(1 << 64) - PAGE_SIZE,
        max_qp=limits.max_qp,
        max_qp_wr=limits.max_qp_wr,
        device_cap_flags=(
            e.IBV_DEVICE_SRQ_RESIZE
            | e.IBV_DEVICE_MEM_WINDOW
            | e.IBV_DEVICE_MEM_WINDOW_TYPE_2B
            | e.IBV_DEVICE_MEM_MGT_EXTENSIONS
        ),
        max_sge=limits.max_sge,
        max_cqe=limits.max_cqe,
        max_mr=limits.max_mr,
        max_pd=limits.max_pd,
        max_res_rd_atom=limits.max_qp * MAX_RD_ATOMIC,
        max_mw=limits.max_mw,
        max_srq=limits.max_srq,
        max_srq_wr=limits.max_srq_wr,
        max_srq_sge=limits.max_sge,
    )


@dataclass(frozen=True, slots=True)
class ODPCaps:
    """On-demand paging: memory is registered as it is; there is nothing to page in."""

    general_caps: int = 0
    rc_odp_caps: int = 0
    uc_odp_caps: int = 0
    ud_odp_caps: int = 0
    xrc_odp_caps: int = 0


@dataclass(frozen=True, slots=True)
class PCIAtomicCaps:
    fetch_add: int = 0
    swap: int = 0
    compare_swap: int = 0


@dataclass(frozen=True, slots=True)
class TSOCaps:
    max_tso: int = 0
    supported_qpts: int = 0


@dataclass(frozen=True, slots=True)
class RSSCaps:
    supported_qpts: int = 0
    max_rwq_indirection_tables: int = 0
    rx_hash_fields_mask: int = 0
    rx_hash_function: int = 0
    max_rwq_indirection_table_size: int = 0


@dataclass(frozen=True, slots=True)
class PacketPacingCaps:
    qp_rate_limit_min: int = 0
    qp_rate_limit_max: int = 0
    supported_qpts: int = 0


@dataclass(frozen=True, slots=True)
class TMCaps:
    """Tag matching."""

    max_rndv_hdr_size: int = 0
    max_num_tags: int = 0
    flags: int = 0
    max_ops: int = 0
    max_sge: int = 0


@dataclass(frozen=True, slots=True)
class CQModerationCaps:
    max_cq_count: int = 0
    max_cq_period: int = 0


@dataclass(frozen=True, slots=True)
class DeviceAttrEx:
    """`struct ibv_device_attr_ex`: the plain attributes, and what an RNIC has none of."""

    orig_attr: DeviceAttr
    comp_mask: int = 0
    odp_caps: ODPCaps = field(default_factory=ODPCaps)
    completion_timestamp_mask: int = 0
    hca_core_clock: int = 0
    device_cap_flags_ex: int = 0
    tso_caps: TSOCaps = field(default_factory=TSOCaps)
    pci_atomic_caps: PCIAtomicCaps = field(default_factory=PCIAtomicCaps)
    rss_caps: RSSCaps = field(default_factory=RSSCaps)
    max_wq_type_rq: int = 0
    packet_pacing_caps: PacketPacingCaps = field(default_factory=PacketPacingCaps)
    raw_packet_caps: int = 0
    tm_caps: TMCaps = field(default_factory=TMCaps)
    cq_mod_caps: CQModerationCaps = field(default_factory=CQModerationCaps)
    max_dm_size: int = 0
    phys_port_cnt_ex: int = 1


@dataclass(frozen=True, slots=True)
class PortAttr:
    """`struct ibv_port_attr` of the one port there is.

    MTU, width and speed are nominal: a software device's link is whatever carries its streams.
    """

    state: int = e.IBV_PORT_ACTIVE
    max_mtu: int = e.IBV_MTU_4096
    active_mtu: int = e.IBV_MTU_4096
    gid_tbl_len: int = 1
    port_cap_flags: int = _PORT_CM_SUP | _PORT_DEVICE_MGMT_SUP
    max_msg_sz: int = 0xFFFFFFFF
    bad_pkey_cntr: int = 0
    qkey_viol_cntr: int = 0
    pkey_tbl_len: int = 1
    lid: int = 0
    sm_lid: int = 0
    lmc: int = 0
    max_vl_num: int = 0
    sm_sl: int = 0
    subnet_timeout: int = 0
    init_type_reply: int = 0
    active_width: int = 1
    active_speed: int = 1
    phys_state: int = _PHYS_LINK_UP
    link_layer: int = e.IBV_LINK_LAYER_ETHERNET
    flags: int = 0
    port_cap_flags2: int = 0
    active_speed_ex: int = 0


@dataclass(frozen=True, slots=True)
class GIDEntry:
    """`struct ibv_gid_entry`; the two halves of the GID as numbers in network order's meaning."""

    gid_subnet_prefix: int = 0
    gid_interface_id: int = 0
    gid_index: int = GID_INDEX
    port_num: int = PORT
    gid_type: int = e.IBV_GID_TYPE_IB
    ndev_ifindex: int = 0

    def gid_str(self) -> str:
        digits = f"{self.gid_subnet_prefix:016x}{self.gid_interface_id:016x}"
        return ":".join(digits[at : at + 4] for at in range(0, 32, 4))
