"""How fast octets are delivered (net/ipv4/tcp_rate.c; draft-cheng-iccrg-delivery-rate-estimation).

A sample goes from the sending of a piece to its acknowledgement: octets delivered between, over the
longer of the time it took to send them and the time it took to have them acknowledged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steertag.inet.tcp.skb import TcpSkb
    from steertag.inet.tcp.sock import TcpSock


def tcp_rate_skb_sent(sk: TcpSock, skb: TcpSkb, now: float) -> None:
    """Note on a piece how things stand as it is sent; before it is counted in flight."""
    if not sk.rtx:
        sk.first_tx_at = sk.delivered_at = now
    skb.first_tx = sk.first_tx_at
    skb.delivered_at = sk.delivered_at
    skb.delivered = sk.delivered
    skb.app_limited = sk.app_limited != 0


def tcp_rate_gen(sk: TcpSock, skb: TcpSkb, now: float) -> None:
    """`skb` is the piece sent last of those just delivered: take the sample.

    It is kept unless it is shorter than the least round trip, which is an artefact of compressed
    acknowledgements, or was limited by the application and is not the best so far.
    """
    if sk.app_limited and sk.delivered > sk.app_limited:
        sk.app_limited = 0
    if not skb.delivered_at or sk.is_sack_reneg:
        return  # after reneging what counts as delivered is not to be relied on
    sk.delivered_at = now
    sk.first_tx_at = skb.sent_at
    interval = now - skb.delivered_at
    sending = skb.sent_at - skb.first_tx
    if sending > interval:
        interval = sending
    if interval < sk.rtt_min or interval <= 0.0:
        return
    octets = sk.delivered - skb.delivered
    limited = skb.app_limited
    if not limited or octets * sk.rate_interval >= sk.rate_delivered * interval:
        sk.rate_delivered = octets
        sk.rate_interval = interval
        sk.rate_app_limited = limited


def tcp_rate_check_app_limited(sk: TcpSock) -> None:
    """Is it the application that has nothing to send? Then samples of now say so."""
    if sk.send_queue or sk.lost_out > sk.retrans_out:
        return
    in_flight = (
        ((sk.snd_nxt - sk.snd_una) & 0xFFFFFFFF) - sk.sacked_out - sk.lost_out + sk.retrans_out
    )
    if in_flight < sk.cwnd:
        sk.app_limited = sk.delivered + in_flight or 1


def tcp_delivery_rate(sk: TcpSock) -> float:
    """Octets a second; 0.0 before the first sample (tcpi_delivery_rate)."""
    return sk.rate_delivered / sk.rate_interval if sk.rate_interval else 0.0
