"""`stag ping`: echo requests over AF_INET_NEW_TCP, in the shape of iputils' ping."""

from __future__ import annotations

import errno
import json
import math
import os
import socket as host
import struct
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn

import click

from steertag.cli.interrupt import keep_interrupts
from steertag.cli.seconds import Seconds

if TYPE_CHECKING:
    from steertag.socket import socket as Socket  # noqa: N812

_ECHO: Final = struct.Struct("!BBHHH")
_EXTENDED: Final = struct.Struct("=IBBBxII")
_REQUEST: Final = {4: 8, 6: 128}
_LINGER: Final = 10.0
"""Seconds to wait for an answer to the last request while there was none (iputils: MAXWAIT)."""
_DISCOVER: Final = {"dont": 0, "want": 1, "do": 2}
_MOST: Final = 65535 - 28
_ERROR: Final = 2
_KEPT: Final = 1 << 16
"""Requests whose time of departure is remembered: an answer to an older one is late by hours."""

_UNREACHABLE4: Final = (
    "Destination Net Unreachable",
    "Destination Host Unreachable",
    "Destination Protocol Unreachable",
    "Destination Port Unreachable",
    "Frag needed and DF set (mtu = {info})",
    "Source Route Failed",
    "Destination Net Unknown",
    "Destination Host Unknown",
    "Source Host Isolated",
    "Destination Net Prohibited",
    "Destination Host Prohibited",
    "Destination Net Unreachable for Type of Service",
    "Destination Host Unreachable for Type of Service",
    "Packet filtered",
    "Precedence Violation",
    "Precedence Cutoff",
)
_UNREACHABLE6: Final = (
    "No route",
    "Administratively prohibited",
    "Beyond scope of source address",
    "Address unreachable",
    "Port unreachable",
)


def explain(version: int, kind: int, code: int, info: int) -> str:
    """An ICMP error in iputils' words (pr_icmph, ping6_common.c)."""
    if version == 6:
        return _explain6(kind, code, info)
    if kind == 3 and code < len(_UNREACHABLE4):
        return _UNREACHABLE4[code].format(info=info)
    if kind == 11:
        return "Frag reassembly time exceeded" if code else "Time to live exceeded"
    if kind == 12:
        return f"Parameter problem: pointer = {info}"
    return f"Bad ICMP type: {kind}"


def _explain6(kind: int, code: int, info: int) -> str:
    if kind == 1:
        known = code < len(_UNREACHABLE6)
        return f"Destination unreachable: {_UNREACHABLE6[code] if known else f'code {code}'}"
    if kind == 2:
        return f"Packet too big: mtu={info}"
    if kind == 3:
        return f"Time exceeded: {'Defragmentation failure' if code else 'Hop limit'}"
    if kind == 4:
        what = {0: "Wrong header field", 1: "Unknown header", 2: "Unknown option"}.get(code)
        return f"Parameter problem: {what or f'code {code}'} at {info}"
    return f"unknown icmp type: {kind}"


@dataclass(slots=True)
class Statistics:
    """What is known so far. Times are milliseconds."""

    transmitted: int = 0
    received: int = 0
    duplicates: int = 0
    errors: int = 0
    total: float = 0.0
    squares: float = 0.0
    least: float = math.inf
    most: float = 0.0
    replies: list[dict[str, float]] = field(default_factory=list)

    def add(self, elapsed: float) -> None:
        self.total += elapsed
        self.squares += elapsed * elapsed
        self.least = min(self.least, elapsed)
        self.most = max(self.most, elapsed)

    def summary(self) -> tuple[float, float, float, float] | None:
        """Least, mean, greatest and deviation of the round trips; None without any."""
        count = self.received + self.duplicates
        if not count:
            return None
        mean = self.total / count
        deviation = math.sqrt(max(0.0, self.squares / count - mean * mean))
        return self.least, mean, self.most, deviation

    @property
    def loss(self) -> float:
        """Per cent of the requests that were not answered."""
        return 100.0 * (self.transmitted - self.received) / self.transmitted


