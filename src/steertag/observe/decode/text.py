"""Frames as lines for people."""

from __future__ import annotations

from steertag.observe.decode.decoder import Summary
from steertag.observe.decode.frames import STREAM, Body, FpduFrame, Frame, MpaFrame, operation_name
from steertag.wire import ddp, mpa, rdmap
from steertag.wire.terminate_names import terminate_name

NO_NUMBER = mpa.MAX_IRD_ORD


def line(frame: Frame, start_ns: int) -> str:
    """One line: packet, seconds since `start_ns`, stream, ports, and what it is."""
    link = frame.link
    head = (
        f"{frame.packet:>6} {(frame.time_ns - start_ns) / 1e9:>12.6f} "
        f"#{link.stream} {link.source.port} > {link.sink.port}  "
    )
    if isinstance(frame, FpduFrame):
        return head + _fpdu(frame) + _problems(frame.problems)
    if isinstance(frame, MpaFrame):
        return head + _mpa(frame) + _problems(frame.problems)
    if frame.kind == STREAM:
        text = f"iWARP, {_address(link.source)} > {_address(link.sink)}"
        return f"{head}{text}{f'; {frame.text}' if frame.text else ''}"
    return f"{head}{'BAD: ' if frame.bad else 'note: '}{frame.text}"


def _address(end: tuple[str, int]) -> str:
    host, port = end
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _problems(problems: list[str]) -> str:
    return f"  BAD: {'; '.join(problems)}" if problems else ""


def _mpa(frame: MpaFrame) -> str:
    start = frame.start
    words = [f"MPA {'Reply' if start.reply else 'Request'} rev {start.revision}"]
    flags = (
        (start.markers, "markers"),
        (start.crc, "CRC"),
        (start.reject, "reject"),
        (start.enhanced, "S"),
    )
    words += [name for on, name in flags if on]
    private = len(start.private_data)
    if frame.enhanced is not None:
        private -= mpa.ENHANCED_LEN
        words += [f"IRD {_number(frame.enhanced.ird)}", f"ORD {_number(frame.enhanced.ord)}"]
        if frame.enhanced.peer_to_peer:
            words.append("peer-to-peer")
        rtr = rtr_frames(frame.enhanced)
        if rtr:
            words.append("RTR " + "|".join(rtr))
    words.append(f"private data {private}")
    return ", ".join(words)


def _number(value: int) -> str:
    return "not negotiated" if value == NO_NUMBER else str(value)


def rtr_frames(enhanced: mpa.Enhanced) -> list[str]:
    """The ready-to-receive frames that are offered or chosen: send, write, read."""
    flags = (
        (enhanced.rtr_send, "send"),
        (enhanced.rtr_write, "write"),
        (enhanced.rtr_read, "read"),
    )
    return [name for on, name in flags if on]


def _fpdu(frame: FpduFrame) -> str:
    if frame.opcode is None:
        where = ", its header is missing" if frame.missing else ""
        return f"FPDU of {frame.ulpdu_length} octets{where}, crc: {frame.crc}"
    words = [frame.name + (" last" if frame.last else "")]
    if frame.tagged:
        words.append(f"STag {frame.stag:#010x} TO {frame.to:#x}")
    else:
        words.append(f"QN {frame.qn} MSN {frame.msn} MO {frame.mo}")
    if frame.opcode in (rdmap.Opcode.SEND_INVALIDATE, rdmap.Opcode.SEND_SE_INVALIDATE):
        words.append(f"invalidates STag {frame.invalidate:#010x}")
    if frame.body is None:
        words.append(f"{frame.payload_length} octets")
    else:
        words += _body(frame.body)
    if frame.markers:
        words.append(f"{frame.markers} marker{'s' if frame.markers > 1 else ''}")
    if frame.missing:
        words.append("octets missing")
    words.append(f"crc: {frame.crc}")
    return ", ".join(words)


def _body(body: Body) -> list[str]:
    match body:
        case rdmap.ReadRequest():
            return [
                f"{body.size} octets",
                f"from STag {body.source_stag:#010x} TO {body.source_to:#x}",
                f"to STag {body.sink_stag:#010x} TO {body.sink_to:#x}",
            ]
        case rdmap.Terminate():
            return _terminate(body)
        case rdmap.AtomicRequest():
            return [
                body.opcode.name,
                f"id {body.identifier}",
                f"STag {body.stag:#010x} TO {body.to:#x}",
                f"add/swap {body.swap_data:#x} mask {body.swap_mask:#x}",
                f"compare {body.compare_data:#x} mask {body.compare_mask:#x}",
            ]
        case rdmap.AtomicResponse():
            return [f"id {body.identifier}", f"was {body.value:#x}"]
        case _:
            return [f"data {body.hex()}"]


def _terminate(body: rdmap.Terminate) -> list[str]:
    numbers = f"layer {body.layer} type {body.etype} code {body.code:#04x}"
    form = "siw's form" if body.swapped else "RFC form"
    words = [f"{terminate_name(body.layer, body.etype, body.code)} ({numbers}, {form})"]
    if body.ddp_header:
        length = "" if body.segment_length is None else f" of {body.segment_length} octets"
        words.append(f"about the segment{length} {_header(body.ddp_header)}")
    return words


def _header(octets: bytes) -> str:
    """A DDP header that a Terminate quotes: 14 or 18 octets, whatever they hold."""
    name = operation_name(octets[1] & rdmap.OPCODE_MASK)
    if octets[0] & ddp.T_FLAG:
        stag, to = (int.from_bytes(octets[a:b], "big") for a, b in ((2, 6), (6, 14)))
        return f"{name} STag {stag:#010x} TO {to:#x}"
    qn, msn, mo = (int.from_bytes(octets[a : a + 4], "big") for a in (6, 10, 14))
    return f"{name} QN {qn} MSN {msn} MO {mo}"


def summary_lines(summary: Summary) -> list[str]:
    """The figures at the end; the last line says whether anything was bad."""
    lines = [
        f"{summary.packets} packets, {summary.tcp_streams} TCP connections,"
        f" {summary.iwarp_streams} of them iWARP:"
        f" {summary.mpa_frames} MPA frames, {summary.fpdus} FPDUs",
        "crc: " + ", ".join(f"{verdict} {count}" for verdict, count in summary.crc.items()),
    ]
    if summary.gaps:
        lines.append(f"gaps: {summary.gaps}, {summary.missing} octets")
    if summary.truncated_packets:
        lines.append(f"{summary.truncated_packets} packets were cut by the snap length")
    if summary.fragments:
        lines.append(
            f"{summary.fragments} IP fragments were passed over: fragments are not put together"
        )
    lines += [
        f"{count} packets of link type {linktype} were passed over: it isn't known here"
        for linktype, count in summary.unknown_linktypes.items()
    ]
    lines.append(f"bad: {summary.bad}")
    return lines
