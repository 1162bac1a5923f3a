"""Devices by description: one text says what a device is, its addresses, and what surrounds it.

    tun:stag0,10.9.0.2/24,fd00:9::2/64,via=10.9.0.1,host=10.9.0.1/24,mtu=9000,loss=1%

A description is a kind (`tun` carries IP packets, `tap` Ethernet frames), a colon, the interface's
name on the host if it is to have one, then what follows, between commas:

==============  ==================================================================================
`ADDRESS/LEN`   an address of the Stack's on this device, with its prefix; as many as wanted
`via=ADDRESS`   the default route of that address family leads there
`host=ADDR/LEN` an address that the host's end of the device is given; as many as wanted
`mtu=OCTETS`    the largest IP packet, at both ends
`mac=ADDRESS`   the Stack's Ethernet address; of a `tap`
`offload=no`    neither checksums nor segmentation are left to the other side of the device
`pcap=FILE`     every packet, as the Stack sends and receives it, goes into a capture
`loss=1%`       frames lost, each way; so `duplicate=`, `corrupt=`, `reorder=`
`delay=20ms`    how much later a frame arrives, each way; `jitter=` is how much that varies
`rate=10mbit`   bits a second, each way
`seed=7`        which frames are hit: the same seed, the same ones
==============  ==================================================================================

`parse_device` reads one, `open_device` makes it so for a Stack. The environment variable
STEERTAG_DEVICE holds those of the default Stack, between semicolons.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import ipaddress
import os
import random
import re
import socket
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from steertag.errors import os_error

if TYPE_CHECKING:
    from steertag.device.base import Device
    from steertag.device.pcap import PcapDevice
    from steertag.family.stack import Stack

VARIABLE: Final = "STEERTAG_DEVICE"
KINDS: Final = ("tun", "tap")
MIN_MTU: Final = 68
"""RFC 791: every module takes so many octets without fragmenting them."""
MIN_MTU_IPV6: Final = 1280
MAX_MTU: Final = 65535
_OBSTACLES: Final = (
    ("user/max_user_namespaces", "0", "1000"),
    ("kernel/unprivileged_userns_clone", "0", "1"),
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
)
"""What keeps users from namespaces of their own: the parameter, its value then, the remedy."""
_SIOCGIFFLAGS: Final = 0x8913
_SIOCGIFMTU: Final = 0x8921
_IFREQ_INT: Final = Struct("16si20x")
_IFF_UP: Final = 1
_NAME: Final = re.compile(r"[^/\s:,=]{1,15}")
_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_TIME: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(us|ms|s)")
_RATE: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)([kmg]?)bit")
_SECONDS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_BITS: Final = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class DeviceSpecError(ValueError):
    """A text that describes no device; what is wrong, and what to write instead, in one line."""


@dataclass(frozen=True, slots=True)
class FaultSpec:
    """What the link does to frames, each way. Probabilities are from 0 to 1, times in seconds.

    Attributes:
        rate: bits a second; None is without limit.
        seed: of the choice which frames are hit; None: another one each time.
    """

    loss: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    reorder: float = 0.0
    delay: float = 0.0
    jitter: float = 0.0
    rate: float | None = None
    seed: int | None = None

    def __bool__(self) -> bool:
        """Whether it does anything."""
        return self != FaultSpec(seed=self.seed)


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A description of a device, taken apart; see the module for what each part means.

    Attributes:
        kind: "tun" or "tap".
        name: of the interface on the host; "" leaves it to the host.
        mtu: None leaves it as it is.
        mac: six octets; None: one of the Stack's choice.
    """

    kind: str
    name: str = ""
    addresses: tuple[str, ...] = ()
    via: tuple[str, ...] = ()
    host: tuple[str, ...] = ()
    mtu: int | None = None
    mac: bytes | None = None
    offload: bool = True
    pcap: Path | None = None
    faults: FaultSpec = field(default_factory=FaultSpec)


def parse_device(text: str) -> DeviceSpec:
    """Take a description apart.

    Raises:
        DeviceSpecError: what is wrong with it, in one line.
    """
    kind, colon, rest = text.strip().partition(":")
    if not colon or kind not in KINDS:
        raise DeviceSpecError(
            f"device {text!r}: a device is tun:... or tap:..., as in tun:stag0,10.9.0.2/24"
        )
    parser = _Parser(text, kind)
    for number, item in enumerate(rest.split(",")):
        parser.take(item.strip(), first=number == 0)
    return parser.finish()


