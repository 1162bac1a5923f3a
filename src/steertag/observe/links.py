"""Network devices of a Stack, as `ip -s link` lists them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from steertag.device.base import (
    ARPHRD_ETHER,
    ARPHRD_LOOPBACK,
    NETIF_F_GSO_UDP_L4,
    NETIF_F_HW_CSUM,
    NETIF_F_RXCSUM,
    NETIF_F_TSO,
    NETIF_F_TSO6,
    Device,
)
from steertag.device.fault import FaultDevice, FaultStats
from steertag.device.middleware import Middleware
from steertag.observe.processes import Process, own_name
from steertag.observe.table import plain

if TYPE_CHECKING:
    from steertag.family.stack import Stack

Object = dict[str, object]

# As `ethtool -k` names them.
_FEATURES: Final = (
    (NETIF_F_RXCSUM, "rx-checksumming"),
    (NETIF_F_HW_CSUM, "tx-checksumming"),
    (NETIF_F_TSO, "tx-tcp-segmentation"),
    (NETIF_F_TSO6, "tx-tcp6-segmentation"),
    (NETIF_F_GSO_UDP_L4, "tx-udp-segmentation"),
)
_GRO: Final = "generic-receive-offload"
_TYPES: Final = {ARPHRD_ETHER: "ether", ARPHRD_LOOPBACK: "loopback"}
_FLAGS: Final = {
    "ether": ("BROADCAST", "MULTICAST"),
    "loopback": ("LOOPBACK",),
    "none": ("POINTOPOINT", "NOARP"),
}
_RX: Final = ("bytes", "packets", "errors", "dropped", "multicast")
_TX: Final = ("bytes", "packets", "errors", "dropped")
_HEADS: Final = {"multicast": "mcast"}


@dataclass(frozen=True, slots=True)
class Link:
    """One device, and the number and name of its process; `link` is as `links` gives it."""

    pid: int
    comm: str
    link: Object


def links(stack: Stack) -> list[Object]:
    """Every device by its number, in the form of `ip -j -s link`.

    Of its own are `features` (names as of `ethtool -k`) and, of a device with faults, `faults`:
    what was done to packets on the way out (`tx`) and in (`rx`), outermost device first.
    """
    with stack.lock:
        devices = [device for device in stack.devices.values() if isinstance(device, Device)]
        return [_link(device) for device in sorted(devices, key=lambda one: one.ifindex)]


def owned(stack: Stack | None, processes: Iterable[Process] = ()) -> list[Link]:
    """Those of this process's `stack`, and of the Stacks that other processes told of."""
    found = []
    if stack is not None:
        found = [Link(os.getpid(), own_name(), link) for link in links(stack)]
    for process in processes:
        found += [Link(process.pid, process.comm, link) for link in process.links]
    return found


def format(found: Iterable[Link]) -> str:
    """The paragraphs of `ip -s link`, with the process at the end of the second line."""
    return "\n".join(line for one in found for line in _lines(one))


def as_json(found: Iterable[Link]) -> list[Object]:
    """One object a device."""
    return [{**one.link, "pid": one.pid, "comm": one.comm} for one in found]


def _link(device: Device) -> Object:
    stats = device.stats
    kind = _TYPES.get(device.type, "none")
    state = ("UP", "LOWER_UP") if device.up else ()
    up = "UNKNOWN" if device.type == ARPHRD_LOOPBACK else "UP"
    link: Object = {
        "ifindex": device.ifindex,
        "ifname": device.name,
        "flags": [*_FLAGS[kind], *state],
        "mtu": device.mtu,
        "operstate": up if device.up else "DOWN",
        "link_type": kind,
        "address": device.dev_addr.hex(":"),
        "linkinfo": {"info_kind": device.kind},
        "features": _features(device),
        "stats64": {
            "rx": {
                "bytes": stats.rx_bytes,
                "packets": stats.rx_packets,
                "errors": stats.rx_errors,
                "dropped": stats.rx_dropped,
                "multicast": stats.multicast,
            },
            "tx": {
                "bytes": stats.tx_bytes,
                "packets": stats.tx_packets,
                "errors": stats.tx_errors,
                "dropped": stats.tx_dropped,
            },
        },
    }
    faults = [{"tx": asdict(one.sent), "rx": asdict(one.received)} for one in _faults(device)]
    if faults:
        link["faults"] = faults
    return link


def _features(device: Device) -> list[str]:
    names = [name for bit, name in _FEATURES if device.features & bit]
    return [*names, _GRO] if device.gro and not device.features & NETIF_F_RXCSUM else names


def _faults(device: Device) -> Iterator[FaultDevice]:
    current = device
    while isinstance(current, Middleware):
        if isinstance(current, FaultDevice):
            yield current
        current = current.inner


# -- text ------------------------------------------------------------------------------------------


def _lines(one: Link) -> Iterator[str]:
    link = one.link
    flags = ",".join(map(plain, _list(link, "flags")))
    head = f"{plain(link.get('ifindex'))}: {plain(link.get('ifname'))}: <{flags}>"
    yield f"{head} mtu {plain(link.get('mtu'))} state {plain(link.get('operstate'))}"
    kind, address = plain(_object(link, "linkinfo").get("info_kind", "")), link.get("address")
    words = [f"link/{plain(link.get('link_type'))}", plain(address or ""), kind]
    yield f"    {' '.join(filter(None, words))} " + f'users:(("{plain(one.comm)}",pid={one.pid}))'
    yield f"    features: {' '.join(map(plain, _list(link, 'features'))) or 'none'}"
    stats = _object(link, "stats64")
    yield from _table("RX", _RX, _object(stats, "rx"))
    yield from _table("TX", _TX, _object(stats, "tx"))
    for faults in _list(link, "faults"):
        for way in ("tx", "rx"):
            done = _object(faults, way) if isinstance(faults, dict) else {}
            words = [f"{name} {plain(done.get(name, '?'))}" for name in FaultStats.__slots__]
            yield f"    faults {way.upper()}: {' '.join(words)}"


def _table(head: str, names: tuple[str, ...], counters: Object) -> tuple[str, str]:
    """Two lines: names, and numbers below them."""
    rows = [(_HEADS.get(name, name), plain(counters.get(name, "?"))) for name in names]
    widths = [max(10 if not at else 7, *map(len, row)) for at, row in enumerate(rows)]
    names_line = " ".join(name.rjust(width) for (name, _), width in zip(rows, widths, strict=True))
    line = " ".join(value.rjust(width) for (_, value), width in zip(rows, widths, strict=True))
    return f"    {head}: {names_line}", f"        {line}"


def _object(parent: Object, key: str) -> Object:
    value = parent.get(key)
    return value if isinstance(value, dict) else {}


def _list(parent: Object, key: str) -> list[object]:
    value = parent.get(key)
    return value if isinstance(value, list) else []
