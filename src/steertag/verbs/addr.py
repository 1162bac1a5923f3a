"""Addresses of queue pairs on the fabric (pyverbs: `addr`).

An iWARP connection is addressed by IP address and port; a GID says which device, here: this
host's. What `QP.to_rtr` takes from an address is the GID, with the number of the other queue pair.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from steertag.errors import os_error
from steertag.verbs.attr import GID_INDEX, MAX_AH, PORT, node_guid
from steertag.verbs.managed import Managed

if TYPE_CHECKING:
    from steertag.rdma.cq import WC
    from steertag.verbs.device import PD

_LINK_LOCAL: Final = 0xFE80 << 48
_GID_OCTETS: Final = 16


class GID:
    """A global identifier.

    Args:
        val: eight groups of four hexadecimal digits, with colons; None is all zero.

    Raises:
        ValueError: another shape.
    """

    __slots__ = ("raw",)

    def __init__(self, val: str | None = None) -> None:
        self.raw = bytes(_GID_OCTETS) if val is None else _parse(val)

    @property
    def gid(self) -> str:
        return ":".join(self.raw[at : at + 2].hex() for at in range(0, _GID_OCTETS, 2))

    @gid.setter
    def gid(self, val: str) -> None:
        self.raw = _parse(val)

    def __str__(self) -> str:
        return self.gid

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GID) and other.raw == self.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        return f"GID({self.gid!r})"


def _parse(val: str) -> bytes:
    groups = val.split(":")
    if len(groups) != _GID_OCTETS // 2 or any(len(group) != 4 for group in groups):
        raise ValueError(f"GID {val!r}; it is eight groups of four hexadecimal digits")
    return bytes.fromhex("".join(groups))


def device_gid() -> GID:
    """The device's own: link-local, made of its GUID."""
    gid = GID()
    gid.raw = (_LINK_LOCAL << 64 | node_guid()).to_bytes(_GID_OCTETS, "big")
    return gid


@dataclass
class GlobalRoute:
    """`struct ibv_global_route`: the GID of the device that is meant; the rest is kept."""

    dgid: GID | None = None
    flow_label: int = 0
    sgid_index: int = 0
    hop_limit: int = 1
    traffic_class: int = 0


@dataclass
class AHAttr:
    """`struct ibv_ah_attr`: where another queue pair is.

    Raises:
        ValueError: global, and without a route.
    """

    dlid: int = 0
    sl: int = 0
    src_path_bits: int = 0
    static_rate: int = 0
    is_global: int = 0
    port_num: int = PORT
    gr: GlobalRoute | None = None

    def __post_init__(self) -> None:
        if self.is_global and self.gr is None:
            raise ValueError("a global AHAttr has a GlobalRoute")

    def check(self) -> None:
        """Raises OSError: EINVAL for an address that this device has no way to."""
        if self.port_num != PORT:
            raise os_error(errno.EINVAL, f"port {self.port_num}; there is {PORT}")
        if not self.is_global or self.gr is None or self.gr.dgid is None:
            raise os_error(errno.EINVAL, "an address on this device has a GlobalRoute with a dgid")
        if self.gr.sgid_index != GID_INDEX:
            raise os_error(errno.EINVAL, f"sgid_index {self.gr.sgid_index}; there is {GID_INDEX}")


class AH(Managed):
    """An address handle (`ibv_create_ah`). Datagrams would be sent to it; iWARP has none.

    Raises:
        OSError: EINVAL for an address without a GlobalRoute, EOPNOTSUPP for one out of a
            completion (only a datagram's says where it came from), ENOMEM for too many.
    """

    def __init__(
        self,
        creator: PD,
        attr: AHAttr | None = None,
        *,
        wc: WC | None = None,
        grh: int | None = None,
        port_num: int = PORT,
    ) -> None:
        if wc is not None or grh is not None:
            raise os_error(errno.EOPNOTSUPP, "an address out of a completion: iWARP has RC only")
        if attr is None:
            raise os_error(errno.EINVAL, "an AH is made of an AHAttr")
        attr.check()
        if creator.context.address_handles >= MAX_AH:
            raise os_error(errno.ENOMEM, f"{MAX_AH} address handles exist")
        self.pd = creator
        self.attr = attr
        creator.context.address_handles += 1
        super().__init__(creator)

    def _close(self) -> None:
        self.pd.context.address_handles -= 1
