"""TUN and TAP: interfaces of the host kernel whose other end is this process.

With offload (IFF_VNET_HDR, TUNSETOFFLOAD) a frame is preceded by a `struct virtio_net_hdr`, and may
be a super-segment of up to 64 KiB that nobody has cut and whose checksum nobody has computed: one
system call moves what would be 45 frames of a wire (Documentation/networking/tuntap.rst).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Sequence
from typing import Final

from steertag.device.base import Device
from steertag.device.frame import (
    ARPHRD_ETHER,
    CHECKSUM_NONE,
    CHECKSUM_PARTIAL,
    CHECKSUM_UNNECESSARY,
    ETH_HLEN,
    GSO_ECN,
    NETIF_F_GSO_UDP_L4,
    NETIF_F_HW_CSUM,
    NETIF_F_RXCSUM,
    NETIF_F_TSO,
    NETIF_F_TSO6,
    Frame,
    Offload,
)
from steertag.errors import os_error
from steertag.family.pool import BufferPool
from steertag.family.skbuff import Buffer

CLONE: Final = "/dev/net/tun"

_TUNSETIFF: Final = 0x400454CA
_TUNSETOFFLOAD: Final = 0x400454D0
_TUNSETVNETHDRSZ: Final = 0x400454D8
_IFF_TUN: Final = 0x0001
_IFF_TAP: Final = 0x0002
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000
_IFREQ: Final = struct.Struct("16sH22x")
_IFNAMSIZ: Final = 16

_TUN_F_CSUM: Final = 0x01
_TUN_F_TSO4: Final = 0x02
_TUN_F_TSO6: Final = 0x04
_TUN_F_TSO_ECN: Final = 0x08
_TUN_F_USO4: Final = 0x20
_TUN_F_USO6: Final = 0x40
_TSO: Final = _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6 | _TUN_F_TSO_ECN

_NEEDS_CSUM: Final = 1
_DATA_VALID: Final = 2
_KIND: Final = ~GSO_ECN
_VNET_HDR: Final = struct.Struct("=BBHHHH")
"""flags, gso_type, hdr_len, gso_size, csum_start, csum_offset; of the host's byte order."""
_VNET_LEN: Final = _VNET_HDR.size
_PLAIN: Final = bytes(_VNET_LEN)
_MOST: Final = _VNET_LEN + ETH_HLEN + 65535 + 4
_IOV_MAX: Final = 1024
_LARGE: Final = 16384
"""Octets of a frame from which it is left in the buffer that it was read into."""
_FULL: Final = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM})
_DOWN: Final = frozenset({errno.EIO, errno.EBADFD, errno.EBADF, errno.ENODEV})


