"""Source addresses (inet_select_addr; ipv6_dev_get_saddr: RFC 6724 section 5)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from steertag.inet.ip.addr import (
    SCOPE_LINK,
    common_prefix,
    is_link_local,
    is_loopback,
    is_multicast,
    label,
    masked,
    scope,
)

if TYPE_CHECKING:
    from steertag.inet.ip.devinet import IfAddr, InDevice


def select_v4(devices: Iterable[InDevice], out: InDevice, next_hop: bytes) -> bytes:
    """The source for a next hop by `out`; b"" if this host has no address.

    The first address of the device on the next hop's subnet, else its first, else that of another
    device (loopback addresses and link-local ones stay where they are).
    """
    own = out.of_family(4)
    for each in own:
        if masked(next_hop, each.prefixlen) == each.network:
            return each.address
    if own:
        return own[0].address
    for indev in devices:
        for each in indev.of_family(4):
            if not is_loopback(each.address) and not is_link_local(each.address):
                return each.address
    return b""


def select_v6(devices: Iterable[InDevice], out: InDevice, daddr: bytes) -> bytes:
    """The source for a destination by `out`; b"" if there is none.

    Candidates are the addresses of all devices; of `out` alone where the destination is link-local
    or a group. Rules 4 (home addresses) and 7 (temporary ones) do not apply here.
    """
    narrow = is_multicast(daddr) or is_link_local(daddr)
    best: tuple[tuple[int, ...], bytes] | None = None
    for indev in devices:
        if narrow and indev is not out:
            continue
        for each in indev.of_family(16):
            if indev.is_loopback and not out.is_loopback:
                continue
            if is_link_local(each.address) and indev is not out:
                continue
            rank = _rank(each, indev is out, daddr)
            if best is None or rank > best[0]:
                best = (rank, each.address)
    return b"" if best is None else best[1]


def _rank(candidate: IfAddr, outgoing: bool, daddr: bytes) -> tuple[int, ...]:
    """The rules in their order; of two candidates the greater is the better source."""
    address = candidate.address
    own, wanted = scope(address), max(scope(daddr), SCOPE_LINK)
    return (
        address == daddr,  # 1
        -own if own >= wanted else own - 64,  # 2: the smallest that reaches, else the largest
        not candidate.deprecated,  # 3
        outgoing,  # 5
        label(address) == label(daddr),  # 6
        min(common_prefix(address, daddr), candidate.prefixlen),  # 8
    )
