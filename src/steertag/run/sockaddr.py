"""`struct sockaddr`, as programs write it, and the addresses that families take.

AF_INET's and AF_INET6's become the standard library's tuples, whichever family serves them. For a
family by its own number the form of the octets decides, as there is no table of such families:
those of `sockaddr_in` (16 octets, the last eight zero) are `(host, port)`, those of `sockaddr_in6`
(28) `(host, port, flowinfo, scope)`, anything else is handed over as it is, without the family's
number.
"""

from __future__ import annotations

import errno
import socket as std
from struct import Struct
from typing import Final

from steertag.errors import os_error
from steertag.family.msg import Address

AF_UNSPEC: Final = int(std.AF_UNSPEC)
AF_INET: Final = int(std.AF_INET)
AF_INET6: Final = int(std.AF_INET6)
_FAMILY: Final = Struct("=H")
_IN: Final = Struct("=H2s4s8x")
_IN6: Final = Struct("=H2sI16sI")
_PORT: Final = Struct("!H")
_MAPPED: Final = bytes(10) + b"\xff\xff"


def family_of(raw: bytes) -> int:
    """sa_family. Raises EINVAL: there is none."""
    if len(raw) < _FAMILY.size:
        raise os_error(errno.EINVAL)
    return int(_FAMILY.unpack_from(raw)[0])


def parse(domain: int, raw: bytes) -> Address:
    """What the program of a socket of `domain` wrote, as the family's address.

    Raises:
        OSError: EINVAL, too short; EAFNOSUPPORT, of another domain.
    """
    family = family_of(raw)
    if domain == AF_INET and family == AF_UNSPEC and len(raw) >= _IN.size:
        family = AF_INET  # bind(2) and sendto(2) take it for AF_INET's (af_inet.c)
    if domain in (AF_INET, AF_INET6):
        # sendto(2) on an AF_INET6 socket takes the other version's as well (udpv6_sendmsg).
        if family != domain and not (domain == AF_INET6 and family == AF_INET):
            raise os_error(errno.EAFNOSUPPORT)
        if len(raw) < (_IN.size if family == AF_INET else _IN6.size - 4):
            raise os_error(errno.EINVAL)
        return _tuple4(raw) if family == AF_INET else _tuple6(raw.ljust(_IN6.size, b"\0"))
    if family != domain:
        raise os_error(errno.EAFNOSUPPORT)
    if len(raw) == _IN.size and not any(raw[8:]):
        return _tuple4(raw)
    if len(raw) == _IN6.size:
        return _tuple6(raw)
    return raw[_FAMILY.size :]


def _tuple4(raw: bytes) -> tuple[str, int]:
    _, port, host = _IN.unpack_from(raw)
    return std.inet_ntop(AF_INET, host), _PORT.unpack(port)[0]


def _tuple6(raw: bytes) -> tuple[str, int, int, int]:
    _, port, flowinfo, host, scope = _IN6.unpack_from(raw)
    # In the octets, sin6_flowinfo is of network order; in the standard library's tuple it is not.
    return std.inet_ntop(AF_INET6, host), _PORT.unpack(port)[0], std.ntohl(flowinfo), scope


def emit(domain: int, address: Address) -> bytes:
    """A family's address, as the program of a socket of `domain` is to read it.

    An IPv4 address becomes a mapped one for a socket of AF_INET6, as Linux has it.
    """
    if isinstance(address, tuple) and len(address) >= 2 and isinstance(address[0], str):
        try:
            return _emit_inet(domain, address)
        except OSError:  # its hosts are no IP addresses
            return _FAMILY.pack(domain) + _PORT.pack(_int(address[1])) + address[0].encode()
    if isinstance(address, str):
        address = address.encode("utf-8", "surrogateescape")
    octets = bytes(address) if isinstance(address, bytes | bytearray | memoryview) else b""
    if not octets and domain in (AF_INET, AF_INET6):
        return unspecified(domain)
    return _FAMILY.pack(domain) + octets


def unspecified(domain: int) -> bytes:
    """The wildcard address with port 0: what getsockname(2) says of a socket without a name."""
    if domain == AF_INET6:
        return _IN6.pack(domain, bytes(2), 0, bytes(16), 0)
    return _IN.pack(domain, bytes(2), bytes(4))


def _emit_inet(domain: int, address: tuple[object, ...]) -> bytes:
    host, port = str(address[0]).partition("%")[0], address[1]
    packed_port = _PORT.pack(port)
    if domain == AF_INET6 or (domain != AF_INET and len(address) > 2):
        flowinfo, scope = (*address[2:4], 0, 0)[:2]
        return _IN6.pack(domain, packed_port, std.htonl(_int(flowinfo)), _host6(host), _int(scope))
    if ":" in host:
        packed = std.inet_pton(AF_INET6, host)
        # "::" is the wildcard of both versions; anything else AF_INET has no form for.
        return _IN.pack(domain, packed_port, packed[12:] if any(packed) else bytes(4))
    return _IN.pack(domain, packed_port, std.inet_pton(AF_INET, host or "0.0.0.0"))


def _host6(host: str) -> bytes:
    if ":" in host:
        return std.inet_pton(AF_INET6, host)
    packed = std.inet_pton(AF_INET, host or "0.0.0.0")
    return _MAPPED + packed if any(packed) else bytes(16)


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0
