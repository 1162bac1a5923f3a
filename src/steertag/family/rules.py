"""The policy file: which connections go over which family.

Two kinds of line, after the two preload libraries that people have such files from:

=============================================  ===================================================
`use WHAT ROLE PROGRAM ADDRESS:PORTS`          libsdp's (libsdp.conf)
`PROGRAM DOMAIN TYPE PROTOCOL`                 librspreload's (preload_config): use both for these
`log [min-level N] [destination WHERE]`        libsdp's: how much is said, and where
=============================================  ===================================================

The first line that matches decides. docs/reference/rules.md has the grammar.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import socket as host
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, TypeAlias, TypeVar

from steertag.family.const import NPROTO

CONFIG_VARIABLE: Final = "SDP_CONFIG"
SERVER: Final = "server"
CLIENT: Final = "client"
ANY: Final = "*"

USES: Final = ("sdp", "tcp", "both", "host", "new_tcp")
"""Names that a rule may use, beside a family's number. sdp never falls back, both does, tcp is
SDP's transport alone."""

LEVELS: Final = {1: 10, 2: 10, 3: 10, 4: 20, 5: 20, 6: 20, 7: 20, 8: 30, 9: 40}
"""libsdp's min-level -> the standard library's logging level: DEBUG, INFO, WARNING, ERROR."""

_Value = TypeVar("_Value")
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_ROLES: Final = {
    "server": SERVER,
    "listen": SERVER,
    "client": CLIENT,
    "connect": CLIENT,
    "*": ANY,
}
_DOMAINS: Final = {"*": None, "inet": host.AF_INET, "inet6": host.AF_INET6}
_TYPES: Final = {"*": None, "stream": host.SOCK_STREAM, "dgram": host.SOCK_DGRAM}
_PROTOCOLS: Final = {
    "*": None,
    "tcp": host.SOCK_STREAM,
    "udp": host.SOCK_DGRAM,
}
_PORT_LIMIT: Final = 65535


@dataclass(frozen=True, slots=True)
class Rule:
    """One line.

    Attributes:
        use: one of USES, or a family's number in digits.
        role: SERVER, CLIENT or ANY.
        program: a pattern as fnmatch's. With a slash it is for the program's whole path, without
            for its name.
        network: the addresses; None for all. A server's is the one it binds, a client's the one
            it connects to.
        ports: first and last.
        domain: AF_INET or AF_INET6; None for both.
        kind: SOCK_STREAM or SOCK_DGRAM; None for both.
        line: its number in the file.
    """

    use: str
    role: str
    program: str
    network: Network | None
    ports: tuple[int, int]
    domain: int | None = None
    kind: int | None = None
    line: int = 0

    def matches(
        self,
        names: Sequence[str],
        role: str,
        address: ipaddress.IPv4Address | ipaddress.IPv6Address | None,
        port: int,
        domain: int | None,
        kind: int,
    ) -> bool:
        """Whether it is about this one; `names` as from `program_names`."""
        if self.role not in (ANY, role) or (self.kind is not None and self.kind != kind):
            return False
        if self.domain is not None and self.domain != domain:
            return False
        if not self.ports[0] <= port <= self.ports[1]:
            return False
        if self.network is not None and (address is None or address not in self.network):
            return False
        return self.program == ANY or any(fnmatchcase(name, self.program) for name in names)


@dataclass(frozen=True, slots=True)
class Log:
    """A `log` line.

    Attributes:
        level: the logging module's number.
        destination: "stderr", "syslog", or the path of a file that is appended to.
    """

    level: int
    destination: str = "stderr"

    def open(self) -> logging.Handler:
        """Have what the logger "steertag" says from this level on go to the destination.

        Returns the handler, which the caller may take off again. Raises OSError if there is no
        such place.
        """
        handler: logging.Handler
        if self.destination == "stderr":
            handler = logging.StreamHandler()
        elif self.destination == "syslog":
            from logging.handlers import SysLogHandler  # slow to load, and rarely asked for

            handler = SysLogHandler("/dev/log")
        else:
            handler = logging.FileHandler(self.destination)
        handler.setLevel(self.level)
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        logger = logging.getLogger("steertag")
        logger.addHandler(handler)
        if logger.level == logging.NOTSET or logger.level > self.level:
            logger.setLevel(self.level)
        return handler


