"""One connection of a test, and how it is waited on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final

from steertag import verbs as v
from steertag.perf.fabric.errors import Disconnected, ExitCode, FabricError, cannot_connect
from steertag.rdma.rtr import RtrKind
from steertag.verbs.cm.options import RDMA_OPTION_ID_TOS
from steertag.wire import mpa

_CLOSED: Final = "peer closed"
Say = Callable[[str], None]
LINGER: Final = 5.0
"""Seconds for the peer to close its side."""
MIN_FPDU: Final = 136
MAX_FPDU: Final = 65544


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkOptions:
    """How to connect or to listen.

    Attributes:
        address: the server's, for both sides; None is any address for a server.
        port: the server's.
        source: address to connect from.
        crc: ask for CRC32C; None: as a client yes, as a server as the client does.
        mpa_revision: of the client's Request.
        p2p: as a client, begin with a ready-to-receive frame.
        rtr: kinds of such a frame; empty: all.
        max_fpdu: octets of an FPDU sent at most.
        timeout: seconds that the peer may be silent.
        tos: IP's type of service.
        ack_timeout: the exponent of RDMA_OPTION_ID_ACK_TIMEOUT.
        family: of the sockets; 0 is the host's TCP.
    """

    address: str | None
    port: int
    source: str | None = None
    crc: bool | None = None
    mpa_revision: int = 2
    p2p: bool | None = False
    rtr: tuple[RtrKind, ...] = ()
    max_fpdu: int | None = None
    timeout: float = 30.0
    tos: int | None = None
    ack_timeout: int | None = None
    family: int = 0

    @property
    def where(self) -> str:
        return name_of(self.address or "any address", self.port)

    @property
    def address_flags(self) -> int:
        """Flags of an AddrInfo of these addresses."""
        return int(v.RAI_FAMILY) if self.family else 0

    def set_on(self, cmid: v.CMID) -> None:
        """`rdma_set_option` of what was asked for."""
        if self.tos is not None:
            cmid.set_option(v.RDMA_OPTION_ID, RDMA_OPTION_ID_TOS, self.tos, 1)
        if self.ack_timeout is not None:
            cmid.set_option(v.RDMA_OPTION_ID, v.RDMA_OPTION_ID_ACK_TIMEOUT, self.ack_timeout, 1)

    def param(self, *, active: bool, reads: int = 1) -> v.ConnParam:
        """The parameters of a connection with `reads` Read Requests at once, either way."""
        extra: dict[str, Any] = {}
        if self.max_fpdu is not None:
            extra["max_ulpdu"] = max_ulpdu(self.max_fpdu)
        if self.rtr:
            extra["rtr"] = self.rtr
        if active and self.p2p:
            extra["peer_to_peer"] = True
        return v.ConnParam(
            reads,
            reads,
            crc=active if self.crc is None else self.crc,
            mpa_revision=self.mpa_revision,
            **extra,
        )


def name_of(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def max_ulpdu(max_fpdu: int) -> int:
    """Octets of the longest ULPDU whose FPDU has at most so many.

    The length, the ULPDU and its padding make a multiple of 4; then comes the CRC.
    """
    return min((max_fpdu - 4) // 4 * 4 - 2, mpa.MAX_ULPDU - 1)


class Link:
    """One connection, with its messages waited for one after the other.

    Args:
        cmid: with a QP whose every request completes visibly.
        peer: how the other side is called in what a person reads.
    """

    def __init__(self, cmid: v.CMID, options: LinkOptions, peer: str) -> None:
        self.cmid = cmid
        self.peer = peer
        self._timeout = options.timeout

    def region(self, size: int, access: int) -> v.MR:
        return v.MR(self.cmid.pd, size, access)

    def receive(self) -> int:
        """Wait for the next message; how many octets it has.

        Raises:
            Disconnected: the peer closed the connection instead.
            FabricError: it ended otherwise, or the peer says nothing.
        """
        try:
            wc = self.cmid.get_recv_comp(self._timeout)
        except TimeoutError:
            raise FabricError(
                ExitCode.CONNECTION_LOST,
                f"{self.peer} has sent nothing for {self._timeout:g} s; --timeout waits longer",
            ) from None
        self._check(wc)
        return wc.byte_len

    def complete(self, requests: int = 1) -> None:
        """Wait until so many of the requests posted have completed. Raises as `receive`."""
        for _ in range(requests):
            try:
                wc = self.cmid.get_send_comp(self._timeout)
            except TimeoutError:
                raise FabricError(
                    ExitCode.CONNECTION_LOST,
                    f"a request to {self.peer} has not completed for {self._timeout:g} s",
                ) from None
            self._check(wc)

    def close(self) -> None:
        """Send what is posted and disconnect."""
        self.cmid.disconnect()
        self.cmid.wait_disconnected(LINGER)

    def facts(self) -> dict[str, Any]:
        """What `--json` says of every connection."""
        qp = self.cmid.qp
        counters = {} if qp is None else asdict(qp.counters)
        return {
            "peer": self.peer,
            "crc": self.cmid.crc,
            "peer_to_peer": self.cmid.peer_to_peer,
            "counters": counters,
        }

    def _check(self, wc: v.WC) -> None:
        if wc.status == v.WcStatus.SUCCESS:
            return
        qp = self.cmid.qp
        reason = "" if qp is None else qp.end_reason
        if wc.status == v.WcStatus.WR_FLUSH_ERR and reason == _CLOSED:
            raise Disconnected(ExitCode.CONNECTION_LOST, f"{self.peer} closed the connection")
        raise FabricError(
            ExitCode.CONNECTION_LOST,
            f"the connection to {self.peer} ended: {reason or v.WcStatus(wc.status).name}",
        )


@contextmanager
def connected(
    options: LinkOptions,
    attr: v.QPInitAttr,
    prepare: Callable[[Link], None],
    *,
    reads: int = 1,
    pd: v.PD | None = None,
) -> Iterator[Link]:
    """A connection to the server; `prepare` posts what has to be posted before it is made.

    Raises FabricError.
    """
    try:
        address = v.AddrInfo(
            src=options.source,
            dst=options.address,
            dst_service=options.port,
            flags=options.address_flags,
            family=options.family,
        )
    except OSError as exc:
        raise cannot_connect(exc, options.where) from exc
    with v.CMID(address, attr, pd) as cmid:
        options.set_on(cmid)
        link = Link(cmid, options, options.where)
        cmid.create_qp()
        prepare(link)
        try:
            cmid.connect(options.param(active=True, reads=reads), options.timeout)
        except OSError as exc:
            raise cannot_connect(exc, options.where) from exc
        yield link


@contextmanager
def listening(
    options: LinkOptions, attr: v.QPInitAttr, announce: Say, backlog: int = 0
) -> Iterator[v.CMID]:
    """A listener, whose requests are for `accepted`; `announce` hears where it listens.

    Raises FabricError.
    """
    address = v.AddrInfo(
        src=options.address,
        src_service=options.port,
        flags=v.RAI_PASSIVE | options.address_flags,
        family=options.family,
    )
    with v.CMID(address, attr) as listener:
        options.set_on(listener)
        try:
            listener.listen(backlog)
        except OSError as exc:
            raise FabricError(
                ExitCode.FAILURE,
                f"cannot listen on {options.where}: {exc.strerror or exc};"
                " -a (ucmatose: -b) and -p choose the address and the port",
            ) from exc
        announce(f"listening on {name_of(*listener.getsockname())}")
        yield listener


@contextmanager
def accepted(
    request: v.CMID,
    options: LinkOptions,
    prepare: Callable[[Link], None],
    *,
    reads: int = 1,
    peer: str = "the client",
) -> Iterator[Link]:
    """The connection of a request, accepted. Raises FabricError."""
    with request:
        link = Link(request, options, peer)
        request.create_qp()
        prepare(link)
        try:
            request.accept(options.param(active=False, reads=reads))
        except OSError as exc:
            raise FabricError(
                ExitCode.CONNECTION_LOST, f"{peer} went away: {exc.strerror or exc}"
            ) from exc
        yield link
