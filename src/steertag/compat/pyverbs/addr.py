"""pyverbs' `addr`: GIDs and address handles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steertag import verbs
from steertag.compat.pyverbs.base import PyverbsCM, PyverbsObject, lines
from steertag.compat.pyverbs.pyverbs_error import PyverbsUserError, failing, unsupported
from steertag.compat.pyverbs.utils import gid_str_to_array

if TYPE_CHECKING:
    from steertag.compat.pyverbs.pd import PD

_ZERO = ":".join(["0000"] * 8)


class GID(PyverbsObject):
    def __init__(self, val: str | None = None) -> None:
        super().__init__()
        self.gid = _ZERO if val is None else val

    @property
    def gid(self) -> str:
        return self._core.gid

    @gid.setter
    def gid(self, val: str) -> None:
        gid_str_to_array(val)
        self._core = verbs.GID(val)

    def __str__(self) -> str:
        return self.gid


class GRH(PyverbsObject):
    """A header that only datagrams have; it can be made and read."""

    def __init__(
        self,
        sgid: GID | None = None,
        dgid: GID | None = None,
        version_tclass_flow: int = 0,
        paylen: int = 0,
        next_hdr: int = 0,
        hop_limit: int = 1,
    ) -> None:
        super().__init__()
        self.sgid = _ZERO if sgid is None else sgid.gid
        self.dgid = _ZERO if dgid is None else dgid.gid
        self.version_tclass_flow = version_tclass_flow
        self.paylen = paylen
        self.next_hdr = next_hdr
        self.hop_limit = hop_limit

    def __str__(self) -> str:
        return lines("", self, [name for name in vars(self) if name != "logger"])


class GlobalRoute(PyverbsObject):
    def __init__(
        self,
        dgid: GID | None = None,
        flow_label: int = 0,
        sgid_index: int = 0,
        hop_limit: int = 1,
        traffic_class: int = 0,
    ) -> None:
        super().__init__()
        self.dgid = _ZERO if dgid is None else dgid.gid
        self.flow_label = flow_label
        self.sgid_index = sgid_index
        self.hop_limit = hop_limit
        self.traffic_class = traffic_class

    def to_core(self) -> verbs.GlobalRoute:
        gid_str_to_array(self.dgid)
        return verbs.GlobalRoute(
            verbs.GID(self.dgid),
            self.flow_label,
            self.sgid_index,
            self.hop_limit,
            self.traffic_class,
        )

    def __str__(self) -> str:
        return lines("", self, [name for name in vars(self) if name != "logger"])


class AHAttr(PyverbsObject):
    """An address. Members of the route are None without one, as in pyverbs."""

    def __init__(
        self,
        dlid: int = 0,
        sl: int = 0,
        src_path_bits: int = 0,
        static_rate: int = 0,
        is_global: int = 0,
        port_num: int = 1,
        gr: GlobalRoute | None = None,
    ) -> None:
        super().__init__()
        if is_global and gr is None:
            raise PyverbsUserError("Global AH Attr is created but gr parameter is None")
        self.dlid = dlid
        self.sl = sl
        self.src_path_bits = src_path_bits
        self.static_rate = static_rate
        self.is_global = int(is_global)
        self.port_num = port_num
        self._route = GlobalRoute() if gr is None else gr

    @property
    def dgid(self) -> str | None:
        return self._route.dgid if self.is_global else None

    @dgid.setter
    def dgid(self, val: str) -> None:
        if self.is_global:
            gid_str_to_array(val)
            self._route.dgid = val

    @property
    def flow_label(self) -> int | None:
        return self._route.flow_label if self.is_global else None

    @flow_label.setter
    def flow_label(self, val: int) -> None:
        self._route.flow_label = val

    @property
    def sgid_index(self) -> int | None:
        return self._route.sgid_index if self.is_global else None

    @sgid_index.setter
    def sgid_index(self, val: int) -> None:
        self._route.sgid_index = val

    @property
    def hop_limit(self) -> int | None:
        return self._route.hop_limit if self.is_global else None

    @hop_limit.setter
    def hop_limit(self, val: int) -> None:
        self._route.hop_limit = val

    @property
    def traffic_class(self) -> int | None:
        return self._route.traffic_class if self.is_global else None

    @traffic_class.setter
    def traffic_class(self, val: int) -> None:
        self._route.traffic_class = val

    def to_core(self) -> verbs.AHAttr:
        return verbs.AHAttr(
            self.dlid,
            self.sl,
            self.src_path_bits,
            self.static_rate,
            self.is_global,
            self.port_num,
            self._route.to_core() if self.is_global else None,
        )

    @classmethod
    def from_core(cls, core: verbs.AHAttr) -> AHAttr:
        route = core.gr
        return cls(
            core.dlid,
            core.sl,
            core.src_path_bits,
            core.static_rate,
            core.is_global,
            core.port_num,
            None
            if route is None
            else GlobalRoute(
                GID(None if route.dgid is None else route.dgid.gid),
                route.flow_label,
                route.sgid_index,
                route.hop_limit,
                route.traffic_class,
            ),
        )

    def __str__(self) -> str:
        names = ["port_num", "sl", "src_path_bits", "dlid", "static_rate", "is_global"]
        if self.is_global:
            names += ["dgid", "flow_label", "sgid_index", "hop_limit", "traffic_class"]
        return lines("", self, names)


class AH(PyverbsCM):
    closing = "Failed to destroy AH"
    core: verbs.AH

    def __init__(self, pd: PD, **kwargs: object) -> None:
        super().__init__()
        attr = kwargs.get("attr")
        if not isinstance(attr, AHAttr):
            raise unsupported("Failed to create AH: of a completion")
        with failing("Failed to create AH"):
            self.core = verbs.AH(pd.core, attr.to_core())
        self._open = True
        self.pd = pd
        pd.add_ref(self)
