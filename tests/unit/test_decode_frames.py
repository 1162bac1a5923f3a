"""What each frame says, as a line and as an object, and what counts as bad."""

from __future__ import annotations

import json
import struct
from io import BytesIO

import pytest

from steertag.observe.capture import read_capture
from steertag.observe.decode import frame_object, summary_lines, summary_object
from steertag.rdma.markers import MarkerInserter
from steertag.wire import ddp, mpa, rdmap
from steertag.wire.rdmap import Opcode
from tests.decode_support import (
    IRD_ORD,
    Talk,
    decoded,
    every_operation,
    fpdus,
    immediates,
    lines,
    mpa_frames,
    notes,
)
from tests.wire.mpa_stream import capture_octets


def only_line(talk: Talk) -> str:
    """That of the one FPDU."""
    (shown,) = [line for line in lines(talk.packets) if "crc: " in line]
    return shown


def problems(talk: Talk) -> list[str]:
    frames, decoder = decoded(talk.packets)
    found = [problem for frame in fpdus(frames) for problem in frame.problems]
    assert decoder.summary.bad == sum(frame.bad for frame in frames)
    return found


# --- start-up frames ----------------------------------------------------------------------------


def start_lines(request: mpa.StartFrame, reply: mpa.StartFrame) -> list[str]:
    return [line for line in lines(Talk(request=request, reply=reply).packets) if "MPA" in line]


def test_start_up_frames_are_shown_with_revision_flags_numbers_and_rtr() -> None:
    offer = mpa.Enhanced(3, 0x3FFF, peer_to_peer=True, rtr_write=True, rtr_read=True)
    answer = mpa.Enhanced(2, 1, peer_to_peer=True, rtr_send=True)
    assert start_lines(
        mpa.StartFrame(
            reply=False, markers=True, crc=True, enhanced=True, private_data=offer.emit() + b"hello"
        ),
        mpa.StartFrame(reply=True, enhanced=True, private_data=answer.emit()),
    ) == [
        "MPA Request rev 2, markers, CRC, S, IRD 3, ORD not negotiated, peer-to-peer,"
        " RTR write|read, private data 5",
        "MPA Reply rev 2, S, IRD 2, ORD 1, peer-to-peer, RTR send, private data 0",
    ]


def test_a_rejection_in_revision_1_is_shown_and_is_not_bad() -> None:
    request = mpa.StartFrame(reply=False, revision=1, private_data=b"let me in")
    reply = mpa.StartFrame(reply=True, revision=1, reject=True, private_data=b"no")
    assert start_lines(request, reply) == [
        "MPA Request rev 1, private data 9",
        "MPA Reply rev 1, reject, private data 2",
    ]
    assert decoded(Talk(request=request, reply=reply).packets)[1].summary.bad == 0


def test_octets_behind_a_rejection_are_bad() -> None:
    talk = Talk(reply=mpa.StartFrame(reply=True, crc=True, reject=True))
    talk.client.untagged(payload=b"but I want to")
    frames, _ = decoded(talk.packets)
    assert [note.text for note in notes(frames) if note.bad] == ["octets behind a rejection"]


@pytest.mark.parametrize(
    ("request_frame", "reply", "problem"),
    [
        (mpa.StartFrame(reply=False, revision=3), None, "MPA revision 3"),
        (mpa.StartFrame(reply=False, reject=True), None, "a Request with the reject flag"),
        (mpa.StartFrame(reply=False, enhanced=True, private_data=b"abc"), None, "IRD and ORD"),
        (None, mpa.StartFrame(reply=False), "both ends sent a Request"),
        (mpa.StartFrame(reply=True), None, "both ends sent a Reply"),
    ],
)
def test_start_up_frames_that_break_the_rules_are_bad(
    request_frame: mpa.StartFrame | None, reply: mpa.StartFrame | None, problem: str
) -> None:
    frames, decoder = decoded(Talk(request=request_frame, reply=reply).packets)
    found = [text for frame in mpa_frames(frames) for text in frame.problems]
    assert len(found) == 1
    assert problem in found[0]
    assert decoder.summary.bad == 1


def test_private_data_beyond_the_limit_is_bad() -> None:
    talk = Talk(start=False)
    talk.client.put(mpa.KEY_REQUEST + struct.pack("!BBH", 0x40, 2, 513) + bytes(513))
    frames, _ = decoded(talk.packets)
    assert [note.text for note in notes(frames) if note.bad] == ["MPA private data of 513 octets"]


