"""CUBIC (RFC 9438), with HyStart++ (RFC 9406) for the first slow start.

The window's curve is computed in segments and seconds, as the RFC has it; `sk.cwnd` is in octets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from steertag.inet.tcp.cong.ops import (
    CA_EVENT_TX_START,
    CongestionOps,
    tcp_is_cwnd_limited,
    tcp_slow_start,
)

if TYPE_CHECKING:
    from steertag.inet.tcp.sock import TcpSock

C: Final = 0.4
BETA: Final = 0.7
_ALPHA: Final = 3.0 * (1.0 - BETA) / (1.0 + BETA)
_TCP_CA_LOSS: Final = 4
_INFINITE_SSTHRESH: Final = 0x7FFFFFFF
_MASK: Final = 0xFFFFFFFF
_HALF: Final = 0x80000000

# HyStart++ (RFC 9406 section 4.3)
MIN_RTT_THRESH: Final = 0.004
MAX_RTT_THRESH: Final = 0.016
MIN_RTT_DIVISOR: Final = 8
N_RTT_SAMPLE: Final = 8
CSS_GROWTH_DIVISOR: Final = 4
CSS_ROUNDS: Final = 5
_NO_RTT: Final = float("inf")


class CubicState:
    """What CUBIC knows of a connection; `sk.ca_priv`.

    Attributes:
        w_max: the window, segments, where the curve is flat; 0.0 for none.
        k: seconds from the epoch's start to there.
        epoch: when this stage of congestion avoidance began; negative: it has not.
        origin: the window at the curve's flat point: w_max, or where the epoch began.
        w_est: what Reno's window would be, segments.
        cwnd_prior: the window at the last congestion, segments.
        fraction: of an octet that the window is to grow still.
        saved: w_max, k, epoch, origin, w_est, cwnd_prior before the last congestion.
        round_end, round_min, last_min, samples, css_rounds, css_base: HyStart++'s.
    """

    __slots__ = (
        "css_base",
        "css_rounds",
        "cwnd_prior",
        "epoch",
        "fraction",
        "k",
        "last_min",
        "origin",
        "round_end",
        "round_min",
        "samples",
        "saved",
        "w_est",
        "w_max",
    )

    def __init__(self, round_end: int) -> None:
        self.reset()
        self.saved: tuple[float, float, float, float, float, float] | None = None
        self.round_end = round_end
        self.round_min = self.last_min = _NO_RTT
        self.samples = 0
        self.css_rounds = 0
        self.css_base = _NO_RTT

    def reset(self) -> None:
        """Nothing is known of the path (RFC 9438 section 4.8)."""
        self.w_max = self.k = self.origin = self.w_est = self.cwnd_prior = self.fraction = 0.0
        self.epoch = -1.0


class Cubic(CongestionOps):
    """The default."""

    name = "cubic"

    def init(self, sk: TcpSock) -> None:
        sk.ca_priv = CubicState(sk.snd_nxt)

    def ssthresh(self, sk: TcpSock) -> int:
        ca = _state(sk)
        window = sk.cwnd / sk.mss_cache
        ca.saved = (ca.w_max, ca.k, ca.epoch, ca.origin, ca.w_est, ca.cwnd_prior)
        ca.cwnd_prior = window
        # Fast convergence (section 4.7): who lost below the last maximum makes room.
        ca.w_max = window * (1.0 + BETA) / 2.0 if window < ca.w_max else window
        ca.epoch = -1.0
        ca.fraction = 0.0
        return max(int(sk.cwnd * BETA), 2 * sk.mss_cache)

    def cong_avoid(self, sk: TcpSock, ack: int, acked: int, now: float) -> None:
        if not tcp_is_cwnd_limited(sk):
            return
        if sk.cwnd < sk.ssthresh:
            ca = _state(sk)
            if ca.css_rounds:
                acked //= CSS_GROWTH_DIVISOR
            acked = tcp_slow_start(sk, acked)
            if not acked:
                return
        self._avoid(sk, acked, now)

    def _avoid(self, sk: TcpSock, acked: int, now: float) -> None:
        """Section 4.2 to 4.5: the larger of the cubic curve's and Reno's window."""
        ca = _state(sk)
        mss = sk.mss_cache
        octets = sk.cwnd + ca.fraction
        window = octets / mss
        if ca.epoch < 0.0:
            _new_epoch(ca, window, now)
        share = acked / octets
        alpha = 1.0 if ca.w_est >= ca.cwnd_prior else _ALPHA
        ca.w_est += alpha * share
        t = now - ca.epoch - ca.k
        if C * t * t * t + ca.origin < ca.w_est:  # the Reno-friendly region
            if ca.w_est > window:
                window = ca.w_est
        else:
            t += sk.srtt
            target = C * t * t * t + ca.origin
            if target > 1.5 * window:
                target = 1.5 * window
            if target > window:
                window += (target - window) * share
        octets = window * mss
        whole = int(octets)
        ca.fraction = octets - whole
        sk.cwnd = whole if whole < sk.cwnd_clamp else sk.cwnd_clamp

    def set_state(self, sk: TcpSock, new: int) -> None:
        if new == _TCP_CA_LOSS:
            ca = _state(sk)
            prior = ca.cwnd_prior
            ca.reset()
            ca.cwnd_prior = prior
            _hystart_reset(ca, sk)

    def cwnd_event(self, sk: TcpSock, event: int) -> None:
        if event == CA_EVENT_TX_START:
            ca = _state(sk)
            now = sk.sk_stack.clock()
            idle = now - sk.lsndtime
            if ca.epoch >= 0.0 and idle > 0.0:
                # Time without data in flight is no time of the curve's (section 5.8).
                ca.epoch = min(ca.epoch + idle, now)

    def pkts_acked(self, sk: TcpSock, acked: int, rtt: float, now: float) -> None:
        if sk.cwnd < sk.ssthresh and sk.ssthresh >= _INFINITE_SSTHRESH:
            _hystart(sk, _state(sk), rtt)

    def undo_cwnd(self, sk: TcpSock) -> int:
        ca = _state(sk)
        if ca.saved is not None:  # section 4.9
            ca.w_max, ca.k, ca.epoch, ca.origin, ca.w_est, ca.cwnd_prior = ca.saved
            ca.saved = None
        return max(sk.cwnd, sk.prior_cwnd)


def _state(sk: TcpSock) -> CubicState:
    state = sk.ca_priv
    if type(state) is not CubicState:  # `init` was not called yet
        state = sk.ca_priv = CubicState(sk.snd_nxt)
    return state


def _new_epoch(ca: CubicState, window: float, now: float) -> None:
    ca.epoch = now
    ca.w_est = window
    if window < ca.w_max:
        ca.k = float(((ca.w_max - window) / C) ** (1.0 / 3.0))
        ca.origin = ca.w_max
    else:
        ca.k = 0.0
        ca.origin = window


def _hystart_reset(ca: CubicState, sk: TcpSock) -> None:
    ca.round_end = sk.snd_nxt
    ca.round_min = ca.last_min = ca.css_base = _NO_RTT
    ca.samples = ca.css_rounds = 0


def _hystart(sk: TcpSock, ca: CubicState, rtt: float) -> None:
    """Leave slow start when the round trip grows (RFC 9406 section 4.2)."""
    if (ca.round_end - sk.snd_una) & _MASK >= _HALF or sk.snd_una == ca.round_end:
        _hystart_round(sk, ca)
    if rtt < 0.0:
        return
    ca.samples += 1
    if rtt < ca.round_min:
        ca.round_min = rtt
    if ca.samples < N_RTT_SAMPLE or ca.last_min == _NO_RTT:
        return
    if not ca.css_rounds:
        threshold = max(MIN_RTT_THRESH, min(ca.last_min / MIN_RTT_DIVISOR, MAX_RTT_THRESH))
        if ca.round_min >= ca.last_min + threshold:
            ca.css_base = ca.round_min
            ca.css_rounds = 1
            sk.mib["TcpExtTCPHystartDelayDetect"] += 1
            sk.mib["TcpExtTCPHystartDelayCwnd"] += sk.cwnd // sk.mss_cache
    elif ca.round_min < ca.css_base:  # it was nothing: slow start goes on
        ca.css_base = _NO_RTT
        ca.css_rounds = 0


def _hystart_round(sk: TcpSock, ca: CubicState) -> None:
    """All that was in flight when the round began is acknowledged: the next begins."""
    ca.round_end = sk.snd_nxt
    ca.last_min, ca.round_min = ca.round_min, _NO_RTT
    ca.samples = 0
    if ca.css_rounds:
        ca.css_rounds += 1
        if ca.css_rounds > CSS_ROUNDS:
            sk.ssthresh = sk.cwnd
            ca.css_rounds = 0
