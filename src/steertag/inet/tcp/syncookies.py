"""SYN cookies: the request is kept in the SYN-ACK (RFC 4987 section 3.6; net/ipv4/syncookies.c).

The sequence number holds a keyed hash, a minute counter and two bits of MSS; the low bits of the
timestamp hold window scale, SACK and ECN. What comes back in the ACK makes the child, and nothing
had to be remembered. A cookie is good for two minutes, and only where some were sent lately.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from steertag.inet.tcp import listen
from steertag.inet.tcp.isn import keyed_hash, secure_tcp_ts_off, tcp_clock_ms
from steertag.inet.tcp.request import RequestSock, tcp_syn_recv_sock
from steertag.inet.tcp.reset import ifindex_of
from steertag.wire.seq import add
from steertag.wire.tcp import Options

if TYPE_CHECKING:
    from steertag.inet.ip.packet import Packet
    from steertag.inet.tcp.sock import TcpSock
    from steertag.wire.tcp import Segment

COOKIE_PERIOD: Final = 60.0
"""Seconds of one step of the counter."""
MAX_SYNCOOKIE_AGE: Final = 2
"""Steps that a cookie is good for."""
_COOKIE_VALID: Final = MAX_SYNCOOKIE_AGE * COOKIE_PERIOD
_DATA_BITS: Final = 24
_DATA_MASK: Final = (1 << _DATA_BITS) - 1
_MASK: Final = 0xFFFFFFFF
_MSS_TABLE: Final = {4: (536, 1300, 1440, 1460), 16: (1220, 1420, 1440, 8940)}
"""By octets of the address; ascending. The largest that is not above the peer's is encoded."""
_TS_BITS: Final = 6
_TS_WSCALE: Final = 0xF
"""Of the timestamp: the peer's window scale, all ones for none."""
_TS_SACK: Final = 0x10
_TS_ECN: Final = 0x20
_JUST_NOW: Final = 1e-9


def _hash(req_key: tuple[bytes, int, bytes, int], secret: bytes, count: int, which: bytes) -> int:
    laddr, lport, raddr, rport = req_key
    ports = (lport << 16 | rport).to_bytes(4, "big")
    return keyed_hash(secret, b"cookie" + which, laddr, raddr, ports, count.to_bytes(4, "big"))


def _secure_cookie(
    key: tuple[bytes, int, bytes, int], secret: bytes, sseq: int, count: int, data: int
) -> int:
    fixed = _hash(key, secret, 0, b"0")
    hidden = (_hash(key, secret, count, b"1") + data) & _DATA_MASK
    return (fixed + sseq + (count << _DATA_BITS) + hidden) & _MASK


def _count(now: float) -> int:
    return int(now / COOKIE_PERIOD) & _MASK


def cookie_init_sequence(req: RequestSock, seg: Segment, now: float) -> int:
    """The sequence number of a SYN-ACK that is to be forgotten; `req.mss` becomes what it says."""
    listener = req.listener
    listener.ts_recent_at = now or _JUST_NOW
    table = _MSS_TABLE[len(req.hash_key[2])]
    index = max((i for i, mss in enumerate(table) if mss <= req.mss), default=0)
    req.mss = table[index]
    req.net.ip.mib["TcpExtSyncookiesSent"] += 1
    return _secure_cookie(req.hash_key, req.net.ip.secret, seg.seq, _count(now), index)


def cookie_init_timestamp(req: RequestSock, now: float) -> int | None:
    """The timestamp whose low bits hold the options, not later than now; None without them."""
    if not req.ts_ok:
        return None
    clock = tcp_clock_ms(now)
    bits = req.snd_wscale if req.wscale_ok else _TS_WSCALE
    if req.sack_ok:
        bits |= _TS_SACK
    if req.ecn_ok:
        bits |= _TS_ECN
    stamp = clock >> _TS_BITS << _TS_BITS | bits
    if stamp > clock:
        stamp -= 1 << _TS_BITS
    return (stamp + req.ts_offset) & _MASK


def _check(sk: TcpSock, packet: Packet, seg: Segment, now: float) -> int:
    """The MSS that a cookie says; 0: it is none of ours, or too old."""
    key = (packet.daddr, seg.dest, packet.saddr, seg.source)
    secret = sk.net.ip.secret
    left = (seg.ack_seq - 1 - _hash(key, secret, 0, b"0") - (seg.seq - 1)) & _MASK
    count = _count(now)
    age = (count - (left >> _DATA_BITS)) & 0xFF
    if age >= MAX_SYNCOOKIE_AGE:
        return 0
    data = (left - _hash(key, secret, (count - age) & _MASK, b"1")) & _DATA_MASK
    table = _MSS_TABLE[len(packet.saddr)]
    return table[data] if data < len(table) else 0


def _recent_overflow(sk: TcpSock, now: float) -> bool:
    """A listener that sent no cookie lately accepts none: guessing stays expensive."""
    sent = sk.ts_recent_at
    return sent != 0.0 and sent <= now <= sent + _COOKIE_VALID


def cookie_check(
    sk: TcpSock, packet: Packet, seg: Segment, now: float
) -> tuple[RequestSock, TcpSock | None] | None:
    """An ACK for a listener: the request that its cookie holds, and the child of that.

    None: it is no cookie, and deserves RST. The child is None where there is no room for it.
    """
    net = sk.net.ip
    if not net.stack.sysctl["net.ipv4.tcp_syncookies"] or not _recent_overflow(sk, now):
        return None
    mss = _check(sk, packet, seg, now)
    if not mss:
        net.mib["TcpExtSyncookiesFailed"] += 1
        return None
    net.mib["TcpExtSyncookiesRecv"] += 1
    options = seg.all_options()
    offset = 0
    if options.tsval is not None and net.stack.sysctl["net.ipv4.tcp_timestamps"] == 1:
        offset = secure_tcp_ts_off(net.secret, packet.daddr, packet.saddr)
    if not _decode_options(sk, options, (options.tsecr - offset) & _MASK):
        return None
    req = _rebuilt(sk, packet, seg, options, mss)
    req.ts_offset = offset
    req.ecn_ok = bool(
        options.tsval is not None
        and (options.tsecr - offset) & _TS_ECN
        and net.stack.sysctl["net.ipv4.tcp_ecn"]
    )
    if not listen.reqsk_set_windows(req):
        return req, None
    return req, tcp_syn_recv_sock(req, packet, seg)


def _decode_options(sk: TcpSock, options: Options, echoed: int) -> bool:
    """Put what the echoed timestamp holds into `options`; False: we never sent such."""
    options.sack_ok = False
    options.wscale = None
    if options.tsval is None:
        return True
    sysctl = sk.sk_stack.sysctl
    if not sysctl["net.ipv4.tcp_timestamps"]:
        return False
    options.sack_ok = bool(echoed & _TS_SACK)
    if options.sack_ok and not sysctl["net.ipv4.tcp_sack"]:
        return False
    if echoed & _TS_WSCALE == _TS_WSCALE:
        return True
    options.wscale = echoed & _TS_WSCALE
    return bool(sysctl["net.ipv4.tcp_window_scaling"])


def _rebuilt(sk: TcpSock, packet: Packet, seg: Segment, options: Options, mss: int) -> RequestSock:
    key = (packet.daddr, seg.dest, packet.saddr, seg.source)
    req = RequestSock(sk, key, add(seg.seq, -1), options)
    req.mss = min(mss, sk.user_mss) if sk.user_mss else mss
    req.snt_isn = add(seg.ack_seq, -1)
    req.ifindex = ifindex_of(packet)
    return req
