"""Why a connection runs over the transport alone, and what is remembered of peers.

A fallback is never silent: each has a reason, a counter and a line on the log (the fabric's).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from enum import StrEnum
from typing import Final

_MOST_PEERS: Final = 1024


class Reason(StrEnum):
    """Why it is not SDP."""

    POLICY = "policy"
    """A rule, or the user, says that it is not to be."""
    REMEMBERED = "remembered"
    """The peer was found to have no SDP a short time ago."""
    ANSWERED = "answered"
    """The peer answered the Request with something else than a Reply."""
    CLOSED = "closed"
    """The peer closed or reset the stream on which the Request had come."""
    SILENT = "silent"
    """The peer said nothing within sysctl net.sdp.hello_timeout."""
    REJECTED = "rejected"
    """The peer has RDMA, and refuses SDP."""
    NOT_SDP = "not-sdp"
    """The peer's Reply has no HelloAck, or one that can't be agreed to."""
    PLAIN_PEER = "plain-peer"
    """A peer that connected to us began with something else than a Request."""
    SILENT_PEER = "silent-peer"
    """A peer that connected to us said nothing within sysctl net.sdp.listen_grace."""
    LATE_REQUEST = "late-request"
    """Such a peer sent a Request after something was sent to it: the connection is reset."""


SENTENCES: Final = {
    Reason.POLICY: "a rule says so",
    Reason.REMEMBERED: "it had no SDP a short time ago",
    Reason.ANSWERED: "it answers the MPA Request with something else",
    Reason.CLOSED: "it closes the stream on an MPA Request",
    Reason.SILENT: "it doesn't answer the MPA Request",
    Reason.REJECTED: "it refuses SDP",
    Reason.NOT_SDP: "its MPA Reply has no HelloAck that fits",
    Reason.PLAIN_PEER: "it begins with other octets than an MPA Request",
    Reason.SILENT_PEER: "it says nothing",
    Reason.LATE_REQUEST: "its MPA Request comes after it was sent something as a plain peer",
}
"""For the log: "PEER speaks plain TCP: ..."."""
LEARNT: Final = frozenset(
    {Reason.ANSWERED, Reason.CLOSED, Reason.SILENT, Reason.REJECTED, Reason.NOT_SDP}
)
"""What says something of the peer, to be remembered."""


class Peers:
    """What is known of peers: which were found without SDP, and until when that holds.

    At most so many; the one that was learnt longest ago makes room.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[Hashable, tuple[Reason, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def learn(self, peer: Hashable, reason: Reason, until: float) -> None:
        self._known.pop(peer, None)
        self._known[peer] = reason, until
        if len(self._known) > _MOST_PEERS:
            self._known.popitem(last=False)

    def recall(self, peer: Hashable, now: float) -> Reason | None:
        """What was learnt of the peer, where that still holds."""
        found = self._known.get(peer)
        if found is None:
            return None
        if found[1] <= now:
            del self._known[peer]
            return None
        return found[0]

    def forget(self, peer: Hashable) -> None:
        self._known.pop(peer, None)


class FallbackCounters:
    """How connections came to be: over SDP, or over the transport and for which reason."""

    def __init__(self) -> None:
        self.sdp_active = 0
        self.sdp_passive = 0
        self.sdp_late = 0
        """Of the passive ones, those that were called silent before."""
        self.refused = 0
        """Connections that ended because they would have fallen back and may not."""
        self.by_reason = dict.fromkeys(Reason, 0)

    def group(self) -> dict[str, int]:
        """By name, for `stag netstat -s`."""
        named = {"ActiveOpens": self.sdp_active, "PassiveOpens": self.sdp_passive}
        named["LatePassiveOpens"] = self.sdp_late
        named["FallbackRefused"] = self.refused
        for reason, count in self.by_reason.items():
            named["Fallback" + "".join(map(str.capitalize, reason.split("-")))] = count
        return named
