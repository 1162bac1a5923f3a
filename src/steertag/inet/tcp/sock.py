"""What a TCP connection knows (struct tcp_sock, struct inet_connection_sock).

The congestion and flow quantities are in octets, as in the RFCs; TCP_INFO turns them into segments.
Sequence numbers are 32-bit (wire/seq.py); times are seconds of the Stack's clock.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from steertag.errors import StateError
from steertag.family.const import SOCK_NOSPACE, SOCK_SNDBUF_LOCK
from steertag.family.memory import sk_under_memory_pressure
from steertag.family.sock import Sock
from steertag.inet.sock import IpSock
from steertag.inet.tcp.rtt import WindowedMin
from steertag.inet.tcp.skb import TcpSkb

if TYPE_CHECKING:
    from steertag.family.skbuff import Buffer
    from steertag.family.timer import Timer
    from steertag.inet.ip.dst import Dst
    from steertag.inet.mib import Mib
    from steertag.inet.tcp.cong.registry import CongestionOps
    from steertag.inet.tcp.hash import BindBucket, Key
    from steertag.inet.tcp.net import TcpNet
    from steertag.inet.tcp.ofo import OfoQueue
    from steertag.inet.tcp.request import RequestSock
    from steertag.inet.tcp.rtx import RtxQueue

# icsk_pending: what the one retransmit timer is set for (net/inet_connection_sock.h)
ICSK_TIME_NONE: Final = 0
ICSK_TIME_RETRANS: Final = 1
ICSK_TIME_PROBE0: Final = 3
ICSK_TIME_LOSS_PROBE: Final = 5
ICSK_TIME_REO_TIMEOUT: Final = 6

# ca_state (linux/tcp.h)
TCP_CA_OPEN: Final = 0
TCP_CA_DISORDER: Final = 1
TCP_CA_CWR: Final = 2
TCP_CA_RECOVERY: Final = 3
TCP_CA_LOSS: Final = 4

# ecn_flags
TCP_ECN_OK: Final = 1
TCP_ECN_QUEUE_CWR: Final = 2
TCP_ECN_DEMAND_CWR: Final = 4
TCP_ECN_SEEN: Final = 8

# nonagle
TCP_NAGLE_OFF: Final = 1
TCP_NAGLE_CORK: Final = 2
TCP_NAGLE_PUSH: Final = 4

INFINITE_SSTHRESH: Final = 0x7FFFFFFF
TCP_TIMEOUT_INIT: Final = 1.0
TCP_RTO_MIN: Final = 0.2
TCP_RTO_MAX: Final = 120.0
TCP_INIT_CWND: Final = 10
"""Segments (RFC 6928)."""
TCP_MSS_DEFAULT: Final = 536
TCP_MIN_MSS: Final = 88


class TcpSock(IpSock):
    """One connection, or a listener.

    Sending:
        snd_una, snd_nxt: oldest unacknowledged, next to send. write_seq: end of what the user gave.
        snd_wnd: the peer's window, octets. snd_wl1: seq of the segment it came with.
        max_window: the largest it ever offered. snd_wscale: shift of the peer's window field.
        snd_up: end of urgent data (urg_mode says whether there is any).
        mss_cache: octets of payload a segment carries now, options taken off. mss_clamp: what the
        peer's MSS option allows. user_mss: TCP_MAXSEG. advmss: what our SYN says.
        sk_write_queue of `Sock` is not used: `send_queue` holds what has not been sent, in order;
        `rtx` (rtx.py) what has been sent and not acknowledged.
    Receiving:
        rcv_nxt: next expected. rcv_wup: rcv_nxt at the last window that we sent. rcv_wnd: that
        window. copied_seq: next for the user. window_clamp, rcv_ssthresh: bounds of what is
        offered. rcv_wscale: shift of our window field. ofo: out-of-order segments (input.py).
        rcv_mss: estimate of the peer's segment size. scaling_ratio: window.py.
        ack_pending: something is to be acknowledged; ack_now: at once; ack_pushed: segments of less
        than rcv_mss since the last acknowledgement; ack_quick: that many more at
        once; ato: seconds that a delayed acknowledgement waits. pred_ok: the short way is allowed.
        done: the peer's FIN has come. urg_*: urgent data: urg_wait: announced, not there yet;
        urg_data: the octet; urg_taken: read with MSG_OOB, and still to be left out of the stream.
        rcv_tstamp: when the last segment came.
        The receive queue is `sk_receive_queue` with `RcvSkb`s (input.py).
    Round trip (rtt.py): srtt, mdev, rttvar, rto: seconds; srtt 0.0 before the first sample.
    Loss (rtx.py, recovery.py, rack.py): sacked_out, lost_out, retrans_out: octets.
        tlp_high_seq, rack_*, high_seq, undo_marker, undo_retrans, prior_ssthresh, prior_cwnd.
    Congestion: cwnd, ssthresh: octets. cwnd_clamp. ca: the algorithm; ca_priv: its state.
        max_out, is_cwnd_limited: what cwnd validation (RFC 7661) goes by.
    Opening: bind_bucket: who else has the port. hash_key: under which the sock is found as a
        connection.
        A listener's: syn_queue: its requests; syn_young: those not answered a second time yet;
        save_syn: TCP_SAVE_SYN; fastopen_qmax: TCP_FASTOPEN; fastopen_qlen: children that have not
        seen their last ACK.
        A child's: saved_syn: headers of its SYN; snt_synack: when the SYN-ACK left, 0.0 if twice;
        fastopen_rsk: its request, until the SYN-ACK is acknowledged.
        A client's: fastopen_connect, fastopen_no_cookie: the options. defer_connect: connect() was
        called and the SYN waits for data. fast_open_cookie: the option of our SYN, b"" asks for a
        cookie. fastopen_data: what is to go with the SYN. syn_data: data went with it;
        syn_data_acked; syn_fastopen: the SYN had the option. fastopen_client_fail: tcpi's.
    """

    __slots__ = (
        "ack_now",
        "ack_pending",
        "ack_pushed",
        "ack_quick",
        "advmss",
        "app_limited",
        "ato",
        "backoff",
        "bind_bucket",
        "bytes_acked",
        "bytes_received",
        "bytes_retrans",
        "bytes_sent",
        "ca",
        "ca_priv",
        "ca_state",
        "copied_seq",
        "cwnd",
        "cwnd_clamp",
        "cwnd_cnt",
        "cwnd_stamp",
        "cwnd_usage_seq",
        "cwnd_used",
        "data_segs_in",
        "data_segs_out",
        "defer_accept",
        "defer_connect",
        "delack_timer",
        "delivered",
        "delivered_at",
        "delivered_ce",
        "done",
        "dsack_dups",
        "dst",
        "dup_acks",
        "ecn_flags",
        "fast_open_cookie",
        "fastopen_client_fail",
        "fastopen_connect",
        "fastopen_data",
        "fastopen_no_cookie",
        "fastopen_qlen",
        "fastopen_qmax",
        "fastopen_rsk",
        "first_tx_at",
        "frto",
        "hash_key",
        "high_seq",
        "is_cwnd_limited",
        "is_sack_reneg",
        "keepalive_intvl",
        "keepalive_on",
        "keepalive_probes",
        "keepalive_time",
        "keepalive_timer",
        "last_oow_ack_time",
        "linger2",
        "listener",
        "lost",
        "lost_out",
        "lrcvtime",
        "lsndtime",
        "max_out",
        "max_window",
        "mdev",
        "mdev_max",
        "mib",
        "mss_cache",
        "mss_clamp",
        "net",
        "nonagle",
        "notsent_lowat",
        "ofo",
        "pending",
        "pingpong",
        "pmtu",
        "pred_ok",
        "prior_cwnd",
        "prior_ssthresh",
        "probes_out",
        "probes_since",
        "prr_delivered",
        "prr_out",
        "rack_advanced",
        "rack_dsack_seen",
        "rack_end_seq",
        "rack_last_delivered",
        "rack_reo_persist",
        "rack_reo_steps",
        "rack_rtt",
        "rack_xmit_at",
        "rate_app_limited",
        "rate_delivered",
        "rate_interval",
        "rcv_mss",
        "rcv_nxt",
        "rcv_ooopack",
        "rcv_rtt",
        "rcv_rtt_at",
        "rcv_rtt_seq",
        "rcv_ssthresh",
        "rcv_tsecr_seen",
        "rcv_tstamp",
        "rcv_wnd",
        "rcv_wscale",
        "rcv_wup",
        "rcvq_at",
        "rcvq_seq",
        "rcvq_space",
        "recvmsg_inq",
        "reord_seen",
        "reordering",
        "retrans_out",
        "retrans_stamp",
        "retrans_timer",
        "retransmits",
        "rto",
        "rto_min",
        "rtt_filter",
        "rtt_min",
        "rtt_seq",
        "rttvar",
        "rtx",
        "sack_ok",
        "sacked_out",
        "save_syn",
        "saved_syn",
        "scaling_ratio",
        "segs_in",
        "segs_out",
        "send_queue",
        "snd_nxt",
        "snd_sml",
        "snd_una",
        "snd_up",
        "snd_wl1",
        "snd_wnd",
        "snd_wscale",
        "snt_synack",
        "srtt",
        "ssthresh",
        "syn_data",
        "syn_data_acked",
        "syn_fastopen",
        "syn_queue",
        "syn_retries",
        "syn_young",
        "tlp_high_seq",
        "tlp_retrans",
        "total_retrans",
        "ts_offset",
        "ts_ok",
        "ts_recent",
        "ts_recent_at",
        "undo_marker",
        "undo_retrans",
        "urg_data",
        "urg_mode",
        "urg_seq",
        "urg_taken",
        "urg_wait",
        "user_mss",
        "user_timeout",
        "window_clamp",
        "wnd_scale_ok",
        "write_seq",
    )

    def __init__(self) -> None:
        super().__init__()
        # identity and route
        self.dst: Dst | None = None
        self.listener: TcpSock | None = None
        # sending
        self.snd_una = self.snd_nxt = self.write_seq = self.snd_sml = 0
        self.snd_wnd = self.snd_wl1 = self.max_window = 0
        self.snd_wscale = 0
        self.snd_up = 0
        self.urg_mode = False
        self.nonagle = 0
        self.mss_cache = TCP_MSS_DEFAULT
        self.mss_clamp = 65535
        self.user_mss = 0
        self.advmss = TCP_MSS_DEFAULT
        self.pmtu = 0
        self.notsent_lowat = 0
        self.send_queue: deque[TcpSkb] = deque()
        # receiving
        self.rcv_nxt = self.rcv_wup = self.copied_seq = 0
        self.rcv_wnd = self.window_clamp = self.rcv_ssthresh = 0
        self.rcv_wscale = 0
        self.rcv_mss = TCP_MSS_DEFAULT
        self.urg_data: int | None = None
        self.urg_seq = 0
        self.urg_wait = self.urg_taken = False
        self.ack_pending = self.ack_now = False
        self.ack_quick = 0
        self.ack_pushed = 0
        self.ato = 0.0
        self.done = False
        self.pingpong = False
        self.lrcvtime = self.lsndtime = self.rcv_tstamp = 0.0
        self.scaling_ratio = 128
        self.rcvq_seq = self.rcvq_space = 0
        self.rcvq_at = 0.0
        self.rcv_rtt = self.rcv_rtt_at = 0.0
        self.rcv_rtt_seq = self.rcv_tsecr_seen = 0
        self.pred_ok = False
        self.recvmsg_inq = False
        # options agreed on
        self.ts_ok = self.sack_ok = self.wnd_scale_ok = False
        self.ts_recent = 0
        self.ts_recent_at = 0.0
        self.ts_offset = 0
        self.ecn_flags = 0
        # round trip
        self.srtt = self.mdev = self.mdev_max = self.rttvar = 0.0
        self.rtt_min = 0.0
        self.rtt_seq = 0
        self.rtt_filter = WindowedMin()
        self.rto = TCP_TIMEOUT_INIT
        self.rto_min = TCP_RTO_MIN
        self.backoff = 0
        # loss
        self.sacked_out = self.lost_out = self.retrans_out = 0
        self.dup_acks = 0
        self.high_seq = 0
        self.undo_marker: int | None = None
        self.undo_retrans = 0
        self.retrans_stamp = 0.0
        self.retransmits = self.total_retrans = 0
        self.reordering = 3
        self.reord_seen = 0
        self.ca_state = TCP_CA_OPEN
        self.frto = self.is_sack_reneg = False
        self.tlp_high_seq: int | None = None
        self.tlp_retrans = False
        self.rack_xmit_at = self.rack_rtt = 0.0
        self.rack_end_seq = 0
        self.rack_advanced = self.rack_dsack_seen = False
        self.rack_reo_steps = 1
        self.rack_reo_persist = 0
        self.rack_last_delivered = 0
        self.prr_delivered = self.prr_out = 0
        self.delivered = self.delivered_ce = self.lost = 0
        self.delivered_at = 0.0
        self.app_limited = 0
        self.first_tx_at = self.rate_interval = 0.0
        self.rate_delivered = 0
        self.rate_app_limited = True
        self.dsack_dups = 0
        # congestion
        self.cwnd = TCP_INIT_CWND * TCP_MSS_DEFAULT
        self.cwnd_cnt = 0
        self.cwnd_clamp = 0x7FFFFFFF
        self.ssthresh = INFINITE_SSTHRESH
        self.prior_ssthresh = self.prior_cwnd = 0
        self.cwnd_stamp = 0.0
        self.max_out = 0
        self.is_cwnd_limited = False
        self.cwnd_usage_seq = self.cwnd_used = 0
        # endings and options
        self.user_timeout = 0.0
        self.syn_retries = 0
        self.linger2 = 0.0
        self.defer_accept = 0
        self.keepalive_on = False
        self.keepalive_time = self.keepalive_intvl = 0.0
        self.keepalive_probes = 0
        self.pending = ICSK_TIME_NONE
        self.probes_out = 0
        self.probes_since = 0.0
        # statistics
        self.bytes_sent = self.bytes_acked = self.bytes_received = self.bytes_retrans = 0
        self.data_segs_in = self.data_segs_out = self.rcv_ooopack = 0
        self.segs_in = self.segs_out = 0
        # tables (hash.py), listening (listen.py), Fast Open (fastopen.py)
        self.bind_bucket: BindBucket | None = None
        self.hash_key: Key | None = None
        self.last_oow_ack_time = 0.0
        self.syn_queue: dict[Key, RequestSock] = {}
        self.syn_young = 0
        self.save_syn = 0
        self.saved_syn: bytes | None = None
        self.snt_synack = 0.0
        self.fast_open_cookie: bytes | None = None
        self.fastopen_connect = self.fastopen_no_cookie = self.defer_connect = False
        self.fastopen_data: list[Buffer] | None = None
        self.fastopen_qmax = self.fastopen_qlen = self.fastopen_client_fail = 0
        self.fastopen_rsk: RequestSock | None = None
        self.syn_data = self.syn_data_acked = self.syn_fastopen = False
        # Set by the protocol's init (calls.py): what needs the Stack.
        self.net: TcpNet
        self.mib: Mib
        self.ca: CongestionOps
        self.ca_priv: object = None
        self.rtx: RtxQueue
        self.ofo: OfoQueue
        self.retrans_timer: Timer
        self.delack_timer: Timer
        self.keepalive_timer: Timer

    # -- what several files ask -----------------------------------------------------------------

    @property
    def keepalive_time_of(self) -> float:
        """Idle seconds before the first probe: the option, else the Stack's."""
        return self.keepalive_time or float(self.sk_stack.sysctl["net.ipv4.tcp_keepalive_time"])

    @property
    def keepalive_intvl_of(self) -> float:
        return self.keepalive_intvl or float(self.sk_stack.sysctl["net.ipv4.tcp_keepalive_intvl"])

    @property
    def keepalive_probes_of(self) -> int:
        return self.keepalive_probes or self.sk_stack.sysctl["net.ipv4.tcp_keepalive_probes"]

    def readable_octets(self) -> int:
        """Octets that wait to be read."""
        return (self.rcv_nxt - self.copied_seq - self.done) & 0xFFFFFFFF

    def may_grow_sndbuf(self) -> bool:
        """Neither was SO_SNDBUF set, nor is memory short."""
        return not self.sk_flags & SOCK_SNDBUF_LOCK and not sk_under_memory_pressure(self)

    def wants_space(self) -> bool:
        """A sender was turned away for want of room."""
        return bool(self.sk_flags & SOCK_NOSPACE)


def tcp_sk(sk: Sock) -> TcpSock:
    """The sock as a TCP one. Raises StateError: it is none."""
    if not isinstance(sk, TcpSock):
        raise StateError(f"{sk!r} is no TCP sock")
    return sk
