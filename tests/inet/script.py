"""Scripts of packets and calls, after packetdrill, run on our Stack and on the host kernel.

A script plays the peer of one end, packet by packet, and makes that end's calls::

    @conformance()
    def test_a_retransmission_waits_twice_as_long_each_time(s: Script) -> None:
        conn = s.accepted()
        conn.send(s.octets(100))
        s.expect("P. 1:101(100) ack 1")
        s.expect("P. 1:101(100) ack 1", after=0.2)
        s.expect("P. 1:101(100) ack 1", after=0.4)

`ours` runs with a clock set by hand, and times are exact. `kernel` is the host's, in a network
namespace, and takes its time: there `after` is only a lower bound, with slack, and a script that
fails is tried again, since a machine that stalls makes peers retransmit.
"""

from __future__ import annotations

import errno
import select
import socket as std
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeAlias

import pytest

from tests.inet import namespace
from tests.inet.packets import (
    ACK,
    SYN,
    Malformed,
    Tcp,
    Template,
    differences,
    emit,
    filler,
    icmp_error,
    parse,
    parse_text,
)

PORT: Final = 8080
PEER_PORT: Final = 40000
PEER_ISN: Final = 0xFFFF_FC00
"""Near the end of the sequence space: the scripts' data wraps around it."""
SYN_OPTIONS: Final = "<mss 1460,sackOK,TS val 1000 ecr 0,wscale 7>"
_ATTEMPTS: Final = 4


Sock: TypeAlias = Any
"""The standard library's socket or ours: they have the same calls."""
Change: TypeAlias = Any
"""A field of a packet, whatever its type."""


class ScriptFailure(AssertionError):
    """The end under test did something else. The message has the transcript."""


class Side(Protocol):
    """The end under test, and the wire to it."""

    exact: bool

    def now(self) -> float: ...
    def inject(self, packet: bytes) -> None: ...
    def next_packet(self, timeout: float) -> bytes | None: ...
    def sleep(self, seconds: float) -> None: ...
    def socket(self, family: int, kind: int) -> Sock: ...
    def sysctl(self, name: str, value: int | str) -> None: ...
    def close(self) -> None: ...


class Kernel(namespace.Namespace):
    """The host kernel's."""

    exact = False

    def __init__(self, mtu: int, sysctls: dict[str, int | str]) -> None:
        super().__init__(mtu, sysctls)

    def sleep(self, seconds: float) -> None:
        select.select([], [], [], seconds)


class Flow:
    """One connection as the peer sees it.

    Attributes:
        port: the peer's. their_port: of the end under test.
        isn, their_isn: initial sequence numbers; theirs is None until its SYN came.
        timestamps: packets without options get timestamps.
        last_tsval: the latest that came. tsval_offset: added to the milliseconds that ours say.
        window: the window field of packets that don't say one.
    """

    def __init__(self, port: int, their_port: int, isn: int) -> None:
        self.port, self.their_port = port, their_port
        self.isn = isn
        self.their_isn: int | None = None
        self.timestamps = False
        self.last_tsval = 0
        self.tsval_offset = 0
        self.window = 65535


