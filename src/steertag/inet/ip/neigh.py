"""Neighbours: the link-layer addresses of next hops (net/core/neighbour.c; RFC 4861 section 7.3).

ARP and Neighbor Discovery both drive this machine: they ask (`solicit`) and they report what they
hear (`Neighbour.update`). A neighbour that nobody knows holds a few packets back until there is an
answer, or until asking has gone on for long enough: their senders are then told by ICMP.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from steertag.device.gso import checksummed, segments
from steertag.device.offload import dev_queue_xmit
from steertag.family.timer import Timer
from steertag.wire.ethernet import ETH_P_IP, ETH_P_IPV6, HEADER

if TYPE_CHECKING:
    from steertag.device.base import Device, Offload
    from steertag.family.skbuff import Buffer
    from steertag.inet.ip.net import InetNet

NUD_NONE: Final = 0x00
NUD_INCOMPLETE: Final = 0x01
NUD_REACHABLE: Final = 0x02
NUD_STALE: Final = 0x04
NUD_DELAY: Final = 0x08
NUD_PROBE: Final = 0x10
NUD_FAILED: Final = 0x20
NUD_NOARP: Final = 0x40
NUD_PERMANENT: Final = 0x80

NUD_CONNECTED: Final = NUD_PERMANENT | NUD_NOARP | NUD_REACHABLE
NUD_VALID: Final = NUD_CONNECTED | NUD_PROBE | NUD_STALE | NUD_DELAY

STATE_NAMES: Final = {
    NUD_NONE: "NONE",
    NUD_INCOMPLETE: "INCOMPLETE",
    NUD_REACHABLE: "REACHABLE",
    NUD_STALE: "STALE",
    NUD_DELAY: "DELAY",
    NUD_PROBE: "PROBE",
    NUD_FAILED: "FAILED",
    NUD_NOARP: "NOARP",
    NUD_PERMANENT: "PERMANENT",
}

_ETH_HLEN: Final = HEADER.size


class Neighbour:
    """One next hop on one link.

    Attributes:
        address: of IP. device: the link.
        state: NUD_*. lladdr: its address on the link, b"" while nobody knows.
        is_router: it said so (IPv6).
        used, confirmed, updated: seconds of the Stack's clock.
        dead: it was taken out of the table; whoever still has it finds another there.
    """

    __slots__ = (
        "_header",
        "_net",
        "_probes",
        "_queue",
        "_table",
        "_timer",
        "address",
        "confirmed",
        "dead",
        "device",
        "is_router",
        "lladdr",
        "state",
        "updated",
        "used",
    )

    def __init__(self, table: NeighTable, address: bytes, device: Device) -> None:
        self._table, self._net = table, table.net
        self.address, self.device = address, device
        self.state = NUD_NONE
        self.lladdr = b""
        self.is_router = False
        self.dead = False
        self._header = b""
        self._probes = 0
        self._queue: deque[bytes] = deque()
        self._timer = Timer(table.net.stack.timers, self._expired)
        self.used = self.confirmed = self.updated = table.net.stack.clock()

    def __repr__(self) -> str:
        return f"<Neighbour {self.address.hex()} {self.lladdr.hex(':')} {STATE_NAMES[self.state]}>"

    # -- packets leave -----------------------------------------------------------------------------

    def output(self, parts: list[Buffer], offload: Offload | None) -> None:
        """Send an IP packet to it, now or when its address is known. Raises as the device."""
        if not self.state & NUD_CONNECTED and not self._event_send(parts, offload):
            return
        parts.insert(0, self._header)
        if offload is not None:
            offload.csum_start += _ETH_HLEN
            offload.hdr_len += _ETH_HLEN
        dev_queue_xmit(self.device, parts, offload)

    def _event_send(self, parts: list[Buffer], offload: Offload | None) -> bool:
        """neigh_event_send: True if the packet may leave; else it was kept or dropped.

        Raises ENODEV where the link itself is gone.
        """
        if self.dead:
            self._net.indev(self.device)
            self._table.lookup(self.address, self.device).output(parts, offload)
            return False
        now = self._net.stack.clock()
        self.used = now
        if self.state == NUD_STALE:
            self._set_state(NUD_DELAY, now)
            self._timer.mod(now + self._net.ctl.delay_first_probe[0])
            return True
        if self.state & NUD_VALID:
            return True
        # What is kept back is kept whole: the caller may use its buffers again at once.
        if offload is None:
            self._keep(b"".join(parts))
        elif offload.gso_size:
            for piece in segments(parts, offload, 0):
                self._keep(b"".join(piece))
        else:
            self._keep(b"".join(checksummed(parts, offload)))
        if self.state != NUD_INCOMPLETE:
            self._start(now)
        return False

    def _keep(self, packet: bytes) -> None:
        if len(self._queue) >= self._net.ctl.unres_qlen[0]:
            self._queue.popleft()
        self._queue.append(packet)

    def _start(self, now: float) -> None:
        """Nobody knows it: ask everybody."""
        self._set_state(NUD_INCOMPLETE, now)
        self._probes = 0
        if not self._net.ctl.mcast_solicit[0]:
            self._fail(now)
            return
        self._probe(now)

    def _probe(self, now: float) -> None:
        self._timer.mod(now + self._net.ctl.retrans_ms[0] / 1000)
        self._probes += 1
        self._table.solicit(self, b"" if self.state == NUD_INCOMPLETE else self.lladdr)

    # -- time passes -------------------------------------------------------------------------------

    def _expired(self) -> None:
        """neigh_timer_handler."""
        now, ctl = self._net.stack.clock(), self._net.ctl
        state, delay = self.state, ctl.delay_first_probe[0]
        if state == NUD_REACHABLE:
            if now < self.confirmed + self._table.reachable_time:
                self._timer.mod(self.confirmed + self._table.reachable_time)
            elif now < self.used + delay:
                self._set_state(NUD_DELAY, now)
                self._timer.mod(now + delay)
            else:
                self._set_state(NUD_STALE, now)
            return
        if state == NUD_DELAY:
            if now <= self.confirmed + delay:
                self._set_state(NUD_REACHABLE, now)
                self._timer.mod(self.confirmed + self._table.reachable_time)
                return
            self._set_state(NUD_PROBE, now)
            self._probes = 0
        if self.state & (NUD_PROBE | NUD_INCOMPLETE):
            most = ctl.mcast_solicit if self.state == NUD_INCOMPLETE else ctl.ucast_solicit
            if self._probes >= most[0]:
                self._fail(now)
            else:
                self._probe(now)

    def _fail(self, now: float) -> None:
        """neigh_invalidate: whoever sent what is kept back is told that the host is unreachable."""
        self._timer.delete()
        self._set_state(NUD_FAILED, now)
        queue = list(self._queue)
        self._queue.clear()
        for packet in queue:
            self._net.link_failure(packet, self.device)

    def _set_state(self, state: int, now: float) -> None:
        self.state = state
        self.updated = now

    def confirm(self) -> None:
        """It answered, as the transport layer saw."""
        self.confirmed = self._net.stack.clock()

    # -- answers come ------------------------------------------------------------------------------

    def update(self, lladdr: bytes, state: int, *, override: bool = True) -> None:
        """neigh_update: what was heard of it.

        Args:
            lladdr: b"": as it was.
            state: NUD_REACHABLE for an answer to our question, NUD_STALE for what was said
                unasked, NUD_PERMANENT and NUD_NOARP by decree, NUD_FAILED to forget it.
            override: take another address than the one known. Without it another address makes
                what is known doubtful (STALE) and leaves it.
        """
        now = self._net.stack.clock()
        old = self.state
        if not state & NUD_VALID:
            self._timer.delete()
            self._set_state(state, now)
            return
        if not lladdr:
            lladdr = self.lladdr
            if not lladdr:
                return
        if old & NUD_VALID and lladdr != self.lladdr:
            if not override:
                if not old & NUD_CONNECTED:
                    return
                lladdr, state = self.lladdr, NUD_STALE
        elif old & NUD_VALID and state == NUD_STALE:
            return  # nothing new
        if old & (NUD_PERMANENT | NUD_NOARP) and not state & (NUD_PERMANENT | NUD_NOARP):
            return
        self._timer.delete()
        if state & NUD_CONNECTED:
            self.confirmed = now
        self._set_state(state, now)
        if state == NUD_REACHABLE:
            self._timer.mod(now + self._table.reachable_time)
        if lladdr != self.lladdr:
            self.lladdr = lladdr
            ethertype = ETH_P_IP if len(self.address) == 4 else ETH_P_IPV6
            self._header = HEADER.pack(lladdr, self.device.dev_addr, ethertype)
        if not old & NUD_VALID:
            self._flush()

    def _flush(self) -> None:
        """Send what was kept back."""
        queue = list(self._queue)
        self._queue.clear()
        for packet in queue:
            self._net.try_output(self, packet)

    def release(self) -> None:
        """It leaves the table."""
        self.dead = True
        self.state = NUD_NONE
        self._timer.delete()
        self._queue.clear()

    @property
    def collectable(self) -> bool:
        """Whether it may be forgotten: not by decree, and not being asked."""
        return not self.state & (NUD_PERMANENT | NUD_NOARP | NUD_INCOMPLETE)


class NeighTable(ABC):
    """The neighbours on all links of a Stack, of one version of IP (struct neigh_table).

    Attributes:
        reachable_time: seconds for which an answer counts; drawn anew for each Stack, from half to
            one and a half of base_reachable_time_ms (RFC 4861 section 6.3.2).
    """

    def __init__(self, net: InetNet) -> None:
        self.net = net
        self._entries: dict[tuple[Device, bytes], Neighbour] = {}
        self._factor = 0.5 + net.stack.rng.random()

    @property
    def reachable_time(self) -> float:
        return self.net.ctl.base_reachable_ms[0] / 1000 * self._factor

    @abstractmethod
    def solicit(self, neigh: Neighbour, lladdr: bytes) -> None:
        """Ask who has its address: everybody, or only `lladdr`."""

    def find(self, address: bytes, device: Device) -> Neighbour | None:
        return self._entries.get((device, address))

    def lookup(self, address: bytes, device: Device) -> Neighbour:
        """The entry of a next hop, made if need be; old ones go when there are too many."""
        neigh = self._entries.get((device, address))
        if neigh is None:
            if len(self._entries) >= self.net.ctl.gc_thresh3[0]:
                self._collect(0.0, 1 + len(self._entries) // 8)
            elif len(self._entries) >= self.net.ctl.gc_thresh1[0]:
                self._collect(self.net.ctl.gc_stale_time[0], len(self._entries))
            neigh = self._entries[device, address] = Neighbour(self, address, device)
        return neigh

    def _collect(self, age: float, most: int) -> None:
        """Forget up to `most` that were neither used nor heard of for `age` seconds, oldest first.

        Where that is not enough, those that are being asked go too: a sweep over a subnet must not
        fill the memory.
        """
        now = self.net.stack.clock()
        entries = sorted(self._entries.values(), key=lambda each: max(each.used, each.updated))
        old = [each for each in entries if each.collectable and _idle(each, now) >= age]
        if not old and age == 0.0:
            old = [each for each in entries if each.state == NUD_INCOMPLETE]
        for neigh in old[:most]:
            self._remove(neigh)

    def _remove(self, neigh: Neighbour) -> None:
        del self._entries[neigh.device, neigh.address]
        neigh.release()

    def forget(self, device: Device) -> None:
        """The link is gone."""
        for neigh in [each for each in self._entries.values() if each.device is device]:
            self._remove(neigh)

    def delete(self, address: bytes, device: Device) -> bool:
        """Take one out; False if it was not in."""
        neigh = self.find(address, device)
        if neigh is None:
            return False
        self._remove(neigh)
        return True

    def __iter__(self) -> Iterator[Neighbour]:
        return iter(list(self._entries.values()))

    def __len__(self) -> int:
        return len(self._entries)


def _idle(neigh: Neighbour, now: float) -> float:
    return now - max(neigh.used, neigh.updated, neigh.confirmed)
