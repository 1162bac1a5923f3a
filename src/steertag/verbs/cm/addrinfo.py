"""Addresses of connections (pyverbs: `cmid.AddrInfo`; librdmacm's `rdma_getaddrinfo`)."""

from __future__ import annotations

import errno
import socket as host
from typing import Final

from steertag.errors import os_error
from steertag.verbs.enums import (
    RAI_FAMILY,
    RAI_NOROUTE,
    RAI_NUMERICHOST,
    RAI_PASSIVE,
    RDMA_PS_TCP,
)

RAI_DNS: Final = 0x20
_KNOWN_FLAGS: Final = RAI_PASSIVE | RAI_NUMERICHOST | RAI_NOROUTE | RAI_FAMILY | RAI_DNS

SockAddr = tuple[str, int] | tuple[str, int, int, int]
Address = tuple[int, SockAddr]
"""An address family and an address of it."""


class AddrInfo:
    """Where to connect to, or to listen (`rdma_getaddrinfo`).

    Names are looked up at once, and may have several addresses. Without any argument it is empty,
    for `get_addrinfo` to fill.

    Args:
        src, src_service: host and port to listen on, or to connect from.
        dst, dst_service: host and port to connect to; a service is a number or a name.
        port_space: RDMA_PS_TCP, or 0 for the same.
        flags: RAI_PASSIVE for listening; RAI_NUMERICHOST: look no name up; RAI_FAMILY: addresses
            of `family` only; RAI_NOROUTE and RAI_DNS change nothing: there are no route records,
            and names always come from where the host has them.
        family: with RAI_FAMILY: AF_INET or AF_INET6; or a family of this process's whose
            addresses are IP's (AF_INET_NEW_TCP), which has them all then.

    Raises:
        socket.gaierror: an OSError: no such host or service.
        OSError: EPROTONOSUPPORT for another port space, EINVAL for other flags.
    """

    def __init__(
        self,
        src: str | None = None,
        dst: str | None = None,
        src_service: str | int | None = None,
        dst_service: str | int | None = None,
        port_space: int = RDMA_PS_TCP,
        flags: int = 0,
        *,
        family: int = 0,
    ) -> None:
        self.get_addrinfo(src, dst, src_service, dst_service, port_space, flags, family=family)

    def get_addrinfo(
        self,
        src: str | None = None,
        dst: str | None = None,
        src_service: str | int | None = None,
        dst_service: str | int | None = None,
        port_space: int = RDMA_PS_TCP,
        flags: int = 0,
        *,
        family: int = 0,
    ) -> None:
        """Look up again, for other names. Raises as the constructor."""
        if port_space not in (0, RDMA_PS_TCP):
            raise os_error(errno.EPROTONOSUPPORT, f"port space {port_space:#x}; it is RDMA_PS_TCP")
        if flags & ~_KNOWN_FLAGS:
            raise os_error(errno.EINVAL, f"address flags {flags:#x}")
        self.src, self.dst = src, dst
        self.src_service, self.dst_service = src_service, dst_service
        self.flags = flags
        wanted = family if flags & RAI_FAMILY else 0
        self.sources: list[Address] = []
        self.destinations: list[Address] = []
        if self.passive or src or src_service is not None:
            self.sources = _look_up(src, src_service, flags | RAI_PASSIVE, wanted)
        if not self.passive and (dst or dst_service is not None):
            self.destinations = _look_up(dst, dst_service, flags & ~RAI_PASSIVE, wanted)

    @property
    def passive(self) -> bool:
        return bool(self.flags & RAI_PASSIVE)

    @property
    def family(self) -> int:
        """The address family of the first address; AF_UNSPEC without one."""
        first = (self.sources if self.passive else self.destinations)[:1]
        return first[0][0] if first else int(host.AF_UNSPEC)

    @property
    def src_addr(self) -> SockAddr | None:
        """The first address to listen on or to connect from."""
        return self.sources[0][1] if self.sources else None

    @property
    def dst_addr(self) -> SockAddr | None:
        """The first address to connect to."""
        return self.destinations[0][1] if self.destinations else None

    def source_for(self, family: int) -> SockAddr | None:
        """The first address of `family` to connect from."""
        return next((address for known, address in self.sources if known == family), None)

    def close(self) -> None:
        """Forget the addresses (`rdma_freeaddrinfo`)."""
        self.sources, self.destinations = [], []

    def __repr__(self) -> str:
        way = f"{self.src_addr}" if self.passive else f"{self.src_addr} -> {self.dst_addr}"
        return f"<AddrInfo {way}>"


_HOST_FAMILIES: Final = (host.AF_UNSPEC, host.AF_INET, host.AF_INET6)


def _look_up(name: str | None, service: str | int | None, flags: int, family: int) -> list[Address]:
    asked = family if family in _HOST_FAMILIES else host.AF_UNSPEC
    hints = host.AI_PASSIVE if flags & RAI_PASSIVE else 0
    if flags & RAI_NUMERICHOST:
        hints |= host.AI_NUMERICHOST
    try:
        found = host.getaddrinfo(
            name or None, service or 0, asked, host.SOCK_STREAM, host.IPPROTO_TCP, hints
        )
    except host.gaierror as exc:
        what = f"host {name!r}" if name else "no host"
        if service is not None:
            what += f", service {service!r}"
        raise host.gaierror(exc.errno, f"{exc.strerror}: {what}") from None
    except (OverflowError, UnicodeError) as exc:
        raise os_error(errno.EINVAL, f"host {name!r}, service {service!r}: {exc}") from None
    found = [entry for entry in found if len(entry[4]) in (2, 4)]
    if asked != family and not name and flags & RAI_PASSIVE:
        found.reverse()  # "::" first, which is any address of either version there
    return [(known if asked == family else family, address) for known, _, _, _, address in found]  # type: ignore[misc]
