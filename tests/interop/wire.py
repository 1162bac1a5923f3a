"""The packets of a test with the guest, and what tshark says of them."""

from __future__ import annotations

from pathlib import Path

from steertag.observe.pcap import PcapWriter
from tests.interop.guest.machine import Guest
from tests.interop.tshark import Verdict, judge
from tests.wire.mpa_stream import Connection, connections


class Wire:
    """What went over the wire in a test, for whoever looks at it afterwards."""

    def __init__(self, guest: Guest, path: Path) -> None:
        self._guest, self._path = guest, path
        self._capturing = guest.capturing(path)
        self._capturing.__enter__()
        self._open = True

    def close(self) -> None:
        """The end of what is looked at."""
        if self._open:
            self._open = False
            self._capturing.__exit__(None, None, None)

    def verdict(self) -> Verdict:
        """tshark's, of the octets in packets that begin where FPDUs do.

        In the packets as they were it loses its place when one ends with the first octets of an
        FPDU, as one in some thousands does.
        """
        path = self._path.with_suffix(".repacked.pcap")
        with PcapWriter(path) as writer:
            for connection in self.connections():
                stream = connection.stream
                tap = writer.tap(stream.client, stream.server)
                client, server = connection.directions
                tap.sent(stream.sent[: len(client.start)])
                tap.received(stream.received[: len(server.start)])
                for segment in client.segments:
                    tap.sent(segment.octets)
                for segment in server.segments:
                    tap.received(segment.octets)
                assert client.rest == server.rest == b""
                tap.close()
        return judge(path)

    def connections(self) -> list[Connection]:
        self.close()
        return connections(self._path.read_bytes())

    def check(self, *, crc: bool) -> list[Connection]:
        """tshark finds nothing wrong; gives the connections."""
        verdict = self.verdict()
        found = self.connections()
        fpdus = sum(len(side.segments) for one in found for side in one.directions)
        assert fpdus > 0
        assert (verdict.good, verdict.bad) == (fpdus if crc else 0, 0)
        assert (verdict.malformed, verdict.bad_checksums) == (0, 0)
        assert verdict.start_frames == 2 * len(found)
        assert all(one.crc is crc for one in found)
        return found