@dataclass(frozen=True, slots=True)
class Rules:
    """A policy file.

    Attributes:
        name: what it is called in messages.
        rules: its rules in order.
        log: its last `log` line; None without one.
    """

    name: str
    rules: tuple[Rule, ...] = ()
    log: Log | None = None

    @classmethod
    def parse(cls, text: str, name: str = "rules") -> Rules:
        """Read a policy file's text.

        Raises:
            ValueError: `NAME:LINE: what is wrong, and what is expected`.
        """
        rules: list[Rule] = []
        log: Log | None = None
        for number, line in enumerate(text.splitlines(), 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            try:
                if words[0].lower() == "log":
                    log = _log_line(words)
                elif words[0].lower() == "use":
                    rules.append(_use_line(words, number))
                else:
                    rules.append(_preload_line(words, number))
            except ValueError as exc:
                raise ValueError(f"{name}:{number}: {exc}") from None
        return cls(name, tuple(rules), log)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Rules:
        """Read a policy file.

        Raises:
            ValueError: as `parse`; also for a file that is not text.
            OSError: it can't be read.
        """
        name = os.fspath(path)
        with open(path, "rb") as file:
            content = file.read()
        try:
            text = content.decode()
        except UnicodeDecodeError:
            raise ValueError(f"{name}:1: not text in UTF-8, which a policy file is") from None
        return cls.parse(text, name)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Rules | None:
        """The policy file that SDP_CONFIG names; None if it names none. Raises as `load`."""
        path = environ.get(CONFIG_VARIABLE, "")
        return cls.load(path) if path else None

    def choose(
        self,
        program: str,
        role: str,
        address: str | None,
        port: int,
        default: str,
        *,
        kind: int = host.SOCK_STREAM,
    ) -> str:
        """What is to be used: `default` if no rule matches.

        Args:
            program: path or name of the program (`program_names`).
            role: SERVER or CLIENT.
            address: numeric, IPv4 or IPv6 (of a mapped one the IPv4 address counts); None or ""
                for the wildcard address. A name matches only rules for every address.
            port: of the socket that is bound, or of the peer.
            kind: SOCK_STREAM or SOCK_DGRAM.
        """
        names = program_names(program)
        where = _address(address)
        domain = None
        if where is not None:
            domain = host.AF_INET if where.version == 4 else host.AF_INET6
        for rule in self.rules:
            if rule.matches(names, role, where, port, domain, kind):
                return rule.use
        return default


def program_names(program: str) -> tuple[str, ...]:
    """What patterns are compared with: the path, its last part, and that without `.py`.

    Of a package run as a program (`.../name/__main__.py`) the name is the package's.
    """
    base = os.path.basename(program)
    if base == "__main__.py":
        base = os.path.basename(os.path.dirname(program)) or base
    bare = base.removesuffix(".py")
    return tuple(dict.fromkeys((program, base, bare)))


def _address(text: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    if not text:
        return ipaddress.IPv4Address(0)
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if found.version == 6 and found.ipv4_mapped is not None:
        return found.ipv4_mapped
    return found


# -- lines ------------------------------------------------------------------------------------


def _use_line(words: Sequence[str], line: int) -> Rule:
    if len(words) != 5:
        raise ValueError(
            f"{len(words) - 1} words after 'use', expected four: "
            "WHAT server|client|* PROGRAM ADDRESS[/PREFIX]:PORTS"
        )
    _, use, role, program, where = words
    network, ports = _where(where)
    return Rule(
        use=check_use(use),
        role=_word(role, _ROLES, "a role"),
        program=program,
        network=network,
        ports=ports,
        line=line,
    )


def _preload_line(words: Sequence[str], line: int) -> Rule:
    if len(words) != 4 or words[1].lower() not in _DOMAINS:
        raise ValueError(
            f"{words[0]!r} begins no line: expected 'use WHAT ROLE PROGRAM ADDRESS:PORTS', "
            "'log ...', or librspreload's 'PROGRAM DOMAIN TYPE PROTOCOL'"
        )
    program, domain, kind, protocol = words
    by_type = _word(kind, _TYPES, "a type")
    by_protocol = _word(protocol, _PROTOCOLS, "a protocol")
    if by_type is not None and by_protocol is not None and by_type != by_protocol:
        raise ValueError(f"no socket of type {kind} has the protocol {protocol}")
    return Rule(
        use="both",
        role=ANY,
        program=program,
        network=None,
        ports=(0, _PORT_LIMIT),
        domain=_word(domain, _DOMAINS, "a domain"),
        kind=by_type if by_type is not None else by_protocol,
        line=line,
    )


def _log_line(words: Sequence[str]) -> Log:
    level = LEVELS[9]
    destination = "stderr"
    rest = list(words[1:])
    if not rest:
        raise ValueError("'log' says nothing: expected 'min-level 1..9' or 'destination ...'")
    while rest:
        word = rest.pop(0).lower()
        if word == "min-level":
            value = rest.pop(0) if rest else ""
            if not re.fullmatch("[1-9]", value):
                raise ValueError(f"min-level {value!r} is no level: expected 1 (all) .. 9 (errors)")
            level = LEVELS[int(value)]
        elif word == "destination":
            destination = _destination(rest)
        else:
            raise ValueError(f"{word!r} after 'log': expected 'min-level' or 'destination'")
    return Log(level, destination)


def _destination(rest: list[str]) -> str:
    word = rest.pop(0).lower() if rest else ""
    if word in ("stderr", "syslog"):
        return word
    if word != "file" or not rest:
        raise ValueError(
            f"destination {word!r} is none: expected 'stderr', 'syslog' or 'file PATH'"
        )
    return rest.pop(0)


def check_use(use: str) -> str:
    """`use` as rules have it: a name of USES, or a family's number.

    Raises ValueError that says what is expected.
    """
    name = use.lower()
    if name in USES:
        return name
    if name.isascii() and name.isdigit() and int(name) < NPROTO:
        return str(int(name))
    names = ", ".join(USES)
    raise ValueError(f"{use!r} is no family: expected {names}, or a number below {NPROTO}")


def _word(word: str, table: Mapping[str, _Value], what: str) -> _Value:
    try:
        return table[word.lower()]
    except KeyError:
        expected = ", ".join(name.upper() if what != "a role" else name for name in table)
        raise ValueError(f"{word!r} is not {what}: expected {expected}") from None


def _where(text: str) -> tuple[Network | None, tuple[int, int]]:
    """ADDRESS[/PREFIX]:PORTS; an IPv6 address stands in brackets."""
    found = re.fullmatch(
        r"(?:\[(?P<six>[^\]]*)\](?P<prefix>/\d+)?|(?P<four>[^:\[\]]*)):([^:]+)", text
    )
    if found is None:
        raise ValueError(
            f"{text!r} is no ADDRESS:PORTS: expected such as *:5001, 10.0.0.0/8:*, "
            "[2001:db8::]/32:80-90"
        )
    six = found["six"]
    address = found["four"] if six is None else six + (found["prefix"] or "")
    return _network(address, 4 if six is None else 6), _ports(found[4])


def _network(text: str, version: int) -> Network | None:
    if text == ANY:
        return None
    make: Callable[..., Network] = ipaddress.IPv4Network if version == 4 else ipaddress.IPv6Network
    try:
        return make(text, strict=False)
    except ValueError:
        form = "10.0.0.1 or 10.0.0.0/8" if version == 4 else "[2001:db8::1] or [2001:db8::]/32"
        raise ValueError(f"{text!r} is no IPv{version} address: expected {form}, or *") from None


def _ports(text: str) -> tuple[int, int]:
    if text == ANY:
        return 0, _PORT_LIMIT
    first, dash, last = text.partition("-")
    numbers = (first, last if dash else first)
    if not all(part.isascii() and part.isdigit() for part in numbers):
        raise ValueError(f"{text!r} are no ports: expected a number, FIRST-LAST, or *")
    low, high = (int(part) for part in numbers)
    if not low <= high <= _PORT_LIMIT:
        raise ValueError(f"{text!r} are no ports: expected 0 <= FIRST <= LAST <= {_PORT_LIMIT}")
    return low, high
