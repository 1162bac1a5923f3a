"""Selective acknowledgements: their checks, D-SACK, and tagging (RFC 2018, 2883, 6675).

After tcp_sacktag_write_queue of net/ipv4/tcp_input.c. Pieces are super-segments, so a block's edge
often lies within one: it is split there, at a multiple of the segment size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from steertag.inet.tcp.ackstate import (
    FLAG_DATA_SACKED,
    FLAG_DSACK_TLP,
    FLAG_DSACKING_ACK,
    FLAG_ORIG_SACK_ACKED,
    AckState,
)
from steertag.inet.tcp.rack import tcp_rack_advance
from steertag.inet.tcp.skb import (
    TCPCB_EVER_RETRANS,
    TCPCB_LOST,
    TCPCB_SACKED_ACKED,
    TCPCB_SACKED_RETRANS,
    TcpSkb,
)
from steertag.inet.tcp.sock import TCP_CA_LOSS
from steertag.wire.seq import after, before, diff

if TYPE_CHECKING:
    from steertag.inet.tcp.sock import TcpSock

Block = tuple[int, int]

_MASK: Final = 0xFFFFFFFF
_HALF: Final = 0x80000000
_MOST_BLOCKS: Final = 4
_MOST_OF_DSACK: Final = 65536
"""Octets: a D-SACK reports one segment (RFC 2883 section 4), at most a super-segment."""


def tcp_sacktag_write_queue(sk: TcpSock, ack: int, blocks: tuple[Block, ...], st: AckState) -> None:
    """Tag what the peer says it has, block by block. The queue's head was trimmed."""
    blocks = blocks[:_MOST_BLOCKS]
    dsack = _check_dsack(sk, ack, blocks, st)
    if before(ack, (st.prior_una - sk.max_window) & _MASK) or not sk.rtx:
        return
    valid = []
    for number, (start, end) in enumerate(blocks):
        duplicate = dsack and number == 0
        if not tcp_is_sackblock_valid(sk, duplicate, start, end):
            _count_invalid(sk, duplicate, start, ack)
        elif after(start, sk.snd_una):
            if duplicate:
                _tag_duplicate(sk, start, end, st)
            valid.append(((start - sk.snd_una) & _MASK, start, end))
    # Ascending, whatever order they came in: what is new at the top is not reordered.
    for _, start, end in sorted(valid):
        for low, high in sk.rtx.holes(start, end):
            _tag_hole(sk, low, high, st)
    if st.reord is not None and (sk.ca_state != TCP_CA_LOSS or sk.undo_marker is not None):
        tcp_check_sack_reordering(sk, st.reord, False)


def tcp_is_sackblock_valid(sk: TcpSock, is_dsack: bool, start: int, end: int) -> bool:
    """Is the block of what was sent? A D-SACK may lie before snd_una, but not far before.

    Data before `undo_marker`, or more than the largest window before it, is of another time:
    sequence numbers may have wrapped.
    """
    if after(end, sk.snd_nxt) or not before(start, end) or not before(start, sk.snd_nxt):
        return False
    if after(start, sk.snd_una):
        return True
    if not is_dsack or sk.undo_marker is None or after(end, sk.snd_una):
        return False
    if not before(start, sk.undo_marker):
        return True
    if not after(end, sk.undo_marker):
        return False
    return not before(start, (end - sk.max_window) & _MASK)


def _count_invalid(sk: TcpSock, is_dsack: bool, start: int, ack: int) -> None:
    if is_dsack:
        name = "TCPDSACKIgnoredNoUndo" if sk.undo_marker is None else "TCPDSACKIgnoredOld"
    elif before(start, sk.snd_una) and ack != sk.snd_una:
        return  # an old ACK that was overtaken
    else:
        name = "TCPSACKDiscard"
    sk.mib["TcpExt" + name] += 1


# -- D-SACK -------------------------------------------------------------------------------------


def _check_dsack(sk: TcpSock, ack: int, blocks: tuple[Block, ...], st: AckState) -> bool:
    """Is the first block one of octets received twice (RFC 2883 section 4)?"""
    start, end = blocks[0]
    if before(start, ack):
        name = "TcpExtTCPDSACKRecv"
    elif len(blocks) > 1 and not after(end, blocks[1][1]) and not before(start, blocks[1][0]):
        name = "TcpExtTCPDSACKOfoRecv"
    else:
        return False
    segments = _dsack_seen(sk, start, end, st)
    if not segments:
        sk.mib["TcpExtTCPDSACKIgnoredDubious"] += 1
        return False
    sk.mib[name] += 1
    sk.mib["TcpExtTCPDSACKRecvSegs"] += segments
    if (
        sk.undo_marker is not None
        and sk.undo_retrans > 0
        and not after(end, st.prior_una)
        and after(end, sk.undo_marker)
    ):
        sk.undo_retrans = max(0, sk.undo_retrans - diff(end, start))
    return True


