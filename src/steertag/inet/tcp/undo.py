"""Taking a reduction of the window back that was a mistake: Eifel, D-SACK, F-RTO.

After tcp_try_undo_* of net/ipv4/tcp_input.c; RFC 3522, RFC 3708, RFC 4015, RFC 5682.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from steertag.family.const import TcpState
from steertag.inet.tcp.ackstate import AckState
from steertag.inet.tcp.cwnd import tcp_set_ca_state, tcp_try_keep_open
from steertag.inet.tcp.rack import TCP_RACK_RECOVERY_THRESH
from steertag.inet.tcp.rtx import tcp_any_retrans_done
from steertag.inet.tcp.sack import tcp_check_sack_reordering
from steertag.inet.tcp.sock import TCP_CA_LOSS, TCP_CA_OPEN, TCP_ECN_QUEUE_CWR
from steertag.wire.seq import before

if TYPE_CHECKING:
    from steertag.inet.tcp.sock import TcpSock

_MASK: Final = 0xFFFFFFFF
_HALF: Final = 0x80000000


def tcp_init_undo(sk: TcpSock) -> None:
    """A reduction begins: remember from where on what is sent again tells whether it was right."""
    sk.undo_marker = sk.snd_una
    # Below 0: nothing was sent again yet, so that nothing proves anything.
    sk.undo_retrans = sk.retrans_out or -1


def tcp_packet_delayed(sk: TcpSock, st: AckState) -> bool:
    """Is the acknowledgement an answer to a first transmission (Eifel, RFC 3522)?"""
    if not sk.retrans_stamp:
        # Nothing was sent again, so what was acknowledged was late; but for the two cases in
        # which the stamp was cleared: a handshake's, and `_held_by_reno`.
        if not sk.sack_ok and not before(sk.snd_una, sk.high_seq):
            return False
        return sk.sk_state != TcpState.TCP_SYN_SENT
    if st.tsecr is None or not sk.ts_ok or not st.tsecr:
        return False
    resent = (int(sk.retrans_stamp * 1000.0) + sk.ts_offset) & _MASK
    return (st.tsecr - resent) & _MASK >= _HALF


def _may_undo(sk: TcpSock, st: AckState) -> bool:
    return sk.undo_marker is not None and (not sk.undo_retrans or tcp_packet_delayed(sk, st))


def _undo_cwnd_reduction(sk: TcpSock, now: float, unmark_loss: bool) -> None:
    if unmark_loss:
        sk.rtx.unmark_lost()
    if sk.prior_ssthresh:
        sk.cwnd = sk.ca.undo_cwnd(sk)
        if sk.prior_ssthresh > sk.ssthresh:
            sk.ssthresh = sk.prior_ssthresh
            sk.ecn_flags &= ~TCP_ECN_QUEUE_CWR
    sk.cwnd_stamp = now
    sk.undo_marker = None
    sk.rack_advanced = True  # look again, with what is known now


def _held_by_reno(sk: TcpSock) -> bool:
    """Without SACK, an ACK of exactly high_seq may be followed by duplicates of the recovery
    that is over: stay in it until something beyond is acknowledged (RFC 6582 section 4).
    """
    if sk.snd_una == sk.high_seq and not sk.sack_ok:
        if not tcp_any_retrans_done(sk):
            sk.retrans_stamp = 0.0
        return True
    return False


def tcp_try_undo_recovery(sk: TcpSock, st: AckState) -> bool:
    """All of the recovery is acknowledged: to OPEN, undone if it was spurious. True: not yet."""
    if _may_undo(sk, st):
        name = "TCPLossUndo" if sk.ca_state == TCP_CA_LOSS else "TCPFullUndo"
        _undo_cwnd_reduction(sk, st.now, False)
        sk.mib["TcpExt" + name] += 1
    elif sk.rack_reo_persist:
        sk.rack_reo_persist -= 1
    if _held_by_reno(sk):
        return True
    tcp_set_ca_state(sk, TCP_CA_OPEN)
    sk.is_sack_reneg = False
    return False


def tcp_try_undo_dsack(sk: TcpSock, now: float) -> bool:
    """D-SACKs have reported all that was sent again: none of it was lost (RFC 3708)."""
    if sk.undo_marker is None or sk.undo_retrans:
        return False
    sk.rack_reo_persist = min(TCP_RACK_RECOVERY_THRESH, sk.rack_reo_persist + 1)
    _undo_cwnd_reduction(sk, now, False)
    sk.mib["TcpExtTCPDSACKUndo"] += 1
    return True


def tcp_try_undo_loss(sk: TcpSock, st: AckState, frto_undo: bool) -> bool:
    """The timeout was spurious: nothing is lost, go on as before. True: so it was."""
    if not frto_undo and not _may_undo(sk, st):
        return False
    _undo_cwnd_reduction(sk, st.now, True)
    sk.mib["TcpExtTCPLossUndo"] += 1
    if frto_undo:
        sk.mib["TcpExtTCPSpuriousRTOs"] += 1
    sk.retransmits = 0
    if _held_by_reno(sk):
        return True
    if frto_undo or sk.sack_ok:
        tcp_set_ca_state(sk, TCP_CA_OPEN)
        sk.is_sack_reneg = False
    return True


def tcp_try_undo_partial(sk: TcpSock, st: AckState) -> bool:
    """A partial ACK in recovery that answers a first transmission: it was reordering."""
    if sk.undo_marker is None or not tcp_packet_delayed(sk, st):
        return False
    tcp_check_sack_reordering(sk, st.prior_una, True)
    if sk.retrans_out:
        return True  # what was sent again is in the network: nothing more until it is out
    if not tcp_any_retrans_done(sk):
        sk.retrans_stamp = 0.0
    _undo_cwnd_reduction(sk, st.now, True)
    sk.mib["TcpExtTCPPartialUndo"] += 1
    tcp_try_keep_open(sk)
    return True
