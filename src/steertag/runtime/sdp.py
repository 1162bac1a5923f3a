"""AF_INET_SDP for a Stack: its streams, its policy, its counters, and how it is registered."""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import secrets
import socket as std
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from struct import Struct
from typing import TYPE_CHECKING, Final

from steertag.errors import os_error
from steertag.family.const import (
    SOCK_KEEPOPEN,
    SOCK_LINGER,
    SOCK_RCVBUF_LOCK,
    SOCK_SNDBUF_LOCK,
)
from steertag.family.rules import CLIENT, SERVER, Rules
from steertag.family.sysctl import CtlTable
from steertag.rdma.offer import Offer
from steertag.rdma.rnic import Rnic, RnicLimits
from steertag.runtime.reactor import Reactor
from steertag.runtime.sdp_connect import Connecting
from steertag.runtime.sdp_listen import Accepting
from steertag.runtime.sdp_transport import (
    AnyTransport,
    HostTransport,
    KernelTransport,
    peer_of,
)
from steertag.sdp.af_sdp import sdp_register
from steertag.sdp.calls import transport_of
from steertag.sdp.counters import SdpCounters
from steertag.sdp.fallback import SENTENCES, FallbackCounters, Peers, Reason
from steertag.sdp.options import AF_INET, AF_INET6, AF_INET_SDP
from steertag.sdp.sock import sdp_sk
from steertag.sdp.sockopt import CARRIERS, FALLBACKS
from steertag.sdp.tuning import Tuning

if TYPE_CHECKING:
    from steertag.family.msg import Address
    from steertag.family.proto_ops import ProtoOps
    from steertag.family.socket import Socket
    from steertag.family.stack import Stack
    from steertag.sdp.sock import SdpSock

NAME: Final = "sdp"
AF_INET_NEW_TCP: Final = 46
_LOG: Final = logging.getLogger("steertag.sdp")
_TIMEVAL: Final = Struct("@ll")
_LINGER: Final = Struct("@ii")
_MOST_TOLD: Final = 4096
_PASSED_ON: Final = (
    (SOCK_SNDBUF_LOCK, std.SO_SNDBUF, "sk_sndbuf"),
    (SOCK_RCVBUF_LOCK, std.SO_RCVBUF, "sk_rcvbuf"),
)


@dataclass(frozen=True, slots=True)
class SdpConfig:
    """What a family of a Stack starts with.

    Attributes:
        fallback: "never" or "auto".
        carrier: "host" or "new_tcp".
        zcopy_thresh: octets; None leaves it as the engine has it.
        rules: the policy; None for no rules.
    """

    fallback: str = "auto"
    carrier: str = "host"
    zcopy_thresh: int | None = None
    rules: Rules | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> SdpConfig:
        """What SDP_FALLBACK, STEERTAG_SDP_TRANSPORT, SDP_ZCOPY_THRESH and SDP_CONFIG say.

        Raises:
            OSError: EINVAL, one of them says nothing that makes sense; what reading SDP_CONFIG's
                file raises.
        """
        thresh = environ.get("SDP_ZCOPY_THRESH", "")
        if thresh and not thresh.isdecimal():
            raise os_error(errno.EINVAL, f"SDP_ZCOPY_THRESH={thresh!r}: expected octets")
        try:
            rules = Rules.from_environment(environ)
        except ValueError as exc:
            raise os_error(errno.EINVAL, str(exc)) from None
        return cls(
            fallback=_one_of(environ, "SDP_FALLBACK", FALLBACKS, "auto"),
            carrier=_one_of(environ, "STEERTAG_SDP_TRANSPORT", CARRIERS, "host"),
            zcopy_thresh=int(thresh) if thresh else None,
            rules=rules,
        )


def _one_of(environ: Mapping[str, str], name: str, words: tuple[str, ...], default: str) -> str:
    word = environ.get(name) or default
    if word not in words:
        raise os_error(errno.EINVAL, f"{name}={word!r}: expected {' or '.join(words)}")
    return word