def _dsack_seen(sk: TcpSock, start: int, end: int, st: AckState) -> int:
    """Count a D-SACK; returns its segments, 0 for one that says nothing of us.

    That is one of more than a window; and where the peer reports more duplicates than were ever
    sent again the network makes them.
    """
    octets = diff(end, start)
    if octets <= 0 or octets > sk.max_window:
        return 0
    segments = 1
    if octets > sk.mss_cache:
        segments = -(-octets // sk.mss_cache)
    elif sk.tlp_high_seq == end:
        st.flag |= FLAG_DSACK_TLP
    sk.dsack_dups += segments
    if sk.dsack_dups > sk.total_retrans:
        return 0
    if sk.reord_seen and not st.flag & FLAG_DSACK_TLP:
        sk.rack_dsack_seen = True
    st.flag |= FLAG_DSACKING_ACK
    sk.delivered += octets  # a retransmission that was not needed has arrived all the same
    return segments


def _tag_duplicate(sk: TcpSock, start: int, end: int, st: AckState) -> None:
    """A D-SACK of what is in the queue still: a retransmission that was not needed."""
    rtx = sk.rtx
    skbs = rtx.skbs
    if (end - start) & _MASK > _MOST_OF_DSACK:
        end = (start + _MOST_OF_DSACK) & _MASK
    at = rtx.find(start)
    while at < len(skbs) and before(skbs[at].seq, end):
        skb = skbs[at]
        at += 1
        if before(skb.seq, start) or after(skb.end_seq, end):
            continue
        if skb.sacked & (TCPCB_EVER_RETRANS | TCPCB_SACKED_RETRANS):
            octets = (skb.end_seq - skb.seq) & _MASK
            marker = sk.undo_marker
            if marker is not None and sk.undo_retrans > 0 and after(skb.end_seq, marker):
                sk.undo_retrans = max(0, sk.undo_retrans - octets)
            if skb.sacked & TCPCB_SACKED_ACKED and (st.reord is None or before(skb.seq, st.reord)):
                st.reord = skb.seq
            if skb.sacked & TCPCB_SACKED_RETRANS:
                skb.sacked &= ~TCPCB_SACKED_RETRANS
                sk.retrans_out -= octets


# -- tagging ------------------------------------------------------------------------------------


def _tag_hole(sk: TcpSock, low: int, high: int, st: AckState) -> None:
    """Tag the pieces of low..high, none of which is tagged yet; edges are split off."""
    rtx = sk.rtx
    skbs = rtx.skbs
    at = rtx.find(low)
    first = last = None
    while at < len(skbs) and (skbs[at].seq - high) & _MASK >= _HALF:
        skb = skbs[at]
        if (skb.seq - low) & _MASK >= _HALF:  # begins before the block
            count = _split_at(sk, skb, low, up=True)
            if count:
                rtx.split(at, count)
            at += 1
            continue
        if (high - skb.end_seq) & _MASK >= _HALF:  # ends behind it
            count = _split_at(sk, skb, high, up=False)
            if not count:
                break
            rtx.split(at, count)
        if not skb.sacked & TCPCB_SACKED_ACKED:
            _tag_one(sk, skb, st)
        if first is None:
            first = skb.seq
        last = skb.end_seq
        at += 1
    if first is not None and last is not None:
        rtx.add_range(first, last)


def _split_at(sk: TcpSock, skb: TcpSkb, seq: int, *, up: bool) -> int:
    """Octets of payload to leave in the piece so that it is split by `seq`, in whole segments.

    Segments of which the peer has a part only count as not had: the split goes `up` at the left
    edge of a block and down at the right. 0: not to be split.
    """
    mss = sk.mss_cache
    offset = (seq - skb.seq) & _MASK
    if up:
        offset += -offset % mss
    else:
        offset -= offset % mss
    return offset if 0 < offset < skb.length else 0


def _tag_one(sk: TcpSock, skb: TcpSkb, st: AckState) -> None:
    """The peer has this piece (tcp_sacktag_one)."""
    sacked = skb.sacked
    octets = (skb.end_seq - skb.seq) & _MASK
    tcp_rack_advance(sk, sacked, skb.end_seq, skb.sent_at, st.now)
    if sacked & TCPCB_SACKED_RETRANS:
        # Its retransmission is not known to have left the network unless it was one of a loss.
        if sacked & TCPCB_LOST:
            sacked &= ~(TCPCB_LOST | TCPCB_SACKED_RETRANS)
            sk.lost_out -= octets
            sk.retrans_out -= octets
    else:
        if not sacked & TCPCB_EVER_RETRANS:
            # It was in a gap and sent once: it was reordered.
            if before(skb.seq, sk.rtx.highest_sack) and (
                st.reord is None or before(skb.seq, st.reord)
            ):
                st.reord = skb.seq
            if not after(skb.end_seq, sk.high_seq):
                st.flag |= FLAG_ORIG_SACK_ACKED
            if not st.first_sackt:
                st.first_sackt = skb.sent_at
            st.last_sackt = skb.sent_at
        if sacked & TCPCB_LOST:
            sacked &= ~TCPCB_LOST
            sk.lost_out -= octets
    skb.sacked = sacked | TCPCB_SACKED_ACKED
    st.flag |= FLAG_DATA_SACKED
    sk.sacked_out += octets
    sk.delivered += octets
    st.delivered_one(skb)


# -- reordering ---------------------------------------------------------------------------------


def tcp_check_sack_reordering(sk: TcpSock, low: int, by_timestamp: bool) -> None:
    """`low` was delivered after octets further on: so much is the network's reordering."""
    metric = diff(sk.rtx.highest_sack, low)
    if metric <= 0:
        return
    mss = sk.mss_cache
    if metric > sk.reordering * mss:
        most = sk.sk_stack.sysctl["net.ipv4.tcp_max_reordering"]
        sk.reordering = min(-(-metric // mss), most)
    sk.reord_seen += 1
    sk.mib["TcpExtTCPTSReorder" if by_timestamp else "TcpExtTCPSACKReorder"] += 1
