"""Parameters of the network layer, with Linux's names and defaults where they mean the same.

What the kernel keeps per device is here for all of them; net.ipv6.conf.all.hop_limit and its
neighbours stand for the kernel's conf.default and conf.<device> too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from steertag.family.sysctl import INT_MAX, CtlTable

if TYPE_CHECKING:
    from steertag.family.stack import Stack


class IpSysctl:
    """The values, as the rows that `Stack.sysctl` writes."""

    def __init__(self) -> None:
        self.tables: list[CtlTable] = []
        row = self._row
        self.default_ttl = row("net.ipv4.ip_default_ttl", 64, "TTL of packets", 1, 255)
        self.forward = row(
            "net.ipv4.ip_forward", 0, "packets for others are not forwarded", writable=False
        )
        self.min_pmtu = row("net.ipv4.route.min_pmtu", 552, "least path MTU believed", 68)
        self.mtu_expires = row(
            "net.ipv4.route.mtu_expires", 600, "seconds for which a path MTU is remembered", 1
        )
        self.rp_filter = row(
            "net.ipv4.conf.all.rp_filter",
            0,
            "check sources: 0 no, 1 must be routed back there, 2 must be routed somewhere",
            0,
            2,
        )
        self._fragments()
        self._icmp()
        self._neighbours()
        self._ipv6()

    def _fragments(self) -> None:
        row, memory = self._row, 4 << 20
        self.frag_high = row(
            "net.ipv4.ipfrag_high_thresh", memory, "octets that fragments may take"
        )
        self.frag_time = row("net.ipv4.ipfrag_time", 30, "seconds to wait for fragments", 1)
        self.frag_max_dist = row(
            "net.ipv4.ipfrag_max_dist",
            64,
            "fragments of others from one source between two of one packet; 0: any number",
        )
        self.frag6_high = row(
            "net.ipv6.ip6frag_high_thresh", memory, "octets that fragments may take"
        )
        self.frag6_time = row("net.ipv6.ip6frag_time", 60, "seconds to wait for fragments", 1)

    def _icmp(self) -> None:
        row = self._row
        self.echo_ignore_all = row("net.ipv4.icmp_echo_ignore_all", 0, "no echo replies", 0, 1)
        self.echo_ignore_broadcasts = row(
            "net.ipv4.icmp_echo_ignore_broadcasts", 1, "no replies to broadcast echoes", 0, 1
        )
        self.icmp_ratelimit = row(
            "net.ipv4.icmp_ratelimit", 1000, "milliseconds between errors to one peer; 0: none"
        )
        self.icmp_ratemask = row(
            "net.ipv4.icmp_ratemask", 6168, "bits of the types that are limited"
        )
        self.msgs_per_sec = row(
            "net.ipv4.icmp_msgs_per_sec", 1000, "limited ICMP messages a second, to all"
        )
        self.msgs_burst = row("net.ipv4.icmp_msgs_burst", 50, "as many of them at once")
        self.icmp6_ratelimit = row(
            "net.ipv6.icmp.ratelimit", 1000, "milliseconds between errors to one peer; 0: none"
        )
        self.echo6_ignore_all = row("net.ipv6.icmp.echo_ignore_all", 0, "no echo replies", 0, 1)
        self.echo6_ignore_multicast = row(
            "net.ipv6.icmp.echo_ignore_multicast", 0, "no replies to multicast echoes", 0, 1
        )

    def _neighbours(self) -> None:
        row, base = self._row, "net.ipv4.neigh.default."
        self.gc_thresh1 = row(base + "gc_thresh1", 128, "neighbours kept without looking")
        self.gc_thresh3 = row(base + "gc_thresh3", 1024, "most neighbours", 1)
        self.gc_stale_time = row(base + "gc_stale_time", 60, "seconds a stale one is kept")
        self.base_reachable_ms = row(
            base + "base_reachable_time_ms", 30000, "milliseconds it counts as reachable", 1
        )
        self.delay_first_probe = row(
            base + "delay_first_probe_time", 5, "seconds of use before a stale one is asked"
        )
        self.retrans_ms = row(base + "retrans_time_ms", 1000, "milliseconds between questions", 1)
        self.mcast_solicit = row(base + "mcast_solicit", 3, "questions to all")
        self.ucast_solicit = row(base + "ucast_solicit", 3, "questions to a known one")
        self.unres_qlen = row(base + "unres_qlen", 101, "packets kept for an unknown one", 1)

    def _ipv6(self) -> None:
        row, base = self._row, "net.ipv6.conf.all."
        self.hop_limit = row(base + "hop_limit", 64, "hop limit of packets", 1, 255)
        self.accept_ra = row(
            base + "accept_ra", 0, "take routers and prefixes from advertisements", 0, 1
        )
        self.dad_transmits = row(
            base + "dad_transmits", 0, "questions before an address of a link is used", 0, 16
        )
        self.max_hbh_opts = row("net.ipv6.max_hbh_opts_number", 8, "options in a hop-by-hop header")
        self.max_dst_opts = row(
            "net.ipv6.max_dst_opts_number", 8, "options in a destination header"
        )

    def _row(
        self,
        name: str,
        value: int,
        doc: str,
        minimum: int = 0,
        maximum: int = INT_MAX,
        writable: bool = True,
    ) -> list[int]:
        data = [value]
        self.tables.append(CtlTable(name, data, doc, minimum, maximum, writable))
        return data

    def register(self, stack: Stack) -> None:
        for table in self.tables:
            stack.sysctl.register(table)

    def unregister(self, stack: Stack) -> None:
        for table in self.tables:
            stack.sysctl.unregister(table.name)