class TunDevice(Device):
    """An interface of IP packets. It goes when it is closed, unless it was there before.

    Args:
        name: up to 15 octets; "" or one with %d lets the kernel choose (`name` says what).
        mtu: most octets of a packet that is no super-segment. The host's side has its own
            (hostside.configure).
        offload: checksums and super-segments; without, every frame is as on a wire.

    Raises:
        OSError: ENOENT: the host has no TUN driver; EPERM, EACCES: it takes CAP_NET_ADMIN in the
            network namespace; EBUSY: the name is in use; EINVAL: it is no name, or is that of
            another kind of interface.
    """

    kind = "tun"
    _flag = _IFF_TUN

    def __init__(self, name: str = "", *, mtu: int = 1500, offload: bool = True) -> None:
        if not _is_name(name):
            raise os_error(
                errno.EINVAL,
                f"{name!r} is no interface name: at most 15 octets, no space, slash or colon",
            )
        super().__init__(name, mtu)
        self._fd = _open_clone()
        try:
            self.name = self._attach(name, offload)
            if offload:
                self.features = _set_offload(self._fd)
        except BaseException:
            os.close(self._fd)
            self._fd = -1
            raise
        self._vnet = offload
        self._pool = BufferPool(_MOST)
        self._room = [self._pool.take()]

    def _attach(self, name: str, offload: bool) -> str:
        flags = self._flag | _IFF_NO_PI | (_IFF_VNET_HDR if offload else 0)
        try:
            answer = fcntl.ioctl(self._fd, _TUNSETIFF, _IFREQ.pack(os.fsencode(name), flags))
        except OSError as exc:
            raise self._explained(exc, name) from None
        if offload:
            fcntl.ioctl(self._fd, _TUNSETVNETHDRSZ, struct.pack("i", _VNET_LEN))
        given: str = answer[:_IFNAMSIZ].rstrip(b"\0").decode(errors="surrogateescape")
        return given

    def _explained(self, exc: OSError, name: str) -> OSError:
        code = exc.errno or errno.EIO
        hint = {
            errno.EPERM: "this takes CAP_NET_ADMIN in the network namespace; without, run it"
            " inside `unshare -Urn`",
            errno.EBUSY: "it is in use: give another name",
            errno.EINVAL: f"an interface of that name is there, and is no {self.kind} like this",
        }.get(code)
        what = " ".join(filter(None, (self.kind, name)))
        return os_error(code, f"{what}: {hint}" if hint else what)

    def fileno(self) -> int:
        return self._fd

    def transmit(self, parts: Sequence[Buffer], offload: Offload | None = None) -> None:
        length = sum(map(len, parts))
        if offload is None:
            header = _PLAIN
            if length > self.mtu + self.hard_header_len:
                self.check_length(length)
        else:
            header = _VNET_HDR.pack(
                _NEEDS_CSUM,
                offload.gso_type,
                offload.hdr_len,
                offload.gso_size,
                offload.csum_start,
                offload.csum_offset,
            )
            self.check_length(length, offload)
        if len(parts) >= _IOV_MAX:
            parts = (b"".join(parts),)
        try:
            os.writev(self._fd, (header, *parts) if self._vnet else parts)
        except OSError as exc:
            raise self._refused(exc) from None
        stats = self.stats
        stats.tx_packets += 1
        stats.tx_bytes += length

    def _refused(self, exc: OSError) -> OSError:
        if exc.errno in _FULL:
            self.stats.tx_dropped += 1
            return os_error(errno.ENOBUFS)
        if exc.errno in _DOWN:  # the host's side is down, or gone, or we have closed ours
            self.stats.tx_dropped += 1
            return os_error(errno.ENETDOWN)
        self.stats.tx_errors += 1
        return exc

    def receive(self) -> Frame | None:
        room = self._room
        try:
            length = os.readv(self._fd, room)
        except BlockingIOError:
            return None
        except OSError:
            if self._fd < 0:
                return None
            raise
        if length >= _LARGE:
            octets = memoryview(room[0])[:length]
            room[0] = self._pool.take()
        else:
            # A small frame would keep a large buffer: it gets octets of its own.
            octets = memoryview(bytes(memoryview(room[0])[:length]))
        if not self._vnet:
            return Frame(octets)
        if length < _VNET_LEN:
            self.stats.rx_errors += 1
            return Frame(memoryview(b""))
        flags, kind, _, size, _, _ = _VNET_HDR.unpack_from(octets)
        if flags & _NEEDS_CSUM:
            csum = CHECKSUM_PARTIAL
        else:
            csum = CHECKSUM_UNNECESSARY if flags & _DATA_VALID else CHECKSUM_NONE
        return Frame(octets[_VNET_LEN:], csum, kind & _KIND, size if kind else 0)

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self.up = False
            os.close(fd)


class TapDevice(TunDevice):
    """An interface of Ethernet frames.

    Args:
        address: our link-layer address, six octets; not the one that the host's side has. By
            default one of those that are locally administered, at random.
    """

    kind = "tap"
    _flag = _IFF_TAP
    type = ARPHRD_ETHER
    hard_header_len = ETH_HLEN

    def __init__(
        self,
        name: str = "",
        *,
        mtu: int = 1500,
        offload: bool = True,
        address: bytes | None = None,
    ) -> None:
        if address is not None and (len(address) != 6 or address[0] & 1 or not any(address)):
            raise os_error(errno.EINVAL, f"{address.hex(':')!r} is no address of one station")
        super().__init__(name, mtu=mtu, offload=offload)
        self.dev_addr = address if address is not None else b"\x02" + os.urandom(5)


def _is_name(name: str) -> bool:
    """Whether the kernel takes it (dev_valid_name); "" leaves the choice to the kernel."""
    return (
        len(os.fsencode(name)) < _IFNAMSIZ
        and name not in (".", "..")
        and not any(char in "/:\0" or char.isspace() for char in name)
    )


def _open_clone() -> int:
    try:
        return os.open(CLONE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        hint = f"no {CLONE}: load the host's tun module, or pass the device into the container"
        raise os_error(errno.ENOENT, hint) from None
    except PermissionError:
        raise os_error(errno.EACCES, f"{CLONE} may not be opened by this user") from None


def _set_offload(fd: int) -> int:
    """Ask for all that this kernel has; returns NETIF_F_*."""
    features = NETIF_F_HW_CSUM | NETIF_F_RXCSUM | NETIF_F_TSO | NETIF_F_TSO6
    try:
        # Both or neither: kernels that know USO refuse one version alone.
        fcntl.ioctl(fd, _TUNSETOFFLOAD, _TSO | _TUN_F_USO4 | _TUN_F_USO6)
        return features | NETIF_F_GSO_UDP_L4
    except OSError:
        fcntl.ioctl(fd, _TUNSETOFFLOAD, _TSO)
        return features