@dataclass(slots=True)
class _Sysctls:
    """The rows of net.sdp.*, where they live."""

    hello_timeout: list[int] = field(default_factory=lambda: [1000])
    listen_grace: list[int] = field(default_factory=lambda: [200])
    fallback_memory: list[int] = field(default_factory=lambda: [60])
    crc: list[int] = field(default_factory=lambda: [0])
    zcopy_thresh: list[int] = field(default_factory=lambda: [Tuning().zcopy_threshold])
    sink_thresh: list[int] = field(default_factory=lambda: [Tuning().sink_threshold])
    recv_size: list[int] = field(default_factory=lambda: [Tuning().recv_size])
    recv_count: list[int] = field(default_factory=lambda: [Tuning().recv_count])

    def tables(self) -> list[CtlTable]:
        most = 1 << 30
        return [
            _row("hello_timeout", self.hello_timeout, "ms for an answer to the Hello", 1, 60000),
            _row("listen_grace", self.listen_grace, "ms for a peer's first octets", 1, 60000),
            _row("fallback_memory", self.fallback_memory, "s that a peer without SDP is known", 0),
            _row("crc", self.crc, "1: ask for CRC32C over the stream", 0, 1),
            _row("zcopy_thresh", self.zcopy_thresh, "octets advertised, not copied; 0: never", 0),
            _row("sink_thresh", self.sink_thresh, "octets of room advertised; 0: never", 0),
            _row("recv_size", self.recv_size, "octets of a receive buffer", 1024, most),
            _row("recv_count", self.recv_count, "receive buffers of a connection", 5, 4096),
        ]


def _row(
    name: str, data: list[int], doc: str, minimum: int, maximum: int = (1 << 31) - 1
) -> CtlTable:
    return CtlTable(f"net.sdp.{name}", data, doc, minimum, maximum)


