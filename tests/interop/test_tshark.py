"""tshark agrees with us about captures of siw, and finds nothing wrong with our own traffic."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from steertag.observe.pcap import Endpoint, PcapWriter, StreamTap
from steertag.wire import ddp, mpa, rdmap
from steertag.wire.rdmap import Opcode
from tests.interop.tshark import judge
from tests.wire.mpa_stream import capture_octets, connections

CLIENT = Endpoint("10.0.0.1", 40000)
SERVER = Endpoint("10.0.0.2", 7471)


def tagged(opcode: Opcode, *, last: bool = True, to: int = 0) -> bytes:
    return ddp.Tagged(last=last, ulp=rdmap.control(opcode), stag=0x1234, to=to).emit()


def untagged(opcode: Opcode, *, qn: int, msn: int) -> bytes:
    return ddp.Untagged(last=True, ulp=rdmap.control(opcode), qn=qn, msn=msn).emit()


def fpdu(*ulpdu: bytes) -> bytes:
    return b"".join(mpa.emit_fpdu(ulpdu))


def start_up(tap: StreamTap) -> None:
    words = mpa.Enhanced(ird=8, ord=8, peer_to_peer=True, rtr_write=True).emit()
    request = mpa.StartFrame(
        reply=False, crc=True, enhanced=True, private_data=words + b"from the client"
    )
    reply = mpa.StartFrame(reply=True, crc=True, enhanced=True, private_data=words + b"welcome")
    tap.sent(request.emit())
    tap.received(reply.emit())


def test_every_kind_of_frame_that_we_emit_is_well_formed(tmp_path: Path) -> None:
    path = tmp_path / "own.pcap"
    with PcapWriter(path) as writer:
        tap = writer.tap(CLIENT, SERVER)
        start_up(tap)
        tap.sent(fpdu(tagged(Opcode.WRITE)))
        # PADs of every length, several FPDUs to a packet.
        tap.sent(b"".join(fpdu(tagged(Opcode.WRITE), bytes(n)) for n in range(40)))
        # FPDUs over many packets, ending within one that the next begins in.
        large = bytes(mpa.MAX_ULPDU - ddp.TAGGED_LEN)
        tap.sent(fpdu(tagged(Opcode.WRITE, last=False), large) * 3)
        for msn, opcode in enumerate((Opcode.SEND, Opcode.SEND_SE, Opcode.SEND_INVALIDATE), 1):
            tap.sent(fpdu(untagged(opcode, qn=rdmap.QN_SEND, msn=msn), b"hello"))
        request = rdmap.ReadRequest(
            sink_stag=1, sink_to=2, size=3, source_stag=4, source_to=5
        ).emit()
        tap.received(fpdu(untagged(Opcode.READ_REQUEST, qn=rdmap.QN_READ_REQUEST, msn=1), request))
        tap.sent(fpdu(tagged(Opcode.READ_RESPONSE), b"abc"))
        at_fault = tagged(Opcode.READ_RESPONSE)
        terminate = rdmap.Terminate(1, 1, ddp.T_BASE_BOUNDS, 17, at_fault)
        tap.received(
            fpdu(untagged(Opcode.TERMINATE, qn=rdmap.QN_TERMINATE, msn=1), terminate.emit())
        )
        tap.close()
    verdict = judge(path)
    expected = Counter(
        {
            Opcode.WRITE: 1 + 40 + 3,
            Opcode.SEND: 1,
            Opcode.SEND_SE: 1,
            Opcode.SEND_INVALIDATE: 1,
            Opcode.READ_REQUEST: 1,
            Opcode.READ_RESPONSE: 1,
            Opcode.TERMINATE: 1,
        }
    )
    assert verdict.opcodes == expected
    assert verdict.start_frames == 2
    assert (verdict.good, verdict.bad) == (expected.total(), 0)
    assert (verdict.malformed, verdict.bad_checksums) == (0, 0)
    # The Terminate in RFC 5040's form is read as what it says.
    assert "Error Code for DDP Tagged Buffer: Base or bounds violation" in verdict.text


def test_tshark_would_tell_a_bad_crc(tmp_path: Path) -> None:
    path = tmp_path / "spoilt.pcap"
    with PcapWriter(path) as writer:
        tap = writer.tap(CLIENT, SERVER)
        start_up(tap)
        octets = bytearray(fpdu(tagged(Opcode.WRITE), b"payload"))
        octets[20] ^= 1
        tap.sent(octets)
    verdict = judge(path)
    assert (verdict.good, verdict.bad) == (0, 1)


@pytest.mark.parametrize(
    "name", ["rping-crc-S5000", "rping-rtr-read", "ib_send_bw-crc", "user-pyrping-badcrc"]
)
def test_tshark_counts_in_captures_of_siw_what_we_count(name: str, tmp_path: Path) -> None:
    path = tmp_path / "siw.pcap"
    path.write_bytes(capture_octets(name))
    segments = [
        segment
        for connection in connections(capture_octets(name))
        for direction in connection.directions
        for segment in direction.segments
    ]
    verdict = judge(path, verify_checksums=False)
    assert verdict.opcodes == Counter(segment.opcode for segment in segments)
    good = sum(segment.fpdu.crc_ok for segment in segments)
    assert (verdict.good, verdict.bad) == (good, len(segments) - good)
