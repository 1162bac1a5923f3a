"""Frames as objects for `--json`: the keys are listed in docs/reference/cli.md and are stable."""

from __future__ import annotations

from typing import Any

from steertag.observe.decode.decoder import Summary
from steertag.observe.decode.frames import Body, FpduFrame, Frame, MpaFrame
from steertag.observe.decode.text import rtr_frames
from steertag.wire import mpa, rdmap
from steertag.wire.terminate_names import terminate_name


def frame_object(frame: Frame, start_ns: int) -> dict[str, Any]:
    """A frame; STags, offsets and lengths are numbers, octets are hexadecimal strings."""
    if isinstance(frame, MpaFrame):
        kind = "mpa_reply" if frame.start.reply else "mpa_request"
    elif isinstance(frame, FpduFrame):
        kind = "fpdu"
    else:
        kind = frame.kind
    link = frame.link
    found: dict[str, Any] = {
        "type": kind,
        "packet": frame.packet,
        "time": (frame.time_ns - start_ns) / 1e9,
        "epoch": frame.time_ns / 1e9,
        "stream": link.stream,
        "src": link.source.host,
        "srcport": link.source.port,
        "dst": link.sink.host,
        "dstport": link.sink.port,
        "bad": frame.bad,
    }
    if isinstance(frame, FpduFrame):
        found.update(_fpdu(frame))
    elif isinstance(frame, MpaFrame):
        found.update(_mpa(frame))
    else:
        found["text"] = frame.text
        if frame.missing:
            found["missing"] = frame.missing
    return found


def _mpa(frame: MpaFrame) -> dict[str, Any]:
    start = frame.start
    found: dict[str, Any] = {
        "revision": start.revision,
        "markers": start.markers,
        "crc": start.crc,
        "reject": start.reject,
        "enhanced": start.enhanced,
    }
    private = start.private_data
    if frame.enhanced is not None:
        private = private[mpa.ENHANCED_LEN :]
        found["ird"] = frame.enhanced.ird
        found["ord"] = frame.enhanced.ord
        found["peer_to_peer"] = frame.enhanced.peer_to_peer
        found["rtr"] = rtr_frames(frame.enhanced)
    found["private_data_length"] = len(private)
    found["private_data"] = private.hex()
    found["problems"] = frame.problems
    return found


def _fpdu(frame: FpduFrame) -> dict[str, Any]:
    found: dict[str, Any] = {
        "ulpdu_length": frame.ulpdu_length,
        "crc": frame.crc,
        "markers": frame.markers,
        "missing": frame.missing,
        "problems": frame.problems,
        "opcode": frame.opcode,
    }
    if frame.opcode is None:
        return found
    found["operation"] = frame.name
    found["last"] = frame.last
    if frame.tagged:
        found["stag"], found["to"] = frame.stag, frame.to
    else:
        found["qn"], found["msn"], found["mo"] = frame.qn, frame.msn, frame.mo
    found["payload_length"] = frame.payload_length
    if frame.opcode in (rdmap.Opcode.SEND_INVALIDATE, rdmap.Opcode.SEND_SE_INVALIDATE):
        found["invalidate_stag"] = frame.invalidate
    if frame.body is not None:
        found.update(_body(frame.body))
    return found


def _body(body: Body) -> dict[str, Any]:
    match body:
        case rdmap.ReadRequest():
            return {
                "read_request": {
                    "sink_stag": body.sink_stag,
                    "sink_to": body.sink_to,
                    "size": body.size,
                    "source_stag": body.source_stag,
                    "source_to": body.source_to,
                }
            }
        case rdmap.Terminate():
            return {"terminate": _terminate(body)}
        case rdmap.AtomicRequest():
            return {
                "atomic_request": {
                    "operation": body.opcode.name,
                    "identifier": body.identifier,
                    "stag": body.stag,
                    "to": body.to,
                    "swap_data": body.swap_data,
                    "swap_mask": body.swap_mask,
                    "compare_data": body.compare_data,
                    "compare_mask": body.compare_mask,
                }
            }
        case rdmap.AtomicResponse():
            return {"atomic_response": {"identifier": body.identifier, "value": body.value}}
        case _:
            return {"immediate": body.hex()}


def _terminate(body: rdmap.Terminate) -> dict[str, Any]:
    return {
        "layer": body.layer,
        "etype": body.etype,
        "code": body.code,
        "name": terminate_name(body.layer, body.etype, body.code),
        "form": "siw" if body.swapped else "rfc",
        "segment_length": body.segment_length,
        "ddp_header": body.ddp_header.hex(),
        "rdma_header": body.rdma_header.hex(),
    }


def summary_object(summary: Summary) -> dict[str, Any]:
    return {
        "type": "summary",
        "packets": summary.packets,
        "tcp_streams": summary.tcp_streams,
        "iwarp_streams": summary.iwarp_streams,
        "mpa_frames": summary.mpa_frames,
        "fpdus": summary.fpdus,
        "crc": summary.crc,
        "gaps": summary.gaps,
        "missing": summary.missing,
        "bad": summary.bad,
        "truncated_packets": summary.truncated_packets,
        "fragments": summary.fragments,
        "unknown_linktypes": summary.unknown_linktypes,
    }