class Pinger:
    """Sends requests to one address and takes the answers.

    Args:
        sock: a connected ping socket.
        version: 4 or 6. size: octets of data in a request.
        quiet: print nothing while it goes on.
    """

    def __init__(self, sock: Socket, version: int, size: int, *, quiet: bool = False) -> None:
        self.stats = Statistics()
        self._sock, self._version, self._quiet = sock, version, quiet
        self._data = bytes(at & 0xFF for at in range(0x10, 0x10 + size))
        self._sent: dict[int, float] = {}
        self._answered: set[int] = set()

    def run(self, count: int | None, interval: float, linger: float | None) -> None:
        """Until all of `count` are answered, or nobody answers any more, or Ctrl-C."""
        keep_interrupts()
        due = time.monotonic()
        try:
            while count is None or self.stats.transmitted < count:
                self._receive_until(due)
                self._send()
                due += interval
            self._finish(count, interval, linger)
        except KeyboardInterrupt:
            self._say("")

    def _finish(self, count: int | None, interval: float, linger: float | None) -> None:
        """Wait for what is still on its way: twice the longest round trip, if there was any."""
        start = time.monotonic()
        while count is not None and self.stats.received + self.stats.errors < count:
            wait = _LINGER if linger is None else linger
            if linger is None and self.stats.received:
                wait = max(2 * self.stats.most / 1000, interval)
            if not self._receive(start + wait):
                return

    def _send(self) -> None:
        self.stats.transmitted += 1
        number = self.stats.transmitted & 0xFFFF
        message = _ECHO.pack(_REQUEST[self._version], 0, 0, 0, number) + self._data
        self._answered.discard(number)
        if len(self._sent) >= _KEPT:
            del self._sent[next(iter(self._sent))]
        self._sent[number] = time.perf_counter()
        try:
            self._sock.send(message)
        except OSError as error:
            self._failed(error)

    def _receive_until(self, due: float) -> None:
        while self._receive(due):
            continue

    def _receive(self, until: float) -> bool:
        """One answer or error; False if none came before `until`."""
        left = until - time.monotonic()
        if left <= 0:
            return False
        self._sock.settimeout(left)
        try:
            octets, control, _, name = self._sock.recvmsg(65536, 256)
        except TimeoutError:
            return False
        except OSError as error:
            self._failed(error)
            return True
        now = time.perf_counter()
        ttl = next((struct.unpack("=i", data[:4])[0] for _, _, data in control), 0)
        self._answer(octets, ttl, str(name[0]), now)
        return True

    def _answer(self, octets: bytes, ttl: int, name: str, now: float) -> None:
        number = _ECHO.unpack_from(octets)[4]
        start = self._sent.get(number)
        if start is None:
            return  # of nothing that was asked
        elapsed = (now - start) * 1000
        repeated = number in self._answered
        self._answered.add(number)
        if repeated:
            self.stats.duplicates += 1
        else:
            self.stats.received += 1
        self.stats.add(elapsed)
        reply = {"icmp_seq": number, "ttl": ttl, "time_ms": round(elapsed, 3)}
        if self._quiet:
            self.stats.replies.append(reply)
        suffix = " (DUP!)" if repeated else ""
        self._say(
            f"{len(octets)} bytes from {name}: icmp_seq={number} ttl={ttl}"
            f" time={_time(elapsed)} ms{suffix}"
        )
        if octets[8:] != self._data and len(octets) == 8 + len(self._data):
            wrong = next(at for at, meant in enumerate(self._data) if octets[8 + at] != meant)
            self._say(
                f"wrong data byte #{wrong} should be {self._data[wrong]:#x}"
                f" but was {octets[8 + wrong]:#x}"
            )

    def _failed(self, error: OSError) -> None:
        """An error: the queue says more about it, if it came by ICMP."""
        found = False
        while (entry := self._take_error()) is not None:
            found = True
            self.stats.errors += 1
            self._say(entry)
        if not found:
            self.stats.errors += 1
            self._complain(f"sendmsg: {error.strerror or error}")

    def _take_error(self) -> str | None:
        from steertag.inet.const import MSG_ERRQUEUE, SO_EE_ORIGIN_LOCAL

        try:
            octets, control, _, _ = self._sock.recvmsg(65536, 512, MSG_ERRQUEUE)
        except OSError:
            return None  # no more
        data = next((data for _, _, data in control if len(data) > _EXTENDED.size), b"")
        if not data:
            return "an error that nobody explains"
        number, origin, kind, code, info, _ = _EXTENDED.unpack_from(data)
        if origin == SO_EE_ORIGIN_LOCAL:
            words = "message too long" if number == errno.EMSGSIZE else os.strerror(number).lower()
            return f"stag: local error: {words}, mtu={info}"
        sequence = _ECHO.unpack_from(octets)[4] if len(octets) >= _ECHO.size else 0
        offender = _offender(data[_EXTENDED.size :])
        return f"From {offender} icmp_seq={sequence} {explain(self._version, kind, code, info)}"

    def _say(self, line: str) -> None:
        if not self._quiet:
            click.echo(line)

    def _complain(self, line: str) -> None:
        click.echo(f"stag: {line}", err=True)


