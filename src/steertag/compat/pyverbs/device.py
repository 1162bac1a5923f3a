"""pyverbs' `device`: the list of devices, and an opened one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from enum import IntEnum

from steertag import verbs
from steertag.compat.pyverbs import libibverbs_enums as e
from steertag.compat.pyverbs.addr import GID
from steertag.compat.pyverbs.base import PyverbsCM, PyverbsObject, lines
from steertag.compat.pyverbs.pyverbs_error import (
    PyverbsRDMAError,
    PyverbsUserError,
    failing,
    unsupported,
)
from steertag.compat.pyverbs.utils import be64toh, flags_to_str
from steertag.compat.pyverbs.utils import gid_str as gid_to_str

_TRANSPORTS = {0: "IB", 1: "IWARP", 2: "USNIC", 3: "USNIC UDP"}
_NODES = {1: "CA", 2: "Switch", 3: "Router", 4: "RNIC", 5: "USNIC", 6: "USNIC UDP"}
_PORT_STATES = {0: "NOP", 1: "Down", 2: "Init", 3: "Armed", 4: "Active", 5: "Defer"}
_MTUS = {1: 256, 2: 512, 3: 1024, 4: 2048, 5: 4096}
_LINK_LAYERS = {0: "Unspecified", 1: "InfiniBand", 2: "Ethernet"}
_PHYSICAL = {
    1: "Sleep",
    2: "Polling",
    3: "Disabled",
    4: "Port configuration training",
    5: "Link up",
    6: "Link error recovery",
    7: "Phy test",
}
_WIDTHS = {1: "1X", 2: "4X", 4: "8X", 8: "12X", 16: "2X"}
_SPEEDS = {
    0: "0.0 Gbps",
    1: "2.5 Gbps",
    2: "5.0 Gbps",
    4: "5.0 Gbps",
    8: "10.0 Gbps",
    16: "14.0 Gbps",
    32: "25.0 Gbps",
    64: "50.0 Gbps",
    128: "100.0 Gbps",
    256: "200.0 Gbps",
}
_GID_TYPES = {
    e.ibv_gid_type.IBV_GID_TYPE_IB: "IB",
    e.ibv_gid_type.IBV_GID_TYPE_ROCE_V1: "RoCEv1",
    e.ibv_gid_type.IBV_GID_TYPE_ROCE_V2: "RoCEv2",
}


class Device(PyverbsObject):
    def __init__(
        self, name: bytes, guid: int, node_type: int, transport_type: int, index: int
    ) -> None:
        super().__init__()
        self.name = name
        self.guid = guid
        self.node_type = node_type
        self.transport_type = transport_type
        self.index = index

    def __str__(self) -> str:
        return (
            f"Device {self.name.decode()}, node type {translate_node_type(self.node_type)},"
            f" transport type {translate_transport_type(self.transport_type)},"
            f" guid {guid_to_hex(self.guid)}, index {self.index}"
        )


def get_device_list() -> list[Device]:
    return [
        Device(
            device.name.encode(),
            device.guid,
            e.ibv_node_type(device.node_type),
            e.ibv_transport_type(device.transport_type),
            device.index,
        )
        for device in verbs.get_device_list()
    ]


rdma_get_devices = get_device_list


class _Record(PyverbsObject):
    """Attributes of the device or its port: those of `core`."""

    def __init__(self, core: object) -> None:
        super().__init__()
        self._core = core

    def __getattr__(self, name: str) -> object:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._core, name)

    def __str__(self) -> str:
        return lines("", self, [member.name for member in fields(self._core)])  # type: ignore[arg-type]


class DeviceAttr(_Record):
    @property
    def node_guid(self) -> int:
        """In network byte order, as in pyverbs."""
        return be64toh(getattr(self._core, "node_guid"))  # noqa: B009

    @property
    def sys_image_guid(self) -> int:
        return be64toh(getattr(self._core, "sys_image_guid"))  # noqa: B009


class DeviceAttrEx(_Record):
    @property
    def orig_attr(self) -> DeviceAttr:
        return DeviceAttr(getattr(self._core, "orig_attr"))  # noqa: B009


class PortAttr(_Record):
    pass


class QueryDeviceExInput(PyverbsObject):
    def __init__(self, comp_mask: int) -> None:
        super().__init__()
        self.comp_mask = comp_mask


class GIDEntry(PyverbsObject):
    """An entry of the GID table; the halves are in network byte order."""

    def __init__(
        self,
        subnet_prefix: int = 0,
        interface_id: int = 0,
        gid_index: int = 0,
        port_num: int = 0,
        gid_type: int = 0,
        ndev_ifindex: int = 0,
    ) -> None:
        super().__init__()
        self.gid_subnet_prefix = subnet_prefix
        self.gid_interface_id = interface_id
        self.gid_index = gid_index
        self.port_num = port_num
        self.gid_type = gid_type
        self.ndev_ifindex = ndev_ifindex

    def gid_str(self) -> str:
        return gid_to_str(self.gid_subnet_prefix, self.gid_interface_id)

    @classmethod
    def from_core(cls, core: verbs.GIDEntry) -> GIDEntry:
        return cls(
            be64toh(core.gid_subnet_prefix),
            be64toh(core.gid_interface_id),
            core.gid_index,
            core.port_num,
            core.gid_type,
            core.ndev_ifindex,
        )

    def __str__(self) -> str:
        return f"{'GID':24}: {self.gid_str():<20}\n" + lines(
            "", self, ["gid_index", "port_num", "gid_type", "ndev_ifindex"]
        )


class AsyncEvent(PyverbsObject):
    def __init__(self, event_type: int = 0, core: verbs.AsyncEvent | None = None) -> None:
        super().__init__()
        self.event_type = event_type
        self._core = core

    def ack(self) -> None:
        if self._core is not None:
            self._core.ack()

    def __str__(self) -> str:
        return f"{'Event Type':24}: {translate_event_type(self.event_type):<20}\n"


class Context(PyverbsCM):
    """An opened device.

    Args (by name):
        name: the device's.
        core: an object of `steertag.verbs` that is open already, of a CMID.
    """

    closing = "Failed to close device"
    core: verbs.Context

    def __init__(self, **kwargs: object) -> None:
        super().__init__()
        name, core = kwargs.get("name"), kwargs.get("core")
        self._borrowed = isinstance(core, verbs.Context)
        if isinstance(core, verbs.Context):
            self.core = core
        elif kwargs.get("cmd_fd") is not None:
            raise unsupported("Failed to import device")
        elif kwargs.get("attr") is not None:
            raise unsupported("Failed to open device with attributes of a provider")
        elif not isinstance(name, str):
            raise PyverbsUserError("Device name must be provided")
        elif name not in [device.name for device in verbs.get_device_list()]:
            raise PyverbsRDMAError(f"Failed to find device {name}")
        else:
            with failing(f"Failed to open device {name}"):
                self.core = verbs.Context(name)
        self.name = self.core.name
        self._open = True

    def _release(self) -> None:
        if not self._borrowed:
            self.core.close()

    @property
    def num_comp_vectors(self) -> int:
        return self.core.num_comp_vectors

    @property
    def cmd_fd(self) -> int:
        """A descriptor of the device. There is nothing to be asked through it."""
        return self.core.async_fd

    def query_device(self) -> DeviceAttr:
        return DeviceAttr(self.core.query_device())

    def query_device_ex(self, ex_input: QueryDeviceExInput | None = None) -> DeviceAttrEx:
        return DeviceAttrEx(self.core.query_device_ex())

    def query_comp_cntr_caps(self) -> None:
        raise unsupported("Failed to query comp_cntr caps")

    def query_pkey(self, port_num: int, index: int) -> int:
        with failing(f"Failed to query pkey {index} of port {port_num}"):
            return self.core.query_pkey(port_num, index)

    def get_pkey_index(self, port_num: int, pkey: int) -> int:
        with failing(f"Failed to get pkey index of pkey = {pkey} of port {port_num}"):
            return self.core.get_pkey_index(port_num, pkey)

    def query_gid(self, port_num: int, index: int) -> GID:
        with failing(f"Failed to query gid {index} of port {port_num}"):
            return GID(self.core.query_gid(port_num, index).gid)

    def query_gid_type(self, port_num: int, index: int) -> int:
        with failing(f"Failed to query gid type of port {port_num} and gid index {index}"):
            return e.ibv_gid_type_sysfs(self.core.query_gid_type(port_num, index))

    def query_gid_table(self, max_entries: int, flags: int = 0) -> list[GIDEntry]:
        with failing("Failed to query gid tables of the device", -1):
            return [GIDEntry.from_core(entry) for entry in self.core.query_gid_table(max_entries)]

    def query_gid_ex(self, port_num: int, gid_index: int, flags: int = 0) -> GIDEntry:
        with failing(f"Failed to query gid table of port {port_num} in index {gid_index}"):
            return GIDEntry.from_core(self.core.query_gid_ex(port_num, gid_index))

    def query_port(self, port_num: int) -> PortAttr:
        with failing(f"Failed to query port {port_num}"):
            return PortAttr(self.core.query_port(port_num))

    def query_port_speed(self, port_num: int) -> int:
        raise unsupported(f"Failed to query port speed for port {port_num}")

    def query_rt_values_ex(self, comp_mask: int = 1) -> tuple[int, int]:
        raise unsupported("Failed to query real time values")

    def get_async_event(self) -> AsyncEvent:
        with failing("Failed to get async event"):
            event = self.core.get_async_event()
        return AsyncEvent(e.ibv_event_type(event.event_type), event)


class AllocDmAttr(PyverbsObject):
    def __init__(self, length: int, log_align_req: int = 0, comp_mask: int = 0) -> None:
        super().__init__()
        self.length = length
        self.log_align_req = log_align_req
        self.comp_mask = comp_mask


class DM(PyverbsCM):
    """Device memory, of which the device has none."""

    def __init__(
        self, context: Context, dm_attr: AllocDmAttr | None = None, **kwargs: object
    ) -> None:
        super().__init__()
        raise unsupported("Failed to allocate device memory")


def _named(names: Mapping[int, object], number: int, unknown: str) -> str:
    return f"{names[number]} ({number})" if number in names else unknown


def translate_gid_type(gid_type: int) -> str:
    return _GID_TYPES.get(e.ibv_gid_type(gid_type), f"Unknown gid_type ({gid_type})")


def guid_format(num: int) -> str:
    digits = f"{be64toh(num):016x}"
    return ":".join(digits[at : at + 4] for at in range(0, 16, 4))


def translate_transport_type(transport_type: int) -> str:
    return _TRANSPORTS.get(transport_type, "Unknown")


def translate_node_type(node_type: int) -> str:
    return _NODES.get(node_type, "Unknown")


def guid_to_hex(node_guid: int) -> str:
    return f"{node_guid:x}"


def port_state_to_str(port_state: int) -> str:
    return _named(_PORT_STATES, port_state, f"Invalid state ({port_state})")


def translate_mtu(mtu: int) -> str:
    return _named(_MTUS, mtu, f"Invalid MTU ({mtu})")


def translate_link_layer(ll: int) -> str:
    return _LINK_LAYERS.get(ll, f"Invalid link layer ({ll})")


def _members(kind: type[IntEnum]) -> dict[int, str]:
    return {int(member): member.name for member in kind}


def str_from_flags(flags: int, dictionary: Mapping[int, str]) -> str:
    return "\n  " + flags_to_str(flags, dictionary, "\n  ")


def translate_port_cap_flags(flags: int) -> str:
    return str_from_flags(flags, _members(e.ibv_port_cap_flags))


def translate_port_cap_flags2(flags: int) -> str:
    return str_from_flags(flags, _members(e.ibv_port_cap_flags2))


def translate_device_caps(flags: int) -> str:
    return str_from_flags(flags, _members(e.ibv_device_cap_flags))


def phys_state_to_str(phys: int) -> str:
    return _named(_PHYSICAL, phys, "Invalid physical state")


def width_to_str(width: int) -> str:
    return _named(_WIDTHS, width, "Invalid width")


def speed_to_str(active_speed: int, active_speed_ex: int = 0) -> str:
    return _named(_SPEEDS, active_speed_ex or active_speed, "Invalid speed")


def translate_event_type(event_type: int) -> str:
    return _members(e.ibv_event_type).get(event_type, f"Unknown event_type ({event_type})")