class SdpFabric:
    """`Fabric`: what opens and moves the streams of one Stack's AF_INET_SDP.

    Args:
        stack: the Stack.
        config: what it starts with.

    Attributes:
        reactor: where its streams are.
        rnic: of its queue pairs.
        counters: how connections came to be.
        engine_counters: what moved over SDP.
    """

    def __init__(self, stack: Stack, config: SdpConfig) -> None:
        self.ops: ProtoOps
        self.plain_ops: ProtoOps
        self.stack = stack
        self.config = config
        self.reactor = Reactor(stack, NAME)
        self.rnic = Rnic(secrets.randbits, RnicLimits(max_pd=1 << 20, max_qp=1 << 20))
        self.counters = FallbackCounters()
        self.engine_counters = SdpCounters()
        self.sysctls = _Sysctls()
        self.peers = Peers()
        self._told: set[tuple[object, Reason]] = set()
        if config.zcopy_thresh is not None:
            self.sysctls.zcopy_thresh[0] = config.zcopy_thresh

    # -- parameters ----------------------------------------------------------------------------

    @property
    def carrier(self) -> str:
        return self.config.carrier

    @property
    def fallback(self) -> str:
        return self.config.fallback

    @property
    def zcopy_thresh(self) -> int:
        return self.sysctls.zcopy_thresh[0]

    @property
    def hello_timeout(self) -> float:
        return self.sysctls.hello_timeout[0] / 1000

    @property
    def listen_grace(self) -> float:
        return self.sysctls.listen_grace[0] / 1000

    def offer(self, private_data: bytes) -> Offer:
        """What this side brings to the MPA set-up: the passive side may speak first."""
        return Offer(private_data=private_data, crc=bool(self.sysctls.crc[0]), peer_to_peer=True)

    def tuning(self, sk: SdpSock) -> Tuning:
        """A connection's, with the sock's buffer sizes."""
        sysctls = self.sysctls
        return Tuning(
            zcopy_threshold=sk.zcopy_thresh,
            sink_threshold=sysctls.sink_thresh[0],
            recv_size=sysctls.recv_size[0],
            recv_count=sysctls.recv_count[0],
            snd_bytes=sk.sk_sndbuf,
            rcv_bytes=sk.sk_rcvbuf,
        )

    # -- transports ----------------------------------------------------------------------------

    def check_carrier(self, carrier: str) -> None:
        if carrier == "new_tcp" and AF_INET_NEW_TCP not in self.stack.families:
            detail = "AF_INET_NEW_TCP is not registered: use it once, or set STEERTAG_SDP_TRANSPORT"
            raise os_error(errno.EAFNOSUPPORT, detail)

    def family_of(self, sk: SdpSock, address: Address) -> int:
        if not isinstance(address, tuple) or not 2 <= len(address) <= 4:
            raise TypeError(f"AF_INET_SDP address must be (host, port), not {address!r}")
        host, port = address[:2]
        if not isinstance(host, str) or not isinstance(port, int):
            raise TypeError(f"AF_INET_SDP address must be (str, int), not {address!r}")
        if not 0 <= port <= 65535:
            raise OverflowError("port must be 0-65535.")
        return AF_INET6 if ":" in host else AF_INET

    def transport(self, sk: SdpSock, family: int) -> AnyTransport:
        """A fresh one, with the sock's options and the name it is bound to."""
        transport = self._make(sk, family)
        try:
            for level, name, value in sk.replay:
                transport.setsockopt(level, name, value)
            if sk.bound and sk.local is not None:
                transport.setsockopt(std.SOL_SOCKET, std.SO_REUSEADDR, 1)
                transport.bind(sk.local)
        except BaseException:
            transport.close()
            raise
        return transport

    def _make(self, sk: SdpSock, family: int) -> AnyTransport:
        self.check_carrier(sk.carrier)
        number = AF_INET_NEW_TCP if sk.carrier == "new_tcp" else family
        sock = self.stack.sock_create(number, std.SOCK_STREAM)
        passthrough = sock.ops.passthrough
        native = passthrough(sock) if passthrough is not None else None
        if native is None:
            return KernelTransport(self.reactor, sock)
        return HostTransport(self.reactor, sock, native)

    def take_transport(self, sk: SdpSock, family: int) -> AnyTransport:
        """The sock's own, which options were set on, or a fresh one."""
        transport = transport_of(sk, family)
        sk.transport = None
        assert isinstance(transport, AnyTransport)  # this fabric's
        return transport

    def make_plain(self, sk: SdpSock, transport: AnyTransport) -> None:
        """The connection is the transport's alone: what was set on the sock counts there."""
        for flag, name, attribute in _PASSED_ON:
            if not sk.sk_flags & flag:
                continue
            size = getattr(sk, attribute)
            # A window that the peer was given is not taken back: it would wait for its probes.
            if name == std.SO_SNDBUF or size > transport.getsockopt(std.SOL_SOCKET, name, 0):
                transport.setsockopt(std.SOL_SOCKET, name, size // 2)
        transport.setsockopt(std.IPPROTO_TCP, std.TCP_NODELAY, int(sk.nodelay))
        if sk.oob_inline:
            transport.setsockopt(std.SOL_SOCKET, std.SO_OOBINLINE, 1)
        for name, seconds in ((std.SO_RCVTIMEO, sk.sk_rcvtimeo), (std.SO_SNDTIMEO, sk.sk_sndtimeo)):
            if seconds:
                whole, rest = divmod(seconds, 1.0)
                value = _TIMEVAL.pack(int(whole), int(rest * 1e6))
                transport.setsockopt(std.SOL_SOCKET, name, value)
        if sk.sk_flags & SOCK_LINGER:
            value = _LINGER.pack(1, int(sk.sk_lingertime))
            transport.setsockopt(std.SOL_SOCKET, std.SO_LINGER, value)
        if sk.sk_rcvlowat > 1:
            transport.setsockopt(std.SOL_SOCKET, std.SO_RCVLOWAT, sk.sk_rcvlowat)

    @staticmethod
    def inherit(listener: SdpSock, child: SdpSock) -> None:
        """A connection that came in has its listener's options."""
        child.nodelay, child.oob_inline = listener.nodelay, listener.oob_inline
        child.zcopy_thresh, child.carrier = listener.zcopy_thresh, listener.carrier
        child.fallback = listener.fallback
        child.replay = list(listener.replay)
        child.sk_flags |= listener.sk_flags & (SOCK_SNDBUF_LOCK | SOCK_RCVBUF_LOCK | SOCK_KEEPOPEN)
        child.sk_sndbuf, child.sk_rcvbuf = listener.sk_sndbuf, listener.sk_rcvbuf

    @staticmethod
    def names(transport: AnyTransport) -> tuple[bytes, bytes, int]:
        """Both ends' addresses, packed, and the local port: what a Hello says."""
        local, remote = transport.getsockname(), peer_of(transport)
        return _packed(local), _packed(remote), local[1] if isinstance(local, tuple) else 0

    def direct(self, sock: Socket) -> std.socket | None:
        """The host's socket that a connection has turned out to be."""
        plain = sdp_sk(sock.sk).plain
        return plain.native if isinstance(plain, HostTransport) else None

    def resolve(self, sock: Socket, address: Address) -> Address:
        """Look a name up. Raises gaierror; leaves to the family what is no address at all."""
        if not isinstance(address, tuple) or not 2 <= len(address) <= 4:
            return address
        host = address[0]
        if not isinstance(host, str) or _is_numeric(host) or not isinstance(address[1], int):
            return address
        found = std.getaddrinfo(host, None, std.AF_INET, std.SOCK_STREAM)
        return (found[0][4][0], *address[1:])

    # -- connections ---------------------------------------------------------------------------

    def connect(self, sk: SdpSock, address: Address) -> Connecting:
        use, reason = self._use(sk, CLIENT, address)
        if use == "both" and reason is None:
            known = self.peers.recall(_key(address), self.reactor.clock())
            reason = None if known is None else Reason.REMEMBERED
        attempt = Connecting(self, sk, self.family_of(sk, address), address, use, reason)
        attempt.start()
        return attempt

    def listen(self, sk: SdpSock) -> Accepting:
        assert isinstance(sk.transport, AnyTransport)  # this fabric's
        use, _ = self._use(sk, SERVER, sk.transport.getsockname())
        return Accepting(self, sk, sk.transport, use)

    def accepted(self, sk: SdpSock) -> None:
        if isinstance(sk.attempt, Accepting):
            sk.attempt.room()

    def _use(self, sk: SdpSock, role: str, address: Address) -> tuple[str, Reason | None]:
        """What a rule uses, "tcp" with its reason. The sock's own option goes before any rule."""
        use = "sdp" if (sk.fallback or self.fallback) == "never" else "both"
        rules = self.config.rules
        if rules is not None and isinstance(address, tuple) and not sk.fallback:
            use = rules.choose(sys.argv[0], role, address[0], address[1], use)
        if use in ("tcp", "host", "new_tcp"):
            return "tcp", Reason.POLICY
        return use, None

    # -- fallback ------------------------------------------------------------------------------

    def fell_back(self, sk: SdpSock, peer: object, reason: Reason) -> None:
        """Count it, and say so: of each peer and reason once as a warning."""
        self.counters.by_reason[reason] += 1
        host = peer[0] if isinstance(peer, tuple) else peer
        known = (host, reason) in self._told or reason in (Reason.POLICY, Reason.REMEMBERED)
        if len(self._told) >= _MOST_TOLD:
            self._told.clear()
        self._told.add((host, reason))
        level = logging.DEBUG if known else logging.WARNING
        _LOG.log(level, "%s has plain TCP, not SDP: %s (%s)", peer, SENTENCES[reason], reason)

    def spoke_late(self, peer: object) -> None:
        """One that was called plain, as it said nothing, has begun with a Request."""
        self.counters.sdp_late += 1
        _LOG.info("%s speaks SDP after all", peer)

    def asked_late(self, peer: object) -> None:
        """Such a one was sent something before."""
        self.counters.by_reason[Reason.LATE_REQUEST] += 1
        _LOG.warning("%s is reset: %s", peer, SENTENCES[Reason.LATE_REQUEST])

    def refused(self, peer: object, reason: Reason) -> None:
        """A connection ends for the lack of SDP."""
        self.counters.refused += 1
        _LOG.warning("%s is refused, SDP_FALLBACK is never: %s", peer, SENTENCES[reason])

    def learn(self, peer: Address, reason: Reason) -> None:
        """The peer has no SDP, for some time."""
        seconds = self.sysctls.fallback_memory[0]
        if seconds:
            self.peers.learn(_key(peer), reason, self.reactor.clock() + seconds)

    def spoke(self, peer: Address) -> None:
        """The peer has SDP."""
        self.counters.sdp_active += 1
        self.peers.forget(_key(peer))

    def groups(self) -> dict[str, dict[str, int]]:
        """Counters for `stag netstat -s`."""
        moved = self.engine_counters
        numbers = {
            name: value
            for name in SdpCounters.__dataclass_fields__
            if isinstance(value := getattr(moved, name), int)
        }
        return {"Sdp": self.counters.group(), "SdpExt": numbers}


def _key(address: Address) -> object:
    return tuple(address[:2]) if isinstance(address, tuple) else address


def _packed(address: object) -> bytes:
    text = address[0] if isinstance(address, tuple) else ""
    try:
        return ipaddress.ip_address(str(text).partition("%")[0]).packed
    except ValueError:
        return bytes(16)


def _is_numeric(host: str) -> bool:
    if host in ("", "<broadcast>"):
        return True
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def register(stack: Stack, config: SdpConfig | None = None) -> None:
    """Register AF_INET_SDP, and what it stands on, with a Stack.

    Args:
        config: what it starts with; None: the defaults, whatever the environment says.

    Raises:
        OSError: EEXIST, it is registered already.
    """
    from steertag.host import register as register_host

    register_host(stack)
    config = config or SdpConfig()
    if config.carrier == "new_tcp" and AF_INET_NEW_TCP not in stack.families:
        raise os_error(errno.EAFNOSUPPORT, "AF_INET_NEW_TCP is not registered with this Stack")
    fabric = SdpFabric(stack, config)
    with stack.lock:
        if NAME in stack.generic:
            raise os_error(errno.EEXIST, f"family {AF_INET_SDP}")
        sdp_register(stack, fabric)
        for table in fabric.sysctls.tables():
            stack.sysctl.register(table)
        stack.generic[NAME] = fabric


def fabric_of(stack: Stack) -> SdpFabric | None:
    """The Stack's, where AF_INET_SDP is registered with it."""
    found = stack.generic.get(NAME)
    return found if isinstance(found, SdpFabric) else None
