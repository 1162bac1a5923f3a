"""The DEVICE layer: what carries frames."""

from steertag.device.base import Device, DeviceStats, register_netdevice, unregister_netdevice
from steertag.device.memory import MemoryDevice, loopback, memory_link

__all__ = [
    "Device",
    "DeviceStats",
    "MemoryDevice",
    "loopback",
    "memory_link",
    "register_netdevice",
    "unregister_netdevice",
]
