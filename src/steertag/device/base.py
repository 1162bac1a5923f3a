"""The Device interface, and how a protocol receives from one (Linux: net_device, NAPI)."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from steertag.errors import ProtocolError, WireError, os_error
from steertag.family.skbuff import Buffer
from steertag.family.stack import NETDEV_REGISTER, NETDEV_UNREGISTER, Stack


@dataclass(slots=True)
class DeviceStats:
    """What passed, in frames and octets (rtnl_link_stats)."""

    rx_packets: int = 0
    rx_bytes: int = 0
    rx_errors: int = 0
    tx_packets: int = 0
    tx_bytes: int = 0
    tx_dropped: int = 0


class Device(ABC):
    """Something that carries frames. It never waits.

    Attributes:
        name: as listed.
        mtu: most octets of a frame.
        stats: counters.
        on_receive: called when `receive` has something to give; may be called from any thread.
    """

    def __init__(self, name: str, mtu: int) -> None:
        self.name = name
        self.mtu = mtu
        self.stats = DeviceStats()
        self.on_receive: Callable[[], None] | None = None
        self.turn: Callable[[], bool] | None = None

    @abstractmethod
    def transmit(self, parts: Sequence[Buffer]) -> None:
        """Send one frame, given in parts, which the caller may reuse at once.

        Raises:
            OSError: EMSGSIZE, longer than the mtu; ENOBUFS, no room now; ENETDOWN, closed.
        """

    @abstractmethod
    def receive(self) -> memoryview | None:
        """The next frame, valid until the next call; None if there is none."""

    def fileno(self) -> int:
        """Readable when `receive` has something; -1: none, `on_receive` is called."""
        return -1

    @abstractmethod
    def close(self) -> None:
        """Carry no more frames."""

    def count_transmit(self, length: int) -> None:
        """Check a frame's length and count it. Raises EMSGSIZE."""
        if length > self.mtu:
            raise os_error(errno.EMSGSIZE, f"{length} octets, and {self.name} carries {self.mtu}")
        self.stats.tx_packets += 1
        self.stats.tx_bytes += length


def register_netdevice(stack: Stack, device: Device, receive: Callable[[memoryview], None]) -> None:
    """Have `receive(frame)` called for every frame, with the Stack's lock held.

    A turn takes at most sysctl net.core.netdev_budget frames, so that a flood does not keep the
    Stack from its other work. A frame that is not valid (WireError, ProtocolError) is counted in
    `rx_errors`.

    Raises:
        OSError: EEXIST, a device of that name is there.
    """

    def turn() -> bool:
        for taken in range(stack.sysctl["net.core.netdev_budget"]):
            frame = device.receive()
            if frame is None:
                return taken > 0
            device.stats.rx_packets += 1
            device.stats.rx_bytes += len(frame)
            try:
                receive(frame)
            except (WireError, ProtocolError):
                device.stats.rx_errors += 1
        if device.fileno() == -1:
            stack.lock.raise_work(poll)
        return True

    def poll() -> None:
        turn()

    device.turn = turn

    with stack.lock:
        if device.name in stack.devices:
            raise os_error(errno.EEXIST, f"device {device.name}")
        stack.devices[device.name] = device
        for notify in tuple(stack.netdev_chain):
            notify(NETDEV_REGISTER, device)
    device.on_receive = lambda: stack.lock.raise_work(poll)
    device.on_receive()  # what came before


def netdev_poll(stack: Stack, device: Device) -> bool:
    """One turn of a registered device now; True if anything came."""
    with stack.lock:
        return device.turn is not None and device.turn()


def unregister_netdevice(stack: Stack, device: Device) -> None:
    """Take a device out; it is not closed. Raises ENODEV if it is not there."""
    with stack.lock:
        if stack.devices.get(device.name) is not device:
            raise os_error(errno.ENODEV, f"device {device.name}")
        del stack.devices[device.name]
        for notify in tuple(stack.netdev_chain):
            notify(NETDEV_UNREGISTER, device)
        device.on_receive = None
