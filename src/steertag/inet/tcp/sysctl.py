"""TCP's parameters, with Linux's names and defaults (net/ipv4/sysctl_net_ipv4.c)."""

from __future__ import annotations

from typing import Final

from steertag.family.sysctl import INT_MAX, CtlTable

_PREFIX: Final = "net.ipv4.tcp_"

# name, default, least, most, meaning
_ROWS: Final[tuple[tuple[str, int, int, int, str], ...]] = (
    ("abort_on_overflow", 0, 0, 1, "answer a full accept queue with RST"),
    ("challenge_ack_limit", INT_MAX, 0, INT_MAX, "challenge ACKs a second, of the whole Stack"),
    ("dsack", 1, 0, 1, "report duplicates with D-SACK"),
    ("early_retrans", 3, 0, 4, "3 or more: tail loss probes"),
    ("ecn", 2, 0, 2, "0 never, 1 ask and accept, 2 accept"),
    ("fastopen", 1, 0, 0x607, "bits: 1 client, 2 server, 4 client without cookie"),
    ("ecn_fallback", 1, 0, 1, "a SYN that is sent again does not ask for ECN"),
    ("fastopen_blackhole_timeout_sec", 0, 0, INT_MAX, "no Fast Open so long after it was lost"),
    ("fin_timeout", 60, 1, 3600, "seconds that an orphan stays in FIN-WAIT-2"),
    ("frto", 2, 0, 2, "detect spurious timeouts (RFC 5682)"),
    ("invalid_ratelimit", 500, 0, 60000, "ms between answers to invalid segments of a connection"),
    ("keepalive_intvl", 75, 1, 32767, "seconds between keepalive probes"),
    ("keepalive_probes", 9, 1, 255, "keepalive probes without an answer that end a connection"),
    ("keepalive_time", 7200, 1, 32767, "idle seconds before the first keepalive probe"),
    ("max_orphans", 4096, 0, INT_MAX, "closed connections that may still deliver"),
    ("max_reordering", 300, 1, INT_MAX, "most segments of reordering that are assumed"),
    ("max_syn_backlog", 512, 0, INT_MAX, "requests of a listener not yet acknowledged"),
    ("max_tw_buckets", 65536, 0, INT_MAX, "connections in TIME-WAIT"),
    ("min_rtt_wlen", 300, 0, 86400, "seconds that the least round trip is remembered"),
    ("min_snd_mss", 48, 48, 65535, "least octets of payload in a segment"),
    ("moderate_rcvbuf", 1, 0, 1, "tune receive buffers"),
    ("notsent_lowat", INT_MAX, 0, INT_MAX, "unsent octets above which a socket isn't writable"),
    ("orphan_retries", 0, 0, 255, "retransmissions of an orphan; 0 means 8"),
    ("recovery", 1, 0, 7, "bit 1: RACK loss detection"),
    ("reordering", 3, 1, 300, "segments of reordering assumed at start"),
    ("retries1", 3, 0, 255, "retransmissions before the route is doubted"),
    ("retries2", 15, 0, 255, "retransmissions before a connection is given up"),
    ("rfc1337", 0, 0, 1, "ignore RST in TIME-WAIT"),
    ("sack", 1, 0, 1, "selective acknowledgements"),
    ("slow_start_after_idle", 1, 0, 1, "restart the window after idling"),
    ("stdurg", 0, 0, 1, "the urgent pointer as RFC 1122 reads it"),
    ("syn_linear_timeouts", 4, 0, 127, "time-outs of a SYN before they double"),
    ("syn_retries", 6, 1, 127, "retransmissions of a SYN"),
    ("synack_retries", 5, 0, 255, "retransmissions of a SYN-ACK"),
    ("syncookies", 1, 0, 2, "0 never, 1 when the backlog is full, 2 always"),
    ("timestamps", 1, 0, 2, "timestamps option; 2 without random offsets"),
    ("tw_reuse", 2, 0, 2, "connect over TIME-WAIT: 0 never, 1 always, 2 on loopback"),
    ("window_scaling", 1, 0, 1, "window scale option"),
)


def tcp_tables(mem: list[int], wmem: list[int], rmem: list[int]) -> list[CtlTable]:
    """The parameters of one Stack; the rows of memory are those that `Proto` reads."""
    tables = [
        CtlTable(_PREFIX + name, [value], doc, low, high) for name, value, low, high, doc in _ROWS
    ]
    tables.append(CtlTable(_PREFIX + "mem", mem, "memory of all: low, pressure, high, pages"))
    tables.append(CtlTable(_PREFIX + "wmem", wmem, "send buffer: minimum, default, maximum"))
    tables.append(CtlTable(_PREFIX + "rmem", rmem, "receive buffer: minimum, default, maximum"))
    return tables
