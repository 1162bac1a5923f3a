"""`stag decode` and tshark read the same frames, field for field, out of every capture.

Known differences, each with its test here: tshark takes siw's Terminate, whose nibbles are
exchanged, for another error; it knows no Immediate Data (RFC 7306).
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from steertag.observe.capture import read_capture
from steertag.observe.decode import Decoder, FpduFrame, MpaFrame
from steertag.rdma.markers import MarkerInserter
from steertag.wire import rdmap
from steertag.wire.mpa import StartFrame
from steertag.wire.rdmap import Opcode
from tests.decode_support import (
    LINK_LAYERS,
    Talk,
    as_ipv6,
    every_operation,
    framed,
    immediates,
    pcap,
    pcapng,
)
from tests.interop import tshark
from tests.wire.mpa_stream import CAPTURE_NAMES, capture_octets

Fields = dict[str, Any]


# --- tshark's reading ---------------------------------------------------------------------------


def pdml(path: Path) -> Iterator[tuple[int, list[ET.Element]]]:
    """Number and iWARP protocols of each packet."""
    text = tshark.shown(
        path,
        *("-o", "tcp.reassemble_out_of_order:TRUE"),
        *("-T", "pdml", "-J", "iwarp_mpa iwarp_ddp_rdmap"),
    )
    for packet in ET.fromstring(text).iter("packet"):
        number = packet.find("./proto[@name='geninfo']/field[@name='num']")
        assert number is not None
        protocols = [
            protocol
            for protocol in packet.iter("proto")
            if protocol.get("name") in ("iwarp_mpa", "iwarp_ddp_rdmap")
        ]
        yield int(number.attrib["show"]), protocols


def shown(protocol: ET.Element, name: str) -> str | None:
    field = protocol.find(f".//field[@name='{name}']")
    return None if field is None else field.attrib["show"]


def number(protocol: ET.Element, name: str) -> int:
    text = shown(protocol, name)
    assert text is not None, name
    return int(text, 0)


def tshark_mpa(packet: int, protocol: ET.Element, *, reply: bool) -> Fields:
    return {
        "packet": packet,
        "reply": reply,
        "markers": number(protocol, "iwarp_mpa.marker_flag"),
        "crc": number(protocol, "iwarp_mpa.crc_flag"),
        "reject": number(protocol, "iwarp_mpa.rej_flag"),
        "revision": number(protocol, "iwarp_mpa.rev"),
        "private": (shown(protocol, "iwarp_mpa.privatedata") or "").replace(":", ""),
    }


def tshark_crc(protocol: ET.Element) -> str:
    check = protocol.find(".//field[@name='iwarp_mpa.crc_check']")
    if check is None:
        assert shown(protocol, "iwarp_mpa.crc") is not None
        return "off"
    return "good" if "Good CRC32" in check.attrib["showname"] else "bad"


def tshark_fpdu(packet: int, mpa: ET.Element, rdma: ET.Element) -> Fields:
    fields: Fields = {
        "packet": packet,
        "ulpdu": number(mpa, "iwarp_mpa.ulpdulength"),
        "crc": tshark_crc(mpa),
        "opcode": number(rdma, "iwarp_rdma.opcode"),
        "last": number(rdma, "iwarp_ddp.last_flag"),
    }
    if number(rdma, "iwarp_ddp.tagged_flag"):
        fields["stag"] = number(rdma, "iwarp_ddp.stag")
        fields["to"] = number(rdma, "iwarp_ddp.tagged_offset")
    else:
        for name in ("qn", "msn", "mo"):
            fields[name] = number(rdma, f"iwarp_ddp.{name}")
    if shown(rdma, "iwarp_rdma.inval_stag") is not None:
        fields["invalidate"] = number(rdma, "iwarp_rdma.inval_stag")
    if fields["opcode"] == Opcode.READ_REQUEST:
        names: tuple[str, ...] = ("sinkstag", "sinkto", "rdmardsz", "srcstag", "srcto")
        fields["body"] = tuple(number(rdma, f"iwarp_rdma.{name}") for name in names)
    elif fields["opcode"] == Opcode.TERMINATE:
        fields["body"] = tuple(
            int(field.attrib["show"], 0)
            for field in rdma.iter("field")
            if field.attrib["name"].startswith(
                ("iwarp_rdma.term_layer", "iwarp_rdma.term_etype", "iwarp_rdma.term_errcode")
            )
        )
    elif fields["opcode"] == Opcode.ATOMIC_REQUEST:
        fields["body"] = atomic_request(rdma)
    elif fields["opcode"] == Opcode.ATOMIC_RESPONSE:
        names = ("original_request_identifier", "original_remote_data_value")
        fields["body"] = tuple(number(rdma, f"iwarp_rdma.atomic.{name}") for name in names)
    return fields


# Of a Swap (RFC 7306 section 5.1.2) tshark shows the operands only as octets.
ATOMIC_FIELDS = {
    rdmap.AtomicOpcode.FETCH_ADD: ("add_data", "add_mask", "compare_data", "compare_mask"),
    rdmap.AtomicOpcode.SWAP: (),
    rdmap.AtomicOpcode.CMP_SWAP: ("swap_data", "swap_mask", "compare_data", "compare_mask"),
}


def atomic_request(rdma: ET.Element) -> tuple[int, ...]:
    opcode = rdmap.AtomicOpcode(number(rdma, "iwarp_rdma.atomic.opcode"))
    names = ("request_identifier", "remote_stag", "remote_tagged_offset", *ATOMIC_FIELDS[opcode])
    return (opcode, *(number(rdma, f"iwarp_rdma.atomic.{name}") for name in names))


def by_tshark(path: Path) -> tuple[list[Fields], list[Fields]]:
    """MPA frames and FPDUs."""
    frames: list[Fields] = []
    fpdus: list[Fields] = []
    for packet, protocols in pdml(path):
        rest = iter(protocols)
        for protocol in rest:
            assert protocol.get("name") == "iwarp_mpa"
            if shown(protocol, "iwarp_mpa.fpdu") is not None:
                fpdus.append(tshark_fpdu(packet, protocol, next(rest)))
            else:
                reply = shown(protocol, "iwarp_mpa.rep") is not None
                frames.append(tshark_mpa(packet, protocol, reply=reply))
    return frames, fpdus


# --- ours ---------------------------------------------------------------------------------------


def our_mpa(frame: MpaFrame) -> Fields:
    start = frame.start
    return {
        "packet": frame.packet,
        "reply": start.reply,
        "markers": start.markers,
        "crc": start.crc,
        "reject": start.reject,
        "revision": start.revision,
        "private": start.private_data.hex(),
    }


def our_fpdu(frame: FpduFrame) -> Fields:
    fields: Fields = {
        "packet": frame.packet,
        "ulpdu": frame.ulpdu_length,
        "crc": frame.crc,
        "opcode": frame.opcode,
        "last": frame.last,
    }
    names = ("stag", "to") if frame.tagged else ("qn", "msn", "mo")
    fields.update({name: getattr(frame, name) for name in names})
    if frame.opcode in (Opcode.SEND_INVALIDATE, Opcode.SEND_SE_INVALIDATE):
        fields["invalidate"] = frame.invalidate
    match frame.body:
        case rdmap.ReadRequest() as b:
            fields["body"] = (b.sink_stag, b.sink_to, b.size, b.source_stag, b.source_to)
        case rdmap.Terminate() as b:
            fields["body"] = (b.layer, b.etype, b.code)
        case rdmap.AtomicResponse() as b:
            fields["body"] = (b.identifier, b.value)
        case rdmap.AtomicRequest() as b:
            fields["body"] = (b.opcode, b.identifier, b.stag, b.to)
            if ATOMIC_FIELDS[b.opcode]:
                fields["body"] += (b.swap_data, b.swap_mask, b.compare_data, b.compare_mask)
    return fields


def by_us(octets: bytes) -> tuple[list[Fields], list[Fields], Decoder]:
    decoder = Decoder()
    found = list(decoder.decode(read_capture(BytesIO(octets))))
    return (
        [our_mpa(frame) for frame in found if isinstance(frame, MpaFrame)],
        [our_fpdu(frame) for frame in found if isinstance(frame, FpduFrame)],
        decoder,
    )


def agreed(octets: bytes, tmp_path: Path) -> Decoder:
    """Assert that both read the same; the answer has the figures."""
    path = tmp_path / "capture.pcap"
    path.write_bytes(octets)
    frames, fpdus = by_tshark(path)
    our_frames, our_fpdus, decoder = by_us(octets)
    assert our_frames == frames
    assert our_fpdus == fpdus
    return decoder


# --- captures of siw ----------------------------------------------------------------------------

SIW_TERMINATES = {"user-pyrping-badcrc"}


@pytest.mark.parametrize("name", [name for name in CAPTURE_NAMES if name not in SIW_TERMINATES])
def test_every_frame_of_a_capture_of_siw_is_read_as_tshark_reads_it(
    name: str, tmp_path: Path
) -> None:
    decoder = agreed(capture_octets(name), tmp_path)
    assert decoder.summary.fpdus > 0
    assert decoder.summary.bad == 0


@pytest.mark.parametrize("name", sorted(SIW_TERMINATES))
def test_siws_terminate_is_all_that_tshark_reads_otherwise(name: str, tmp_path: Path) -> None:
    octets = capture_octets(name)
    path = tmp_path / "capture.pcap"
    path.write_bytes(octets)
    frames, fpdus = by_tshark(path)
    our_frames, our_fpdus, decoder = by_us(octets)
    assert our_frames == frames
    ours = [fpdu.pop("body") for fpdu in our_fpdus if fpdu["opcode"] == Opcode.TERMINATE]
    theirs = [fpdu.pop("body") for fpdu in fpdus if fpdu["opcode"] == Opcode.TERMINATE]
    assert our_fpdus == fpdus
    # LLP, MPA, CRC error; tshark: RDMA, remote operation error, "access rights violation".
    assert (ours, theirs) == ([(2, 0, 2)], [(0, 2, 2)])
    assert decoder.summary.crc["bad"] == 1


# --- our own, with what siw doesn't send --------------------------------------------------------


def whole() -> Talk:
    talk = Talk()
    every_operation(talk)
    terminate = rdmap.Terminate(1, 1, 1, 17, b"\x81\x40" + bytes(12))
    talk.server.untagged(Opcode.TERMINATE, terminate.emit())
    talk.close()
    return talk


def test_every_operation_is_read_as_tshark_reads_it(tmp_path: Path) -> None:
    decoder = agreed(pcap(whole().packets), tmp_path)
    assert decoder.summary.bad == 0
    assert decoder.summary.crc["good"] == 2 * 19 + 1


def test_immediate_data_is_all_that_tshark_does_not_know(tmp_path: Path) -> None:
    talk = Talk()
    immediates(talk)
    path = tmp_path / "capture.pcap"
    path.write_bytes(pcap(talk.packets))
    _, fpdus = by_tshark(path)
    _, ours, _ = by_us(path.read_bytes())
    assert ours == fpdus  # without the eight octets, which `test_decode_frames` looks at
    assert [fpdu["opcode"] for fpdu in ours] == [Opcode.IMMEDIATE, Opcode.IMMEDIATE_SE]
    text = tshark.shown(path, "-T", "fields", "-e", "_ws.col.Info")
    assert "Immediate" not in text


@pytest.mark.parametrize("layer", [name for name in LINK_LAYERS if name != "nflog"])
def test_every_link_layer_is_read_as_tshark_reads_it(layer: str, tmp_path: Path) -> None:
    decoder = agreed(pcap(framed(packet, layer) for packet in whole().packets), tmp_path)
    assert decoder.summary.fpdus == 2 * 19 + 1


@pytest.mark.parametrize(
    ("extensions", "first"),
    [
        (b"", 6),
        (b"\x06\x00" + bytes(6), 0),  # hop-by-hop options
        (b"\x3c\x00" + bytes(6) + b"\x06\x01" + bytes(14), 0),  # ... and destination options
        (b"\x06\x00" + bytes(6), 44),  # a fragment header of a packet that is whole
    ],
)
def test_ipv6_is_read_as_tshark_reads_it(extensions: bytes, first: int, tmp_path: Path) -> None:
    packets = [as_ipv6(packet, extensions, first) for packet in whole().packets]
    decoder = agreed(pcap(packets), tmp_path)
    assert decoder.summary.fpdus == 2 * 19 + 1


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng_with_two_interfaces_is_read_as_tshark_reads_it(order: str, tmp_path: Path) -> None:
    packets = whole().packets
    layers = ("ethernet", "linux_sll2")
    mixed = [framed(packet, layers[i % 2]) for i, packet in enumerate(packets)]
    decoder = agreed(pcapng(mixed, order=order), tmp_path)
    assert decoder.summary.fpdus == 2 * 19 + 1


def test_segments_out_of_order_are_read_as_tshark_reads_them(tmp_path: Path) -> None:
    talk = Talk(mss=500)
    every_operation(talk)
    packets = talk.packets
    for at in range(6, len(packets) - 1, 3):
        packets[at : at + 2] = packets[at : at + 2][::-1]
    _, fpdus = by_tshark_octets(pcap(packets), tmp_path)
    _, ours, decoder = by_us(pcap(packets))
    assert ours == fpdus
    assert decoder.summary.gaps == 0


def by_tshark_octets(octets: bytes, tmp_path: Path) -> tuple[list[Fields], list[Fields]]:
    path = tmp_path / "capture.pcap"
    path.write_bytes(octets)
    return by_tshark(path)


@pytest.mark.parametrize("name", ["ib_send_bw-mpa1", "ib_read_bw-crc"])
def test_connections_are_numbered_as_tshark_numbers_them(name: str, tmp_path: Path) -> None:
    path = tmp_path / "capture.pcap"
    path.write_bytes(capture_octets(name))
    listed = tshark.shown(path, "-T", "fields", "-e", "frame.number", "-e", "tcp.stream")
    theirs = dict(line.split("\t") for line in listed.splitlines())
    ours = list(Decoder().decode(read_capture(path)))
    assert {frame.link.stream for frame in ours} == {0, 1}
    assert all(theirs[str(frame.packet)] == str(frame.link.stream) for frame in ours)


def test_markers_are_read_as_tshark_reads_them(tmp_path: Path) -> None:
    """FPDUs of one segment and at most one marker: tshark takes the others for malformed."""
    talk = Talk(
        request=StartFrame(reply=False, crc=True, markers=True, revision=1),
        reply=StartFrame(reply=True, crc=True, markers=True, revision=1),
    )
    for end in (talk.client, talk.server):
        put, inserter = end.put, MarkerInserter(crc=True)
        end.put = lambda octets, put=put, inserter=inserter: put(inserter.insert(octets))  # type: ignore[misc]
    for size in range(0, 400, 7):
        talk.client.untagged(payload=bytes(size))
        talk.server.tagged(payload=b"\xff" * size, to=size)
    decoder = agreed(pcap(talk.packets), tmp_path)
    assert decoder.summary.bad == 0
    assert decoder.summary.crc["good"] == 2 * 58
