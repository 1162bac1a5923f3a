"""TIME-WAIT and orphaned FIN-WAIT-2: what is left of a connection (net/ipv4/tcp_minisocks.c).

What was a sock of many kilobytes becomes one of a few hundred octets, which knows just enough to
acknowledge the peer's FIN again, to keep old segments out of a new connection of the same numbers,
and to tell such a new connection's SYN from an old one's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from steertag.family.const import TcpState
from steertag.family.timer import Timer
from steertag.inet.tcp import close, hash, listen, reset
from steertag.inet.tcp.isn import tcp_clock_ms
from steertag.inet.tcp.window import tcp_receive_window
from steertag.wire.seq import add, after, before, diff
from steertag.wire.tcp import ACK, FIN, RST, SYN

if TYPE_CHECKING:
    from steertag.inet.ip.packet import Packet
    from steertag.inet.tcp.hash import BindBucket, Key, TcpHash
    from steertag.inet.tcp.net import TcpNet
    from steertag.inet.tcp.sock import TcpSock
    from steertag.wire.tcp import Segment

TCP_TIMEWAIT_LEN: Final = 60.0
"""Seconds; twice what a segment is assumed to live."""
TCP_PAWS_24DAYS: Final = 24 * 86400.0


class TimeWaitSock:
    """A connection that is over, kept so that late segments find it (struct tcp_timewait_sock).

    Attributes:
        sk_state: TCP_TIME_WAIT always; `substate` may be TCP_FIN_WAIT2.
        rcv_nxt, snd_nxt, rcv_wnd: of the connection. rcv_wnd: octets.
        ts_recent, ts_recent_at, ts_offset: for PAWS; ts_recent_at 0.0 without timestamps.
    """

    __slots__ = (
        "__weakref__",
        "bind_bucket",
        "bound_dev_if",
        "hash_key",
        "inet_saddr",
        "last_oow_ack_time",
        "net",
        "rcv_nxt",
        "rcv_wnd",
        "rcv_wscale",
        "sk_reuse",
        "sk_reuseport",
        "sk_state",
        "snd_nxt",
        "substate",
        "tables",
        "timeout",
        "timer",
        "tos",
        "ts_offset",
        "ts_recent",
        "ts_recent_at",
    )

    def __init__(self, sk: TcpSock, key: Key, substate: TcpState) -> None:
        self.sk_state = TcpState.TCP_TIME_WAIT
        self.substate = substate
        self.net: TcpNet = sk.net
        self.tables: TcpHash = hash.tables_of(sk)
        self.hash_key: Key = key
        self.inet_saddr: bytes = sk.inet_saddr
        self.bound_dev_if: int = sk.bound_dev_if
        self.sk_reuse: bool = sk.sk_reuse
        self.sk_reuseport: bool = sk.sk_reuseport
        self.tos: int = sk.tos
        self.rcv_nxt = sk.rcv_nxt
        self.snd_nxt = sk.snd_nxt
        self.rcv_wnd = tcp_receive_window(sk)
        self.rcv_wscale = sk.rcv_wscale
        self.ts_recent = sk.ts_recent if sk.ts_ok else 0
        self.ts_recent_at = sk.ts_recent_at if sk.ts_ok else 0.0
        self.ts_offset = sk.ts_offset
        self.last_oow_ack_time = 0.0
        self.timeout = TCP_TIMEWAIT_LEN
        self.bind_bucket: BindBucket | None = sk.bind_bucket
        self.timer = Timer(sk.sk_stack.timers, self._expired)
        self.tables.tw_count += 1
        if self.bind_bucket is not None:
            self.bind_bucket.owners[self] = None
        self.tables.ehash[key] = self

    # -- life ---------------------------------------------------------------------------------

    def schedule(self, seconds: float) -> None:
        self.timer.mod(self.net.ip.stack.clock() + seconds)

    def deschedule(self) -> None:
        """Gone before its time (inet_twsk_deschedule_put)."""
        if self.sk_state != TcpState.TCP_TIME_WAIT:
            return
        self.sk_state = TcpState.TCP_CLOSE
        self.timer.delete()
        tables = self.tables
        tables.tw_count -= 1
        if tables.ehash.get(self.hash_key) is self:
            del tables.ehash[self.hash_key]
        if self.bind_bucket is not None:
            tables.put_owner(self.bind_bucket, self)
            self.bind_bucket = None

    def _expired(self) -> None:
        self.net.ip.mib["TcpExtTW"] += 1
        self.deschedule()

    # -- reuse --------------------------------------------------------------------------------

    def twsk_unique(self, sk: TcpSock, *, bound: bool) -> bool:
        """May `connect` take the four numbers over (tcp_twsk_unique)? Then `sk` goes on from there.

        Timestamps tell old segments from new ones, once a tick of a second has passed. `bound`:
        the user named the port; else sysctl tcp_tw_reuse has to allow it: 2 is loopback only.
        """
        if not self.ts_recent_at:
            return False
        reuse = self.net.ip.stack.sysctl["net.ipv4.tcp_tw_reuse"]
        if self.substate == TcpState.TCP_FIN_WAIT2:
            reuse = 0
        if reuse == 2 and not _is_loopback(self.hash_key):
            reuse = 0
        now = self.net.ip.stack.clock()
        if not bound and not (reuse and now - self.ts_recent_at > 1.0):
            return False
        sk.write_seq = add(self.snd_nxt, 65535 + 2) or 1
        sk.ts_recent = self.ts_recent
        sk.ts_recent_at = self.ts_recent_at
        return True

    def accepts_syn(self, seg: Segment, paws_reject: bool) -> bool:
        """A SYN that can only be of a new connection (RFC 9293 section 3.10.7.4, RFC 6191)."""
        if seg.flags & (SYN | RST | ACK) != SYN or paws_reject:
            return False
        newer = (
            self.ts_recent_at != 0.0
            and seg.tsval is not None
            and diff(self.ts_recent, seg.tsval) < 0
        )
        return after(seg.seq, self.rcv_nxt) or newer


def _is_loopback(key: Key) -> bool:
    for addr in (key[0], key[2]):
        if addr[:1] == b"\x7f" and len(addr) == 4:
            return True
        if addr == bytes(15) + b"\x01":
            return True
    return False


def tcp_time_wait(sk: TcpSock, state: TcpState, timeout: float) -> None:
    """Replace the connection by a TimeWaitSock, and `tcp_done` it.

    `state`: TCP_TIME_WAIT or TCP_FIN_WAIT2 (an orphan). `timeout`: seconds it stays in FIN-WAIT-2;
    at least three and a half RTOs are waited. When there are too many the connection just ends.
    """
    tables = hash.tables_of(sk)
    key = sk.hash_key
    if key is not None and tables.tw_count < sk.sk_stack.sysctl["net.ipv4.tcp_max_tw_buckets"]:
        tw = TimeWaitSock(sk, key, state)
        sk.hash_key = None  # the table's entry is the other's now
        timeout = max(timeout, 3.5 * sk.rto)
        if state == TcpState.TCP_TIME_WAIT:
            timeout = TCP_TIMEWAIT_LEN
        tw.schedule(timeout)
    else:
        sk.mib["TcpExtTCPTimeWaitOverflow"] += 1
    close.tcp_done(sk)


# -- segments -----------------------------------------------------------------------------------


def tcp_timewait_state_process(tw: TimeWaitSock, packet: Packet, seg: Segment) -> None:
    """A segment for a connection that is over."""
    now = tw.net.ip.stack.clock()
    paws_reject = False
    if seg.tsval is not None and tw.ts_recent_at:
        paws_reject = _paws_reject(tw, seg, now)
    if tw.substate == TcpState.TCP_FIN_WAIT2:
        _fin_wait2(tw, packet, seg, now, paws_reject)
        return
    quiet = seg.seq == seg.end_seq or seg.flags & RST
    if not paws_reject and seg.seq == tw.rcv_nxt and quiet:
        # In the window's first place, and without data: an ACK, or a RST.
        if seg.flags & RST:
            if not tw.net.ip.stack.sysctl["net.ipv4.tcp_rfc1337"]:
                tw.deschedule()
                return
        else:
            tw.schedule(TCP_TIMEWAIT_LEN)
        if seg.tsval is not None and tw.ts_recent_at:
            tw.ts_recent, tw.ts_recent_at = seg.tsval, now
        return
    if tw.accepts_syn(seg, paws_reject):
        _new_connection(tw, packet, seg)
        return
    if paws_reject:
        tw.net.ip.mib["TcpExtPAWSTimewait"] += 1
    if seg.flags & RST:
        return
    # A FIN again, or something old: acknowledge, and wait anew unless it can only be a duplicate.
    if paws_reject or not seg.flags & ACK:
        tw.schedule(TCP_TIMEWAIT_LEN)
    _answer(tw, seg, now, "TCPACKSkippedTimeWait")


def _fin_wait2(
    tw: TimeWaitSock, packet: Packet, seg: Segment, now: float, paws_reject: bool
) -> None:
    """Nobody is there any more to read; the peer's FIN is what is waited for."""
    if paws_reject or not reset.in_window(seg, tw.rcv_nxt, add(tw.rcv_nxt, tw.rcv_wnd)):
        if not seg.flags & RST:
            _answer(tw, seg, now, "TCPACKSkippedFinWait2")
        return
    if seg.flags & RST:
        tw.deschedule()
        return
    if seg.flags & SYN and not before(seg.seq, tw.rcv_nxt):
        reset.tcp_send_reset(tw.net.ip, packet, seg)
        return
    if not seg.flags & ACK or not after(seg.end_seq, tw.rcv_nxt) or seg.end_seq == seg.seq:
        return  # a bare ACK, or a duplicate
    if not seg.flags & FIN or seg.end_seq != add(tw.rcv_nxt, 1):
        # Data for nobody (RFC 2525 section 2.17).
        reset.tcp_send_reset(tw.net.ip, packet, seg)
        tw.deschedule()
        return
    tw.substate = TcpState.TCP_TIME_WAIT
    tw.rcv_nxt = seg.end_seq
    if seg.tsval is not None and tw.ts_recent_at:
        tw.ts_recent, tw.ts_recent_at = seg.tsval, now
    tw.schedule(TCP_TIMEWAIT_LEN)
    _send_ack(tw, now)


