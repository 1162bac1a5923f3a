"""Which sockets are served, by which family, and under which addresses."""

from __future__ import annotations

import errno
import ipaddress
import socket as std
from collections.abc import Sequence
from typing import Final

from steertag.errors import os_error
from steertag.family import modules
from steertag.family.rules import ANY, SERVER, Rule, Rules, program_names
from steertag.inet.const import AF_INET_NEW_TCP
from steertag.run.launch import Endpoint, RunConfig
from steertag.run.sockaddr import AF_INET, AF_INET6, emit, family_of, parse

AF_INET_SDP: Final = 27
NATIVE: Final = -2
"""The host kernel's own socket, and nothing of ours."""
UNDECIDED: Final = -1
"""Rules wait for an address."""
EVERY_PORT: Final = (0, 65535)

_STREAM: Final = int(std.SOCK_STREAM)
_DGRAM: Final = int(std.SOCK_DGRAM)
_SEQPACKET: Final = int(std.SOCK_SEQPACKET)
_INET: Final = (AF_INET, AF_INET6)
_NUMBERS: Final = {"sdp": AF_INET_SDP, "both": AF_INET_SDP, "new_tcp": AF_INET_NEW_TCP}
_HOST: Final = (int(std.AF_UNIX), AF_INET, AF_INET6)
OF_THE_HOST: Final = (*_HOST, 16, 17)
"""Families, with AF_NETLINK and AF_PACKET, that nobody is asked about unless they are named."""


class Plan:
    """What a `RunConfig` means for each call.

    Attributes:
        sockets: types of the `socket()` calls that are looked at, by domain.
        others: which further families are not looked at; None: none is looked at. Modules are still
            to be imported, and what they register is not known here: the Stack is asked.
        datagrams: whether any of them is served with datagrams.
        strict: there are rules, of which "sdp" never falls back while "both" does.
        maps: addresses to be replaced.
    """

    def __init__(self, config: RunConfig) -> None:
        self._default = config.family
        self._relay = config.relay
        self._rules = config.rules if config.rules and config.rules.rules else None
        self.strict = self._rules is not None
        self.maps = tuple((_normal(one), _normal(other)) for one, other in config.maps)
        self.sockets: dict[int, set[int]] = {AF_INET_SDP: {_STREAM}}
        uses = {config.family}
        if self._rules is not None:
            uses.update(rule.use for rule in self._rules.rules)
        inet: set[int] = set()
        for use in uses:
            inet |= self._kinds(use)
        for domain in _INET if inet else ():
            self.sockets[domain] = inet
        for number in self._own_numbers(uses):
            self.sockets[number] = self._kinds(str(number))
        self.others = OF_THE_HOST if config.modules else None
        served = self.sockets.values()
        self.datagrams = bool(config.modules) or any(kinds - {_STREAM} for kinds in served)

    def _own_numbers(self, uses: set[str]) -> set[int]:
        """Families that programs may ask for by their own number."""
        # AF_INET_NEW_TCP has no device without being asked for.
        numbers = set(modules.announced()) - {*_HOST, AF_INET_NEW_TCP, AF_INET_SDP}
        for use in uses:
            number = self._number(use, AF_INET)
            if number not in (*_INET, NATIVE, AF_INET_SDP):
                numbers.add(number)
        return numbers

    def _kinds(self, use: str) -> set[int]:
        if use in ("sdp", "both"):
            return {_STREAM}
        if use in ("host", "tcp"):
            return {_STREAM} if self._relay else set()
        if use == "new_tcp":
            return {_STREAM, _DGRAM}
        return {_STREAM, _DGRAM, _SEQPACKET}

    def _number(self, use: str, domain: int) -> int:
        if use in ("host", "tcp"):
            return domain if self._relay else NATIVE
        number = _NUMBERS.get(use)
        return int(use) if number is None else number

    # -- who serves it ----------------------------------------------------------------------------

    def at_socket(self, domain: int, kind: int, program: str) -> tuple[int, str]:
        """The family of a socket that is being made, NATIVE or UNDECIDED; and the rule's use."""
        if domain not in _INET:
            return domain, str(domain)
        if self._rules is None:
            return self._served(self._default, domain, kind)
        names = program_names(program)
        for rule in self._rules.rules:
            if not _about(rule, names, domain, kind):
                continue
            if rule.role == ANY and rule.network is None and rule.ports == EVERY_PORT:
                return self._served(rule.use, domain, kind)
            return UNDECIDED, ""
        return self._served(self._default, domain, kind)

    def at_address(
        self, domain: int, kind: int, program: str, role: str, raw: bytes
    ) -> tuple[int, str]:
        """The same once the address is known: what it binds (a server), or connects to."""
        host, port = host_and_port(raw)
        rules = self._rules if self._rules is not None else Rules("none")
        use = rules.choose(program, role, host, port, self._default, kind=kind)
        return self._served(use, domain, kind)

    def needs_program(self) -> bool:
        return self._rules is not None

    def _served(self, use: str, domain: int, kind: int) -> tuple[int, str]:
        if kind not in self._kinds(use):
            return NATIVE, use
        return self._number(use, domain), use

    # -- under which address ----------------------------------------------------------------------

    def mapped(self, domain: int, raw: bytes) -> bytes:
        """The address that `raw` is replaced by, or `raw` itself."""
        if not self.maps or domain not in _INET:
            return raw
        host, port = host_and_port(raw)
        if host is None:
            return raw
        for (from_host, from_port), (to_host, to_port) in self.maps:
            if from_host in (ANY, host) and from_port in (0, port):
                return _replaced(domain, host if to_host == ANY else to_host, to_port or port)
        return raw


def _about(rule: Rule, names: Sequence[str], domain: int, kind: int) -> bool:
    """Whether the rule may be about such a socket, wherever it goes."""
    if rule.domain not in (None, domain) or rule.kind not in (None, kind):
        return False
    return rule.matches(names, rule.role if rule.role != ANY else SERVER, *_somewhere(rule), kind)


def _somewhere(
    rule: Rule,
) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address | None, int, int | None]:
    address = None if rule.network is None else rule.network.network_address
    return address, rule.ports[0], rule.domain


def _normal(endpoint: Endpoint) -> Endpoint:
    host, port = endpoint
    return host if host == ANY else _unmapped(host), port


def _unmapped(host: str) -> str:
    address = ipaddress.ip_address(host.partition("%")[0])
    four = address.ipv4_mapped if address.version == 6 else None
    return str(four or address)


def _replaced(domain: int, host: str, port: int) -> bytes:
    if domain == AF_INET and ":" in host:
        raise os_error(errno.EAFNOSUPPORT, f"--map: {host} is no address for an IPv4 socket")
    return emit(domain, (host, port))


def host_and_port(raw: bytes) -> tuple[str | None, int]:
    """Of an AF_INET or AF_INET6 address; an IPv4 one in either. (None, 0): it is neither."""
    try:
        family = family_of(raw)
        if family not in _INET:
            return None, 0
        address = parse(family, raw)
    except OSError:
        return None, 0
    assert isinstance(address, tuple)  # `parse` of these families
    return _unmapped(str(address[0])), int(address[1])
