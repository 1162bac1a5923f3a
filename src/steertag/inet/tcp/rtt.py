"""Round trips: the estimator behind the retransmission timeout, and the least one of late.

RFC 6298 as Linux does it (tcp_rtt_estimator in net/ipv4/tcp_input.c; lib/win_minmax.c).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from steertag.inet.tcp.sock import TcpSock

RTO_MAX: Final = 120.0
_MASK: Final = 0xFFFFFFFF
_HALF: Final = 0x80000000


class WindowedMin:
    """The least of the samples of the last `window` seconds, from three of them (win_minmax.c).

    Attributes:
        value: the least; 0.0 before the first sample.
    """

    __slots__ = ("_at", "_at2", "_at3", "_second", "_third", "value")

    def __init__(self) -> None:
        self.value = self._second = self._third = 0.0
        self._at = self._at2 = self._at3 = float("-inf")

    def update(self, sample: float, now: float, window: float) -> float:
        """Take a sample, seconds; returns the least."""
        if sample <= self.value or now - self._at3 > window:
            self.value = self._second = self._third = sample
            self._at = self._at2 = self._at3 = now
            return sample
        if sample <= self._second:
            self._second = self._third = sample
            self._at2 = self._at3 = now
        elif sample <= self._third:
            self._third = sample
            self._at3 = now
        age = now - self._at
        if age > window:
            # The best is too old: the next best, of its quarter, takes its place.
            self.value, self._at = self._second, self._at2
            self._second, self._at2 = self._third, self._at3
            self._third, self._at3 = sample, now
            if now - self._at > window:
                self.value, self._at = self._second, self._at2
                self._second, self._at2 = self._third, self._at3
        elif self._at2 == self._at and age > window / 4:
            self._second = self._third = sample
            self._at2 = self._at3 = now
        elif self._at3 == self._at2 and age > window / 2:
            self._third = sample
            self._at3 = now
        return self.value


def tcp_rtt_estimator(sk: TcpSock, sample: float) -> None:
    """Take a measured round trip, seconds, into srtt and rttvar (RFC 6298 section 2).

    Linux's differences: the deviation grows slowly while the round trip falls, and `rttvar` is
    the largest deviation of a round trip (mdev_max) and falls by a quarter at most with each, so
    that many samples of one window do not make it forget. It is never below a quarter of rto_min.
    """
    srtt = sk.srtt
    if srtt:
        error = sample - srtt
        sk.srtt = srtt + error * 0.125
        if error < 0.0:
            error = -error - sk.mdev
            sk.mdev += error * 0.03125 if error > 0.0 else error * 0.25
        else:
            sk.mdev += (error - sk.mdev) * 0.25
        if sk.mdev > sk.mdev_max:
            sk.mdev_max = sk.mdev
            if sk.mdev_max > sk.rttvar:
                sk.rttvar = sk.mdev_max
        if (sk.rtt_seq - sk.snd_una) & _MASK >= _HALF:  # a round trip is over
            if sk.mdev_max < sk.rttvar:
                sk.rttvar -= (sk.rttvar - sk.mdev_max) * 0.25
            sk.rtt_seq = sk.snd_nxt
            sk.mdev_max = sk.rto_min * 0.25
    else:
        sk.srtt = sample
        sk.mdev = sample * 0.5
        sk.rttvar = sk.mdev_max = max(sk.mdev, sk.rto_min * 0.25)
        sk.rtt_seq = sk.snd_nxt


def tcp_set_rto(sk: TcpSock) -> None:
    """RTO = SRTT + 4 * RTTVAR, at most 120 s; the back-off is over."""
    rto = sk.srtt + 4.0 * sk.rttvar
    sk.rto = rto if rto < RTO_MAX else RTO_MAX


def tcp_update_rtt_min(sk: TcpSock, sample: float, now: float) -> None:
    """The least round trip of the last net.ipv4.tcp_min_rtt_wlen seconds."""
    window = sk.sk_stack.sysctl["net.ipv4.tcp_min_rtt_wlen"]
    sk.rtt_min = sk.rtt_filter.update(sample, now, window)


def tcp_update_rtt(
    sk: TcpSock, now: float, seq_rtt: float, sack_rtt: float, ca_rtt: float, tsecr: int | None
) -> bool:
    """Take what one acknowledgement says of the round trip; all seconds, negative for nothing.

    Args:
        seq_rtt: from the first octets acknowledged that were sent once only (Karn).
        sack_rtt: the same of those selectively acknowledged.
        ca_rtt: from the last of either: the freshest, for the least round trip.
        tsecr: the echoed timestamp where new octets were acknowledged: it says of retransmitted
            ones too which transmission was answered (RFC 7323 section 4.1).

    Returns whether there was a sample.
    """
    if seq_rtt < 0.0:
        seq_rtt = sack_rtt
    if seq_rtt < 0.0 and tsecr is not None and sk.ts_ok and tsecr:
        ticks = (int(now * 1000.0) + sk.ts_offset - tsecr) & _MASK
        if ticks < 1 << 22:  # an hour and more is no round trip of ours
            seq_rtt = ca_rtt = max(ticks, 1) / 1000.0
    if seq_rtt < 0.0:
        return False
    if ca_rtt >= 0.0:
        tcp_update_rtt_min(sk, ca_rtt, now)
    tcp_rtt_estimator(sk, seq_rtt)
    tcp_set_rto(sk)
    sk.backoff = 0
    return True