def _paws_reject(tw: TimeWaitSock, seg: Segment, now: float) -> bool:
    assert seg.tsval is not None  # the caller looked
    if diff(tw.ts_recent, seg.tsval) <= 0 or now - tw.ts_recent_at >= TCP_PAWS_24DAYS:
        return False
    # A RST whose clock has stood still for a minute is let through (tcp_paws_reject).
    return not (seg.flags & RST and now - tw.ts_recent_at >= 60.0)


def _new_connection(tw: TimeWaitSock, packet: Packet, seg: Segment) -> None:
    """The numbers begin anew, with sequence numbers beyond the old ones, if somebody listens."""
    laddr, lport, raddr, rport = tw.hash_key
    net = tw.net
    if seg.flags & FIN:
        return
    listener = tw.tables.lookup_listener(net.ip, laddr, lport, raddr, rport, packet.device.ifindex)
    if listener is None:
        _answer(tw, seg, net.ip.stack.clock(), "TCPACKSkippedTimeWait")
        return
    isn = add(tw.snd_nxt, 65535 + 2) or 1
    tw.deschedule()
    listen.tcp_conn_request(listener, packet, seg, isn)


def _answer(tw: TimeWaitSock, seg: Segment, now: float, counter: str) -> None:
    """An ACK, as often as the limit for unacceptable segments allows."""
    if not reset.oow_rate_limited(tw.net, seg, counter, tw.last_oow_ack_time, now):
        if not reset.takes_room(seg):
            tw.last_oow_ack_time = now
        _send_ack(tw, now)


def _send_ack(tw: TimeWaitSock, now: float) -> None:
    laddr, lport, raddr, rport = tw.hash_key
    stamps = None
    if tw.ts_recent_at:
        stamps = ((tcp_clock_ms(now) + tw.ts_offset) & 0xFFFFFFFF, tw.ts_recent)
    reset.tcp_send_control(
        tw.net.ip,
        (laddr, lport, raddr, rport),
        seq=tw.snd_nxt,
        ack_seq=tw.rcv_nxt,
        flags=ACK,
        window=min(tw.rcv_wnd >> tw.rcv_wscale, 65535),
        stamps=stamps,
        tos=tw.tos,
    )