def parse_devices(text: str) -> list[DeviceSpec]:
    """The descriptions in `text`, which are separated by semicolons. Raises DeviceSpecError."""
    return [parse_device(part) for part in text.split(";") if part.strip()]


class _Parser:
    """Collects the parts of one description."""

    def __init__(self, text: str, kind: str) -> None:
        self._text = text.strip()
        self._kind = kind
        self._name = ""
        self._addresses: list[Interface] = []
        self._via: list[Address] = []
        self._host: list[Interface] = []
        self._single: dict[str, Any] = {}
        self._faults: dict[str, Any] = {}

    def take(self, item: str, *, first: bool) -> None:
        key, equals, value = item.partition("=")
        if equals:
            self._setting(key.strip(), value.strip())
        elif "/" in item or _is_address(item):
            address = self._interface(item)
            if any(address.ip == each.ip for each in self._addresses):
                raise self._error(f"{address.ip} stands there twice")
            self._addresses.append(address)
        elif first:
            if item and not _NAME.fullmatch(item):
                raise self._error(f"{item!r} is no interface name; at most 15 characters, no space")
            self._name = item
        else:
            raise self._error(f"{item!r} is neither an address with a prefix nor NAME=VALUE")

    def finish(self) -> DeviceSpec:
        if not self._addresses:
            raise self._error("it has no address; add one with its prefix, as 10.9.0.2/24")
        self._check_routes()
        self._check_host()
        mtu = self._single.get("mtu")
        if mtu is not None and mtu < MIN_MTU_IPV6 and any(a.version == 6 for a in self._addresses):
            raise self._error(f"mtu={mtu}: IPv6 needs {MIN_MTU_IPV6}")
        return DeviceSpec(
            kind=self._kind,
            name=self._name,
            addresses=tuple(map(str, self._addresses)),
            via=tuple(map(str, self._via)),
            host=tuple(map(str, self._host)),
            faults=FaultSpec(**self._faults),
            **self._single,
        )

    # -- NAME=VALUE ----------------------------------------------------------------------------

    def _setting(self, key: str, value: str) -> None:
        if key == "via":
            self._via.append(self._address(value))
        elif key == "host":
            self._host.append(self._interface(value))
        elif (read := _SINGLE.get(key)) is not None:
            self._once(key, self._single, read(self, value))
        elif (read := _FAULTS.get(key)) is not None:
            self._once(key, self._faults, read(self, value))
        else:
            known = ", ".join(["via", "host", *_SINGLE, *_FAULTS])
            raise self._error(f"unknown setting {key!r}; there are {known}")

    def _once(self, key: str, into: dict[str, Any], value: object) -> None:
        if key in into:
            raise self._error(f"{key}= stands there twice")
        into[key] = value

    def _mtu(self, value: str) -> int:
        mtu = self._integer("mtu", value)
        if not MIN_MTU <= mtu <= MAX_MTU:
            raise self._error(f"mtu={mtu} is out of range; {MIN_MTU} to {MAX_MTU}")
        return mtu

    def _mac(self, value: str) -> bytes:
        if self._kind != "tap":
            raise self._error("mac= is of a tap; a tun carries no Ethernet")
        if not _MAC.fullmatch(value.lower()):
            raise self._error(f"mac={value}: write six octets, as 02:00:00:00:00:02")
        mac = bytes.fromhex(value.replace(":", ""))
        if mac[0] & 1 or not any(mac):
            raise self._error(f"mac={value} is no address of one station; begin it with 02")
        return mac

    def _switch(self, value: str) -> bool:
        if value not in ("yes", "no"):
            raise self._error(f"offload={value}: write yes or no")
        return value == "yes"

    def _file(self, value: str) -> Path:
        if not value:
            raise self._error("pcap= needs the name of a file")
        return Path(value)

    def _integer(self, key: str, value: str) -> int:
        if not value.isascii() or not value.isdecimal():
            raise self._error(f"{key}={value}: write a whole number")
        return int(value)

    def _seed(self, value: str) -> int:
        return self._integer("seed", value)

    def _share(self, value: str) -> float:
        try:
            share = float(value[:-1]) / 100 if value.endswith("%") else float(value)
        except ValueError:
            share = -1.0
        if not 0.0 <= share <= 1.0:
            raise self._error(f"{value!r} is no share of the frames; write 1% or 0.01")
        return share

    def _time(self, value: str) -> float:
        match = _TIME.fullmatch(value)
        if match is None:
            raise self._error(f"{value!r} is no time; write 20ms, 500us or 1s")
        return float(match[1]) * _SECONDS[match[2]]

    def _rate(self, value: str) -> float:
        match = _RATE.fullmatch(value.lower())
        rate = float(match[1]) * _BITS[match[2]] if match else 0.0
        if rate <= 0:
            raise self._error(f"{value!r} is no rate; write 10mbit, 500kbit or 1gbit")
        return rate

    # -- addresses -----------------------------------------------------------------------------

    def _interface(self, text: str) -> Interface:
        if "/" not in text:
            raise self._error(f"{text} has no prefix length; write {text}/{_usual_prefix(text)}")
        try:
            found = ipaddress.ip_interface(text)
        except ValueError:
            raise self._error(
                f"{text!r} is no address; write 10.9.0.2/24 or fd00:9::2/64"
            ) from None
        if found.ip.is_multicast or found.ip.is_unspecified or found.ip.is_loopback:
            raise self._error(f"{text} is no address of one interface")
        return found

    def _address(self, text: str) -> Address:
        try:
            return ipaddress.ip_address(text)
        except ValueError:
            raise self._error(f"via={text}: write an address without a prefix") from None

    def _check_routes(self) -> None:
        for via in self._via:
            if not any(_covers(own, via) for own in self._addresses):
                raise self._error(f"via={via} is in no network of this device's addresses")
        if len({via.version for via in self._via}) < len(self._via):
            raise self._error("via= stands there twice for one address family")

    def _check_host(self) -> None:
        own = {address.ip for address in self._addresses}
        for host in self._host:
            if host.ip in own:
                raise self._error(
                    f"host={host}: the Stack has that address; the host needs another"
                )

    def _error(self, problem: str) -> DeviceSpecError:
        return DeviceSpecError(f"device {self._text!r}: {problem}")