class Script:
    """What a script is given.

    Attributes:
        side: the end under test.
        v: 4 or 6.
        flow: the connection that `inject` and `expect` are about unless told.
        last: the packet that `expect` found last, relative.
        alone: packets of other connections are a failure; else they are passed over.
    """

    def __init__(self, side: Side, v: int) -> None:
        self.side, self.v = side, v
        self.ours, self.theirs = namespace.OURS[v == 6], namespace.THEIRS[v == 6]
        self.flow = Flow(PEER_PORT, PORT, PEER_ISN)
        self.last: Tcp | None = None
        self.alone = True
        self.last_octets = b""
        self._flows: list[Flow] = [self.flow]
        self._socks: list[Sock] = []
        self._transcript: list[str] = []
        self._began = self._event = side.now()

    # -- calls ------------------------------------------------------------------------------------

    def socket(self, kind: int = std.SOCK_STREAM) -> Sock:
        sock = self.side.socket(std.AF_INET6 if self.v == 6 else std.AF_INET, kind)
        self._socks.append(sock)
        return sock

    def listener(self, port: int = PORT, backlog: int = 16, **options: int) -> Sock:
        """A listening socket; options of TCP by name, `TCP_NODELAY=1`."""
        sock = self.socket()
        sock.setsockopt(std.SOL_SOCKET, std.SO_REUSEADDR, 1)
        self.set(sock, **options)
        sock.bind((self.theirs, port))
        sock.listen(backlog)
        return sock

    def set(self, sock: Sock, **options: int) -> None:
        """Set options of TCP or, with SO_, of the socket, by name."""
        for name, value in options.items():
            level = std.SOL_SOCKET if name.startswith("SO_") else std.IPPROTO_TCP
            sock.setsockopt(level, getattr(std, name), value)

    def accept(self, listener: Sock) -> Sock:
        """The connection that must be there."""
        self.readable(listener)
        conn, _ = listener.accept()
        conn.setblocking(False)
        self._socks.append(conn)
        self.note("accept()")
        return conn

    def connect(self, sock: Sock) -> None:
        """connect() from an address whose port becomes the flow's."""
        assert sock.connect_ex((self.ours, self.flow.port)) == errno.EINPROGRESS
        self.note("connect()")

    def fails(self, code: int, call: Callable[..., object], *args: object) -> None:
        """The call fails with that errno."""
        try:
            result = call(*args)
        except OSError as error:
            if error.errno == code:
                self.note(f"{call.__name__}() = {errno.errorcode[code]}")
                return
            raise self.failure(f"{call.__name__}: {error!r}, not {errno.errorcode[code]}") from None
        raise self.failure(f"{call.__name__}: {result!r}, not {errno.errorcode[code]}")

    def events(self, sock: Sock) -> int:
        """POLL* bits of the socket now."""
        poller = select.poll()
        poller.register(sock, select.POLLIN | select.POLLOUT | select.POLLPRI | select.POLLRDHUP)
        found = poller.poll(0)
        return found[0][1] if found else 0

    def readable(self, sock: Sock) -> None:
        """Wait until it is."""
        self._wait(sock, select.POLLIN)

    def writable(self, sock: Sock) -> None:
        """Wait until it is."""
        self._wait(sock, select.POLLOUT)

    def _wait(self, sock: Sock, events: int) -> None:
        end = self.side.now() + 5
        while not self.events(sock) & (events | select.POLLERR | select.POLLHUP):
            if self.side.now() > end:
                raise self.failure(f"poll: {self.events(sock):#x}, not {events:#x}")
            self.side.sleep(0.001)

    def octets(self, count: int, seq: int = 1) -> bytes:
        """What is sent from `seq` on in these scripts."""
        return filler(seq, count)

    # -- packets ----------------------------------------------------------------------------------

    def new_flow(self, port: int, isn: int = 5000) -> Flow:
        """Another connection of the peer's."""
        flow = Flow(port, PORT, isn)
        self._flows.append(flow)
        return flow

    def inject(self, text: str, flow: Flow | None = None, **changes: Change) -> None:
        """Send a packet to the end under test; `changes` are set in it at last."""
        flow = flow or self.flow
        packet = self._filled(parse_text(text), flow, changes)
        if packet.flags & SYN and packet.options is not None and 8 in packet.options:
            flow.timestamps = True
        absolute = packet.absolute(flow.isn, flow.their_isn or 0)
        for name, value in changes.items():
            setattr(absolute, name, value)
        self.note(f"<  {packet}")
        self._event = self.side.now()
        self.side.inject(emit(absolute))

    def _filled(self, template: Template, flow: Flow, changes: dict[str, Change]) -> Tcp:
        packet, said = template.packet, template.said
        if "options" not in said and flow.timestamps and "raw_options" not in changes:
            packet.options, packet.tsecr = (8,), flow.last_tsval
            packet.tsval = self.tsval(flow)
        elif template.echo:
            packet.tsecr = flow.last_tsval
            if "tsval" not in said:
                packet.tsval = self.tsval(flow)
        if packet.window is None:
            packet.window = flow.window
        packet.source, packet.dest = self.ours, self.theirs
        packet.sport, packet.dport = flow.port, flow.their_port
        return packet

    def tsval(self, flow: Flow | None = None) -> int:
        """What the peer's timestamp clock says."""
        elapsed = self.side.now() - self._began
        return 1000 + (flow or self.flow).tsval_offset + int(elapsed * 1000)

    def expect(
        self, text: str, flow: Flow | None = None, *, after: float | None = None, within: float = 1
    ) -> Tcp:
        """The next packet is this, `after` seconds since the last one that went either way.

        Args:
            within: how long it may take where `after` isn't said; seconds.
        """
        before = self._event
        limit = within if after is None else after * 1.02 + 0.002
        found, found_flow = self._next(limit if self.side.exact else max(limit, 0.5) + 5)
        if found is None or found_flow is None:
            raise self.failure(f"nothing came where this should: {text}")
        if flow is not None and flow is not found_flow:
            raise self.failure(f"port {found.dport}, where this should come: {text}")
        wrong = differences(found, parse_text(text))
        elapsed, self._event = self.side.now() - before, self.side.now()
        if after is not None:
            low = after * 0.98 - 0.002 if self.side.exact else after * 0.5 - 0.1
            if elapsed < low:
                wrong.append(f"it came after {elapsed:.3f} s, not {after:.3f}")
        if wrong:
            raise self.failure(f"{'; '.join(wrong)}; this should come: {text}")
        self.last = found
        return found

    def _next(self, timeout: float) -> tuple[Tcp | None, Flow | None]:
        """The next TCP packet, relative, and whose it is."""
        end = self.side.now() + timeout
        while (octets := self.side.next_packet(end - self.side.now())) is not None:
            try:
                packet = parse(octets)
            except Malformed as error:
                raise self.failure(f"{error}: {octets.hex()}") from None
            if packet is None:
                continue
            flow = self._flow_of(packet)
            if flow is None:
                if self.alone:
                    raise self.failure(f"a packet of no connection: {packet}")
                continue
            if packet.flags & SYN and flow.their_isn is None:
                flow.their_isn = packet.seq
            if packet.tsval is not None:
                flow.last_tsval = packet.tsval
            relative = packet.relative(flow.their_isn or 0, flow.isn)
            self.last_octets = octets
            self.note(f" > {relative}")
            return relative, flow
        return None, None

    def _flow_of(self, packet: Tcp) -> Flow | None:
        for flow in self._flows:
            if packet.dport == flow.port and packet.sport == flow.their_port:
                return flow
        for flow in self._flows:  # a connection from there: now we know its port
            if packet.dport == flow.port and packet.flags & (SYN | ACK) == SYN:
                flow.their_port, flow.their_isn = packet.sport, None
                return flow
        return None

    def nothing(self, seconds: float) -> None:
        """No packet for so long."""
        found, _ = self._next(seconds)
        if found is not None:
            raise self.failure(f"this came where nothing should for {seconds} s: {found}")

    def skip(self, seconds: float = 0.0) -> list[Tcp]:
        """Whatever comes in that time is of no interest."""
        end = self.side.now() + seconds
        packets = []
        while (found := self._next(max(end - self.side.now(), 0))[0]) is not None:
            packets.append(found)
        self._event = self.side.now()
        return packets

    def sleep(self, seconds: float) -> None:
        """Time passes."""
        self.note(f"   {seconds} s")
        self.side.sleep(seconds)

    def icmp(self, kind: int, code: int, info: int = 0, quoted: bytes = b"") -> None:
        """An ICMP (or for v6 ICMPv6) error about a packet, by default the last that came."""
        self.note(f"<  ICMP {kind} {code} {info}")
        self._event = self.side.now()
        octets = quoted or self.last_octets
        self.side.inject(icmp_error(octets, self.ours, self.theirs, kind, code, info))

    # -- what most scripts begin with -------------------------------------------------------------

    def handshake(
        self, options: str = SYN_OPTIONS, flow: Flow | None = None, rtt: float = 0.0
    ) -> None:
        """The peer opens a connection to a listener."""
        flow = flow or self.flow
        self.inject(f"S 0:0(0) win 65535 {options}", flow)
        found = self.expect("S. 0:0(0) ack 1", flow)
        flow.timestamps = found.tsval is not None
        if rtt:
            self.sleep(rtt)
        self.inject(". 1:1(0) ack 1", flow)

    def accepted(self, options: str = SYN_OPTIONS, *, rtt: float = 0.0, **listening: int) -> Sock:
        """A connection that the peer opened, and acknowledged after `rtt` seconds."""
        listener = self.listener(**listening)
        self.handshake(options, rtt=rtt)
        return self.accept(listener)

    def connected(self, options: str = SYN_OPTIONS, **settings: int) -> Sock:
        """A connection that the end under test opened."""
        sock = self.socket()
        self.set(sock, **settings)
        self.connect(sock)
        syn = self.expect("S 0:0(0)")
        if "TS" in options and syn.tsval is None:
            options = options.replace("TS val 1000 ecr 0,", "")
        self.inject(f"S. 0:0(0) ack 1 {options.replace('ecr 0', 'ecr last')}")
        self.expect(". 1:1(0) ack 1")
        assert sock.getsockopt(std.SOL_SOCKET, std.SO_ERROR) == 0
        return sock

    # -- reporting --------------------------------------------------------------------------------

    def note(self, what: str) -> None:
        self._transcript.append(f"{self.side.now() - self._began:9.6f} {what}")

    def failure(self, what: str) -> ScriptFailure:
        return ScriptFailure("\n".join([what, *self._transcript]))

    def close(self) -> None:
        for sock in self._socks:
            sock.close()