def test_an_answer_that_is_no_mpa_frame_is_bad() -> None:
    talk = Talk(start=False)
    talk.client.put(mpa.StartFrame(reply=False).emit())
    talk.server.put(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    frames, _ = decoded(talk.packets)
    (note,) = [note for note in notes(frames) if note.bad]
    assert "no MPA frame, but b'HTTP/1.1 400 Bad'" in note.text


# --- FPDUs --------------------------------------------------------------------------------------


def test_tagged_and_untagged_segments_are_shown() -> None:
    talk = Talk()
    talk.client.tagged(payload=b"abc", to=0x5000)
    assert only_line(talk) == "Write last, STag 0x00001234 TO 0x5000, 3 octets, crc: good"
    talk = Talk(crc=False)
    talk.client.untagged(Opcode.SEND_SE, b"abc", last=False)
    assert only_line(talk) == "Send with SE, QN 0 MSN 1 MO 0, 3 octets, crc: off"
    talk = Talk()
    talk.client.untagged(Opcode.SEND_SE_INVALIDATE, invalidate=0xABCD)
    assert only_line(talk) == (
        "Send with SE and Invalidate last, QN 0 MSN 1 MO 0, invalidates STag 0x0000abcd,"
        " 0 octets, crc: good"
    )


def test_a_read_request_is_shown_with_both_buffers() -> None:
    talk = Talk()
    talk.client.read_request(4096)
    assert only_line(talk) == (
        "Read Request last, QN 1 MSN 1 MO 0, 4096 octets, from STag 0x00004444 TO 0x5000,"
        " to STag 0x00000007 TO 0x100, crc: good"
    )


def test_the_operations_of_rfc_7306_are_shown() -> None:
    talk = Talk()
    immediates(talk)
    request = rdmap.AtomicRequest(rdmap.AtomicOpcode.CMP_SWAP, 9, 0x77, 0x7000, 1, 2, 3, 4)
    talk.client.untagged(Opcode.ATOMIC_REQUEST, request.emit())
    talk.server.untagged(Opcode.ATOMIC_RESPONSE, rdmap.AtomicResponse(9, 0x2A).emit())
    assert [line for line in lines(talk.packets) if "crc: " in line] == [
        "Immediate last, QN 0 MSN 1 MO 0, data 0000000100000002, crc: good",
        "Immediate with SE last, QN 0 MSN 2 MO 0, data 0000000300000004, crc: good",
        "Atomic Request last, QN 1 MSN 1 MO 0, CMP_SWAP, id 9, STag 0x00000077 TO 0x7000,"
        " add/swap 0x1 mask 0x2, compare 0x3 mask 0x4, crc: good",
        "Atomic Response last, QN 3 MSN 1 MO 0, id 9, was 0x2a, crc: good",
    ]
    assert problems(talk) == []


def test_terminates_are_shown_by_name_in_both_forms() -> None:
    quoted = ddp.Tagged(True, rdmap.control(Opcode.WRITE), 0x99, 0x800).emit()
    for swapped, form in ((False, "RFC form"), (True, "siw's form")):
        talk = Talk()
        talk.client.tagged(payload=b"abc", stag=0x99, to=0x800)
        terminate = rdmap.Terminate(0, 1, 0, 17, quoted, swapped=swapped)
        talk.server.untagged(Opcode.TERMINATE, terminate.emit())
        assert lines(talk.packets)[-1] == (
            "Terminate last, QN 2 MSN 1 MO 0, RDMAP remote protection error: invalid STag"
            f" (layer 0 type 1 code 0x00, {form}),"
            " about the segment of 17 octets Write STag 0x00000099 TO 0x800, crc: good"
        )


def test_a_bad_crc_is_bad_and_the_frame_is_shown_all_the_same() -> None:
    talk = Talk()
    octets = bytearray(b"".join(mpa.emit_fpdu([ddp.Tagged(True, 0x40, 1, 2).emit(), b"abc"])))
    octets[17] ^= 1
    talk.client.put(bytes(octets))
    talk.client.untagged(payload=b"fine")
    shown = lines(talk.packets)
    assert shown[-2] == "Write last, STag 0x00000001 TO 0x2, 3 octets, crc: bad"
    assert shown[-1].endswith("crc: good")
    _, decoder = decoded(talk.packets)
    assert decoder.summary.crc == {"good": 1, "bad": 1, "off": 0, "unknown": 0}
    assert decoder.summary.bad == 1


def raw(talk: Talk, first: int, second: int, rest: bytes = bytes(16)) -> Talk:
    talk.client.fpdu(bytes((first, second)), rest)
    return talk


@pytest.mark.parametrize(
    ("talk", "problem"),
    [
        (raw(Talk(), 0x42, 0x43), "DDP version 2 instead of 1"),
        (raw(Talk(), 0x41, 0x83), "RDMAP version 2 instead of 1"),
        (raw(Talk(), 0x41, 0x4C), "unknown RDMAP opcode 12"),
        (raw(Talk(), 0xC1, 0x43), "Send in a tagged segment"),
        (raw(Talk(), 0x41, 0x40), "Write in an untagged segment"),
        (raw(Talk(), 0x41, 0x43, bytes(15)), "a ULPDU of 17 octets is too short"),
        (raw(Talk(), 0x41, 0x41), "Read Request of 0 octets instead of 28"),
        (raw(Talk(), 0x01, 0x41, bytes(16 + 28)), "that is not the last segment"),
        (raw(Talk(), 0x41, 0x4A, bytes(16 + 3) + b"\x09" + bytes(48)), "atomic operation code 9"),
        (raw(Talk(), 0x41, 0x47, bytes(16 + 2)), "Terminate: too few octets"),
    ],
)
def test_headers_that_break_the_rules_are_bad(talk: Talk, problem: str) -> None:
    found = problems(talk)
    assert any(problem in text for text in found), found


def test_an_fpdu_without_headers_is_bad() -> None:
    for size in (0, 1):
        talk = Talk()
        talk.client.fpdu(bytes(size))
        assert problems(talk) == [f"a ULPDU of {size} octets has no DDP header"]


# --- order --------------------------------------------------------------------------------------


def test_untagged_messages_out_of_order_are_bad() -> None:
    talk = Talk()
    talk.client.untagged(msn=2)
    talk.client.untagged(msn=3, payload=b"abc", last=False)
    talk.client.untagged(msn=3, payload=b"abc", mo=4)
    talk.client.untagged(msn=4, qn=1)
    assert problems(talk) == [
        "MSN 2 instead of 1",
        "MO 4 instead of 3",
        "QN 1 instead of 0",
    ]


def test_a_message_that_changes_its_operation_is_bad() -> None:
    talk = Talk()
    talk.client.untagged(payload=b"abc", last=False)
    talk.client.untagged(Opcode.SEND_SE, payload=b"abc", mo=3)
    assert problems(talk) == ["goes on with a message that began as Send"]


def test_a_tagged_message_that_another_interrupts_is_bad() -> None:
    talk = Talk()
    talk.client.tagged(payload=bytes(10), to=0x100, last=False)
    talk.client.untagged(payload=b"between them is fine")
    talk.client.tagged(payload=bytes(10), to=0x200)
    assert problems(talk) == ["Write to STag 0x00001234 TO 0x10a was to go on first"]


@pytest.mark.parametrize(
    ("payload", "stag", "to", "problem"),
    [
        (bytes(99), 7, 0x100, "99 octets instead of the 100 asked for"),
        (bytes(101), 7, 0x100, "101 octets instead of the 100 asked for"),
        (bytes(100), 8, 0x100, "the Read Request asked for STag 0x00000007 TO 0x100"),
        (bytes(100), 7, 0x101, "the Read Request asked for STag 0x00000007 TO 0x100"),
    ],
)
def test_a_read_response_that_is_not_what_was_asked_for_is_bad(
    payload: bytes, stag: int, to: int, problem: str
) -> None:
    talk = Talk()
    talk.client.read_request(100)
    talk.server.read_response(payload, stag=stag, to=to)
    assert problems(talk) == [problem]


def test_a_read_response_that_nobody_asked_for_is_bad() -> None:
    talk = Talk()
    talk.client.untagged()
    talk.server.read_response(b"here you are")
    assert problems(talk) == ["no Read Request asked for it"]


def test_frames_behind_a_terminate_are_bad() -> None:
    talk = Talk()
    talk.client.untagged(Opcode.TERMINATE, rdmap.Terminate(0, 2, 6).emit())
    talk.client.untagged(payload=b"and another thing")
    assert problems(talk) == ["follows a Terminate"]


def test_a_responder_that_sends_first_is_bad() -> None:
    talk = Talk()
    talk.server.untagged(payload=b"welcome")
    talk.client.untagged(payload=b"hello")
    assert problems(talk) == ["the responder sends before the initiator's first FPDU"]


def test_nonsense_where_fpdus_should_be_is_told_once_and_left_when_frames_are_found_again() -> None:
    talk = Talk(crc=False)
    talk.client.untagged(payload=b"before")
    talk.client.put(b"\0\x20nonsense" * 400)
    for _ in range(5):
        talk.client.untagged(payload=b"behind")
    frames, _ = decoded(talk.packets)
    texts = [note.text for note in notes(frames) if note.bad]
    assert texts == ["the boundaries of FPDUs are lost"]
    assert [frame.msn for frame in fpdus(frames) if frame.opcode is not None] == [1, 2, 3, 4, 5, 6]


# --- markers ------------------------------------------------------------------------------------


def marked_talk(*, crc: bool = True, damage: bytes = b"") -> Talk:
    """Markers in both directions, put in by the RNIC's own code, over every operation."""
    talk = Talk(
        request=mpa.StartFrame(
            reply=False, crc=crc, markers=True, enhanced=True, private_data=IRD_ORD
        ),
        reply=mpa.StartFrame(
            reply=True, crc=crc, markers=True, enhanced=True, private_data=IRD_ORD
        ),
        crc=crc,
    )
    for end in (talk.client, talk.server):
        inserter, put = MarkerInserter(crc), end.put

        def marked(octets: bytes, inserter: MarkerInserter = inserter, put: object = put) -> None:
            assert callable(put)
            put(inserter.insert(octets).replace(damage, b"\0" * len(damage)))

        end.put = marked
    return talk


def without_markers(frames: list[dict[str, object]]) -> list[dict[str, object]]:
    for frame in frames:
        for key in ("markers", "time", "epoch", "packet"):
            frame.pop(key, None)
    return [frame for frame in frames if frame["type"] == "fpdu"]


@pytest.mark.parametrize("crc", [True, False])
def test_a_connection_with_markers_is_decoded_like_one_without(crc: bool) -> None:
    marked, plain = marked_talk(crc=crc), Talk(crc=crc)
    for talk in (marked, plain):
        every_operation(talk)
        talk.client.tagged(payload=bytes(range(250)) * 200)
    frames, decoder = decoded(marked.packets)
    assert without_markers([frame_object(frame, 0) for frame in frames]) == without_markers(
        [frame_object(frame, 0) for frame in decoded(plain.packets)[0]]
    )
    assert decoder.summary.bad == 0
    assert sum(frame.markers for frame in fpdus(frames)) > 100


def test_a_marker_with_a_wrong_pointer_is_bad() -> None:
    talk = marked_talk(crc=False, damage=b"\x01\xfc")  # 508: the second marker's FPDUPTR
    talk.client.tagged(payload=b"\xff" * 1000)
    assert problems(talk) == ["a marker's FPDUPTR is 0 instead of 508"]


def test_frames_are_found_again_behind_a_gap_between_markers() -> None:
    talk = marked_talk()
    for number in range(40):
        talk.client.tagged(payload=bytes(range(200)) * 5, to=number * 1000)
    packets = talk.packets
    whole = fpdus(decoded(packets)[0])
    del packets[10:12]
    frames, decoder = decoded(packets)
    found = fpdus(frames)
    assert [frame.to for frame in found[-30:]] == [frame.to for frame in whole[-30:]]
    assert {frame.crc for frame in found} == {"good"}
    assert decoder.summary.gaps == 1


# --- objects ------------------------------------------------------------------------------------


def test_objects_say_all_that_lines_say() -> None:
    talk = Talk()
    every_operation(talk)
    immediates(talk)
    talk.server.untagged(Opcode.TERMINATE, rdmap.Terminate(2, 0, 2, swapped=True).emit())
    frames, decoder = decoded(talk.packets)
    objects = [json.loads(json.dumps(frame_object(frame, 0))) for frame in frames]
    assert {found["type"] for found in objects} == {"stream", "mpa_request", "mpa_reply", "fpdu"}
    common = {"packet", "time", "epoch", "stream", "src", "srcport", "dst", "dstport", "bad"}
    assert all(common <= set(found) for found in objects)
    by_opcode = {found["opcode"]: found for found in objects if found["type"] == "fpdu"}
    assert set(by_opcode) == set(range(12))
    assert by_opcode[1]["read_request"] == {
        "sink_stag": 7,
        "sink_to": 0x100,
        "size": 0,
        "source_stag": 0x4444,
        "source_to": 0x5000,
    }
    assert by_opcode[4]["invalidate_stag"] == 0xDEADBEEF
    assert by_opcode[8]["immediate"] == "0000000100000002"
    assert by_opcode[10]["atomic_request"]["operation"] == "CMP_SWAP"
    assert by_opcode[11]["atomic_response"] == {"identifier": 9, "value": 42}
    assert by_opcode[7]["terminate"] == {
        "layer": 2,
        "etype": 0,
        "code": 2,
        "name": "MPA error: CRC error",
        "form": "siw",
        "segment_length": None,
        "ddp_header": "",
        "rdma_header": "",
    }
    summary = json.loads(json.dumps(summary_object(decoder.summary)))
    assert (summary["type"], summary["fpdus"], summary["bad"]) == ("summary", 2 * 19 + 3, 0)


def test_the_summary_names_what_was_passed_over() -> None:
    talk = Talk()
    packets = [packet._replace(linktype=147) for packet in talk.packets]
    _, decoder = decoded(packets)
    assert f"{len(packets)} packets of link type 147" in "\n".join(summary_lines(decoder.summary))


def test_siws_own_terminate_is_read() -> None:
    frames, decoder = decoded(read_capture(BytesIO(capture_octets("user-pyrping-badcrc"))))
    terminate = fpdus(frames)[-1].body
    assert isinstance(terminate, rdmap.Terminate)
    assert terminate.swapped
    assert decoder.summary.crc["bad"] == 1