_SINGLE: Final[Mapping[str, Callable[[_Parser, str], object]]] = {
    "mtu": _Parser._mtu,
    "mac": _Parser._mac,
    "offload": _Parser._switch,
    "pcap": _Parser._file,
}
_FAULTS: Final[Mapping[str, Callable[[_Parser, str], object]]] = {
    "loss": _Parser._share,
    "duplicate": _Parser._share,
    "corrupt": _Parser._share,
    "reorder": _Parser._share,
    "delay": _Parser._time,
    "jitter": _Parser._time,
    "rate": _Parser._rate,
    "seed": _Parser._seed,
}


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _usual_prefix(address: str) -> int:
    return 64 if ":" in address else 24


def _covers(own: Interface, address: Address) -> bool:
    return own.version == address.version and address in own.network


def environment_devices() -> list[DeviceSpec]:
    """What STEERTAG_DEVICE describes. Raises DeviceSpecError."""
    return parse_devices(os.environ.get(VARIABLE, ""))


def open_device(stack: Stack, spec: DeviceSpec | str) -> Device:
    """Open the device that `spec` describes, and give it to the Stack's AF_INET_NEW_TCP.

    Gives the device that the Stack has: the outermost, where a capture or faults surround it.

    Raises:
        DeviceSpecError: a text that describes none.
        OSError: it can't be had, in one line that says what is missing; EAFNOSUPPORT: the family
            is not registered with the Stack.
    """
    if isinstance(spec, str):
        spec = parse_device(spec)
    from steertag.inet.ip.net import inet_net

    net = inet_net(stack)
    with ExitStack() as undo:
        inner = _open_interface(spec)
        undo.callback(inner.close)
        _configure_host(inner, spec)
        outer = _surround(inner, spec, stack)
        undo.callback(outer.close)
        net.add_device(outer, spec.addresses)
        undo.callback(net.del_device, outer)
        for via in spec.via:
            net.route_add("::/0" if ":" in via else "0.0.0.0/0", via=via, device=outer)
        undo.pop_all()
    return outer