def _side(kernel: bool, mtu: int, sysctls: dict[str, int | str]) -> Side:
    if kernel:
        return Kernel(mtu, sysctls)
    from tests.inet.ours import Ours

    return Ours(mtu, sysctls)


def run(
    script: Callable[[Script], None], side: str, v: int, mtu: int, sysctls: dict[str, int | str]
) -> None:
    """Run a script on one side."""
    kernel = side == "kernel"
    for attempt in range(_ATTEMPTS if kernel else 1):
        end = _side(kernel, mtu, sysctls)
        s = Script(end, v)
        try:
            script(s)
        except AssertionError:
            s.close()
            if not kernel:
                raise
            end.close()
            if attempt == _ATTEMPTS - 1:
                raise
        except BaseException:
            s.close()
            raise
        else:
            s.close()
            end.close()
            return


def conformance(
    *sides: str,
    v: tuple[int, ...] = (4,),
    mtu: int = 1500,
    sysctls: dict[str, int | str] | None = None,
) -> Callable[[Callable[[Script], None]], Callable[[str, int], None]]:
    """A script as a test: on `ours` and `kernel` unless told, over IPv4 and, where asked, IPv6."""

    def wrap(script: Callable[[Script], None]) -> Callable[[str, int], None]:
        @pytest.mark.parametrize("side", sides or ("ours", "kernel"))
        @pytest.mark.parametrize("v", v, ids=lambda v: f"v{v}")
        def test(side: str, v: int) -> None:
            run(script, side, v, mtu, dict(sysctls or {}))

        test.__name__, test.__doc__ = script.__name__, script.__doc__
        test.__module__, test.__qualname__ = script.__module__, script.__qualname__
        return test

    return wrap
