"""The DEVICE layer: what carries frames."""

from steertag.device.base import (
    Device,
    DeviceStats,
    netdev_poll,
    register_netdevice,
    unregister_netdevice,
)
from steertag.device.fault import FaultDevice, Faults
from steertag.device.frame import Frame, Offload
from steertag.device.memory import MemoryDevice, loopback, memory_link
from steertag.device.offload import dev_queue_xmit

__all__ = [
    "Device",
    "DeviceStats",
    "FaultDevice",
    "Faults",
    "Frame",
    "MemoryDevice",
    "Offload",
    "dev_queue_xmit",
    "loopback",
    "memory_link",
    "netdev_poll",
    "register_netdevice",
    "unregister_netdevice",
]