def open_new_tcp(stack: Stack, specs: Iterable[DeviceSpec]) -> list[Device]:
    """Have AF_INET_NEW_TCP in the Stack, with these devices: all, or none and an OSError."""
    from steertag.inet import AF_INET_NEW_TCP, inet_net, register, unregister

    with ExitStack() as undo:
        if AF_INET_NEW_TCP not in stack.families:
            register(stack)
            undo.callback(unregister, stack)
        devices = []
        for spec in specs:
            devices.append(device := open_device(stack, spec))
            undo.callback(device.close)
            undo.callback(inet_net(stack).del_device, device)
        undo.pop_all()
    return devices


def open_environment(stack: Stack) -> None:
    """`open_new_tcp` with what STEERTAG_DEVICE describes.

    Raises:
        OSError: EINVAL, it describes no device; what opening one raises.
    """
    try:
        specs = environment_devices()
    except DeviceSpecError as error:
        raise os_error(errno.EINVAL, f"{VARIABLE}: {error}") from None
    open_new_tcp(stack, specs)


# --- the parts of opening one ---------------------------------------------------------------------


def _open_interface(spec: DeviceSpec) -> Device:
    from steertag.device.tun import TapDevice, TunDevice

    settings: dict[str, Any] = {"offload": spec.offload}
    if spec.mtu is not None:
        settings["mtu"] = spec.mtu
    if spec.mac is not None:
        settings["address"] = spec.mac
    kind = TapDevice if spec.kind == "tap" else TunDevice
    try:
        return kind(spec.name, **settings)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES):
            raise
        raise OSError(error.errno, f"{error.strerror}{_advice(error.errno)}") from None


def _advice(code: int) -> str:
    """What keeps this machine's users from what `unshare -Urn` gives, if anything does."""
    if code == errno.EACCES:
        return ": have root run `chmod 666 /dev/net/tun`"
    for name, refusing, remedy in _OBSTACLES:
        try:
            value = (Path("/proc/sys") / name).read_text().strip()
        except OSError:
            continue  # this kernel knows no such obstacle
        if value == refusing:
            return f"; here that takes root to run `sysctl {name.replace('/', '.')}={remedy}` first"
    return ""


def _configure_host(device: Device, spec: DeviceSpec) -> None:
    """Set the host's end up. One that was there before may be up, and beyond our rights."""
    from steertag.device.hostside import configure

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = device.name.encode()
        if spec.mtu is None:
            device.mtu = _IFREQ_INT.unpack(_ask(any_socket, _SIOCGIFMTU, request))[1]
        try:
            configure(device.name, spec.host, mtu=spec.mtu)
        except OSError as error:
            if error.errno != errno.EPERM or spec.host or spec.mtu is not None:
                raise
            if not _IFREQ_INT.unpack(_ask(any_socket, _SIOCGIFFLAGS, request))[1] & _IFF_UP:
                advice = f"have root run `ip link set {device.name} up`"
                raise os_error(error.errno, f"{device.name} is down: {advice}") from None


def _ask(any_socket: socket.socket, request: int, name: bytes) -> bytes:
    """An interface's property (netdevice(7))."""
    return fcntl.ioctl(any_socket, request, _IFREQ_INT.pack(name, 0))


def _surround(inner: Device, spec: DeviceSpec, stack: Stack) -> Device:
    """Put what the description asks for around the interface: faults, and then the capture."""
    device = inner
    if spec.faults:
        from steertag.device.fault import FaultDevice

        settings = asdict(spec.faults)
        seed = settings.pop("seed")
        rng = random.Random(stack.rng.getrandbits(64) if seed is None else seed)
        device = FaultDevice(device, rng=rng, clock=stack.clock, timers=stack.timers, **settings)
    return device if spec.pcap is None else _captured(device, spec.pcap)


def _captured(inner: Device, path: Path) -> Device:
    from steertag.device.pcap import PcapDevice

    try:
        # It holds what was sent: for nobody else to read, unless the file was there before.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        device = PcapDevice(inner, path)
    except OSError as error:
        raise os_error(error.errno or errno.EIO, f"pcap={path}; name another file") from None
    atexit.register(_flush, weakref.ref(device))
    return device


def _flush(capture: weakref.ref[PcapDevice]) -> None:
    if (device := capture()) is not None:
        device.flush()