def _time(milliseconds: float) -> str:
    """As iputils has it: three places, fewer for long ones."""
    if milliseconds >= 100:
        return f"{milliseconds:.0f}"
    return f"{milliseconds:.{1 if milliseconds >= 10 else 2 if milliseconds >= 1 else 3}f}"


def _offender(address: bytes) -> str:
    """The address in a sockaddr of the host's layout."""
    (family,) = struct.unpack_from("=H", address)
    if family == host.AF_INET:
        return host.inet_ntop(host.AF_INET, address[4:8])
    return host.inet_ntop(host.AF_INET6, address[8:24])


def _resolve(name: str, version: int | None) -> tuple[int, str, str]:
    """Version, address and scope of a host; the host's resolver knows names."""
    plain, _, scope = name.partition("%")
    family = {4: host.AF_INET, 6: host.AF_INET6}.get(version or 0, host.AF_UNSPEC)
    try:
        found = host.getaddrinfo(plain, None, family, host.SOCK_DGRAM)
    except (host.gaierror, UnicodeError) as error:
        text = error.strerror if isinstance(error, host.gaierror) else "Name or service not known"
        _fail(f"{name}: {text}")
    kind, _, _, _, address = found[0]
    return (4 if kind == host.AF_INET else 6), str(address[0]), scope


def _fail(message: str) -> NoReturn:
    click.echo(f"stag: {message}", err=True)
    sys.exit(_ERROR)


def _open(devices: tuple[str, ...]) -> None:
    from steertag import default_stack
    from steertag.runtime.interfaces import (
        DeviceSpecError,
        environment_devices,
        open_new_tcp,
        parse_device,
    )

    try:
        specs = [parse_device(text) for text in devices] or environment_devices()
    except DeviceSpecError as error:
        raise click.UsageError(str(error)) from None
    try:
        open_new_tcp(default_stack(), specs)
    except OSError as error:
        _fail(error.strerror or str(error))


def _scope(name: str) -> int:
    """The index of the device that an address is on ("fe80::1%stag0")."""
    if not name:
        return 0
    from steertag import default_stack
    from steertag.inet.ip.net import inet_net

    net = inet_net(default_stack())
    found = net.by_index(int(name)) if name.isdecimal() else net.by_name(name)
    return found.device.ifindex if found is not None else _fail(f"unknown device {name}")


def _socket(
    version: int, address: str, scope: str, ttl: int | None, discover: str | None
) -> Socket:
    """A ping socket that is connected and reports errors. Raises OSError."""
    from steertag import socket
    from steertag.inet import const as c

    protocol = c.IPPROTO_ICMP if version == 4 else c.IPPROTO_ICMPV6
    sock = socket.socket(c.AF_INET_NEW_TCP, c.SOCK_DGRAM, protocol)
    if version == 4:
        level, names = c.SOL_IP, (c.IP_RECVERR, c.IP_RECVTTL, c.IP_TTL, c.IP_MTU_DISCOVER)
    else:
        level = c.SOL_IPV6
        names = (
            c.IPV6_RECVERR,
            c.IPV6_RECVHOPLIMIT,
            c.IPV6_UNICAST_HOPS,
            c.IPV6_MTU_DISCOVER,
        )
    for name, value in zip(names, (1, 1, ttl, discover), strict=True):
        if value is not None:
            number = _DISCOVER[value] if isinstance(value, str) else value
            sock.setsockopt(level, name, number)
    if version == 4:
        sock.connect((address, 0))
    else:
        sock.connect((address, 0, 0, _scope(scope)))
    return sock


