"""ICMP errors about segments that we sent (tcp_v4_err, tcp_v6_err; RFC 5927, 5461, 6069, 1191).

Anybody can send one, so it counts only when it quotes a sequence number that is in flight.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from steertag.family.const import TcpState
from steertag.inet.const import IP_PMTUDISC_DONT, IP_PMTUDISC_INTERFACE, IP_PMTUDISC_OMIT
from steertag.inet.errqueue import icmp_error
from steertag.inet.sock import address_text
from steertag.inet.tcp import close, output, recovery, rtt, timeout, timer
from steertag.inet.tcp.request import RequestSock
from steertag.inet.tcp.sock import ICSK_TIME_RETRANS, TCP_RTO_MAX, TCP_TIMEOUT_INIT
from steertag.inet.tcp.timewait import TimeWaitSock
from steertag.wire import icmp, icmpv6
from steertag.wire.seq import between

if TYPE_CHECKING:
    from steertag.inet.ip.packet import IcmpError
    from steertag.inet.tcp.net import TcpNet
    from steertag.inet.tcp.sock import TcpSock

_QUOTED: Final = struct.Struct("!HHI")
"""Source port, destination port, sequence number: what every ICMP error quotes."""
_OPENING: Final = (TcpState.TCP_SYN_SENT, TcpState.TCP_SYN_RECV)
_NO_ROUTE4: Final = (icmp.NET_UNREACH, icmp.HOST_UNREACH)
"""Codes that say the way is broken, which may heal: they undo a back-off (RFC 6069)."""


def tcp_error_handler(net: TcpNet) -> Callable[[IcmpError], None]:
    """The error handler of protocol 6 for a Stack."""

    def tcp_err(error: IcmpError) -> None:
        _tcp_err(net, error)

    return tcp_err


def _tcp_err(net: TcpNet, error: IcmpError) -> None:
    mib = net.ip.mib
    if len(error.data) < _QUOTED.size:
        mib["IcmpInErrors" if error.family == 4 else "Icmp6InErrors"] += 1
        return
    sport, dport, seq = _QUOTED.unpack_from(error.data)
    sk = net.hash.ehash.get((error.saddr, sport, error.daddr, dport))
    if sk is None:
        mib["IcmpInErrors" if error.family == 4 else "Icmp6InErrors"] += 1
    elif isinstance(sk, RequestSock):
        _request_err(net, sk, error, seq)
    elif not isinstance(sk, TimeWaitSock):
        req = sk.fastopen_rsk
        una = sk.snd_una if req is None else req.snt_isn
        if not between(una, seq, sk.snd_nxt):
            mib["TcpExtOutOfWindowIcmps"] += 1
        elif error.packet.ttl < sk.min_ttl:
            mib["TcpExtTCPMinTTLDrop"] += 1
        elif sk.sk_state != TcpState.TCP_CLOSE:
            _sock_err(sk, error, seq)


def _request_err(net: TcpNet, req: RequestSock, error: IcmpError, seq: int) -> None:
    """The SYN-ACK did not arrive: the request is forgotten (tcp_req_err)."""
    if seq != req.snt_isn:
        net.ip.mib["TcpExtOutOfWindowIcmps"] += 1
    elif _ends_request(error):
        req.dequeue()
        net.ip.mib["TcpExtListenDrops"] += 1


def _ends_request(error: IcmpError) -> bool:
    if error.family == 6:
        return error.fatal
    return error.type in (icmp.TIME_EXCEEDED, icmp.PARAMETERPROB) or _is_no_route(error)


def _is_no_route(error: IcmpError) -> bool:
    if error.family == 4:
        return error.type == icmp.DEST_UNREACH and error.code in _NO_ROUTE4
    return error.type == icmpv6.DEST_UNREACH and error.code == icmpv6.NOROUTE


def _is_too_big(error: IcmpError) -> bool:
    """It tells the path's MTU."""
    if error.family == 4:
        return error.type == icmp.DEST_UNREACH and error.code == icmp.FRAG_NEEDED
    return error.type == icmpv6.PKT_TOOBIG


def _sock_err(sk: TcpSock, error: IcmpError, seq: int) -> None:
    if _is_too_big(error):
        tcp_mtu_reduced(sk, error.info)
        return
    if not error.errno:
        return
    if _is_no_route(error) and sk.fastopen_rsk is None:
        tcp_ld_rto_revert(sk, seq)
    accepted = sk.fastopen_rsk is not None and sk.sk_socket is not None
    if sk.sk_state in _OPENING and not accepted:
        # The attempt has failed (RFC 1122 section 4.2.3.9, RFC 5461 section 4).
        if sk.recverr:
            icmp_error(sk, error, error.errno, address_text(error.daddr, sk.inet_dport), error.data)
        sk.sk_err = error.errno
        sk.sk_error_report(sk)
        close.tcp_done(sk)
    elif sk.recverr:
        sk.sk_err = error.errno
        sk.sk_error_report(sk)
    else:
        # A connection outlives them: told only if it times out.
        sk.sk_err_soft = error.errno


# -- path MTU -------------------------------------------------------------------------------------


def tcp_mtu_reduced(sk: TcpSock, mtu: int) -> None:
    """Something on the way carries no more than `mtu` octets (tcp_v4_mtu_reduced)."""
    dst = sk.dst
    if dst is None or sk.mtu_discover in (IP_PMTUDISC_INTERFACE, IP_PMTUDISC_OMIT):
        return
    dst.update_pmtu(mtu)
    if mtu < dst.mtu and sk.mtu_discover != IP_PMTUDISC_DONT:
        sk.sk_err_soft = errno.EMSGSIZE  # below what we accept: this may not end well
    mtu = dst.mtu
    if sk.mtu_discover != IP_PMTUDISC_DONT and sk.pmtu > mtu:
        output.tcp_sync_mss(sk, mtu)
        recovery.tcp_simple_retransmit(sk)


# -- broken ways --------------------------------------------------------------------------------


def tcp_ld_rto_revert(sk: TcpSock, seq: int) -> None:
    """A router says that there is no way, of a segment that timed out: the time-out was no
    congestion, so one step of the back-off is undone (RFC 6069, tcp_ld_RTO_revert)."""
    head = sk.rtx.head
    if seq != sk.snd_una or not sk.retransmits or not sk.backoff or head is None:
        return
    sk.backoff -= 1
    if sk.srtt:
        rtt.tcp_set_rto(sk)
    else:
        sk.rto = TCP_TIMEOUT_INIT
    sk.rto = min(sk.rto * (1 << sk.backoff), TCP_RTO_MAX)
    now = sk.sk_stack.clock()
    remaining = sk.rto - (now - head.sent_at)
    if remaining > 0:
        timer.tcp_reset_xmit_timer(sk, ICSK_TIME_RETRANS, remaining, now)
    else:
        timeout.tcp_retransmit_timer(sk, now)