def _report(stats: Statistics, elapsed: float, name: str) -> None:
    click.echo(f"\n--- {name} ping statistics ---")
    words = [f"{stats.transmitted} packets transmitted", f"{stats.received} received"]
    if stats.duplicates:
        words.append(f"+{stats.duplicates} duplicates")
    if stats.errors:
        words.append(f"+{stats.errors} errors")
    if stats.transmitted:
        words.append(f"{stats.loss:.6g}% packet loss")
    words.append(f"time {elapsed * 1000:.0f}ms")
    click.echo(", ".join(words))
    found = stats.summary()
    if found is not None:
        click.echo("rtt min/avg/max/mdev = {:.3f}/{:.3f}/{:.3f}/{:.3f} ms".format(*found))


def _as_json(stats: Statistics, elapsed: float, name: str, address: str, size: int) -> str:
    found = stats.summary()
    rtt = None
    if found is not None:
        keys = ("min", "avg", "max", "mdev")
        rtt = {key: round(value, 3) for key, value in zip(keys, found, strict=True)}
    return json.dumps(
        {
            "host": name,
            "address": address,
            "size": size,
            "transmitted": stats.transmitted,
            "received": stats.received,
            "duplicates": stats.duplicates,
            "errors": stats.errors,
            "loss_percent": round(stats.loss, 3) if stats.transmitted else None,
            "time_ms": round(elapsed * 1000),
            "rtt_ms": rtt,
            "replies": stats.replies,
        },
        indent=2,
    )


@click.command()
@click.argument("name", metavar="HOST")
@click.option("-c", "count", type=click.IntRange(1), help="Stop after so many requests.")
@click.option(
    "-i",
    "interval",
    type=Seconds(0.002),
    default=1.0,
    show_default=True,
    help="Seconds between requests.",
)
@click.option(
    "-s",
    "size",
    type=click.IntRange(0, _MOST),
    default=56,
    show_default=True,
    help="Octets of data in a request.",
)
@click.option(
    "-W",
    "linger",
    type=Seconds(0.0, min_open=True),
    help="Seconds to wait for answers after the last request (default: 10 while there was none,"
    " else twice the longest round trip).",
)
@click.option(
    "-M",
    "discover",
    type=click.Choice(list(_DISCOVER)),
    help="Path MTU discovery: do not fragment, anywhere; fragment here; let others fragment.",
)
@click.option("-t", "ttl", type=click.IntRange(1, 255), help="TTL, or hop limit.")
@click.option("-4", "version", flag_value=4, type=int, help="IPv4 only.")
@click.option("-6", "version", flag_value=6, type=int, help="IPv6 only.")
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="SPEC",
    help="Device to use, as tun:stag0,10.9.0.2/24,host=10.9.0.1/24; again for more"
    " (default: those in STEERTAG_DEVICE).",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
def ping(
    name: str,
    count: int | None,
    interval: float,
    size: int,
    linger: float | None,
    discover: str | None,
    ttl: int | None,
    version: int | None,
    devices: tuple[str, ...],
    as_json: bool,
) -> None:
    """Send echo requests to HOST from steertag's own TCP/IP, as ping(8) does from the kernel's.

    Exit code 0 if there was an answer, 1 if there was none, 2 for an error. Ctrl-C ends it.
    """
    _open(devices)
    kind, address, scope = _resolve(name, version)
    try:
        sock = _socket(kind, address, scope, ttl, discover)
    except OSError as error:
        advice = "; --device gives it one" if error.errno == errno.ENETUNREACH else ""
        _fail(f"connect: {error.strerror or error}{advice}")
    if not as_json:
        if kind == 4:
            click.echo(f"PING {name} ({address}) {size}({size + 28}) bytes of data.")
        else:
            click.echo(f"PING {name} ({address}) {size} data bytes")
    pinger = Pinger(sock, kind, size, quiet=as_json)
    start = time.monotonic()
    with sock:
        pinger.run(count, interval, linger)
    elapsed = time.monotonic() - start
    if as_json:
        click.echo(_as_json(pinger.stats, elapsed, name, address, size))
    else:
        _report(pinger.stats, elapsed, name)
    sys.exit(0 if pinger.stats.received else 1)
